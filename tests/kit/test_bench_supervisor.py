"""`bench supervisor`: which stages it times, and what it makes of its rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from kit.cli.bench_supervisor import bench_supervisor
from kit.run import bench
from kit.run.plan import RunPlan

ROUNDS = [
    bench.Round(100.0, 99.0, 0.2, 150.0, 150.0, 0.001),
    bench.Round(110.0, 100.0, 0.4, 151.0, 149.0, None),
    bench.Round(102.0, 101.0, 0.3, 152.0, 151.0, 0.002),
]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[RunPlan]:
    made: list[RunPlan] = []

    def measure(make_plan: Callable[[], RunPlan], signer: Any, **rest: Any) -> bench.Overhead:
        made.append(make_plan())
        return bench.Overhead(ROUNDS)

    monkeypatch.setattr(bench, "measure_overhead", measure)
    return made


def test_only_tokenizer_and_pretraining_are_run(plans: list[RunPlan]) -> None:
    assert CliRunner().invoke(bench_supervisor, []).exit_code == 0
    assert plans[0].recipe.stages == ("tokenizer", "pretrain")
    assert plans[0].recipe.document["stages"] == ["tokenizer", "pretrain"]


def test_shares_and_ratios_are_medians_of_the_rounds(plans: list[RunPlan]) -> None:
    told = json.loads(CliRunner().invoke(bench_supervisor, ["--json"]).stdout)
    assert told["cpu_share"] == pytest.approx(0.3 / 102)
    assert told["trainer_cpu_ratio"] == pytest.approx(152 / 151)
    assert told["wall_ratio"] == pytest.approx(100 / 99)
    text = CliRunner().invoke(bench_supervisor, []).stdout
    assert "telemetry 0.200% of that core" in text
