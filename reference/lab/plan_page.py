"""The plan as a page: what was chosen, what the points say, how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reference.lab.figures import FAINT, INK, draw, series_style
from reference.lab.page import section, table, write_page
from reference.lab.plan import Candidate, Forecast, Laws
from reference.lab.scaling import equivalent_flops


def write_plan_page(
    path: Path,
    title: str,
    best: Candidate,
    expected: Forecast,
    options: Sequence[Candidate],
    laws: Laws,
    cards: Sequence[dict[str, Any]],
    remarks: Sequence[str],
) -> None:
    """Writes the page of one plan to `path`."""
    low, high = expected.val_bpb
    lead = (
        f"d{best.config.n_layer}, {best.tokens / 1e9:.2f} B tokens: predicted "
        f"{best.val_bpb:.4f} bits per byte ({low:.4f} to {high:.4f})"
    )
    if best.core is not None and expected.core_run is not None:
        lead += (
            f", CORE {best.core:.3f}; one run between {expected.core_run.low:.3f} "
            f"and {expected.core_run.high:.3f}"
        )
    write_page(
        path,
        title,
        lead + ". Predicted from published runs, not measured.",
        [
            section("Remarks", texts=remarks) if remarks else section("Remarks", texts=["None."]),
            section(
                "Depths at this budget",
                figures=[_depth_figure(options, best)],
                tables=[depth_table(options, best)],
            ),
            section("Loss of the points and the law", figures=[_loss_figure(laws, best)]),
            *(
                [section("CORE over compute", figures=[_core_figure(laws, best)])]
                if laws.core
                else []
            ),
            section("The same hours on other cards", tables=[card_table(cards)]),
            section("Points and their sources", tables=[_point_table(laws)]),
        ],
    )


def depth_table(options: Sequence[Candidate], best: Candidate) -> dict[str, Any]:
    rows = [
        (
            f"d{o.config.n_layer}" + (" (chosen)" if o is best else ""),
            f"{o.parameters / 1e6:,.1f} M",
            f"{o.tokens / 1e9:,.2f} B",
            f"{o.ratio:,.1f}",
            f"{o.val_bpb:.4f}",
            "" if o.core is None else f"{o.core:.4f}",
            f"{o.vram_bytes / 2**30:.1f} GiB" + ("" if o.fits else ", too much"),
        )
        for o in options
    ]
    headings = ("depth", "N", "tokens", "tokens per N", "val_bpb", "CORE", "memory")
    return table("All at this budget; N counts matrices and head.", headings, rows)


def card_table(cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        (
            row["card"],
            f"d{row['depth']}",
            f"{row['tokens'] / 1e9:.2f} B",
            f"{row['flops']:.3g}",
            f"{row['val_bpb']:.4f}",
            "" if row["core"] is None else f"{row['core']:.3f}",
            ""
            if row["core_run"] is None
            else f"{row['core_run'][0]:.3f} to {row['core_run'][1]:.3f}",
            row["assumes"],
        )
        for row in cards
    ]
    headings = ("card", "depth", "tokens", "FLOPs", "val_bpb", "CORE", "one run, 95 %", "speed")
    return table("Each card with its own best depth.", headings, rows, text=(0, 7))


def _point_table(laws: Laws) -> dict[str, Any]:
    rows = []
    for p in laws.points:
        fitted = laws.loss.loss(p.parameters, p.tokens, p.family) if p.val_bpb else None
        rows.append(
            (
                p.label,
                p.family,
                f"{p.flops:.3g}",
                f"{p.ratio:.1f}",
                "" if p.val_bpb is None else f"{p.val_bpb:.4f}",
                "" if fitted is None else f"{fitted:.4f}",
                "" if p.core is None else f"{p.core:.4f}",
                p.source,
            )
        )
    headings = ("run", "family", "FLOPs", "tokens per N", "val_bpb", "law", "CORE", "source")
    return table("Published or measured; `law` is the fit.", headings, rows, text=(0, 1, 7))


def _depth_figure(options: Sequence[Candidate], best: Candidate) -> str:
    near = [o for o in options if o.val_bpb < 1.06 * best.val_bpb]

    def paint(axes: Any) -> None:
        x = [o.parameters for o in near]
        axes.plot(x, [o.val_bpb for o in near], **series_style(0))
        axes.axvline(best.parameters, color=FAINT, linestyle="--")
        for o in near:
            axes.annotate(
                f"d{o.config.n_layer}",
                (o.parameters, o.val_bpb),
                textcoords="offset points",
                xytext=(0, 7),
                ha="center",
            )
        axes.set_xscale("log")
        axes.set_xlabel("parameters in matrices and head")
        axes.set_ylabel("predicted val_bpb")

    return draw(
        "Predicted loss by size",
        f"Predicted bits per byte of each depth; d{best.config.n_layer} is lowest.",
        paint,
    )


def _loss_figure(laws: Laws, best: Candidate) -> str:
    def paint(axes: Any) -> None:
        for i, family in enumerate(laws.loss.factors):
            mine = [p for p in laws.points if p.family == family and p.val_bpb is not None]
            style = series_style(i)
            axes.plot(
                [p.flops for p in mine], [p.val_bpb for p in mine], label=family, ls="", **style
            )
            pair = float(np.mean([p.flops / (p.parameters * p.tokens) for p in mine]))
            C = np.geomspace(min(p.flops for p in mine), max(p.flops for p in mine), 40)
            axes.plot(C, [laws.loss.best_loss(c / pair, family) for c in C], color=style["color"])
        axes.plot([best.flops], [best.val_bpb], marker="*", ms=14, ls="", color=INK, label="plan")
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("val_bpb")
        axes.legend()

    return draw(
        "Loss over compute",
        "Bits per byte of the points, and of the best shape by the fitted law, over FLOPs.",
        paint,
    )


def _core_figure(laws: Laws, best: Candidate) -> str:
    line = laws.core
    assert line is not None
    mine = [p for p in laws.points if p.core is not None and p.core_line]

    def paint(axes: Any) -> None:
        x = [equivalent_flops(p, laws.loss) for p in mine]
        axes.plot(x, [p.core for p in mine], ls="", label="published", **series_style(0))
        C = np.geomspace(min(*x, best.flops), max(*x, best.flops), 40)
        axes.plot(C, [line.core(c) for c in C], color=series_style(0)["color"])
        drawn = [law for _, law in laws.samples if law]
        if drawn:
            values = np.array([[law.core(c) for c in C] for law in drawn])
            low, high = np.quantile(values, (0.025, 0.975), axis=0)
            axes.fill_between(C, low, high, color=series_style(0)["color"], alpha=0.15, lw=0)
        if best.core is not None:
            axes.plot([best.flops], [best.core], marker="*", ms=14, ls="", color=INK, label="plan")
        axes.axhline(0.256525, color=FAINT, ls="--", label="GPT-2 1.5B")
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of an optimal shape with the same loss")
        axes.set_ylabel("CORE")
        axes.legend()

    return draw("CORE over compute", "CORE of published runs and the fitted line.", paint)
