"""A stage process: held to its deadline, stopped, listened to; it cannot harm its supervisor."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.contract import Redactor, StageReport
from kit.errors import PrerequisiteError
from kit.run import process
from kit.run.process import StageOutcome, StopFlag, run_stage
from kit.timing import boottime_ns

EMIT = """
import json, os, signal, sys, time
fd = int(os.environ["N4090_EVENTS_FD"])
def emit(ev, **data): os.write(fd, json.dumps({"ev": ev, "data": data}).encode() + b"\\n")
"""


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[StageOutcome, list[StageReport]]]:
    def run(
        code: str,
        *,
        stop: StopFlag | None = None,
        seconds: float = 60,
        grace_s: float = 0,
        on_report: Callable[[StageReport], None] | None = None,
    ) -> tuple[StageOutcome, list[StageReport]]:
        reports: list[StageReport] = []
        outcome = run_stage(
            [sys.executable, "-c", EMIT + code],
            environment=dict(os.environ),
            output=tmp_path / "log.txt",
            deadline_ns=boottime_ns() + int(seconds * 1e9),
            grace_s=grace_s,
            redact=Redactor({}),
            stop=StopFlag() if stop is None else stop,
            on_report=on_report or reports.append,
        )
        return outcome, reports

    return run


def test_reports_arrive_in_order_and_exit_zero_is_complete(stage) -> None:
    outcome, reports = stage("for i in range(100): emit('note', text=str(i))")
    assert outcome.status == "complete"
    assert [report.data.text for report in reports] == [str(i) for i in range(100)]


def test_an_error_event_becomes_the_reason(stage) -> None:
    outcome, _ = stage(
        "emit('error', kind='nan_loss', message='loss is nan', hint='go slow'); sys.exit(1)"
    )
    assert (outcome.status, outcome.reason, outcome.message, outcome.hint) == (
        "failed",
        "nan_loss",
        "loss is nan",
        "go slow",
    )


def test_a_crash_without_words_is_explained_by_its_last_line(stage) -> None:
    outcome, _ = stage("raise RuntimeError('no such tensor')")
    assert outcome.reason == "crashed"
    assert "no such tensor" in str(outcome.message)


def test_a_killed_stage_names_the_signal(stage) -> None:
    outcome, _ = stage("os.kill(os.getpid(), 9)")
    assert (outcome.status, outcome.reason) == ("failed", "killed")
    assert "SIGKILL" in str(outcome.message)


def test_a_stage_past_its_deadline_is_ended(stage) -> None:
    started = time.monotonic()
    outcome, _ = stage("time.sleep(60)", seconds=0.2)
    assert (outcome.status, outcome.reason) == ("failed", "deadline")
    assert time.monotonic() - started < 20


def test_a_stage_that_ignores_sigterm_is_killed(stage, monkeypatch) -> None:
    monkeypatch.setattr(process, "KILL_AFTER_S", 0.5)
    outcome, _ = stage("signal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)", seconds=0.5)
    assert outcome.reason == "deadline"
    assert outcome.exit_code == -9


def test_a_stop_request_asks_and_the_stage_may_save(stage) -> None:
    stop = StopFlag()
    stop.request(2)
    outcome, reports = stage(
        "def save(*_):\n emit('note', text='saved'); sys.exit(3)\n"
        "signal.signal(15, save)\nemit('note', text='ready')\nwhile True: time.sleep(0.01)",
        stop=stop,
    )
    assert outcome.status == "stopped"
    # The request may come before the handler is there; then the signal itself ends the stage.
    assert reports == [] or reports[-1].data.text in ("saved", "ready")


def test_a_stage_that_closes_the_pipe_is_still_waited_for(stage) -> None:
    outcome, reports = stage("emit('note', text='bye'); os.close(fd); time.sleep(0.3)")
    assert outcome.status == "complete"
    assert len(reports) == 1


def test_where_a_child_cannot_be_watched_it_is_polled(stage, monkeypatch) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    outcome, reports = stage("emit('note', text='a'); os.close(fd); time.sleep(0.3)")
    assert (outcome.status, len(reports)) == ("complete", 1)
    outcome, reports = stage("emit('note', text='a'); emit('note', text='b')")
    assert (outcome.status, len(reports)) == ("complete", 2)


def test_no_descriptor_is_left_open(stage) -> None:
    stage("emit('note', text='a')")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        stage("emit('note', text='a')")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_stage_that_leaves_a_child_behind_does_not_hold_the_run(stage, monkeypatch) -> None:
    monkeypatch.setattr(process, "POLL_S", 30)  # its end is seen, not polled for
    started = time.monotonic()
    outcome, _ = stage("if os.fork() == 0:\n time.sleep(60)\nelse:\n emit('note', text='x')")
    assert outcome.status == "complete"
    assert time.monotonic() - started < 10


def test_a_flood_is_cut_off_and_counted(stage, monkeypatch) -> None:
    monkeypatch.setattr(process, "MAX_REMARKS_PER_STAGE", 1000)
    outcome, reports = stage(
        'line = b\'{"ev": "note", "data": {"text": "x"}}\\n\' * 1000\n'
        "for _ in range(1000):\n"
        " view = memoryview(line)\n"
        " while view: view = view[os.write(fd, view):]"
    )
    assert outcome.status == "complete"
    assert (outcome.accepted, outcome.dropped) == (1000, 999_000)
    assert len(reports) == 1000


def test_a_program_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no-such-trainer"):
        run_stage(
            ["no-such-trainer"],
            environment={},
            output=tmp_path / "log.txt",
            deadline_ns=0,
            grace_s=0,
            redact=Redactor({}),
            stop=StopFlag(),
            on_report=lambda report: None,
        )


def test_a_stage_dies_with_its_supervisor(tmp_path: Path) -> None:
    """A supervisor that is killed leaves no trainer behind, computing and holding the GPU."""
    import signal
    import subprocess

    mark = tmp_path / "pid"
    trainer = tmp_path / "trainer.py"
    trainer.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    script = tmp_path / "supervisor.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from kit.contract import Redactor\n"
        "from kit.run.process import StopFlag, run_stage\n"
        "from kit.timing import boottime_ns\n"
        "run_stage([sys.executable, *sys.argv[1:3]], environment=dict(os.environ),"
        " output=Path(sys.argv[3]), deadline_ns=boottime_ns() + 10**12, grace_s=0,"
        " redact=Redactor({}), stop=StopFlag(), on_report=print)\n"
    )
    arguments = [str(script), str(trainer), str(mark), str(tmp_path / "log.txt")]
    supervisor = subprocess.Popen([sys.executable, *arguments])
    limit = time.monotonic() + 20
    while not (mark.is_file() and mark.read_text()) and time.monotonic() < limit:
        time.sleep(0.02)
    child = int(mark.read_text())
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    while _alive(child) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_report_gets_its_timestamp_when_it_arrives(stage) -> None:
    _, reports = stage(
        "for n in range(3): emit('step', step=n, tokens=n, loss=1.0); time.sleep(0.3)\n"
        "emit('note', text='x'); time.sleep(0.5)"
    )
    moments = [report.at.boottime_ns / 1e9 for report in reports]
    assert [report.ev for report in reports] == ["step"] * 3 + ["note"]
    assert moments == sorted(moments)
    assert moments[-1] - moments[0] > 0.3  # 0.9 s on a quiet machine


def test_a_report_is_passed_on_before_the_next_one_comes(stage) -> None:
    """A kill loses at most what is still in the pipe."""
    stop = StopFlag()
    seen: list[StageReport] = []

    def take(report: StageReport) -> None:
        seen.append(report)
        stop.count = 1

    stage("emit('step', step=0, tokens=0, loss=1.0); time.sleep(60)", stop=stop, on_report=take)
    assert [report.data.step for report in seen] == [0]
