"""One error for all that the trainer can explain; the stage runner reports it as an event."""

from __future__ import annotations

from typing import Literal

Kind = Literal[
    "bad_input", "bad_snapshot", "nan_loss", "out_of_memory", "disk_full", "deadline", "internal"
]


class TrainerError(Exception):
    """An expected failure of a stage.

    Args:
        kind: The class of failure; it becomes the reason in the signed result.
        message: What is wrong, naming the file where there is one.
        hint: What to do about it.
    """

    exit_code = 2

    def __init__(self, kind: Kind, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.kind, self.message, self.hint)  # whole across processes


class PrerequisiteError(TrainerError):
    """Something this machine lacks: no input would make it right."""

    exit_code = 3
