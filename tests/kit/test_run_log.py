"""The event log: stamped, chained, and continued after a kill or a reboot."""

import errno
import json
import signal
import time
from pathlib import Path

import pytest

from kit.events import Checkpoint, Data, Eval, Event, Note, Step
from kit.run import log as log_module
from kit.run.log import EventLog
from kit.run.process import StopFlag
from kit.run.supervisor import stop_on_signals
from kit.run_log import LOG_KIND
from kit.schemas import problems
from kit.timing import ClockSample
from kit.trust.chain import read_chain
from kit.trust.chain_writer import ChainWriter


def test_events_fit_their_schema_and_time_only_moves_forward(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(20):
        event = log.append(Note(str(number)), "trainer")
        assert problems(event.to_json(), "event") == []
    log.close()
    records = read_chain(tmp_path / "events.jsonl", LOG_KIND).records
    times = [record["t_ns"] for record in records]
    assert times == sorted(times)
    assert [record["seq"] for record in records] == list(range(20))


def test_all_clocks_count_from_the_same_origin(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    event = log.append(Note("x"), "trainer")
    log.close()
    for value in (event.clocks.raw_ns, event.clocks.syscall_ns):
        assert value is not None and abs(value - event.t_ns) < 50_000_000
    assert event.clocks.uptime_ms is not None
    assert abs(event.clocks.uptime_ms * 1_000_000 - event.t_ns) < 100_000_000


@pytest.mark.parametrize(
    ("last", "every_s"), [(Checkpoint(3), 60), (Eval("bpb"), 60), (Step(3, 4, 1.0), 0.01)]
)
def test_what_is_in_the_log_is_soon_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: Data, every_s: float
) -> None:
    on_disk = []
    monkeypatch.setattr(log_module, "_SYNC_EVERY_S", every_s)
    monkeypatch.setattr(ChainWriter, "sync", lambda writer: on_disk.append(writer.count))
    log = EventLog(tmp_path)
    for step in range(3):
        log.append(Step(step, step, 1.0), "trainer")
    log.append(last, "trainer")
    until = time.monotonic() + 10
    while on_disk[-1:] != [4]:
        assert time.monotonic() < until
        time.sleep(0.01)
    log.close()


def test_a_flood_does_not_keep_the_disk_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = []
    monkeypatch.setattr(ChainWriter, "sync", lambda writer: on_disk.append(writer.count))
    log = EventLog(tmp_path)
    began = time.monotonic()
    for step in range(3000):
        log.append(Checkpoint(step), "trainer")
    seconds = time.monotonic() - began
    log.close()
    assert len(on_disk) <= 2 + seconds / 0.2


def test_a_watcher_whose_terminal_is_gone_ends_no_run(tmp_path: Path) -> None:
    seen = []

    def observe(event: Event[Data]) -> None:
        seen.append(event.seq)
        if event.seq == 1:
            raise OSError(errno.EIO, "Input/output error")

    log = EventLog(tmp_path, observe)
    for _ in range(4):
        log.append(Note(""), "trainer")
    log.close()
    assert read_chain(tmp_path / "events.jsonl", LOG_KIND).count == 4
    assert seen == [0, 1]


def test_a_closed_terminal_asks_once_and_nohup_is_heeded() -> None:
    stop = StopFlag()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_on_signals(stop):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
        assert stop.count == 1 and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        unasked = StopFlag()
        with stop_on_signals(unasked):
            signal.raise_signal(signal.SIGHUP)
        assert unasked.count == 0 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_log_goes_on_after_a_kill_and_counts_the_time_between(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    last = log.append(Note("before"), "trainer")
    log.close()
    # Half a line was on its way when the power went.
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"seq": 1, "half')
    again = EventLog(tmp_path)
    gap = again.continue_after(last)
    event = again.append(gap)
    again.close()
    chain = read_chain(tmp_path / "events.jsonl", LOG_KIND)
    assert chain.problems == []
    assert event.t_ns > last.t_ns
    assert gap.rebooted is False
    assert (tmp_path / "events.jsonl.torn").read_bytes().startswith(b'{"seq": 1, "half')


def test_after_a_reboot_the_wall_clock_spans_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    last = log.append(Note("before"), "trainer")
    log.close()
    real = ClockSample.now()
    # Another boot: its clocks began anew, and the wall clock says that 100 s went by.
    after = ClockSample(5_000, 5_000, 5_000, 1, last.wall_ms + 100_000)
    monkeypatch.setattr(log_module, "boot_id", lambda: "another boot")
    monkeypatch.setattr(ClockSample, "now", classmethod(lambda cls: after))
    again = EventLog(tmp_path)
    gap = again.continue_after(last)
    event = again.append(gap)
    again.close()
    assert gap.rebooted is True
    assert gap.downtime_s == pytest.approx(100.0)
    assert event.t_ns == last.t_ns + 100_000_000_000
    assert event.clocks.raw_ns == 0
    assert real.boottime_ns > 0


def test_a_damaged_origin_is_refused(tmp_path: Path) -> None:
    EventLog(tmp_path).close()
    (tmp_path / "origin.json").write_text(json.dumps({"boot": "x"}))
    with pytest.raises(Exception, match=r"origin\.json"):
        EventLog(tmp_path)
