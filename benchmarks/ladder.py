"""The CPU ladder: its trials as one small file, what it can see, and the page of its results.

    python -m benchmarks.ladder collect STUDY_FOLDER   trials of `n4090-kit ablate` -> trials.json
    python -m benchmarks.ladder noise                  trials.json -> noise.json, before the changes
    python -m benchmarks.ladder page                   trials.json, noise.json -> report.md

All files lie in `reference/studies/cpu-ladder`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from jinja2 import StrictUndefined, Template
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from benchmarks.answers import FILE as ANSWERS
from benchmarks.answers import model_table, pair_table, pairs_of, summary
from reference.files import write_whole
from reference.lab.ablate import Progress
from reference.lab.baseline_curve import fit_curve, multiplier
from reference.lab.findings import baseline_rungs, find
from reference.lab.halving import Slot
from reference.lab.statistics import gains
from reference.lab.study import BASELINE, Study, load_study
from reference.lab.trial import COMPLETE, OUTCOME, Outcome

STUDIES = Path(__file__).parents[1] / "reference" / "studies"
STUDY = STUDIES / "cpu-ladder.toml"
FOLDER = STUDIES / "cpu-ladder"
TEMPLATE = Path(__file__).with_suffix(".md.j2")
POWER = 0.8  # the chance with which the study sees its smallest visible effect
Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    """Every finished trial in the folder of `n4090-kit ablate`, by change, scale and seed."""
    rows = []
    for file in sorted(folder.glob(f"trials/*/{OUTCOME}")):
        document = json.loads(file.read_text())
        request = json.loads((file.parent / "request-pretrain.json").read_text())
        arm, scale = file.parent.name.rsplit("-", 3)[:2]
        last = document["evals"][-1] if document["evals"] else [0, 0, 0, 0.0]
        rows.append(
            {
                "arm": arm,
                "scale": scale,
                "seed": request["seed"],
                "status": document["status"],
                "reason": document["reason"],
                "val_bpb": document["val_bpb"],
                "steps": last[1],
                "tokens": last[2],
                "flops": last[3],
            }
        )
    return sorted(rows, key=lambda row: (row["arm"], row["scale"], row["seed"]))


def outcomes_of(rows: Sequence[Row]) -> dict[Slot, Outcome]:
    """The trials as `reference.lab.findings` takes them."""
    return {
        Slot(row["arm"], row["scale"], row["seed"]): Outcome(
            row["status"], row["reason"], row["val_bpb"]
        )
        for row in rows
    }


def values(rows: Sequence[Row], arm: str, scale: str) -> dict[int, float]:
    """val_bpb by seed."""
    return {
        row["seed"]: row["val_bpb"]
        for row in rows
        if (row["arm"], row["scale"], row["status"]) == (arm, scale, COMPLETE)
    }


def budgets(study: Study) -> dict[str, float]:
    return {scale.name: scale.budget for scale in study.scales}


def visible(spread: float, pairs: int, alpha: float) -> float:
    """The mean difference of `pairs` pairs that a two-sided t test sees with chance `POWER`.

    Args:
        spread: Standard deviation of one pair's difference.
    """
    freedom = pairs - 1
    reach = float(student.ppf(1 - alpha / 2, freedom) + student.ppf(POWER, freedom))
    return reach * spread / math.sqrt(pairs)


def noise_of(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
    """Noise of the baseline and of A against A, and the smallest effects that follow."""
    outcomes = outcomes_of(rows)
    rungs = baseline_rungs(study, outcomes, budgets(study))
    curve = fit_curve(rungs)
    between = {}
    for scale, rung in zip(study.scales, rungs, strict=True):
        found = [*values(rows, BASELINE, scale.name).values()]
        if len(found) > 1:
            between[scale.name] = {
                "seeds": len(found),
                "mean_bpb": float(np.mean(found)),
                "seed_sd_bpb": float(np.std(found, ddof=1)),
                "slope": curve.slope(rung.flops),
            }
    base, same = values(rows, BASELINE, "s"), values(rows, "aa", "s")
    pairs = [same[seed] - base[seed] for seed in sorted({*base} & {*same})]
    spread, tries = float(np.std(pairs, ddof=1)), len(study.arms) - 1
    smallest = {}
    for scale, known in between.items():
        # Chaos is the same kind of noise at every rung; it is scaled with the noise between seeds.
        here = spread * known["seed_sd_bpb"] / between["s"]["seed_sd_bpb"]
        alone, all_of_them = (visible(here, 5, a) for a in (study.alpha, study.alpha / tries))
        smallest[scale] = {
            "pair_sd_bpb": here,
            "alone_bpb": alone,
            "among_all_bpb": all_of_them,
            "alone_compute": math.exp(alone / known["mean_bpb"] / known["slope"]) - 1,
        }
    return {
        "baseline": between,
        "pair_sd_bpb": spread,
        "pairs": len(pairs),
        "changes": tries,
        "alpha": study.alpha,
        "power": POWER,
        "smallest_visible_with_5_pairs": smallest,
    }


def change_table(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """Each change at each rung: pairs, difference of bpb, interval, p, compute multiplier.

    Interval and p (not corrected for the number of changes) are of a t test of its own pairs; the
    multiplier's interval takes the noise that `reference.lab.statistics` pools over all changes.
    """
    outcomes, flops = outcomes_of(rows), budgets(study)
    rungs = baseline_rungs(study, outcomes, flops)
    table = []
    for arm in study.arms[1:]:
        for scale in study.scales:
            base, mine = values(rows, BASELINE, scale.name), values(rows, arm.name, scale.name)
            pairs = np.array([mine[s] - base[s] for s in sorted({*base} & {*mine})])
            if not len(pairs):
                continue
            cells = [arm.name, scale.name, str(len(pairs)), f"{pairs.mean():+.4f}", "-", "-", "-"]
            if len(pairs) > 1:
                reach = student.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5
                cells[4] = f"{pairs.mean() - reach:+.4f} to {pairs.mean() + reach:+.4f}"
                cells[5] = f"{ttest_1samp(pairs, 0.0).pvalue:.2g}"
            losses = {
                (slot.arm, slot.seed): outcome.loss
                for slot, outcome in outcomes.items()
                if slot.scale == scale.name
            }
            gain = gains(losses, BASELINE).get(arm.name)
            times = multiplier(gain, rungs, flops[scale.name]) if gain else None
            if times:
                cells[6] = f"{times.value:.3f} ({times.low:.3f} to {times.high:.3f})"
            table.append(cells)
    return table


def baseline_table(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """The baseline's curve: each rung with its trials and what the fitted curve gives there."""
    rungs = baseline_rungs(study, outcomes_of(rows), budgets(study))
    curve = fit_curve(rungs)
    table = []
    for scale, rung in zip(study.scales, rungs, strict=True):
        found = [*values(rows, BASELINE, scale.name).values()]
        if found:
            tokens = next(
                r["tokens"] for r in rows if (r["arm"], r["scale"]) == (BASELINE, scale.name)
            )
            table.append(
                [
                    scale.name,
                    f"{scale.budget:.3g}",
                    f"{tokens:,.0f}",
                    str(len(found)),
                    f"{np.mean(found):.4f}",
                    f"{np.std(found, ddof=1):.4f}" if len(found) > 1 else "-",
                    f"{curve.bpb(rung.flops):.4f}",
                    f"{curve.slope(rung.flops):.3f}",
                ]
            )
    return table


def verdict_table(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """The verdict of each change at its largest rung, corrected for all changes of the study."""
    found = find(study, Progress(outcomes=outcomes_of(rows)), budgets(study), jobs=1)
    return [
        [
            row.arm,
            row.verdict.scale,
            row.verdict.verdict,
            "-" if row.verdict.p_holm is None else f"{row.verdict.p_holm:.2g}",
            row.expect or "",
            row.verdict.reason or row.why,
        ]
        for row in found.rows
    ]


def planned(study: Study) -> list[Slot]:
    """Every trial of the study, in its order."""
    names = [scale.name for scale in study.scales]
    return [
        Slot(arm.name, scale, seed)
        for arm in study.arms
        for scale in names[: names.index(arm.up_to) + 1 if arm.up_to else None]
        for seed in study.seeds_at(scale)
    ]


def missing(study: Study, rows: Sequence[Row]) -> list[str]:
    """The planned trials that were not run, as "change at scale: seeds"."""
    there = {Slot(row["arm"], row["scale"], row["seed"]) for row in rows}
    gone: dict[str, list[str]] = {}
    for slot in planned(study):
        if slot not in there:
            gone.setdefault(f"{slot.arm} at {slot.scale}", []).append(str(slot.seed))
    return [f"{place}: seeds {', '.join(seeds)}" for place, seeds in gone.items()]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def report(
    study: Study,
    rows: Sequence[Row],
    noise: Mapping[str, Any],
    notes: str,
    models: Sequence[dict[str, Any]],
) -> str:
    """The page of the results.

    Args:
        notes: What a person says about them.
        models: Evaluated models of the ladder (`benchmarks.answers`); empty leaves that part out.
    """
    pairs = pairs_of(models)
    small = [
        [
            scale,
            f"{known['pair_sd_bpb']:.4f}",
            f"{known['alone_bpb']:.4f}",
            f"{known['among_all_bpb']:.4f}",
            f"{100 * known['alone_compute']:.1f} %",
        ]
        for scale, known in noise["smallest_visible_with_5_pairs"].items()
    ]
    changed = ("change", "rung", "pairs", "bpb", "95 %", "p", "compute multiplier (95 %)")
    template = Template(TEMPLATE.read_text(), undefined=StrictUndefined, trim_blocks=True)
    return (
        template.render(
            title=study.title,
            notes=notes.strip(),
            noise=noise,
            baseline=markdown(
                ("rung", "FLOPs", "tokens", "seeds", "val_bpb", "between seeds", "curve", "slope"),
                baseline_table(study, rows),
            ),
            visible=markdown(
                ("rung", "sd of a pair", "one change", "among all", "one change, compute"), small
            ),
            changes=markdown(changed, change_table(study, rows)),
            verdicts=markdown(
                ("change", "rung", "verdict", "p (Holm)", "expected", "what it is"),
                verdict_table(study, rows),
            ),
            missing=missing(study, rows),
            answers=summary(models, pairs) if models else None,
            answer_models=markdown(
                ("model, rung and seed", "val_bpb", "CORE, partial", "answer likelihood"),
                model_table(models),
            ),
            answer_pairs=markdown(
                ("A, B", "val_bpb, B - A", "CORE", "z", "answer likelihood", "z"),
                pair_table(pairs),
            ),
        ).rstrip()
        + "\n"
    )


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def page() -> str:
    """The report of the committed trials."""
    return report(
        load_study(STUDY),
        read("trials.json"),
        read("noise.json"),
        (FOLDER / "notes.md").read_text(),
        json.loads(ANSWERS.read_text()) if ANSWERS.exists() else [],
    )


@click.group()
def main() -> None:
    """The CPU ladder's trials, noise and page."""


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def collect(folder: Path) -> None:
    """Writes trials.json from the FOLDER of `n4090-kit ablate`."""
    wanted = set(planned(load_study(STUDY)))
    rows = [row for row in rows_of(folder) if Slot(row["arm"], row["scale"], row["seed"]) in wanted]
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    write_whole(FOLDER / "trials.json", text.encode())


@main.command()
def noise() -> None:
    """Writes noise.json: what the study will be able to see."""
    found = noise_of(load_study(STUDY), read("trials.json"))
    write_whole(FOLDER / "noise.json", (json.dumps(found, indent=1) + "\n").encode())


@main.command(name="page")
def write_page() -> None:
    """Writes report.md."""
    write_whole(FOLDER / "report.md", page().encode())


if __name__ == "__main__":
    main()
