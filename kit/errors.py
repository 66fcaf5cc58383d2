"""The kit's errors. Each says what is wrong and what to do; `cli.main` alone prints them.

KitError
├── PrerequisiteError   something this machine, folder or account lacks        exit 3
├── SchemaError         input that cannot be read or does not fit its schema   exit 2
├── SignatureError      a signature or key that cannot be used                 exit 1
└── LaunchError         a container that could not be started                  exit 3
"""

from __future__ import annotations

from typing import Any


class KitError(Exception):
    """An expected failure.

    Args:
        message: What is wrong, in one sentence.
        hint: What to do about it.
        facts: The values behind the message, shown as `name: value` lines.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts


class PrerequisiteError(KitError):
    exit_code = 3


class SchemaError(KitError):
    exit_code = 2


class SignatureError(KitError):
    exit_code = 1


class LaunchError(KitError):
    exit_code = 3
