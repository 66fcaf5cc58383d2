"""Machines of honest people: what verify would warn of is said before, and most of it passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tamper

from kit.recipe import load_recipe
from kit.run.foreseen import foreseen
from kit.verify import verify_result

QUIET = {
    "rx_bytes": 0,
    "tx_bytes": 0,
    "ld_preload": False,
    "time_namespace": "none",
    "separate_trainer": False,
    "clocks_from": {"/proc/uptime": "proc"},
}


def told(monkeypatch: pytest.MonkeyPatch, *, load: float = 0.0, **seen: Any) -> list[str]:
    monkeypatch.setattr("kit.run.foreseen._WATCHED_S", 0.01)
    looks = iter([QUIET, {**QUIET, **seen}]) if "rx_bytes" in seen else None
    described = {**QUIET, **seen}
    return foreseen(
        load_recipe("smoke"),
        describe=lambda: next(looks) if looks else described,
        load=load,
        cores=8,
    )


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ({}, None),
        ({"ld_preload": True}, "LD_PRELOAD"),
        ({"time_namespace": "monotonic 5 0"}, "time namespace"),
        ({"clocks_from": {"/proc/uptime": "fuse.lxcfs"}}, "lxcfs"),
        ({"rx_bytes": 10**8}, "holds it against no run"),
        ({"tx_bytes": 10**8, "rx_bytes": 0, "separate_trainer": True}, "holds it against the run"),
        ({"load": 4.0}, "load 4.0 on 8 cores"),
    ],
)
def test_what_verify_would_hold_against_a_run_is_said_before(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], words: str | None
) -> None:
    found = told(monkeypatch, **seen)
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def traffic(looks: int | None, remote: int | None) -> tamper.Draft:
    """A day on a desktop whose other programs moved 107 MiB."""
    draft = tamper.gpu_run(seed=21)
    (end,) = draft.of("end")
    end["data"]["environment"]["rx_bytes"] += 107 * 2**20
    for stop in draft.of("stage_stop"):
        if looks is not None:
            stop["data"] |= {"socket_looks": looks, "remote_sockets": remote}
    return draft


@pytest.mark.parametrize(
    ("looks", "remote", "status"), [(100, 0, "pass"), (100, 1, "fail"), (None, None, "fail")]
)
def test_other_programs_traffic_is_not_held_against_stages_that_were_offline(
    tmp_path: Path, looks: int | None, remote: int | None, status: str
) -> None:
    traffic(looks, remote).write(tmp_path / "run")
    assert verify_result(tmp_path / "run").status("V11") == status


def test_multithreading_switched_at_a_reboot_is_the_same_machine(tmp_path: Path) -> None:
    for name, reboot, status in (("reboot", True, "pass"), ("none", False, "fail")):
        draft = tamper.gpu_run(seed=6, resume_at=37, reboot=reboot)
        for fingerprint in draft.fingerprints()[1:]:
            fingerprint["host"]["cores_logical"] //= 2
        draft.write(tmp_path / name)
        report = verify_result(tmp_path / name)
        assert report.status("V12") == status, [str(f) for f in report.of("V12")]
