"""How far a training stage is: by steps, by the stage's clock, or by what the budget leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference.model.day import leave_s, margin_s

if TYPE_CHECKING:  # `verify` reads this module on systems without a trainer's clocks
    from reference.request import Request

# Of a horizon in time, kept back for the last evaluation and checkpoint.
RESERVE_SHARE = 0.01
RESERVE_EVALS = 3.0
RESERVE_S = 10.0
LARGEST_RESERVE = 0.5  # of the horizon
SHORTEST_SFT = 0.6  # of its hours, however late the stage begins: `verify` expects half at least
FIRST_STEPS = 20  # of a process, whose speed says nothing: kernels load and caches are cold


class Horizon:
    """The elapsed share of a training stage.

    Args:
        stage: Section of the recipe that has `hours` and `num_steps`; `hours` wins.
        planned_per_s: Tokens a second that the plan expects, for `pretrain.fill_budget`.
    """

    def __init__(
        self, request: Request, stage: str = "pretrain", planned_per_s: float = 0.0
    ) -> None:
        section = request.recipe[stage]
        self._request, self._planned_per_s = request, planned_per_s
        self._fills: bool = section.get("fill_budget", False) and planned_per_s > 0
        self._seconds: float = section["hours"] * 3600
        if stage == "sft":
            self._seconds = self._shared_with_chat_s()
        self.num_steps: int = 0 if self._seconds else section["num_steps"]
        least = RESERVE_S + (0 if self._fills else RESERVE_SHARE * self._seconds)
        self._reserve_s = min(LARGEST_RESERVE * self._seconds, least)
        self._steps, self._step_tokens, self._step_s = 0, 0, 0.0
        self._reached = 0.0

    def reserve(self, eval_s: float) -> None:
        """Keeps back enough time for another evaluation that takes `eval_s` seconds."""
        wanted = RESERVE_EVALS * eval_s + RESERVE_S
        self._reserve_s = min(LARGEST_RESERVE * self._seconds, max(self._reserve_s, wanted))

    def saw(self, tokens: int, seconds: float) -> None:
        """Takes a step's tokens and time into the card's measured speed."""
        self._steps += 1
        if self._steps > FIRST_STEPS:
            self._step_tokens += tokens
            self._step_s += seconds

    @property
    def tokens_per_s(self) -> float:
        """Measured so far, or planned before there is a measurement."""
        return self._step_tokens / self._step_s if self._step_s else self._planned_per_s

    def progress(self, step: int) -> float:
        """The elapsed share of the horizon, 0 to 1, before step `step`; it never falls."""
        if self._request.remaining_s() <= 0:
            return 1.0
        if self.num_steps:
            return step / self.num_steps
        usable_s = (self._left_by_later_stages_s() if self._fills else self._seconds) - (
            self._reserve_s
        )
        share = self._request.stage_elapsed_s() / usable_s
        self._reached = max(self._reached, min(1.0, share))
        return self._reached

    def _shared_with_chat_s(self) -> float:
        """The stage's hours, less where what is left of the budget must also do for the chat."""
        request, hours = self._request, self._seconds
        chat_s = 3600 * request.recipe.get("chat_eval", {}).get("hours", 0)
        if not hours or not chat_s:
            return hours
        left_s = request.budget_s - margin_s(request.budget_s) - self._before_s()
        return min(hours, max(SHORTEST_SFT * hours, left_s * hours / (hours + chat_s)))

    def _before_s(self) -> float:
        """Seconds of the run before the stage."""
        return (self._request.stage_start_ns - self._request.start_ns) / 1e9

    def _left_by_later_stages_s(self) -> float:
        """Seconds of the whole stage, from its start; at least half of what was planned."""
        request = self._request
        later_s = leave_s(request.recipe, self.tokens_per_s, self._planned_per_s)
        return max(0.5 * self._seconds, request.budget_s - later_s - self._before_s())
