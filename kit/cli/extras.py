"""Which extra brings a package that is missing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

from kit.errors import PrerequisiteError

_PROJECT = "n4090-kit"
# Modules whose distribution has another name.
_DISTRIBUTIONS = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
# The extra that a command is meant to run with; commands of the trainer say it themselves.
_BY_COMMAND = {
    "eval": "eval",
    "submit": "board",
    "board": "board",
    "reproduce": "board",
    "launch": "container",
}
_EXTRA = re.compile(r"""extra == ['"]([\w-]+)['"]""")


def missing_package(error: ModuleNotFoundError, command: str) -> PrerequisiteError | None:
    """The error in one line with its remedy; None for a module of this project.

    Args:
        command: The first word of the command line.
    """
    module = (error.name or "").partition(".")[0]
    if not module or module in ("kit", "reference"):
        return None
    package = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    extras = _extras_of(package)
    preferred = _BY_COMMAND.get(command, "train")
    extra = preferred if preferred in extras or not extras else extras[0]
    return PrerequisiteError(
        f"package {package} is missing", hint=f"in the checkout: pip install '.[{extra}]'"
    )


def _extras_of(package: str) -> list[str]:
    try:
        lines = requires(_PROJECT) or []
    except PackageNotFoundError:
        return []
    named = [
        line for line in lines if re.match(rf"{re.escape(package)}\b(?!-)", line, re.IGNORECASE)
    ]
    return [match[1] for line in named if (match := _EXTRA.search(line))]
