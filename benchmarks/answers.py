"""Answer likelihood beside CORE on the CPU ladder's models: which of the two tells them apart.

    python -m benchmarks.answers collect STUDY_FOLDER   evaluated trials -> answers.json

A trial, its weights kept by `ablate --keep-weights`, is evaluated by `n4090-kit eval core
TRIAL/checkpoints/pretrain --max-per-task 20 --max-seq-len 256 --out TRIAL/core.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from scipy.stats import spearmanr

from kit.core_eval.likelihood import compare_likelihoods, mean_likelihood
from kit.core_eval.report import outcomes
from kit.core_eval.statistics import compare, core_metric
from reference.files import write_whole

FILE = Path(__file__).parents[1] / "reference" / "studies" / "cpu-ladder" / "answers.json"
KEPT = ("label", "file", "type", "shots", "baseline", "outcomes", "answer_bits", "answer_bytes")
_Z95 = 1.959964


class Pair(NamedTuple):
    """Two models: differences of B to A and their paired standard errors over the items."""

    a: str
    b: str
    val_bpb: float
    core: float
    core_error: float
    answer: float
    answer_error: float

    @property
    def core_z(self) -> float:
        """Standard errors by which CORE says that the model of lower val_bpb is better."""
        return -np.sign(self.val_bpb) * self.core / self.core_error

    @property
    def answer_z(self) -> float:
        """The same of answer likelihood, where lower is better."""
        return float(np.sign(self.val_bpb) * self.answer / self.answer_error)


def evaluated(folder: Path) -> list[dict[str, Any]]:
    """The evaluated models of a study's folder, the lowest val_bpb first."""
    models = []
    for file in folder.glob("trials/*/core.json"):
        document = json.loads(file.read_text())
        outcome = json.loads((file.parent / "outcome.json").read_text())
        tasks = [{key: task[key] for key in KEPT} for task in document["tasks"]]
        for task in tasks:
            task["answer_bits"] = [b if b is None else round(b, 2) for b in task["answer_bits"]]
        name = file.parent.name.rsplit("-", 1)[0]
        models.append({"model": name, "val_bpb": outcome["val_bpb"], "tasks": tasks})
    return sorted(models, key=lambda model: model["val_bpb"])


def pairs_of(models: Sequence[dict[str, Any]]) -> list[Pair]:
    """Every pair of models on the same items."""
    found = []
    for a, b in combinations(models, 2):
        core = compare(outcomes(a), outcomes(b))
        answer = compare_likelihoods(a["tasks"], b["tasks"])
        if answer is None:
            raise ValueError(f"{a['model']} or {b['model']} has no answer likelihoods")
        found.append(
            Pair(
                a["model"],
                b["model"],
                b["val_bpb"] - a["val_bpb"],
                core.difference,
                core.interval.standard_error,
                answer.difference,
                (answer.high - answer.low) / (2 * _Z95),
            )
        )
    return found


def model_table(models: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Each model's val_bpb, CORE and answer likelihood."""
    table = []
    for model in models:
        likelihood = mean_likelihood(model["tasks"])
        assert likelihood is not None
        cells = (model["val_bpb"], core_metric(outcomes(model)), likelihood.value)
        table.append([model["model"], *(f"{value:.4f}" for value in cells)])
    return table


def pair_table(pairs: Sequence[Pair]) -> list[list[str]]:
    return [
        [
            f"{pair.a}, {pair.b}",
            f"{pair.val_bpb:+.3f}",
            f"{pair.core:+.4f} ± {pair.core_error:.4f}",
            f"{pair.core_z:+.1f}",
            f"{pair.answer:+.4f} ± {pair.answer_error:.4f}",
            f"{pair.answer_z:+.1f}",
        ]
        for pair in pairs
    ]


def summary(models: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> dict[str, Any]:
    """How well each read-out orders the models by val_bpb, and how surely."""
    bpb = [model["val_bpb"] for model in models]
    likelihoods = [mean_likelihood(model["tasks"]) for model in models]
    cores = [-core_metric(outcomes(model)) for model in models]
    found = {}
    for name, values, z in (
        ("CORE", cores, [pair.core_z for pair in pairs]),
        ("answers", [x.value for x in likelihoods if x], [pair.answer_z for pair in pairs]),
    ):
        found[name] = {
            "ordered": sum(value > 0 for value in z),
            "surely": sum(value > _Z95 for value in z),
            "wrongly": sum(value < -_Z95 for value in z),
            "median_z": float(np.median(z)),
            "rank": float(spearmanr(bpb, values).statistic),
        }
    sizes = [len(task["outcomes"]) for task in models[0]["tasks"]]
    counts = {
        "all_items": sum(sizes),
        "most": max(sizes),
        "pairs": len(pairs),
        "models": len(models),
    }
    return {**counts, **found}


@click.group()
def main() -> None:
    """Answer likelihood beside CORE on the CPU ladder's models."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def collect(folder: Path) -> None:
    """Writes answers.json from the evaluated trials of FOLDER."""
    models = evaluated(folder)
    write_whole(FILE, ("[\n" + ",\n".join(map(json.dumps, models)) + "\n]\n").encode())


if __name__ == "__main__":
    main()
