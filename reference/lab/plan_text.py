"""The plan in the terminal and as JSON, and the speed of a machine that was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reference.config.model import ModelConfig
from reference.config.resolve import resolve_recipe
from reference.errors import TrainerError
from reference.lab.cards import MEASURED_RANGE, Card
from reference.lab.odds import Lever, Odds
from reference.lab.plan import TARGET_CORE, Candidate, Forecast, Laws
from reference.model.cost import count_flops
from reference.tables import print_table, table_of


def measured_card(bench: Path, card: Card) -> Card:
    """`card` at the speed that `bench train --json` measured on this machine."""
    try:
        measured = json.loads(bench.read_text())
        tokens_per_s, name = float(measured["tokens_per_s"]), str(measured["recipe"])
        on_cpu = measured["device"] == "cpu"
    except (ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            "bad_input",
            f"{bench} is not what `n4090-kit bench train --json` prints",
            f"n4090-kit bench train --recipe nano --json > {bench.name}",
        ) from error
    recipe = resolve_recipe(name)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    return replace(
        card,
        name="cpu" if on_cpu else card.name,
        peak_flops=None if on_cpu else card.peak_flops,
        flops_per_s=count_flops(config).nanochat * tokens_per_s,
        source=f"measured: recipe {name} at {tokens_per_s:,.0f} tokens/s",
        speed_range=MEASURED_RANGE,
        modelled=False,
    )


def plan_json(
    card: Card,
    best: Candidate,
    expected: Forecast,
    laws: Laws,
    cards: list[dict[str, Any]],
    remarks: list[str],
    odds: Odds | None,
    levers: Sequence[Lever],
) -> dict[str, Any]:
    return {
        "card": {"name": card.name, "flops_per_s": best.flops_per_s, "assumes": card.source},
        "model": best.config.to_json(),
        "parameters": best.parameters,
        "tokens_per_s": best.tokens_per_s,
        "tokens": best.tokens,
        "tokens_per_parameter": best.ratio,
        "flops": best.flops,
        "flops_per_token": best.flops_per_token,
        "device_batch_size": best.device_batch_size,
        "total_batch_size": best.total_batch_size,
        "vram_bytes": best.vram_bytes,
        "hours": best.hours,
        "predicted": {
            "val_bpb": best.val_bpb,
            "val_bpb_95": expected.val_bpb,
            "core": best.core,
            "core_mean_95": expected.core,
            "core_one_run_95": expected.core_run,
            "best_tokens_per_parameter_95": expected.ratio,
            "flops_for_target": laws.core.flops(TARGET_CORE) if laws.core else None,
            "odds": None if odds is None else asdict(odds),
            "levers": [asdict(lever) for lever in levers],
        },
        "law": {
            "E": laws.loss.E,
            "A": laws.loss.A,
            "alpha": laws.loss.alpha,
            "B": laws.loss.B,
            "beta": laws.loss.beta,
            "family": laws.family,
            "factors": laws.loss.factors,
        },
        "cards": cards,
        "notes": remarks,
    }


def print_plan(
    card: Card,
    hours: float,
    best: Candidate,
    expected: Forecast,
    options: list[Candidate],
    laws: Laws,
    cards: list[dict[str, Any]],
    remarks: list[str],
    odds: Odds | None,
    levers: Sequence[Lever],
) -> None:
    from rich.console import Console

    low, high = expected.val_bpb
    near = [o for o in options if o.fits and o.val_bpb < 1.001 * best.val_bpb]
    table = table_of(f"plan: {card.name}, {hours:g} h (predicted, not measured)", ("", ""), (0, 1))
    table.add_row(
        "model",
        f"d{best.config.n_layer}, width {best.config.n_embd}, "
        f"{best.parameters / 1e6:,.0f} M parameters in matrices and head",
    )
    table.add_row(
        "tokens",
        f"{best.tokens / 1e9:.3g} B, {best.ratio:.1f} a parameter "
        f"(best at this budget: {expected.ratio.low:.1f} to {expected.ratio.high:.1f})",
    )
    table.add_row(
        "FLOPs",
        f"{best.flops:.3g} at {best.flops_per_s / 1e12:.3g} TFLOP/s, "
        f"{best.tokens_per_s:,.0f} tokens/s",
    )
    table.add_row(
        "batch",
        f"{best.total_batch_size:,} tokens, micro-batch {best.device_batch_size} x "
        f"{best.config.seq_len}, {best.vram_bytes / 2**30:.1f} GiB planned",
    )
    split = ", ".join(f"{name} {value:.2f}" for name, value in best.hours.items())
    table.add_row("hours", split)
    table.add_row("val_bpb", f"{best.val_bpb:.4f} ({low:.4f} to {high:.4f}, {laws.family})")
    if best.core is not None and expected.core_run is not None and laws.core is not None:
        run = expected.core_run
        table.add_row("CORE", f"{best.core:.3f}; one run {run.low:.3f} to {run.high:.3f}")
        needed = laws.core.flops(TARGET_CORE)
        table.add_row(
            "target",
            f"{TARGET_CORE} needs {needed:.3g} FLOPs, {needed / best.flops:.2g} times these",
        )
    if odds is not None:
        table.add_row(
            "with speed",
            f"CORE {odds.median_core:.3f}; one run {odds.core.low:.3f} to {odds.core.high:.3f}, "
            f"from {odds.tokens.low / 1e9:.2f} to {odds.tokens.high / 1e9:.2f} B tokens",
        )
        chain = " → ".join(f"{what} {flops:.3g}" for what, flops in odds.steps)
        table.add_row("effective", f"{chain} FLOPs (median)")
        table.add_row("odds", f"P(CORE >= {TARGET_CORE}) = {100 * odds.p_target:.0f} %")
    for lever in levers:
        kind = "bet" if lever.bet else "lever"
        table.add_row(kind, f"{lever.name}: {lever.low:g} to {lever.high:g}; {lever.evidence}")
    others = ", ".join(f"d{o.config.n_layer} {o.val_bpb:.4f}" for o in near)
    table.add_row("within 0.1 %", others)
    table.add_row("speed", card.source)
    for remark in remarks:
        table.add_row("note", remark)
    Console().print(table)
    print_table(
        f"what {hours:g} h buy elsewhere",
        ("card", "depth", "FLOPs", "CORE", "speed"),
        [
            (
                row["card"],
                f"d{row['depth']}",
                f"{row['flops']:.3g}",
                "-" if row["core"] is None else f"{row['core']:.3f}",
                row["assumes"],
            )
            for row in cards
        ],
        text=(0, 4),
    )


def print_shapes(shapes: Sequence[Mapping[str, Any]]) -> None:
    """The table of `compare_shapes`."""
    print_table(
        "other shapes in the same hours; that a wide one learns as well is assumed",
        ("shape", "N", "tokens/s", "tokens", "val_bpb"),
        [
            (
                f"d{row['depth']} x {row['width']}" + ("" if row["fits"] else " (too large)"),
                f"{row['parameters'] / 1e6:,.0f} M",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['tokens'] / 1e9:.2f} B",
                f"{row['val_bpb']:.4f}",
            )
            for row in shapes
        ],
    )
