"""The five containers of metrics of a run: what it cost, how fast, how full, how well, how long.

Everything is read from the run folder; what it does not hold is None with the reason. The pages in
reference/plans/ say what each figure is for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reference.lab.curves import early_slope
from reference.lab.run_facts import Facts, bpb_at, card_bytes, eval_points, first_reaching
from reference.model.cost import estimate

WEEK_S = 7 * 24 * 3600
SKIPPED_STEPS = 10  # of a run: compiling, autotuning; nanochat leaves out as many
BUDGET_SHARES = (0.25, 0.5, 0.75, 1.0)
GPT2_CORE = 0.256525
Form = str | Callable[[Any], str]
# (key, label, value, form), and a note where there is something to say: see `Figure.of`.
Row = tuple[str, str, Any, Form] | tuple[str, str, Any, Form, str]


@dataclass(frozen=True)
class Figure:
    """One metric.

    Attributes:
        value: None where the run does not hold it; then `note` says why.
        text: The value in a person's units.
    """

    key: str
    label: str
    value: Any
    text: str
    note: str = ""

    @classmethod
    def of(cls, key: str, label: str, value: Any, form: Form, note: str = "") -> Figure:
        """The figure with its text; `form` is a format string or a function."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return cls(key, label, None, "-", note or "not in this run")
        return cls(
            key, label, value, form.format(value) if isinstance(form, str) else form(value), note
        )


@dataclass(frozen=True)
class Container:
    number: int
    title: str
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "container": self.number,
            "title": self.title,
            "figures": {
                figure.key: {"value": figure.value, "note": figure.note or None}
                for figure in self.figures
            },
        }


def containers(
    facts: Facts, *, target_bpb: float | None = None, study: Mapping[str, Any] | None = None
) -> list[Container]:
    """All five.

    Args:
        target_bpb: For the FLOPs and time to it.
        study: findings.json of an `ablate` study, for the proxy's accuracy.
    """
    parts: tuple[tuple[str, Iterable[Row]], ...] = (
        ("Required FLOPs", required_flops(facts, target_bpb)),
        ("Effective FLOPs/s", effective_flops(facts)),
        ("Memory fit", memory_fit(facts)),
        ("Convergence efficiency", convergence(facts)),
        ("End-to-end latency", latency(facts, target_bpb, study)),
    )
    return [
        Container(number, title, tuple(Figure.of(*row) for row in rows))
        for number, (title, rows) in enumerate(parts, 1)
    ]


def required_flops(facts: Facts, target_bpb: float | None) -> Iterator[Row]:
    per_token, tokens = facts.flops_per_token, facts.steps[-1]["tokens"]
    total = per_token * tokens
    scaling = facts.model.get("scaling_parameters")
    core, core_note = _core(facts)
    yield "parameters", "parameters", facts.model["parameters"], _si
    yield "scaling_parameters", "of them in matrices and head", scaling, _si
    yield "flops_per_token", "FLOPs a token", per_token, _si, "nanochat's count"
    causal = facts.model.get("flops_per_token_causal")
    yield "flops_per_token_causal", "causal attention halved", causal, _si
    yield "tokens", "tokens", tokens, _si
    ratio = tokens / scaling if scaling else None
    yield "tokens_per_parameter", "tokens a parameter", ratio, "{:.1f}"
    yield "flops", "training FLOPs", total, "{:.4g}"
    per_exaflop = None if core is None else core / (total / 1e18)
    yield "core_per_exaflop", "CORE per 1e18 FLOPs", per_exaflop, "{:.4g}", core_note
    for share in BUDGET_SHARES:
        value = bpb_at(facts, share * total)
        note = "between evaluations: interpolated over ln FLOPs" if value else "no evaluation"
        label = f"val_bpb at {share * total:.3g} FLOPs"
        yield f"bpb_at_{share:.0%}", label, value, "{:.4f}", note
    if target_bpb is None:
        yield "flops_to_target", "FLOPs to target", None, "", "no --target-bpb given"
    else:
        reached = first_reaching(facts, target_bpb)
        flops = None if reached is None else reached["flops"]
        note = "" if reached else "never reached"
        yield "flops_to_target", f"FLOPs to val_bpb {target_bpb:g}", flops, "{:.4g}", note


def effective_flops(facts: Facts) -> Iterator[Row]:
    rows = facts.steps[SKIPPED_STEPS:] or facts.steps
    in_order = [float(step["dt_s"]) for step in rows if step.get("dt_s")]
    if not in_order:
        yield "tokens_per_s", "tokens/s", None, "", "steps carry no times"
        return
    times = sorted(in_order)
    tokens = rows[-1].get("step_tokens") or _step_tokens(facts)
    speed = tokens * len(times) / sum(times)
    stage = facts.stages.get("pretrain", {})
    wall = stage.get("stop_s", math.nan) - stage.get("start_s", math.nan)
    whole = facts.steps[-1]["tokens"] / wall if wall > 0 else None
    yield "tokens_per_s", "tokens/s, steps only", speed, "{:,.0f}"
    yield "tokens_per_s_stage", "tokens/s, whole stage", whole, "{:,.0f}"
    per_token, causal = facts.flops_per_token, facts.model.get("flops_per_token_causal")
    yield "flops_per_s", "FLOPs/s, nanochat's count", speed * per_token, _si
    yield "flops_per_s_causal", "FLOPs/s, causal halved", causal and speed * causal, _si
    yield "flops_per_s_stage", "FLOPs/s, whole stage", whole and whole * per_token, _si
    peak = facts.model.get("peak_flops")
    no_peak = "" if peak else "no peak is known for this device"
    yield "mfu", "bf16 MFU", peak and speed * per_token / peak, "{:.1%}", no_peak
    yield "step_s_median", "step, median", statistics.median(times), _milliseconds
    yield "step_s_p99", "step, p99", _rank(times, 0.99), _milliseconds
    spread = statistics.pstdev(times) / statistics.fmean(times)
    yield "step_cv", "step, spread over mean", spread, "{:.1%}"
    drift, count = _halves(in_order), f"{len(in_order)} steps"
    yield "step_drift", "second half against first", drift, "{:+.1%}", count
    waited = [step["wait_s"] for step in rows if step.get("wait_s") is not None]
    share = sum(waited) / sum(times) if waited else None
    yield "wait_share", "waiting for data", share, "{:.2%}"


def memory_fit(facts: Facts) -> Iterator[Row]:
    peaks = [row["peak_bytes"] for row in facts.run.of("memory")]
    peak = max(peaks) if peaks else None
    on_gpu = str(facts.model.get("device", "")).startswith("cuda")
    card = card_bytes(facts.run)
    planned, unlocked, note = None, None, "the recipe cannot be resolved here"
    if facts.recipe:
        planned, note = estimate(facts.recipe)["vram_bytes"]["total"], ""
        if card:
            unlocked = _largest_batch(facts.recipe, card)
    no_gpu = "" if card else "no GPU was seen"
    yield "peak_bytes", "peak memory", peak, _gib, "" if on_gpu else "of the process: no GPU"
    yield "planned_bytes", "planned for bf16 on a GPU", planned, _gib, note
    off = planned / peak - 1 if planned and peak and on_gpu else None
    only_gpu = "" if on_gpu else "only a GPU's peak can be compared"
    yield "plan_error", "plan against peak", off, "{:+.1%}", only_gpu
    yield "card_bytes", "the card's memory", card, _gib, no_gpu
    left = 1 - peak / card if card and peak and on_gpu else None
    yield "headroom", "left of it", left, "{:.1%}"
    errors = facts.run.of("error")
    full = sum(error.get("kind") == "out_of_memory" for error in errors)
    yield "oom_count", "out of memory", full, str
    starts = sum(stage["attempts"] for stage in facts.stages.values())
    yield "attempts", "starts of stages", starts, str
    batch = (facts.recipe.get("pretrain") or {}).get("device_batch_size")
    yield "device_batch_size", "sequences a micro-batch", batch, str
    why = "" if unlocked else no_gpu or note
    yield "batch_unlocked", "largest that is planned to fit", unlocked, str, why


def convergence(facts: Facts) -> Iterator[Row]:
    steps, evals = facts.steps, facts.evals
    first, last = (evals[0]["value"], evals[-1]["value"]) if evals else (None, None)
    before = f"{first:.4f} before" if first else ""
    yield "val_bpb", "val_bpb at the end", last, "{:.4f}", before
    tail = statistics.fmean(s["loss"] for s in steps[-max(1, len(steps) // 20) :])
    yield "train_loss", "training loss, last 5 %", tail, "{:.4f}", "nats a token"
    slope = early_slope([[s["step"], s["tokens"], 0.0, 0.0, s["loss"]] for s in steps])
    note = "loss for each e-fold of tokens, first quarter"
    yield "early_slope", "early slope", slope, "{:.3f}", note
    note = "-d ln bpb / d ln tokens, last two evaluations"
    yield "late_exponent", "late exponent", _late_exponent(facts), "{:.4f}", note
    most = None
    if first is not None and last is not None and first > last:
        reached = first_reaching(facts, first - 0.9 * (first - last))
        most = reached["tokens"] / steps[-1]["tokens"] if reached else None
    yield "share_to_90_percent", "tokens to 90 % of the gain", most, "{:.0%}"
    core, note = _core(facts)
    yield "core", "CORE", core, "{:.4f}", note
    by_step, by_token = len(steps) / 1000, steps[-1]["tokens"] / 1e9
    yield "core_per_step", "CORE per 1,000 steps", core and core / by_step, "{:.4g}", note
    yield "core_per_billion", "CORE per billion tokens", core and core / by_token, "{:.4g}", note
    total = facts.flops_per_token * steps[-1]["tokens"]
    yield "bpb_flops", "compute behind it", total, "{:.4g} FLOPs"


def latency(
    facts: Facts, target_bpb: float | None, study: Mapping[str, Any] | None
) -> Iterator[Row]:
    run, stages = facts.run, facts.stages
    begin = next((row["t_s"] for row in run.of("run_start")), 0.0)
    end = next((row["t_s"] for row in run.of("run_stop")), None)
    for name, stage in stages.items():
        took = stage["stop_s"] - stage["start_s"] if "stop_s" in stage else None
        yield f"{name}_s", name, took, _duration, "" if took else "did not end"
    total = end - begin if end is not None else None
    inside = sum(s["stop_s"] - s["start_s"] for s in stages.values() if "stop_s" in s)
    yield "between_stages_s", "between stages", total and total - inside, _duration
    note = "" if total else "the run has not ended"
    yield "total_s", "whole run", total, _duration, note
    sft = stages.get("sft", {})
    chat = sft["stop_s"] - begin if sft.get("status") == "complete" else None
    note = "" if chat else "no finished sft stage"
    yield "chat_model_s", "wall clock to a chat model", chat, _duration, note
    reached = first_reaching(facts, target_bpb) if target_bpb is not None else None
    target = None if reached is None else reached["t_s"] - begin
    missing = "no --target-bpb given" if target_bpb is None else "never reached"
    note = "" if reached else missing
    yield "target_s", "wall clock to the target", target, _duration, note
    evals = sum(row.get("elapsed_s") or 0.0 for row in facts.evals)
    yield "eval_s", "evaluating in pretraining", evals, _duration
    saves = sum(row.get("elapsed_s") or 0.0 for row in run.of("checkpoint", "pretrain"))
    yield "checkpoint_s", "saving checkpoints", saves, _duration
    weekly = total and WEEK_S / total
    yield "experiments_per_week", "such runs a week", weekly, "{:,.1f}"
    proxy = (study or {}).get("recommended_proxy")
    rate = next((p for p in (study or {}).get("proxies", ()) if p["name"] == proxy), None)
    note = f"{proxy}, {rate['arms']} changes" if rate else "give a study's findings: --study DIR"
    agreement = rate and rate["agreement"]
    yield "proxy_agreement", "proxy-to-final accuracy", agreement, "{:.0%}", note


def _late_exponent(facts: Facts) -> float | None:
    points = [row for row in eval_points(facts) if row["tokens"] > 0]
    if len(points) < 2:
        return None
    a, b = points[-2:]
    return -math.log(b["value"] / a["value"]) / math.log(b["tokens"] / a["tokens"])


def _core(facts: Facts) -> tuple[float | None, str]:
    core = (facts.run.result.get("quality") or {}).get("core") or {}
    if core.get("value") is None:
        return None, "no CORE in the result"
    if core.get("partial") or core.get("bundle") != "core":
        return None, "partial, or not the CORE bundle: not a CORE to compare"
    return float(core["value"]), f"{core['value'] - GPT2_CORE:+.4f} from GPT-2 1.5B"


def _largest_batch(recipe: Mapping[str, Any], card_bytes: int) -> int:
    """The largest power of two of sequences that is planned to fit."""
    batch = 0
    for size in (2**i for i in range(9)):
        section = {**recipe["pretrain"], "device_batch_size": size}
        if estimate({**recipe, "pretrain": section})["vram_bytes"]["total"] > card_bytes:
            break
        batch = size
    return batch


def _step_tokens(facts: Facts) -> int:
    last = facts.steps[-1]
    return int(last["tokens"] / (last["step"] + 1))


def _halves(times: list[float]) -> float | None:
    if len(times) < 20:
        return None
    middle = len(times) // 2
    return statistics.median(times[middle:]) / statistics.median(times[:middle]) - 1


def _rank(ordered: list[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def _si(value: float) -> str:
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
