"""A complete run is never written again; a result that is replaced is kept under its digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tamper
from click.testing import CliRunner

from kit.cli.main import cli
from kit.errors import PrerequisiteError
from kit.run import supervisor
from kit.run.plan import RunPlan
from kit.run.process import StopFlag
from kit.trust.keys import Signer, load_or_create_signer
from kit.trust.sign import result_id
from kit.verify import verify_result

pytest.importorskip("pyarrow")


def supervise(plan: RunPlan, signer: Signer, *, stop: bool = False) -> dict[str, Any]:
    flag = StopFlag()
    if stop:
        flag.request(15)
    path = supervisor.supervise(plan, signer, observe=lambda event: None, stop=flag)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return tamper.pretraining_plan(tmp_path)()


@pytest.fixture
def signer(plan: RunPlan) -> Signer:
    return load_or_create_signer(plan.work / "keys")


def contents(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_complete_run_is_not_resumed_and_stays_as_it_is(plan: RunPlan, signer: Signer) -> None:
    assert supervise(plan, signer)["claims"]["status"] == "complete"
    before = contents(plan.run)
    with pytest.raises(PrerequisiteError, match="is complete") as caught:
        supervise(plan, signer)
    assert "n4090-kit verify" in (caught.value.hint or "")
    done = CliRunner().invoke(cli, ["run", "--resume", str(plan.run)])
    assert isinstance(done.exception, PrerequisiteError)
    assert contents(plan.run) == before
    report = verify_result(plan.run)
    assert report.verdict == "consistent", [f for f in report.findings if f.status == "fail"]


def test_a_resumed_run_keeps_its_earlier_results(plan: RunPlan, signer: Signer) -> None:
    first = supervise(plan, signer, stop=True)
    second = supervise(plan, signer, stop=True)
    assert {first["claims"]["status"], second["claims"]["status"]} == {"stopped"}
    assert supervise(plan, signer)["claims"]["status"] == "complete"
    for earlier in (first, second):
        kept = plan.run / f"result-{result_id(earlier)}.json"
        assert json.loads(kept.read_text()) == earlier
    report = verify_result(plan.run)
    assert report.verdict == "consistent", [f for f in report.findings if f.status == "fail"]


@pytest.mark.parametrize("last", ["run_stop", "telemetry", "end"])
def test_a_run_killed_before_its_result_is_only_closed(
    plan: RunPlan, signer: Signer, last: str
) -> None:
    """The log says `complete`, result.json is not there yet: no stage and no stop is repeated."""
    supervise(plan, signer)
    (plan.run / "result.json").unlink()
    log = plan.run / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    end = next(n for n, line in enumerate(lines) if f'"ev":"{last}"'.encode() in line)
    log.write_bytes(b"".join(lines[: end + 1]))
    result = supervise(plan, signer)
    assert result["claims"]["status"] == "complete"
    names = [json.loads(line)["ev"] for line in log.read_bytes().splitlines()]
    assert names.count("run_stop") == 1
    report = verify_result(plan.run)
    assert report.verdict == "consistent", report.refused_by


def test_an_unreadable_result_is_kept_too(plan: RunPlan, signer: Signer) -> None:
    supervise(plan, signer, stop=True)
    (plan.run / "result.json").write_bytes(b"{ torn")
    assert supervise(plan, signer)["claims"]["status"] == "complete"
    assert [path.read_bytes() for path in plan.run.glob("result-*.json")].count(b"{ torn") == 1


def test_a_run_that_has_used_its_budget_is_not_resumed(plan: RunPlan, signer: Signer) -> None:
    supervise(plan, signer, stop=True)
    path = plan.run / "result.json"
    result = json.loads(path.read_text())
    result["timing"]["total_s"] = result["timing"]["budget_s"] + 1
    path.write_text(json.dumps(result))
    before = contents(plan.run)
    done = CliRunner().invoke(cli, ["run", "--resume", str(plan.run)])
    assert isinstance(done.exception, PrerequisiteError)
    assert "has used its time budget" in done.exception.message
    assert contents(plan.run) == before
