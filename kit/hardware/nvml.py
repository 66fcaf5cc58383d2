"""NVIDIA's management library, read one fact at a time: a value, or null with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from kit.errors import PrerequisiteError

_UUID_SALT = b"n4090-gpu-v1:"  # a UUID has 122 random bits: nobody finds it by trying


def uuid_hash(uuid: str) -> str:
    """The published form of a GPU's UUID: tells cards apart, leads back to none."""
    return "sha256:" + hashlib.sha256(_UUID_SALT + uuid.encode()).hexdigest()


class Nvml:
    """An open library. Every read gives None when the card or driver does not answer it.

    Attributes:
        reasons: Why the last read of a name gave None.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self.reasons: dict[str, str] = {}
        library.nvmlInit()

    def close(self) -> None:
        self._library.nvmlShutdown()

    def handles(self) -> list[Any]:
        count = self._library.nvmlDeviceGetCount()
        return [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def constant(self, name: str) -> Any:
        return getattr(self._library, name)

    def read(self, key: str, function: str, *arguments: Any) -> Any:
        """What `function` answers; None, and `reasons[key]`, when it does not."""
        return self.attempt(key, lambda: getattr(self._library, function)(*arguments))

    def attempt(self, key: str, read: Callable[[], Any]) -> Any:
        try:
            value = read()
        except (self._library.NVMLError, AttributeError, TypeError) as error:
            self.reasons[key] = str(error) or type(error).__name__
            return None
        self.reasons.pop(key, None)
        return value.decode() if isinstance(value, bytes) else value


def open_nvml() -> Nvml:
    """The machine's NVML.

    Raises:
        PrerequisiteError: The Python package, the library or the driver is missing.
    """
    try:
        import pynvml
    except ImportError:
        raise PrerequisiteError(
            "nvidia-ml-py is not installed", hint="in the checkout: pip install '.[train]'"
        ) from None
    try:
        return Nvml(pynvml)
    except pynvml.NVMLError as error:
        raise PrerequisiteError(
            f"no NVIDIA driver answers: {error}",
            hint="in a container, start it with `--gpus` and NVIDIA_DRIVER_CAPABILITIES=utility",
        ) from None
