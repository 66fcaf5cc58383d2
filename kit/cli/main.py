"""The command line: which command lives where.

Commands that belong to a trainer come in through the entry-point group n4090_kit.commands. This is
the one place that turns an error into a message and an exit code.
"""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import click

import kit
from kit.cli.crash import as_kit_error, tolerant_streams
from kit.cli.extras import missing_package
from kit.cli.invocation import runnable
from kit.cli.lazy import LazyGroup
from kit.errors import KitError, PrerequisiteError
from kit.files import DISK_FULL, NOT_ALLOWED
from kit.text import block, plain

# Paths that lead nowhere, or that no file system can hold.
_ODD_PATHS = (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENXIO)
MAX_SHOWN = 20_000  # characters of one message: it may quote a file

# Command -> where it lives, and the line that --help shows without loading it.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("kit.cli.run:run", "Run a recipe to a signed result."),
    "register": ("kit.cli.register:register", "Announce a group of runs before the first."),
    "launch": ("kit.cli.launch:launch", "Run a command in the pinned container."),
    "prepare": ("kit.cli.prepare:prepare", "Fetch what a recipe reads, off the clock."),
    "watch": ("kit.cli.track:watch", "Watch a run: a live view, or a page."),
    "track": ("kit.cli.track:track", "Give a run's numbers to a tracker."),
    "verify": ("kit.cli.verify:verify", "Check a result: signature, log, clocks, scores, files."),
    "explain": ("kit.cli.verify:explain", "Say what a check protects against."),
    "recipes": ("kit.cli.recipes:recipes", "List recipes, or show one resolved."),
    "doctor": ("kit.cli.doctor:doctor", "Say what this machine can run and what is missing."),
    "eval": ("kit.cli.eval:evaluate", "Score any model: CORE, bits per byte, comparisons."),
    "bench": ("kit.cli.bench:bench", "Measure speed on this machine."),
    "submit": ("kit.cli.submit:submit", "Submit a verified result to the leaderboard."),
    "reproduce": ("kit.cli.reproduce:reproduce", "Run a row again, and sign how it compares."),
    "board": ("kit.cli.board:board", "The leaderboard: judge, derive, state doubts."),
    "keys": ("kit.cli.keys:keys", "Make, show and revoke signing keys."),
    "fingerprint": ("kit.cli.fingerprint:fingerprint", "Measure this machine."),
    "export": ("kit.cli.export:export", "Write a model or a result for other programs."),
    "completion": ("kit.cli.completion:completion", "Print the completion script of a shell."),
    "canon": ("kit.cli.verify:canon", "Print the signed bytes of a result."),
}


@click.group(
    cls=LazyGroup,
    commands_table=COMMANDS,
    plugins="n4090_kit.commands",
    plugins_title="Commands of the trainer",
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
    """Entry point of `n4090-kit`: whatever happens, one message and an exit code."""
    tolerant_streams()
    try:
        cli(prog_name="n4090-kit")
    except KitError as error:
        end(error)
    except ModuleNotFoundError as error:
        lacking = missing_package(error, sys.argv[1] if len(sys.argv) > 1 else "")
        end(lacking or as_kit_error(error))
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        end(_in_words(error) or as_kit_error(error))
    except Exception as error:
        end(as_kit_error(error))


def end(error: KitError) -> NoReturn:
    """Prints the error and leaves with its exit code."""
    print_error(error)
    sys.exit(error.exit_code)


def _in_words(error: OSError) -> PrerequisiteError | None:
    """What the machine, not the kit, is to blame for; None for all else."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PrerequisiteError(
            "too many open files", hint="Raise the limit: ulimit -n 4096 (or ask who set it)."
        )
    if error.errno in DISK_FULL:
        return PrerequisiteError(
            "the disk is full",
            hint="Free some space and run the command again; a run resumes with "
            "`n4090-kit run --resume`.",
        )
    if error.filename is not None and error.errno in (*NOT_ALLOWED, *_ODD_PATHS):
        return PrerequisiteError(
            f"{error.filename}: {error.strerror}",
            hint="Name another place, or give this user the right to it.",
        )
    return None


def print_error(error: KitError) -> None:
    """Says what is wrong, the facts, and what to do, on stderr."""
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(block(error.message, MAX_SHOWN), err=True)
    width = max((len(name) for name in error.facts), default=0)
    for name, value in error.facts.items():
        click.echo(f"  {name + ':':<{width + 1}} {plain(value, MAX_SHOWN)}", err=True)
    if error.hint:
        click.echo(f"\nhint: {runnable(block(error.hint, MAX_SHOWN))}", err=True)


if __name__ == "__main__":
    main()
