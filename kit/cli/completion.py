"""`n4090-kit completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click

NAME, VARIABLE = "n4090-kit", "_N4090_KIT_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For bash, one line installs it: n4090-kit completion bash >> ~/.bashrc; for zsh the same with
    ~/.zshrc; for fish: n4090-kit completion fish > ~/.config/fish/completions/n4090-kit.fish
    """
    from click.shell_completion import get_completion_class

    from kit.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    # Not `source()`, which asks the bash of this machine for its version.
    click.echo(found.source_template % found(cli, {}, NAME, VARIABLE).source_vars())
