"""Plots as SVG that goes into a page: no script, no outside file, colours of the page's own theme.

Matplotlib draws with placeholder colours; they become CSS variables, so that one drawing serves
light and dark. Series differ by marker as well as by colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

# Placeholder -> variable of the page's style (reference/lab/page.py). No two may be alike.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030301": "var(--c1)",
    "#030302": "var(--c2)",
    "#030303": "var(--c3)",
    "#030304": "var(--c4)",
    "#030305": "var(--c5)",
    "#030306": "var(--c6)",
}
INK, FAINT, *SERIES = _COLOURS
MARKERS = "os^Dvp"


def draw(
    title: str,
    description: str,
    paint: Callable[[Any], None],
    *,
    size: tuple[float, float] = (7.2, 4.0),
) -> str:
    """An SVG element with `title` and `description` for those who cannot see it.

    Args:
        paint: Draws on a matplotlib Axes.
        size: In inches of 72 points.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "n4090-kit",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.alpha": 0.25,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), count=1, flags=re.DOTALL)
    for placeholder, variable in _COLOURS.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return re.sub(r"(<svg[^>]*)>", rf'\1 role="img">{_literal(label)}', svg, count=1)


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def series_style(index: int) -> dict[str, Any]:
    """Colour and marker of the `index`-th series; both repeat, out of step."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[(index + index // 6) % 6]}
