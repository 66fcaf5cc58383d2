"""How a command of the trainer fails: one message, what to do about it, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from reference.errors import TrainerError


@contextmanager
def explained(extras: str = "train") -> Iterator[None]:
    """Turns an expected failure into a message on stderr and the kit's exit codes.

    Serves as a decorator of a command, too.

    Args:
        extras: What a package that is missing belongs to, as in `pip install '.[train]'`.
    """
    try:
        yield
    except TrainerError as error:
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        click.echo(f"error: {error.message}{hint}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        click.echo(
            f"error: package {error.name} is missing\n\n"
            f"hint: in the checkout: pip install '.[{extras}]'",
            err=True,
        )
        sys.exit(3)
