"""One stage, one process: reads the request, does the stage, and says in one event what went wrong.

Exit codes: 0 done, 3 stopped on request (what is needed to go on has been saved), 1 failed.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from reference.errors import TrainerError
from reference.events import Events
from reference.request import Request

# Each module has `run(request, events)`; torch is only imported by those that need it.
STAGES = {
    "prepare": "reference.stories.prepare",
    "tokenizer": "reference.tokenizer.stage",
    "pretrain": "reference.train.pretrain",
    "sft": "reference.train.sft",
    "chat_eval": "reference.chat.evaluation",
    "replay": "reference.train.replay",
}
FAILED, STOPPED = 1, 3


class Stopped(Exception):
    """The stage was asked to stop and has saved what it needs to go on."""


class _StopFlag:
    """Set by SIGTERM or SIGINT; stages look at it between steps."""

    requested = False

    def request(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True


_stop = _StopFlag()


def stop_requested() -> bool:
    """Whether the supervisor has asked this process to save and stop."""
    return _stop.requested


def main(argv: list[str], reports: type[Events] = Events) -> int:
    """Does the stage whose request file is the only argument; returns the exit code."""
    if len(argv) != 1:
        print("usage: python -m reference REQUEST.json (started by `n4090-kit run`)")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop.request)
    events = reports.from_env()
    try:
        request = Request.load(Path(argv[0]))
        module = STAGES.get(request.stage)
        if module is None:
            raise TrainerError("bad_input", f"this trainer has no stage {request.stage!r}")
        import_module(module).run(request, events)
    except Stopped:
        return STOPPED
    except BaseException as error:
        failure = explain(error)
        if failure.kind == "internal":
            traceback.print_exc()
        else:
            print(f"{failure.message}\n{failure.hint}", file=sys.stderr)
        events.emit("error", kind=failure.kind, message=failure.message, hint=failure.hint)
        return FAILED
    return 0


def explain(error: BaseException) -> TrainerError:
    """What went wrong, in the kinds that a result can name."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return TrainerError(
            "out_of_memory",
            f"out of memory: {_first_line(error)}",
            "Halve device_batch_size in the recipe; total_batch_size, and so the result, can stay.",
        )
    if (full := _disk_full(error)) is not None:
        place = f" while writing {full.filename}" if full.filename else ""
        return TrainerError(
            "disk_full",
            f"the disk is full{place}",
            "Free some space, then `n4090-kit run --resume`; the last checkpoint is kept.",
        )
    return TrainerError(
        "internal",
        f"{type(error).__name__}: {_first_line(error)}",
        "The stage's output in the run folder's logs has the whole traceback.",
    )


def _disk_full(error: BaseException | None) -> OSError | None:
    """The refused write behind an error; libraries raise their own while they handle it."""
    for _ in range(10):
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if error is None:
            break
        error = error.__cause__ or error.__context__
    return None


def _is_torch_out_of_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
