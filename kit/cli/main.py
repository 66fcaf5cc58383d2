"""The command line: a group that loads a command's module only when the command is named.

Commands that belong to a trainer come in through the entry-point group n4090_kit.commands. This is
the one place that turns an error into a message and an exit code.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import click

import kit
from kit.errors import KitError

# Command -> where it lives, and the line that --help shows without loading it.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("kit.cli.run:run", "Run a recipe to a signed result."),
    "launch": ("kit.cli.launch:launch", "Run a command in the pinned container."),
    "prepare": ("kit.cli.prepare:prepare", "Fetch what a recipe reads, off the clock."),
    "verify": ("kit.cli.verify:verify", "Check a result: signature, log, clocks, scores, files."),
    "explain": ("kit.cli.verify:explain", "Say what a check protects against."),
    "recipes": ("kit.cli.recipes:recipes", "List recipes, or show one resolved."),
    "doctor": ("kit.cli.doctor:doctor", "Say what this machine can run and what is missing."),
    "eval": ("kit.cli.eval:evaluate", "Score any model: CORE, bits per byte, comparisons."),
    "keys": ("kit.cli.keys:keys", "Make, show and revoke signing keys."),
    "fingerprint": ("kit.cli.fingerprint:fingerprint", "Measure this machine."),
    "export": ("kit.cli.export:export", "Write a result as DSSE, MLPerf log or model index."),
    "canon": ("kit.cli.verify:canon", "Print the signed bytes of a result."),
}


class LazyGroup(click.Group):
    """A group whose `--help` imports no command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(entry.name for entry in _trainer_commands())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            return _command(getattr(import_module(module), attribute))
        for entry in _trainer_commands():
            if entry.name == name:
                return _command(entry.load())
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        trainer = [(entry.name, _short_help(entry)) for entry in _trainer_commands()]
        if trainer:
            with formatter.section("Commands of the trainer"):
                formatter.write_dl(trainer)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            ctx.fail(f"no such command `{name}`.{hint}")
        return super().resolve_command(ctx, args)


def _trainer_commands() -> Any:
    return entry_points(group="n4090_kit.commands")


def _command(value: Any) -> click.Command:
    assert isinstance(value, click.Command)
    return value


def _short_help(entry: Any) -> str:
    return _command(entry.load()).get_short_help_str(limit=70)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done or verified, 1 refused or failed, 2 wrong usage or unreadable "
    "input, 3 inconclusive or something missing.",
)
@click.version_option(kit.__version__, "-V", "--version", prog_name="n4090-kit")
def cli() -> None:
    """How good a language model can one person train on one RTX 4090 in one day?

    Start with: n4090-kit run --recipe smoke
    """


def main() -> None:
    """Entry point of `n4090-kit`."""
    try:
        cli(prog_name="n4090-kit")
    except KitError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)


def print_error(error: KitError) -> None:
    """Says what is wrong, the facts, and what to do, on stderr."""
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(error.message, err=True)
    width = max((len(name) for name in error.facts), default=0)
    for name, value in error.facts.items():
        click.echo(f"  {name + ':':<{width + 1}} {value}", err=True)
    if error.hint:
        click.echo(f"\nhint: {error.hint}", err=True)


if __name__ == "__main__":
    main()
