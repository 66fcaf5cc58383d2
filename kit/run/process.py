"""One stage as a child process: started, listened to, held to its deadline, ended.

The child gets its own process group, dies with its supervisor, reports on one pipe and prints into
another. Nothing it does there can hurt: long or broken lines are dropped and counted, a closed pipe
only ends the listening, remarks past their limit are dropped, and a stage that reports more steps
than a log can hold is ended. When it ends, every process that it started ends too. `limits.py` has
the limits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kit.contract import (
    EVENTS_FD_VARIABLE,
    REMARKS,
    STOPPED_EXIT,
    Redactor,
    StageReport,
    parse_report,
    remaining_s,
)
from kit.errors import PrerequisiteError
from kit.events import Error
from kit.limits import (
    MAX_EVENT_BYTES_PER_STAGE,
    MAX_EVENTS_PER_STAGE,
    MAX_LINE_BYTES,
    MAX_REMARK_BYTES_PER_STAGE,
    MAX_REMARKS_PER_STAGE,
    MAX_TEXT,
)
from kit.run.descendants import adopt_orphans, end_descendants
from kit.run.printed import PrintedOutput
from kit.run.separation import TrainerUser
from kit.run.sockets import SocketWatch
from kit.timing import ClockSample

POLL_S = 0.25
KILL_AFTER_S = 30.0  # between SIGTERM and SIGKILL
_DRAIN_S = 5.0  # for what an ended stage left in its pipes
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotStarted(PrerequisiteError):
    """The stage's program cannot be started."""


@dataclass
class StageOutcome:
    """How a stage process ended. `reason` is None only for status "complete"."""

    status: str  # complete, stopped, failed
    exit_code: int
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    accepted: int = 0
    dropped: int = 0
    print_left_out_bytes: int = 0
    socket_looks: int = 0
    remote_sockets: int = 0


@dataclass
class StopFlag:
    """Set by Ctrl-C, SIGTERM or SIGHUP; a second request ends the stage without waiting."""

    count: int = 0
    signals: list[int] = field(default_factory=list)

    def request(self, signum: int, _frame: Any = None) -> None:
        self.count += 1
        self.signals.append(signum)

    def __bool__(self) -> bool:
        return self.count > 0


class LineBuffer:
    """Cuts a byte stream into lines; a line over the limit is dropped whole and counted."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.dropped = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if self._skipping and lines:
            lines, self._skipping = lines[1:], False
        if len(self._rest) > MAX_LINE_BYTES:
            self.dropped += 0 if self._skipping else 1
            self._rest, self._skipping = b"", True
        return lines


def run_stage(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: Path,
    deadline_ns: int,
    grace_s: float,
    redact: Redactor,
    stop: StopFlag,
    on_report: Callable[[StageReport], None],
    user: TrainerUser | None = None,
) -> StageOutcome:
    """Runs one stage to its end.

    Args:
        command: Program and arguments, the request's path last.
        output: File that takes what the process prints, up to a limit; the process starts in its
            folder.
        deadline_ns: CLOCK_BOOTTIME moment at which the stage must have ended.
        grace_s: Seconds past the deadline before it is asked to stop.
        on_report: Called for each accepted line, in order.
        user: Whom to run it as; None: the same user as this process.

    Raises:
        NotStarted: The program cannot be started.
        PrerequisiteError: A process that it started does not end.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    oom_kills = _oom_kills()
    with contextlib.ExitStack() as stack:
        printed = PrintedOutput(output)
        stack.callback(printed.close)
        existing = stack.enter_context(adopt_orphans())
        child, read_end, print_end = _start(command, environment, output.parent, user)
        listener = _Listener(read_end, print_end, child.pid, redact, on_report, printed)
        stack.callback(listener.close)
        sockets = SocketWatch(child.pid)
        try:
            ended_by = _attend(child, listener, deadline_ns, grace_s, stop, sockets)
        finally:
            _end_group(child)
            if user:
                user.end_processes()
            end_descendants(existing)
            listener.drain()
    outcome = _outcome(child.returncode, ended_by, listener, output, _oom_kills() - oom_kills)
    outcome.accepted, outcome.dropped = listener.accepted, listener.dropped
    outcome.socket_looks, outcome.remote_sockets = sockets.looks, sockets.remote
    outcome.print_left_out_bytes = printed.left_out_bytes
    if outcome.message is not None:
        outcome.message = str(redact(_plain(outcome.message)))
    return outcome


def _start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, user: TrainerUser | None
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The stage's process, and our ends of its pipes: reports, and what it prints."""
    read_end, write_end = os.pipe()
    print_end, printing = os.pipe()
    try:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=printing,
            stderr=subprocess.STDOUT,
            # `python -m` looks there first: not where a folder may be named like a package.
            cwd=folder,
            env={**environment, EVENTS_FD_VARIABLE: str(write_end)},
            pass_fds=(write_end,),
            start_new_session=True,
            preexec_fn=die_with_parent,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the command
        os.close(read_end)
        os.close(print_end)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotStarted(
            f"the trainer `{command[0]}` cannot be started: {reason}",
            hint="Check `trainer.command` in the recipe.",
        ) from error
    finally:
        os.close(write_end)
        os.close(printing)
    return child, read_end, print_end


class _Listener:
    """The supervisor's ends of the pipes, and its view of the child's end."""

    def __init__(
        self,
        descriptor: int,
        print_end: int,
        child: int,
        redact: Redactor,
        on_report: Callable[[StageReport], None],
        printed: PrintedOutput,
    ) -> None:
        os.set_blocking(descriptor, False)
        os.set_blocking(print_end, False)
        self._file: IO[bytes] | None = os.fdopen(descriptor, "rb", buffering=0)
        self._print_end: int | None = print_end
        self._printed = printed
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLIN)
        self._poll.register(print_end, select.POLLIN)
        self._exit: int | None = None
        self.child_runs = False  # True: it does, without asking
        # Wakes at the child's end. Where the kernel or a container forbids it, polling finds out.
        with contextlib.suppress(OSError, AttributeError):
            self._exit = os.pidfd_open(child)
            self._poll.register(self._exit, select.POLLIN)
            self.child_runs = True
        self._buffer = LineBuffer()
        self._redact = redact
        self._on_report = on_report
        self.error: Error | None = None
        self.accepted = 0
        self._refused = 0
        self._counts = {True: 0, False: 0}  # accepted, by whether they are remarks
        self._bytes = {True: 0, False: 0}
        self.flooded = False  # more reports that matter than a stage may make

    @property
    def dropped(self) -> int:
        return self._refused + self._buffer.dropped

    def wait(self, timeout_s: float) -> None:
        """Takes in what has come, waiting at most `timeout_s`, or until the child has ended."""
        for descriptor, _ in self._poll.poll(timeout_s * 1000):
            if descriptor == self._exit:
                self.child_runs = False
            elif descriptor == self._print_end:
                self._read_printed()
            else:
                self._read()

    @property
    def deaf(self) -> bool:
        """Whether nothing wakes it: every writer has closed the pipes, and it sees no child."""
        return self._file is None and self._print_end is None and self._exit is None

    def drain(self) -> None:
        """Reads everything that is left in the pipes; nobody should be writing there any more."""
        give_up = time.monotonic() + _DRAIN_S
        while self._file is not None and self._read() and time.monotonic() < give_up:
            pass
        while self._read_printed() and time.monotonic() < give_up:
            pass

    def close(self) -> None:
        self._close_pipe()
        self._close_printed()
        if self._exit is not None:
            os.close(self._exit)
            self._exit = None

    def _read_printed(self) -> bool:
        if self._print_end is None:
            return False
        try:
            chunk = os.read(self._print_end, 1 << 16)
        except BlockingIOError:  # nothing there now
            return False
        if chunk:
            self._printed.feed(chunk)
        else:
            self._close_printed()
        return bool(chunk)

    def _close_printed(self) -> None:
        if self._print_end is not None:
            self._poll.unregister(self._print_end)
            os.close(self._print_end)
            self._print_end = None

    def _close_pipe(self) -> None:
        if self._file is not None:
            self._poll.unregister(self._file)
            self._file.close()
            self._file = None

    def _read(self) -> bool:
        assert self._file is not None
        chunk = self._file.read(1 << 16)
        if chunk is None:  # nothing there now
            return False
        if not chunk:  # every writer has closed
            self._close_pipe()
            return False
        for line in self._buffer.feed(chunk):
            self._take(line, ClockSample.now())
        return True

    def _take(self, line: bytes, at: ClockSample) -> None:
        if not line.strip():
            return
        report = None if self.flooded else parse_report(line, self._redact, at)
        if report is None or not self._has_room(report, len(line)):
            self._refused += 1
            return
        self.accepted += 1
        if isinstance(report.data, Error):
            self.error = report.data
        self._on_report(report)

    def _has_room(self, report: StageReport, size: int) -> bool:
        """Whether the stage may still report this; counts it when it may."""
        remark = report.ev in REMARKS
        most, most_bytes = (
            (MAX_REMARKS_PER_STAGE, MAX_REMARK_BYTES_PER_STAGE)
            if remark
            else (MAX_EVENTS_PER_STAGE, MAX_EVENT_BYTES_PER_STAGE)
        )
        if self._counts[remark] >= most or self._bytes[remark] + size > most_bytes:
            self.flooded |= not remark
            return False
        self._counts[remark] += 1
        self._bytes[remark] += size
        return True


def _attend(
    child: subprocess.Popen[bytes],
    listener: _Listener,
    deadline_ns: int,
    grace_s: float,
    stop: StopFlag,
    sockets: SocketWatch,
) -> str | None:
    """Listens until the child ends; returns why the supervisor ended it, if it did."""
    ended_by: str | None = None
    asked_at = 0.0
    stops_seen = 0
    while listener.child_runs or child.poll() is None:
        if listener.deaf:
            _wait_briefly(child)
        else:
            listener.wait(POLL_S)
        sockets.look()
        if ended_by is None and (listener.flooded or remaining_s(deadline_ns) < -grace_s):
            ended_by = "too_many_reports" if listener.flooded else "deadline"
            asked_at = time.monotonic()
            _signal_group(child, signal.SIGTERM)
        if stop.count > stops_seen:
            stops_seen = stop.count
            if ended_by is None:
                ended_by, asked_at = "stopped", time.monotonic()
                _signal_group(child, signal.SIGTERM)
            else:
                _signal_group(child, signal.SIGKILL)
        if ended_by is not None and time.monotonic() - asked_at > KILL_AFTER_S:
            _signal_group(child, signal.SIGKILL)
    return ended_by


def _wait_briefly(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(POLL_S)


def _outcome(
    code: int, ended_by: str | None, listener: _Listener, output: Path, oom_kills: int
) -> StageOutcome:
    if listener.flooded:
        return StageOutcome(
            "failed",
            code,
            "too_many_reports",
            f"the stage reported more than {MAX_EVENTS_PER_STAGE:,} events or "
            f"{MAX_EVENT_BYTES_PER_STAGE / 2**20:.0f} MiB of them",
            "Report fewer steps or evaluations, with fewer fields.",
        )
    if code == 0:
        return StageOutcome("complete", 0)
    if ended_by == "stopped" or (code == STOPPED_EXIT and listener.error is None):
        return StageOutcome(
            "stopped", code, "stopped", "stopped on request", "Go on with `n4090-kit run --resume`."
        )
    if ended_by == "deadline":
        return StageOutcome(
            "failed",
            code,
            "deadline",
            "the stage did not end by its deadline",
            "Shorten the stage, or raise the budget on the track `open`.",
        )
    if listener.error is not None:
        told = listener.error
        return StageOutcome("failed", code, told.kind, told.message, told.hint or None)
    if code < 0:
        message = f"the stage was ended by signal {-code} ({_signal_name(-code)})"
        if oom_kills > 0:
            return StageOutcome(
                "failed",
                code,
                "out_of_memory",
                f"{message}: the system ran out of memory",
                "Lower device_batch_size, or free memory, then `n4090-kit run --resume`.",
            )
        return StageOutcome(
            "failed", code, "killed", message, "Continue with `n4090-kit run --resume`."
        )
    return StageOutcome(
        "failed", code, "crashed", f"the stage ended with exit code {code}: {_last_line(output)}"
    )


def _last_line(output: Path) -> str:
    """The last thing the process printed; usually the error."""
    try:
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return "it printed nothing that can be read"
    return lines[-1] if lines else "it printed nothing"


def _plain(text: str) -> str:
    """`text` in one line that a result may hold: without control characters, of bounded length."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    return plain if len(plain) <= MAX_TEXT else plain[: MAX_TEXT - 1] + "…"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals only the first and the last have a name
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def die_with_parent() -> None:
    """For a child, before exec: a killed parent must not leave it behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], signum: int) -> None:
    try:
        os.killpg(child.pid, signum)
    except ProcessLookupError:
        return


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends whatever the stage left running, then reaps it."""
    _signal_group(child, signal.SIGKILL)
    child.wait()


def _oom_kills() -> int:
    """How often this kernel has killed a process for memory."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        return 0
    return 0
