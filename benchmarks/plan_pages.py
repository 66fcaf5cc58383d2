"""The figures of the plans and of the README, from one computation.

`python -m benchmarks.plan_pages` writes each block between its two marks again, the
registrations of the recipes (`reference.lab.registration`), which name a recipe by digest, and the
numbers in the recipes. Run it after a change of a recipe, of the time model or of a law, until a
first run is registered for good. With `--check` it only says which pages are out of date. Nothing
in a block is entered by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tomlkit

from benchmarks.ladder import STUDY, change_table
from benchmarks.ladder import read as cpu_ladder
from reference.bench.prediction import ladder
from reference.config.resolve import resolve_recipe
from reference.lab.cards import CARDS, Card
from reference.lab.odds import Odds, known_levers, simulate
from reference.lab.plan import (
    TARGET_CORE,
    Candidate,
    Laws,
    Setting,
    candidate_of,
    candidates,
    choose,
    compare_cards,
    compare_shapes,
    fit_laws,
    forecast,
)
from reference.lab.plan_recipe import RECIPES as RECIPE_FOLDER
from reference.lab.plan_recipe import base_recipe, planned_card, planned_fields
from reference.lab.published_runs import published_points
from reference.lab.registration import speed_and_loss
from reference.lab.study import load_study

ROOT = Path(__file__).parents[1]
REGISTERED = ROOT / "reference" / "plans" / "registered"
HOURS = 24.0
# Shipped recipes whose numbers follow from the plan.
PLANNED = (
    *("reference", "reference-safe", "reference-5090", "reference-1h", "reference-4h"),
    *("reference-16g", "reference-12g", "reference-8g"),
)
RECIPES = ("reference", "reference-safe", "reference-5090", "reference-4h", "reference-1h")
STEPS = ("reference-1h", "reference-4h", "reference")  # in the order in which they are run
DEPTHS_SHOWN = (16, 18, 20, 22)
CARDS_SHOWN = ("rtx3090", "rtx4090", "rtx5090", "h100")
STAGES = ("tokenizer", "pretrain", "core", "sft", "chat_eval", "margin")


@dataclass(frozen=True)
class Plans:
    """What the blocks are made of."""

    laws: Laws
    setting: Setting
    card: Card
    recipes: Mapping[str, tuple[Card, Candidate, Odds | None]]

    @classmethod
    def make(cls) -> Plans:
        laws = fit_laws(published_points(), "climbmix")
        found = {}
        for name in RECIPES:
            recipe = resolve_recipe(name)
            card = planned_card(recipe)
            best = candidate_of(recipe, card, laws, vram_gib=card.vram_gib)
            levers = [lever for lever in known_levers() if lever.is_on(recipe)]
            found[name] = (card, best, simulate(best, card, laws, levers, target=TARGET_CORE))
        return cls(laws, Setting.of(base_recipe("reference")), CARDS["rtx4090"], found)


def recipe_table(plans: Plans) -> str:
    rows = []
    for name, (card, best, odds) in plans.recipes.items():
        rows.append(
            (
                f"`{name}`",
                card.name,
                f"{best.tokens_per_s / 1e3:,.1f} k",
                f"{best.tokens / 1e9:.2f} B",
                f"{best.ratio:.1f}",
                f"{best.val_bpb:.4f}",
                "-" if odds is None else f"{odds.median_core:.3f}",
                "-" if odds is None else f"{odds.core.low:.3f} to {odds.core.high:.3f}",
                "-" if odds is None else f"{100 * odds.p_target:.0f} %",
            )
        )
    return markdown(
        ("recipe", "card", "tokens/s", "tokens", "a parameter", "val_bpb", "CORE", "95 %",
         f"P(CORE ≥ {TARGET_CORE})"),
        rows,
        text=2,
    )  # fmt: skip


def effective_table(plans: Plans) -> str:
    _, _, odds = plans.recipes["reference"]
    assert odds is not None
    low, high = odds.effective_flops
    rows = [(what, f"{flops:.3g}") for what, flops in odds.steps]
    rows.append(("interval after all of it, 95 %", f"{low:.3g} to {high:.3g}"))
    assert plans.laws.core is not None
    rows.append((f"CORE {TARGET_CORE} needs", f"{plans.laws.core.flops(TARGET_CORE):.3g}"))
    return markdown(("`reference`, after", "effective FLOPs, median"), rows)


def depth_table(plans: Plans) -> str:
    card = plans.card
    options = candidates(card, HOURS, plans.laws, plans.setting, vram_gib=card.vram_gib)
    best = choose(options)
    rows = []
    for option in options:
        if option.config.n_layer in DEPTHS_SHOWN:
            expected = forecast(option, plans.laws)
            rows.append(
                (
                    f"d{option.config.n_layer}" + (" (chosen)" if option is best else ""),
                    f"{option.parameters / 1e6:,.0f} M",
                    f"{option.tokens / 1e9:.2f} B",
                    f"{option.val_bpb:.4f}",
                    f"{expected.val_bpb.low:.4f} to {expected.val_bpb.high:.4f}",
                )
            )
    return markdown(("depth", "matrices and head", "tokens", "val_bpb", "95 %"), rows)


def shape_table(plans: Plans) -> str:
    card = plans.card
    shapes = compare_shapes(card, HOURS, plans.laws, plans.setting, vram_gib=card.vram_gib)
    rows = [
        (
            f"d{row['depth']} x {row['width']:,}",
            f"{row['parameters'] / 1e6:,.0f} M",
            f"{row['tokens_per_s'] / 1e3:,.1f} k",
            f"{row['tokens'] / 1e9:.2f} B",
            f"{row['val_bpb']:.4f}",
        )
        for row in shapes
    ]
    return markdown(("shape", "matrices and head", "tokens/s", "tokens", "val_bpb"), rows)


def card_table(plans: Plans) -> str:
    rows = [
        (
            row["card"],
            f"d{row['depth']}",
            f"{row['flops']:.3g}",
            "-" if row["core"] is None else f"{row['core']:.3f}",
            row["assumes"],
        )
        for row in compare_cards(HOURS, plans.laws, plans.setting, CARDS_SHOWN)
    ]
    return markdown(("card", "depth", "FLOPs", "CORE", "speed"), rows)


def hours_table(plans: Plans) -> str:
    rows = [
        (
            f"`{name}`",
            *(f"{best.hours.get(stage, 0):.2f}" for stage in STAGES),
            f"{best.day.shards}",
        )
        for name, (_, best, _) in plans.recipes.items()
    ]
    return markdown(("recipe", *STAGES, "shards"), rows)


def steps_table(plans: Plans) -> str:
    """The two figures that runs of an hour, of four and of a day are compared by."""
    rows = []
    for name in STEPS:
        _, best, _ = plans.recipes[name]
        expected = forecast(best, plans.laws)
        found = speed_and_loss(best.tokens_per_s, best.val_bpb, tuple(expected.val_bpb))
        speed, loss = ([row["predicted"], *row["interval"]] for row in found)
        rows.append(
            (
                f"`{name}`",
                f"{sum(best.hours.values()):.1f}",
                "{:.1f} ({:.1f} to {:.1f})".format(*(value / 1e3 for value in speed)),
                "{:.3f} ({:.3f} to {:.3f})".format(*loss),
            )
        )
    return markdown(("run", "hours", "thousand tokens/s", "val_bpb_nanochat"), rows)


def ladder_table(_: Plans) -> str:
    studied = next(
        f"{bpb} ({interval}), {pairs} pairs"
        for change, rung, pairs, bpb, interval, *_ in change_table(
            load_study(STUDY), cpu_ladder("trials.json")
        )
        if (change, rung) == ("int8", "m")
    )
    learning = {"same": "none: the same sums", "studied": studied, "not measured": "not measured"}
    rows = [
        (
            row["change"],
            row["state"],
            learning[row["learning"]],
            f"{row['kb_per_token']:,.0f}",
            f"{row['launches']:,.0f}",
            f"{row['us_per_token']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['planned_gib']:.1f}",
        )
        for row in ladder(resolve_recipe("reference"), "rtx4090")
    ]
    headings = (
        "change",
        "how it is switched on",
        "bpb on the CPU ladder",
        "kB a token",
        "kernels a micro-step",
        "us a token",
        "tokens/s",
        "planned GiB",
    )
    return markdown(headings, rows, text=3)


def readme_line(plans: Plans) -> str:
    _, best, odds = plans.recipes["reference"]
    assert odds is not None
    low, high = odds.core
    speed = f"{best.tokens_per_s / 1e3:.0f} k tokens/s"
    return (
        f"Predicted, not measured: `reference` makes {speed} on an "
        f"RTX 4090 and ends at CORE {odds.median_core:.3f} (95 %: {low:.3f} to {high:.3f});\n"
        f"the odds of {TARGET_CORE} are {100 * odds.p_target:.0f} %."
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table whose first `text` columns are words."""
    marks = ["---" if i < text else "---:" for i in range(len(headings))]
    lines = [" | ".join(row) for row in (headings, marks, *rows)]
    return "\n".join(f"| {line} |" for line in lines)


PLAN_01 = "reference/plans/01-compute-budget-and-target-architecture.md"
PLAN_04 = "reference/plans/04-4090-systems-optimization-checklist.md"
BLOCKS: dict[tuple[str, str], Callable[[Plans], str]] = {
    ("README.md", "prediction"): readme_line,
    (PLAN_01, "recipes"): recipe_table,
    (PLAN_01, "effective"): effective_table,
    (PLAN_01, "depths"): depth_table,
    (PLAN_01, "shapes"): shape_table,
    (PLAN_01, "cards"): card_table,
    (PLAN_01, "hours"): hours_table,
    (PLAN_01, "steps"): steps_table,
    (PLAN_04, "ladder"): ladder_table,
}


def marks(name: str) -> tuple[str, str]:
    return f"<!-- plan-pages: {name} -->\n", f"\n<!-- /plan-pages: {name} -->"


def with_block(text: str, name: str, block: str) -> str:
    """`text` with the block between its marks replaced."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the marks of block {name} are missing")
    return f"{before}{begin}{block}{end}{after}"


def pages(plans: Plans, root: Path = ROOT) -> dict[Path, str]:
    """Every page with its blocks made again."""
    found: dict[Path, str] = {}
    for (file, name), block in BLOCKS.items():
        path = root / file
        found[path] = with_block(found.get(path) or path.read_text(), name, block(plans))
    return found


def state_planned_fields(name: str) -> None:
    """Writes the numbers that follow from the plan into a shipped recipe."""
    path = RECIPE_FOLDER / f"{name}.toml"
    document = tomlkit.parse(path.read_text())
    for _ in range(2):  # `sft.num_steps` follows from the hours that were just written
        for dotted, value in planned_fields(resolve_recipe(str(path))).items():
            section, _, field = dotted.partition(".")
            table = cast("dict[str, Any]", document[section])
            if table[field] != value:
                table[field] = value
        path.write_text(tomlkit.dumps(document))


def main(arguments: Sequence[str]) -> int:
    stale = [path for path, text in pages(Plans.make()).items() if path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            sys.stdout.write(f"{path}: run `python -m benchmarks.plan_pages`\n")
        return 1 if stale else 0
    for name in PLANNED:
        state_planned_fields(name)
    for path, text in pages(Plans.make()).items():
        path.write_text(text)
    from reference.lab.commands import plan

    for name in RECIPES:
        file = REGISTERED / f"{name}.json"
        plan.main(["--recipe", name, "--register", str(file), "--json"], standalone_mode=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
