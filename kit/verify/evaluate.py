"""V22 and V23, with `--re-evaluate`: the checkpoint scored again, and probed.

The only checks that need torch, and minutes. The model is loaded by an installed loader from
safetensors; a recipe that brings loader code of its own is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kit.errors import KitError, SchemaError
from kit.files import files_ending, read_regular
from kit.trust.canonical import parse_strict
from kit.verify.evidence import Evidence, Irrelevant
from kit.verify.finding import Check, Finding, fail, missing, ok
from kit.verify.recompute import answer_bpb
from kit.verify.thresholds import (
    RE_EVALUATION_AGREEMENT,
    RE_EVALUATION_ANSWER_BPB,
    RE_EVALUATION_BPB,
    RE_EVALUATION_CORE,
)
from kit.verify.weights import BrokenWeights, read_weights

MAX_CONFIG_BYTES = 2**20
# Bases of rotary frequencies and reaches are no sizes of a tensor.
_LEAST_LIMIT = 2**28
_LAYERS = re.compile(r"layer|depth|block", re.IGNORECASE)

if TYPE_CHECKING:
    from kit.core_eval.model import EvalModel


def score(evidence: Evidence) -> Iterator[Finding]:
    """The checkpoint gives the same answers again, and the same bits per byte."""
    if not evidence.options.re_evaluate:
        raise Irrelevant("not asked for (--re-evaluate)")
    bits = list(_bits_per_byte(evidence))
    yield from bits
    stated = evidence.evaluation_file("core")
    if stated is None and bits:
        return
    if stated is None:
        raise Irrelevant("the run has no CORE evaluation")
    if evidence.options.core is None:
        yield missing("the bundle was not given (--core DIR)")
        return
    try:
        again = rescore(evidence, stated)
    except OtherBundle as other:
        yield fail(
            "the bundle given is not the one the run was scored on",
            str(evidence.options.core.name),
            expected=other.expected,
            found=other.found,
        )
        return
    if again.agreement < RE_EVALUATION_AGREEMENT:
        yield fail(
            "the checkpoint answers otherwise",
            "eval/core.json",
            expected=f"{RE_EVALUATION_AGREEMENT:.1%} of {again.answers:,} answers the same",
            found=f"{again.agreement:.2%}",
        )
    if again.difference > RE_EVALUATION_CORE:
        yield fail(
            "the checkpoint scores otherwise",
            "quality.core.value",
            expected=f"within {RE_EVALUATION_CORE}",
            found=again.score,
        )
    likelihood = again.answer_bpb
    if likelihood and not abs(likelihood[0] - likelihood[1]) <= RE_EVALUATION_ANSWER_BPB:
        yield fail(
            "the checkpoint gives the right answers another likelihood",
            "eval/core.json: answer_bits",
            expected=f"within {RE_EVALUATION_ANSWER_BPB} of {likelihood[1]:.4f} bits per byte",
            found=f"{likelihood[0]:.4f}",
        )
    if again.agreement >= RE_EVALUATION_AGREEMENT and again.difference <= RE_EVALUATION_CORE:
        yield ok(
            f"{again.agreement:.2%} of {again.answers:,} answers the same, score {again.score:.4f}"
        )


class OtherBundle(Exception):
    """The bundle given is not the one that the run was scored on."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__("the bundle given is not the one the run was scored on")
        self.expected, self.found = expected, found


class Rescored(NamedTuple):
    """A checkpoint scored again.

    Attributes:
        agreement: Share of the answers that are the same.
        answer_bpb: Bits per byte of the right answers, again and as the run wrote it; None where
            one of the two did not measure it.
    """

    score: float
    stated: float
    agreement: float
    answers: int
    answer_bpb: tuple[float, float] | None = None

    @property
    def difference(self) -> float:
        return abs(self.score - self.stated)


def rescore(evidence: Evidence, stated: dict[str, Any]) -> Rescored:
    """The checkpoint on the bundle in `options.core`, item by item as the run was scored.

    Args:
        stated: What the run's own evaluation wrote.

    Raises:
        OtherBundle: Another bundle was given.
        Absent, Refused, Irrelevant: As every evidence.
    """
    from kit.core_eval.bundle import open_bundle
    from kit.core_eval.evaluate import Settings, evaluate_core

    assert evidence.options.core is not None
    model = load_evidence_model(evidence)
    section = evidence.recipe.section("core")
    bundle = open_bundle(evidence.options.core, tasks=section["tasks"], allow_custom=True)
    if bundle.digest != stated["bundle"]["digest"]:
        raise OtherBundle(stated["bundle"]["digest"], bundle.digest)
    settings = Settings(max_per_task=stated["max_per_task"], batch_tokens=section["batch_tokens"])
    again = evaluate_core(model, bundle, settings)
    told = {task["label"]: task["outcomes"] for task in stated["tasks"]}
    same = total = 0
    for task in again["tasks"]:
        outcomes = told.get(task["label"], "")
        total += max(len(task["outcomes"]), len(outcomes))
        same += sum(a == b for a, b in zip(task["outcomes"], outcomes, strict=False))
    agreement = same / total if total else 0.0
    value = evidence.document["quality"]["core"]["value"]
    found, before = answer_bpb(again["tasks"]), answer_bpb(stated["tasks"])
    likelihood = None if found is None or before is None else (found, before)
    return Rescored(again["core_metric"], value, agreement, total, likelihood)


def _bits_per_byte(evidence: Evidence) -> Iterator[Finding]:
    """val_bpb as the run measured it, by the installed trainer on the same validation text."""
    bpb = evidence.result.quality.val_bpb
    if bpb is None or not evidence.complete or not evidence.reference_trainer:
        return
    if evidence.options.data is None:
        yield missing("val_bpb was not measured again: the data were not given (--data DIR)")
        return
    again = evidence.replayed.val_bpb
    if again is None or abs(again - bpb.last) > RE_EVALUATION_BPB:
        yield fail(
            "the checkpoint has other bits per byte",
            "quality.val_bpb.last",
            expected=f"within {RE_EVALUATION_BPB}",
            found=again,
        )
    else:
        yield ok(f"val_bpb {again:.4f}")


def probes(evidence: Evidence) -> Iterator[Finding]:
    """The model is causal, normalised, and blind to its batch."""
    if not evidence.options.re_evaluate:
        raise Irrelevant("not asked for (--re-evaluate)")
    from kit.core_eval.probes import probe_model

    found = probe_model(load_evidence_model(evidence))
    for probe in found:
        if not probe.passed:
            yield fail(
                probe.message,
                f"checkpoints/pretrain: {probe.name}",
                expected=f"at most {probe.allowed:.3g}",
                found=f"{probe.found:.3g}",
            )
    if all(probe.passed for probe in found):
        yield ok(", ".join(probe.name.replace("_", " ") for probe in found))


def load_evidence_model(evidence: Evidence) -> EvalModel:
    """The checkpoint, loaded by an installed loader; no code of the run is executed."""
    loader = evidence.recipe.section("trainer")["loader"]
    if ":" in loader:
        raise Irrelevant("the recipe's loader is code of its own, and verify runs none")
    folder = evidence.artifact_folder("pretrain", skip="snapshots/")
    _check_config(folder)
    dtype = evidence.recipe.facts.dtype
    model: EvalModel = _load(folder, loader, evidence.options.device, dtype)
    return model


@lru_cache(maxsize=1)
def _load(folder: Path, loader: str, device: str, dtype: str) -> Any:
    from kit.core_eval.loaders import load_model

    try:
        return load_model(folder, loader=loader, device=device, dtype=dtype)
    except KitError:
        raise
    except (Exception, RecursionError) as error:  # whatever a hostile checkpoint makes torch raise
        reason = (str(error).splitlines() or [""])[0]
        raise SchemaError(
            f"the checkpoint cannot be loaded: {type(error).__name__}: {reason[:200]}"
        ) from error


def _check_config(folder: Path) -> None:
    """Refuses a config that asks for more than its weights hold, before anything is built from it.

    No size that a config names is larger than the number of the weights, and no count of layers
    is larger than the number of their tensors.

    Raises:
        SchemaError: It does, or it is not a JSON object of reasonable size.
    """
    config = parse_strict(
        read_regular(folder / "config.json", MAX_CONFIG_BYTES), name="config.json of the checkpoint"
    )
    if not isinstance(config, dict):
        raise SchemaError("config.json of the checkpoint is not a JSON object")
    tensors = elements = 0
    for path in files_ending(folder, ".safetensors"):
        try:
            found = read_weights(path)
        except BrokenWeights as error:
            raise SchemaError(f"{path.name} is not a whole safetensors file: {error}") from error
        tensors, elements = tensors + len(found.shapes), elements + found.parameters
    for name, value in _numbers(config):
        limit = tensors if _LAYERS.search(name) else max(elements, _LEAST_LIMIT)
        if not abs(value) <= limit:
            raise SchemaError(
                "config.json of the checkpoint asks for more than its weights hold",
                place=f"checkpoints/pretrain/config.json: {name}",
                limit=limit,
            )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


CHECKS = (
    Check(
        "V22",
        "Score",
        "Invented quality: scores that the published weights do not reach.",
        "the checkpoint, scored again (--re-evaluate --core DIR --data DIR)",
        score,
    ),
    Check(
        "V23",
        "Probes",
        "Models that look ahead, leave probabilities unnormalised, or remember across examples.",
        "the checkpoint, on random tokens (--re-evaluate)",
        probes,
    ),
)
