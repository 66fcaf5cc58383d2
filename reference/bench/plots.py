"""Plots of the benchmarks: one file a call, in the format that its ending names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_training(result: Mapping[str, Any], path: Path) -> None:
    """Milliseconds of every timed step, ours and the plain twin's."""
    figure, axes = _figure(1)
    for name, values in result["step_ms"].items():
        axes[0].plot(values, marker=".", label=name)
    axes[0].set(xlabel="step", ylabel="milliseconds", title=f"recipe {result['recipe']}")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    _save(figure, path)


def plot_levers(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Speed against the recipe, memory and last loss of each lever that ran."""
    known = [row for row in rows if not row["reason"]][::-1]
    figure, axes = _figure(3, height=1 + 0.28 * len(known))
    names = [row["lever"] for row in known]
    memory = [(row["peak_bytes"] or row["planned_bytes"]) / 2**30 for row in known]
    panels = (
        ("speed against the recipe", [row["speed"] for row in known], 1.0),
        ("memory, GiB", memory, None),
        ("last loss, nats", [row["loss_last"] for row in known], known[-1]["loss_last"]),
    )
    for axis, (title, values, line) in zip(axes, panels, strict=True):
        axis.barh(names, values)
        axis.set_title(title)
        if line is not None:
            axis.axvline(line, color="black", linewidth=0.8)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    axes[2].set_xlim(left=0.9 * min(row["loss_last"] for row in known))
    _save(figure, path)


def plot_kernels(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """TFLOP/s of each product by kind of factors."""
    known = [row for row in rows if row.get("tflops")]
    kinds = list(dict.fromkeys(row["kind"] for row in known))
    labels = list(dict.fromkeys(_label(row) for row in known))
    figure, axes = _figure(1, height=1 + 0.3 * len(labels))
    for offset, kind in enumerate(kinds):
        values = {_label(row): row["tflops"] for row in known if row["kind"] == kind}
        places = [i + 0.8 * offset / len(kinds) for i in range(len(labels))]
        bars = [values.get(label, 0.0) for label in labels]
        axes[0].barh(places, bars, height=0.8 / len(kinds), label=kind)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="TFLOP/s, rounding included", title="matrix products")
    axes[0].legend()
    _save(figure, path)


def _label(row: Mapping[str, Any]) -> str:
    return f"d{row['depth']} {row['map']}, {row['which'].replace('_', ' ')}"


def _figure(columns: int, height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns + 2, max(3.0, height)), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path)
