"""Loss curves: rows of (step, tokens, FLOPs, seconds, loss), as trials keep them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.lab.trial import Outcome

EARLY = 0.25  # the share of a run over which the early slope is taken
GRID = 60  # points of a mean curve


def mean_curve(outcomes: Sequence[Outcome], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds' mean of the loss, smoothed over a twentieth of the run, against one axis."""
    rows = [np.array(outcome.curve) for outcome in outcomes]
    end = min(row[-1, axis] for row in rows)
    start = max(row[0, axis] for row in rows)
    x = np.linspace(start, end, GRID)
    losses = []
    for row in rows:
        width = max(1, len(row) // 20)
        padded = np.pad(row[:, 4], (width // 2, width - 1 - width // 2), mode="edge")
        smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
        losses.append(np.interp(x, row[:, axis], smooth))
    return x, np.mean(losses, axis=0)


def early_slope(curve: Sequence[Sequence[float]]) -> float | None:
    """d loss / d ln tokens over the first quarter; None for a curve too short to say."""
    early = np.array([row for row in curve if row[1] > 0])
    early = early[: max(2, round(EARLY * len(early)))]
    if len(early) < 4:
        return None
    return float(np.polyfit(np.log(early[:, 1]), early[:, 4], 1)[0])
