"""How far a run is: by steps, or by the stage's clock."""

from __future__ import annotations

from reference.request import Request

# Of a horizon in time, kept back for the last evaluation and checkpoint.
RESERVE_SHARE = 0.01
RESERVE_EVALS = 3.0
RESERVE_S = 10.0
LARGEST_RESERVE = 0.5  # of the horizon


class Horizon:
    """The elapsed share of a training stage.

    Args:
        stage: Section of the recipe that has `hours` and `num_steps`; `hours` wins.
    """

    def __init__(self, request: Request, stage: str = "pretrain") -> None:
        section = request.recipe[stage]
        self._request = request
        self._seconds: float = section["hours"] * 3600
        self.num_steps: int = 0 if self._seconds else section["num_steps"]
        least = RESERVE_SHARE * self._seconds + RESERVE_S
        self._reserve_s = min(LARGEST_RESERVE * self._seconds, least)

    def reserve(self, eval_s: float) -> None:
        """Keeps back enough time for another evaluation that takes `eval_s` seconds."""
        wanted = RESERVE_EVALS * eval_s + RESERVE_S
        self._reserve_s = min(LARGEST_RESERVE * self._seconds, max(self._reserve_s, wanted))

    def progress(self, step: int) -> float:
        """The elapsed share of the horizon, 0 to 1, before step `step`."""
        if self._request.remaining_s() <= 0:
            return 1.0
        if self.num_steps:
            return step / self.num_steps
        usable_s = self._seconds - self._reserve_s
        return min(1.0, self._request.stage_elapsed_s() / usable_s)
