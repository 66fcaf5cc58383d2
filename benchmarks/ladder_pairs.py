"""The page of a study whose changes are judged by their own pairs, not by pooled noise.

    python -m benchmarks.ladder_pairs collect FOLDER [FOLDER ...]   trials -> trials.json
    python -m benchmarks.ladder_pairs page                          -> report.md

The study is `reference/studies/cpu-ladder-m.toml`; its files lie in the folder of that name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from benchmarks.ladder import STUDIES, Row, markdown, planned, rows_of, values
from reference.files import write_whole
from reference.lab.halving import Slot
from reference.lab.statistics import holm
from reference.lab.study import BASELINE, Study, load_study

STUDY = STUDIES / "cpu-ladder-m.toml"
FOLDER = STUDIES / "cpu-ladder-m"
FOLDERS = click.Path(exists=True, file_okay=False, path_type=Path)
FEWEST_PAIRS = 3  # that a change needs to be judged
HEAD = """\
# {title}

Made by `python -m benchmarks.ladder_pairs page` from `trials.json` and `notes.md`; a test makes it
again. The study is [{name}.toml](../{name}.toml).

{notes}

## Each change against the baseline of the same seed and rows

The difference of val_bpb; below 0 is better. Interval and p are of a t test of the change's own
pairs; p (Holm) is corrected for all changes that were run.

{table}
Not run: {missing}.
"""


def pairs_of(rows: Sequence[Row], arm: str, scale: str) -> np.ndarray:
    """Differences of val_bpb to the baseline, a seed each."""
    base, mine = values(rows, BASELINE, scale), values(rows, arm, scale)
    return np.array([mine[seed] - base[seed] for seed in sorted({*base} & {*mine})])


def table_of(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """A line for each change that was run: pairs, difference, interval, p, verdict."""
    (scale,) = (scale.name for scale in study.scales)
    found = {arm.name: pairs_of(rows, arm.name, scale) for arm in study.arms[1:]}
    judged = {name: pairs for name, pairs in found.items() if len(pairs) >= FEWEST_PAIRS}
    raw = {name: float(ttest_1samp(pairs, 0.0).pvalue) for name, pairs in judged.items()}
    corrected = holm(raw)
    lines = []
    for arm in study.arms[1:]:
        pairs = found[arm.name]
        if not len(pairs):
            continue
        line = [arm.name, str(len(pairs)), f"{pairs.mean():+.4f}", "-", "-", "-", "too few pairs"]
        if arm.name in judged:
            n = len(pairs)
            reach = student.ppf(0.975, n - 1) * pairs.std(ddof=1) / n**0.5
            seen = corrected[arm.name] < study.alpha
            line[3:] = [
                f"{pairs.mean() - reach:+.4f} to {pairs.mean() + reach:+.4f}",
                f"{raw[arm.name]:.2g}",
                f"{corrected[arm.name]:.2g}",
                ("better" if pairs.mean() < 0 else "worse") if seen else "undecided",
            ]
        lines.append([*line, arm.why])
    return lines


def report(study: Study, rows: Sequence[Row], notes: str) -> str:
    """The page of the results; `notes` is what a person says about them."""
    there = {Slot(row["arm"], row["scale"], row["seed"]) for row in rows}
    missing: dict[str, list[str]] = {}
    for slot in planned(study):
        if slot not in there:
            missing.setdefault(slot.arm, []).append(str(slot.seed))
    headings = ("change", "pairs", "bpb", "95 %", "p", "p (Holm)", "verdict", "what it is")
    return HEAD.format(
        title=study.title[0].upper() + study.title[1:],
        name=study.name,
        notes=notes.strip(),
        table=markdown(headings, table_of(study, rows)),
        missing="; ".join(f"{arm}, seeds {', '.join(seeds)}" for arm, seeds in missing.items())
        or "nothing",
    )


def page() -> str:
    """The report of the committed trials."""
    rows = json.loads((FOLDER / "trials.json").read_text())
    return report(load_study(STUDY), rows, (FOLDER / "notes.md").read_text())


@click.group()
def main() -> None:
    """The trials and the page of the CPU ladder's second part."""


@main.command()
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
def collect(folders: tuple[Path, ...]) -> None:
    """Writes trials.json from the FOLDERS of `n4090-kit ablate`."""
    wanted = set(planned(load_study(STUDY)))
    rows = {
        Slot(row["arm"], row["scale"], row["seed"]): row
        for folder in folders
        for row in rows_of(folder)
    }
    kept = [json.dumps(rows[slot]) for slot in sorted(wanted & {*rows})]
    write_whole(FOLDER / "trials.json", ("[\n" + ",\n".join(kept) + "\n]\n").encode())


@main.command("page")
def write_page() -> None:
    """Writes report.md."""
    write_whole(FOLDER / "report.md", page().encode())


if __name__ == "__main__":
    main()
