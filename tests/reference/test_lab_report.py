"""The containers of metrics, read from the example under submissions/ and checked by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

from reference.lab.commands import report
from reference.lab.report import containers
from reference.lab.run_facts import read_facts

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = next((ROOT / "submissions" / "2026" / "example").glob("*/result.json")).parent
RESULT = json.loads((EXAMPLE / "result.json").read_text())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    page = tmp_path_factory.mktemp("report") / "page.html"
    done = CliRunner().invoke(
        report, [str(EXAMPLE), "--target-bpb", "2.1", "--json", "--html", str(page)]
    )
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert text.count("<svg") == 2 and "End-to-end latency" in text
    return {row["container"]: row["figures"] for row in json.loads(done.stdout)}


def value(figures: dict[str, Any], key: str) -> Any:
    return figures[key]["value"]


def test_required_flops_are_the_results(told: dict[int, dict[str, Any]]) -> None:
    training = RESULT["training"]
    assert value(told[1], "flops") == training["flops"]
    assert value(told[1], "tokens") == training["tokens"]
    assert value(told[1], "bpb_at_100%") == pytest.approx(RESULT["quality"]["val_bpb"]["last"])
    # Reached at step 400 of 600, the first evaluation below 2.1.
    assert value(told[1], "flops_to_target") == pytest.approx(training["flops"] * 400 / 600)


def test_speed_agrees_with_the_results_own(told: dict[int, dict[str, Any]]) -> None:
    speed = value(told[2], "tokens_per_s")
    assert speed == pytest.approx(RESULT["training"]["tokens_per_s"], rel=0.02)
    assert value(told[2], "flops_per_s") == pytest.approx(
        speed * RESULT["training"]["flops_per_token"]
    )
    assert value(told[2], "step_s_p99") > value(told[2], "step_s_median")
    assert value(told[2], "mfu") is None and told[2]["mfu"]["note"]


def test_memory_is_the_results_and_what_a_cpu_cannot_say_has_a_reason(
    told: dict[int, dict[str, Any]],
) -> None:
    # The peak of all stages; the result names pretraining's.
    assert value(told[3], "peak_bytes") >= RESULT["training"]["peak_memory_bytes"]
    assert value(told[3], "oom_count") == 0
    assert value(told[3], "planned_bytes") > 0
    for key in ("card_bytes", "plan_error", "batch_unlocked"):
        assert value(told[3], key) is None and told[3][key]["note"], key


def test_a_partial_core_is_never_reported_as_core(told: dict[int, dict[str, Any]]) -> None:
    assert RESULT["quality"]["core"]["partial"]
    for key in ("core", "core_per_step", "core_per_billion"):
        assert value(told[4], key) is None
        assert "partial" in told[4][key]["note"]


def test_latency_adds_up_to_the_results_total(told: dict[int, dict[str, Any]]) -> None:
    timing = RESULT["timing"]
    assert value(told[5], "total_s") == pytest.approx(timing["total_s"], abs=0.01)
    for stage in timing["stages"]:
        assert value(told[5], f"{stage['stage']}_s") == pytest.approx(stage["elapsed_s"], abs=0.01)
    assert value(told[5], "chat_model_s") < timing["total_s"]
    assert value(told[5], "experiments_per_week") == pytest.approx(604800 / timing["total_s"])


def test_a_run_that_broke_off_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = (EXAMPLE / "events.jsonl").read_bytes().split(b"\n")
    (folder / "events.jsonl").write_bytes(b"\n".join(lines[:300]) + b'\n{"torn')
    found = {c.number: {f.key: f for f in c.figures} for c in containers(read_facts(folder))}
    assert found[5]["total_s"].value is None
    assert found[5]["pretrain_s"].note == "did not end"
    assert found[4]["core"].value is None
    assert found[1]["tokens"].value > 0


def test_a_studys_proxy_is_named(tmp_path: Path) -> None:
    study = {
        "recommended_proxy": "val_bpb at d2",
        "proxies": [{"name": "val_bpb at d2", "agreement": 0.9, "arms": 5}],
    }
    found = {f.key: f for f in containers(read_facts(EXAMPLE), study=study)[4].figures}
    assert found["proxy_agreement"].value == 0.9


def test_what_is_no_run_is_explained(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(tmp_path)])
    assert done.exit_code == 2 and "is not a run folder" in done.output
    shutil.copy(EXAMPLE / "events.jsonl", tmp_path / "events.jsonl")
    text = (tmp_path / "events.jsonl").read_text().replace('"ev":"step"', '"xx":"step"', 1)
    (tmp_path / "events.jsonl").write_text(text)
    done = CliRunner().invoke(report, [str(tmp_path)])
    assert done.exit_code == 2 and "line" in done.output
