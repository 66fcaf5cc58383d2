"""How far a run is: by steps, or by the stage's clock."""

from __future__ import annotations

from reference.request import Request

# Of a horizon in time, kept back for the last evaluation and checkpoint.
RESERVE_SHARE = 0.01
RESERVE_EVALS = 3.0
RESERVE_S = 10.0
LARGEST_RESERVE = 0.5  # of the horizon


class Horizon:
    """The elapsed share of a run."""

    def __init__(self, request: Request) -> None:
        section = request.recipe["pretrain"]
        self._request = request
        self._num_steps: int = section["num_steps"]
        self._seconds: float = section["hours"] * 3600
        self._reserve_s = RESERVE_SHARE * self._seconds + RESERVE_S

    def reserve(self, eval_s: float) -> None:
        """Keeps back enough time for another evaluation that takes `eval_s` seconds."""
        wanted = RESERVE_EVALS * eval_s + RESERVE_S
        self._reserve_s = min(LARGEST_RESERVE * self._seconds, max(self._reserve_s, wanted))

    def progress(self, step: int) -> float:
        """The elapsed share of the horizon, 0 to 1, before step `step`."""
        if self._num_steps:
            share = step / self._num_steps
            return 1.0 if self._request.remaining_s() <= 0 else share
        usable_s = self._seconds - self._reserve_s
        return min(1.0, self._request.stage_elapsed_s() / usable_s)
