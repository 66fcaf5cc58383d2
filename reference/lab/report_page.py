"""A run's containers as a page, with its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference.lab.figures import draw, series_style
from reference.lab.page import section, table, write_page
from reference.lab.report import Container
from reference.lab.run_facts import Facts


def write_report_page(path: Path, facts: Facts, found: Sequence[Container]) -> None:
    """Writes the page to `path`."""
    write_page(
        path,
        f"Run {facts.run.name}",
        "The five containers of metrics, read from the run's own log.",
        [
            section("Curves", figures=[_loss(facts), _pace(facts)]),
            *(section(f"{c.number}. {c.title}", tables=[container_table(c)]) for c in found),
        ],
    )


def container_table(container: Container) -> dict[str, Any]:
    rows = [(f.label, f.text, f.note) for f in container.figures]
    return table("", ("figure", "value", "note"), rows, text=(0, 2))


def _loss(facts: Facts) -> str:
    def paint(axes: Any) -> None:
        x = [step["tokens"] for step in facts.steps]
        colour = series_style(0)["color"]
        axes.plot(x, [step["loss"] for step in facts.steps], color=colour, lw=0.8)
        axes.set_xlabel("tokens")
        axes.set_ylabel("training loss, nats a token")

    return draw("Training loss", "Training loss of each step over tokens.", paint)


def _pace(facts: Facts) -> str:
    def paint(axes: Any) -> None:
        rows = [step for step in facts.steps if step.get("dt_s")]
        x = [step["step"] for step in rows]
        colour = series_style(1)["color"]
        axes.plot(x, [1e3 * step["dt_s"] for step in rows], color=colour, lw=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("ms a step")

    return draw("Step time", "Milliseconds of each step.", paint)
