"""`bench train --predict CARD`: the time model's table, and how far it is from published speeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from reference.lab.cards import find_card
from reference.model.step_time import leave_one_out, predict_recipe, speed_points


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


def print_prediction(recipe: Mapping[str, Any], card: str, *, as_json: bool) -> None:
    """Prints the prediction, as a table or as JSON."""
    from rich.console import Console
    from rich.table import Table

    told = prediction_json(recipe, find_card(card).name)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    console = Console()
    title = f"{told['recipe']} on one {told['card']}: predicted, not measured"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("kernels", "us/token", "share", "kB/token", "MFLOP/token", "bound"):
        left = heading in ("kernels", "bound")
        table.add_column(heading, justify="left" if left else "right", header_style="dim")
    for row in sorted(told["rows"], key=lambda row: -row["us"]):
        table.add_row(
            row["name"],
            f"{row['us']:.2f}",
            f"{row['us'] / told['us_per_token']:.0%}",
            f"{row['bytes'] / 1e3:,.0f}" if row["bytes"] else "",
            f"{row['flops'] / 1e6:,.0f}" if row["flops"] else "",
            row["bound"],
        )
    table.add_row("total", f"{told['us_per_token']:.2f}", "", "", "", "")
    console.print(table)
    worst = max(abs(row["error"]) for row in told["leave_one_out"])
    console.print(f"{told['tokens_per_s']:,.0f} tokens/s, give or take {worst:.0%}")
    errors = Table(
        title="the model against published speeds, each fitted to the others",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("run", "published", "predicted", "error"):
        justify = "left" if heading == "run" else "right"
        errors.add_column(heading, justify=justify, header_style="dim")
    for row in told["leave_one_out"]:
        errors.add_row(
            row["name"],
            f"{row['published']:,.0f}",
            f"{row['predicted']:,.0f}",
            f"{row['error']:+.0%}",
        )
    console.print(errors)
    for row in told["leave_one_out"]:
        if row["note"]:
            console.print(f"[dim]{row['name']}: {row['note']}[/dim]")
