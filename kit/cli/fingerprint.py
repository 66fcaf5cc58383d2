"""`n4090-kit fingerprint`: what this machine is and what it measures."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--no-probe", is_flag=True, help="Only read, do not measure.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--json", "as_json", is_flag=True, help="The whole fingerprint as JSON.")
def fingerprint(no_probe: bool, device: str, as_json: bool) -> None:
    """Measure this machine: about two seconds on a CPU, at most 90 on a GPU."""
    from kit.hardware import fingerprint as measure

    found = measure(probes=not no_probe, device=device)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("class", f"{found['class']['name']}: {'; '.join(found['class']['reasons'])}")
    parts = [("host", found["host"])]
    parts += [(f"gpu {index}", gpu) for index, gpu in enumerate(found["gpus"] or [])]
    parts += [(f"{name} probe", part) for name, part in found["probes"].items() if part]
    for title, part in parts:
        for key, value in part.items():
            if key == "reasons":
                continue
            reason = part.get("reasons", {}).get(key)
            table.add_row(f"{title} {key}", str(value) if value is not None else f"null: {reason}")
    for key, reason in found["reasons"].items():
        table.add_row(key, f"null: {reason}")
    Console(highlight=False).print(table)
