"""`bench train --predict CARD`: the time model's table, and how far it is from published speeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import click

from reference.config.model import ModelConfig
from reference.lab.cards import card_key
from reference.model.step_time import (
    BF16,
    COMPILED,
    INT8,
    OURS,
    Passes,
    Work,
    fitted_share,
    leave_one_out,
    predict,
    predict_recipe,
    rates_of,
    speed_points,
)
from reference.tables import print_table
from reference.train.memory import GIB, VRAM_BYTES, fitting_micro_batch, plan_vram


def prediction_json(recipe: Mapping[str, Any], card: str) -> dict[str, Any]:
    """The prediction of a resolved recipe on a card, and the model's errors.

    Raises:
        TrainerError: The time model does not know the card.
    """
    found = predict_recipe(recipe, card)
    held_out = leave_one_out(speed_points())
    return {
        "predicted": True,
        "recipe": recipe["name"],
        "card": card,
        "tokens_per_s": found.tokens_per_s,
        "us_per_token": found.us_per_token,
        "rows": [row._asdict() for row in found.rows],
        "ladder": ladder(recipe, card),
        "leave_one_out": [
            {
                "name": point.name,
                "published": point.tokens_per_s,
                "predicted": speed,
                "error": speed / point.tokens_per_s - 1,
                "source": point.source,
                "note": point.note,
            }
            for point, speed in held_out
        ],
    }


ALL_INT8: Passes = ("int8", "int8", "int8")


class Rung(NamedTuple):
    """One change on the way to a fused 8-bit step.

    state: where it stands here: "replaced", "in the trainer", "not written", or the switches of
    `[pretrain]` that turn it on. design: fields of `Design` that it alters; products: kinds of
    factors; section: what the memory plan has to know. learning: what it does to the loss: "same"
    (it computes the same sums), "studied" (the CPU ladder has measured it) or "not measured".
    """

    change: str
    state: str
    design: Mapping[str, Any] = {}
    products: Mapping[str, Passes] = {}
    section: Mapping[str, Any] = {}
    learning: str = "same"


LADDER = (
    Rung(
        "loss in separate kernels",
        "replaced",
        {"loss": 67.0, "loss_chunk": 2730, "tables": COMPILED.tables, "table_rows": 0.0},
    ),
    Rung("loss in one kernel", "replaced", {"loss": OURS.loss, "loss_chunk": OURS.loss_chunk}),
    Rung(
        "table gradients by index",
        "in the trainer",
        {"tables": OURS.tables, "table_rows": OURS.table_rows},
    ),
    Rung(
        "int8 products, rounded from memory",
        "replaced",
        {},
        {"kinds": ALL_INT8},
        learning="studied",
    ),
    Rung(
        "rounding where the tensor is made",
        'matmul = "int8"',
        {
            "rounding": INT8.rounding,
            "elementwise": INT8.elementwise,
            "launches": INT8.launches,
        },
        {},
        {"matmul": "int8"},
    ),
    Rung("weights rounded once a step", 'matmul = "int8"', {"casts": INT8.casts}),
    Rung(
        "gradients summed in the product",
        'matmul = "int8"',
        {"accumulation": INT8.accumulation},
    ),
    Rung(
        "head in int8, all three products",
        'matmul_layers with "head"',
        {},
        {"head": ALL_INT8},
        {"matmul_layers": ["attention", "mlp", "head"]},
        "not measured",
    ),
)


def ladder(recipe: Mapping[str, Any], card: str) -> list[dict[str, Any]]:
    """Predictions after each change of LADDER, one on top of the other."""
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    section = {**recipe["pretrain"], "matmul": "bf16", "matmul_until": 1.0}
    micro_batch = fitting_micro_batch(config, section, VRAM_BYTES)
    design, products, rows = OURS, {"kinds": BF16, "head": BF16}, []
    for rung in LADDER:
        design = replace(design, **rung.design)
        products, section = {**products, **rung.products}, {**section, **rung.section}
        work = Work.of(config, micro_batch, section["total_batch_size"])
        found = predict(work, design, rates_of(card), fitted_share(), **products)
        rows.append(
            {
                "change": rung.change,
                "state": rung.state,
                "learning": rung.learning,
                "launches": design.launches * work.layers,
                "kb_per_token": sum(row.bytes for row in found.rows) / 1e3,
                "us_per_token": found.us_per_token,
                "tokens_per_s": found.tokens_per_s,
                "planned_gib": sum(plan_vram(config, micro_batch, section).values()) / GIB,
            }
        )
    return rows


def print_prediction(recipe: Mapping[str, Any], card: str, *, as_json: bool) -> None:
    """Prints the prediction, as a table or as JSON."""
    told = prediction_json(recipe, card_key(card))
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    rows = [
        (
            row["name"],
            f"{row['us']:.2f}",
            f"{row['us'] / told['us_per_token']:.0%}",
            f"{row['bytes'] / 1e3:,.0f}" if row["bytes"] else "",
            f"{row['flops'] / 1e6:,.0f}" if row["flops"] else "",
            row["bound"],
        )
        for row in sorted(told["rows"], key=lambda row: -row["us"])
    ]
    print_table(
        f"{told['recipe']} on one {told['card']}: predicted, not measured",
        ("kernels", "us/token", "share", "kB/token", "MFLOP/token", "bound"),
        [*rows, ("total", f"{told['us_per_token']:.2f}")],
        text=(0, 5),
    )
    worst = max(abs(row["error"]) for row in told["leave_one_out"])
    click.echo(f"{told['tokens_per_s']:,.0f} tokens/s, give or take {worst:.0%}")
    print_table(
        "what each change is predicted to bring, on top of the one before",
        ("change", "here", "kB/token", "kernels", "us/token", "tokens/s", "plan GiB"),
        [
            (
                row["change"],
                row["state"],
                f"{row['kb_per_token']:,.0f}",
                f"{row['launches']:,.0f}",
                f"{row['us_per_token']:.2f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['planned_gib']:.1f}",
            )
            for row in told["ladder"]
        ],
        text=(0, 1),
    )
    print_table(
        "the model against published speeds, each fitted to the others",
        ("run", "published", "predicted", "error"),
        [
            (
                row["name"],
                f"{row['published']:,.0f}",
                f"{row['predicted']:,.0f}",
                f"{row['error']:+.0%}",
            )
            for row in told["leave_one_out"]
        ],
    )
    for row in told["leave_one_out"]:
        if row["note"]:
            click.echo(f"{row['name']}: {row['note']}")
