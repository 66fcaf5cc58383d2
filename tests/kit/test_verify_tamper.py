"""The tamper suite: every mutation is refused by the check that is meant for it, and no other.

The mutations are in `mutations/`. The table goes to the file that N4090_TAMPER_TABLE names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tamper
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from mutations import MUTATIONS, Mutation
from tamper import Draft, gpu_run

from kit.run_log import LOG_KIND
from kit.telemetry_summary import TELEMETRY_KIND
from kit.verify import CHECKS, Options, Report, verify_result
from kit.verify.thresholds import LOST_STEPS


@pytest.fixture(scope="session")
def cpu_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run through the supervisor, with the forty-line trainer."""
    pytest.importorskip("pyarrow")
    return tamper.supervised_run(tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest) -> Callable[[str], Draft]:
    """A fresh copy of an honest run, by name."""
    made: dict[str, Draft] = {}
    synthetic: dict[str, Callable[[], Draft]] = {
        "4090": gpu_run,
        "long": lambda: gpu_run(steps=90),
        "resumed": lambda: gpu_run(seed=4, resume_at=37),
        "long, resumed": lambda: gpu_run(seed=4, steps=90, resume_at=37),
        "rebooted": lambda: gpu_run(seed=4, resume_at=37, reboot=True),
        "failed": lambda: gpu_run(seed=8, fail_at=33),
    }

    def get(name: str) -> Draft:
        if name not in made:
            if name == "cpu":
                run = request.getfixturevalue("cpu_run")
                key = load_ssh_private_key(
                    (run.parents[1] / "keys/n4090_ed25519").read_bytes(), password=None
                )
                made[name] = tamper.load_draft(run, key)
            else:
                made[name] = synthetic[name]()
        return made[name].copy()

    return get


def explain(report: Report) -> str:
    return "\n".join(
        f"{f.check} {f.status}: {f.message} | {f.place} | {f.expected} | {f.found}"
        for f in report.findings
        if f.status in ("fail", "warn") or f.missing
    )


@pytest.mark.parametrize("name", tamper.HONEST)
def test_an_honest_run_passes_whatever_its_day(tmp_path: Path, name: str) -> None:
    report = verify_result(tamper.HONEST[name]().write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


def test_a_process_held_up_between_two_clocks_is_no_forgery(tmp_path: Path) -> None:
    draft = gpu_run()
    for event in (draft.events[0], draft.of("step")[9], draft.events[-1]):
        event["wall_ms"] += 4000
        for name, unit in (("raw_ns", 10**9), ("syscall_ns", 10**9), ("uptime_ms", 1000)):
            event["clocks"][name] += 4 * unit
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


def test_an_interface_that_went_away_during_the_run_is_no_forgery(tmp_path: Path) -> None:
    draft = gpu_run()
    draft.events[-1]["data"]["environment"]["rx_bytes"] = 0
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


@pytest.mark.parametrize(
    ("lost", "status"), [(1, "warn"), (LOST_STEPS - 1, "warn"), (LOST_STEPS, "fail")]
)
def test_reports_that_died_with_a_supervisor_are_forgiven_up_to_a_limit(
    tmp_path: Path, base: Callable[[str], Draft], lost: int, status: str
) -> None:
    draft = base("long, resumed")
    resume = draft.events.index(draft.of("resume")[0])
    last = max(e["data"]["step"] for e in draft.events[:resume] if e["ev"] == "step")
    end = next(i for i, e in enumerate(draft.events) if i > resume and e["ev"] == "stage_stop")
    draft.events[resume:end] = [
        e for e in draft.events[resume:end] if e["ev"] != "step" or e["data"]["step"] > last + lost
    ]
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.status("V08") == status, explain(report)
    assert report.verdict == ("refused" if status == "fail" else "consistent"), explain(report)
    assert any(f"{lost} steps" in f.message or "jumps" in f.message for f in report.of("V08"))


def test_a_real_run_through_the_supervisor_passes(cpu_run: Path) -> None:
    report = verify_result(cpu_run / "result.json")
    assert report.verdict == "consistent", explain(report)
    # On a busy machine the CPU may well be slower after the run.
    assert {f.check for f in report.findings if f.status == "warn"} <= {"V12"}, explain(report)


@pytest.fixture(scope="session")
def table() -> Iterator[list[tuple[str, str, str, str]]]:
    rows: list[tuple[str, str, str, str]] = []
    yield rows
    target = os.environ.get("N4090_TAMPER_TABLE")
    if target and rows:
        lines = ["| mutation | redone by the forger | refused by | finding |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        Path(target).write_text("\n".join(lines) + "\n")


def test_honest_rows_beside_each_other_are_no_copies(tmp_path: Path) -> None:
    for seed in range(6):
        draft = gpu_run(seed=seed, steps=90)
        draft.header()["seed"]["value"] = seed
        draft.write(tmp_path / "board" / str(seed))
    for seed in range(6):
        options = Options(against=(tmp_path / "board",))
        report = verify_result(tmp_path / "board" / str(seed), options)
        assert report.status("V25") == "pass", explain(report)


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_tampered_run_is_refused_by_its_own_check(
    tmp_path: Path,
    base: Callable[[str], Draft],
    table: list[tuple[str, str, str, str]],
    case: Mutation,
) -> None:
    draft = base(case.base)
    folder = tmp_path / "run"
    if case.kind == "draft":
        case.apply(draft)
    elif case.kind == "result":
        draft.result_edits.append(case.apply)
    path = draft.write(folder)
    if case.kind == "file":
        case.apply(folder)
    report = verify_result(path, case.options(folder))
    assert set(report.refused_by) == case.expected, explain(report)
    assert report.exit_code == (2 if not report.readable else 1)
    redone = {"draft": "everything", "result": "the signature", "file": "nothing"}[case.kind]
    first = next(f for f in report.findings if f.status == "fail")
    table.append((case.name, redone, ", ".join(report.refused_by), first.message))


def test_the_suite_has_a_mutation_for_every_check_that_refuses() -> None:
    refused = {check for case in MUTATIONS for check in case.expected}
    # These need a model or a corpus: test_verify_evaluate, _replay and _contamination have them.
    never = {"V22", "V23", "V24", "V26"}
    assert refused == {check.id for check in CHECKS} - never
    assert len(MUTATIONS) >= 80
    assert len({case.name for case in MUTATIONS}) == len(MUTATIONS)


def test_telemetry_kind_is_its_own() -> None:
    assert TELEMETRY_KIND != LOG_KIND
