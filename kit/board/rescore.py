"""The board scores the published weights of a row itself.

Nothing that was submitted is executed: weights are safetensors, the model's code is an installed
loader, and the questions are those of the bundle that the maintainer names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kit.board.claim import find_claim, with_weights
from kit.board.layout import SubmissionPath
from kit.board.sample import DEFAULT_ITEMS, Comparison, compare_answers, draw_items
from kit.errors import KitError
from kit.events import Model
from kit.files import has_ending
from kit.trust.digest import sha256_file
from kit.verify.evidence import Absent, Evidence, Irrelevant, Options, Refused

Document = dict[str, Any]
# For the estimate alone: SmolLM2-135M on two CPU cores took 107,311 s for all 65.3 million tokens.
_FLOPS_PER_S = 1.6e11
_TOKENS_PER_ITEM = 717


class CannotScore(KitError):
    """The row's weights cannot be scored; trying again changes nothing."""


class Scored(NamedTuple):
    """What the board found.

    Attributes:
        outcomes: One digit a drawn item, by task.
        parameters: Counted from the shapes in the weights.
    """

    outcomes: dict[str, str]
    comparison: Comparison
    parameters: int


class Scorer(Protocol):
    """Scores a row's weights on items that a seed draws."""

    @property
    def items(self) -> int:
        """How many items it scores of each row."""
        ...

    def score(self, path: SubmissionPath, seed: str) -> Scored:
        """Raises `CannotScore`, or another `KitError` for what may be different next time."""
        ...


@dataclass(frozen=True)
class WeightsScorer:
    """Fetches the weights of a row of the board in `root` and evaluates them.

    Args:
        core: Folder of the CORE bundle.
        work: Work folder; fetched weights stay in its cache.
    """

    root: Path
    core: Path
    work: Path
    items: int = DEFAULT_ITEMS
    device: str = "cpu"
    tell: Callable[[str], None] = lambda text: None

    def score(self, path: SubmissionPath, seed: str) -> Scored:
        claim = find_claim(str(self.root / str(path)), str(self.root), self.work, self.tell)
        claim = with_weights(claim, self.work, self.tell)
        evidence = Evidence(
            claim.result,
            claim.folder,
            Options(re_evaluate=True, core=self.core, device=self.device),
        )
        try:
            stated = evidence.evaluation_file("core")
            if stated is None:
                raise CannotScore("the run has no CORE evaluation")
            parameters = _parameters(evidence)
            self.tell(cost(parameters, self.items))
            found, drawn = self._evaluate(evidence, stated, seed)
        except (Absent, Irrelevant, Refused) as why:
            raise CannotScore(f"its weights cannot be scored: {why}") from None
        told = {task["label"]: task["outcomes"] for task in stated["tasks"]}
        baselines = {task["label"]: task["baseline"] for task in stated["tasks"]}
        return Scored(found, compare_answers(told, found, drawn, baselines), parameters)

    def _evaluate(
        self, evidence: Evidence, stated: Document, seed: str
    ) -> tuple[dict[str, str], dict[str, list[int]]]:
        from kit.core_eval.bundle import open_bundle
        from kit.core_eval.evaluate import Settings, evaluate_core
        from kit.verify.evaluate import load_evidence_model

        section = evidence.recipe.section("core")
        bundle = open_bundle(self.core, tasks=section["tasks"], allow_custom=True)
        if bundle.digest != stated["bundle"]["digest"]:
            raise CannotScore("it was scored on another bundle than the board's")
        counts = {task["label"]: len(task["outcomes"]) for task in stated["tasks"]}
        if set(counts) != {task.label for task in bundle.selected}:
            raise CannotScore("its evaluation has other tasks than the bundle")
        drawn = draw_items(seed, counts, self.items)
        settings = Settings(
            max_per_task=stated["max_per_task"],
            batch_tokens=section["batch_tokens"],
            indices=drawn,
        )
        again = evaluate_core(load_evidence_model(evidence), bundle, settings)
        return {task["label"]: task["outcomes"] for task in again["tasks"]}, drawn


def cost(parameters: int, items: int) -> str:
    """What scoring takes, roughly, before it begins."""
    seconds = 2 * parameters * _TOKENS_PER_ITEM * items / _FLOPS_PER_S
    return (
        f"{items} items on {parameters / 1e6:,.0f} million parameters: about "
        f"{max(1, round(seconds / 60))} min on two CPU cores, less on more"
    )


def _parameters(evidence: Evidence) -> int:
    """Parameters in the weights; they have to be the files, and the size, that the log names.

    Raises:
        CannotScore: A file differs from the signed one, is not safetensors, or the sizes differ.
    """
    from kit.verify.weights import read_weights

    artifact = evidence.log.artifacts.get("pretrain")
    models = evidence.log.of("pretrain", Model)
    if artifact is None or not models:
        raise CannotScore("the log has no model or no weights")
    counted = 0
    for file in artifact.files:
        relative = f"{artifact.folder}/{file.path}"
        if file.path.startswith("snapshots/"):
            continue
        path = evidence.folder / relative
        if not path.is_file() or sha256_file(path) != file.sha256:
            raise CannotScore(f"`{relative}` is not the file that was signed")
        if has_ending(path, ".safetensors"):
            counted += read_weights(path).parameters
    stated = models[-1].data.parameters
    if counted != stated:
        raise CannotScore(
            f"the weights hold {counted:,} parameters, the log's model has {stated:,}"
        )
    return counted
