"""The five containers of metrics of a run: what it cost, how fast, how full, how well, how long.

Everything is read from the run folder; what it does not hold is None with the reason. The pages in
reference/plans/ say what each figure is for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reference.lab.curves import early_slope
from reference.lab.run_facts import Facts, bpb_at, card_bytes, eval_points, first_reaching
from reference.model.cost import estimate

WEEK_S = 7 * 24 * 3600
SKIPPED_STEPS = 10  # of a run: compiling, autotuning; nanochat leaves out as many
BUDGET_SHARES = (0.25, 0.5, 0.75, 1.0)
GPT2_CORE = 0.256525


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
    return [
        Container(1, "Required FLOPs", tuple(required_flops(facts, target_bpb))),
        Container(2, "Effective FLOPs/s", tuple(effective_flops(facts))),
        Container(3, "Memory fit", tuple(memory_fit(facts))),
        Container(4, "Convergence efficiency", tuple(convergence(facts))),
        Container(5, "End-to-end latency", tuple(latency(facts, target_bpb, study))),
    ]


def required_flops(facts: Facts, target_bpb: float | None) -> list[Figure]:
    per_token, tokens = facts.flops_per_token, facts.steps[-1]["tokens"]
    causal = facts.model.get("flops_per_token_causal")
    total = per_token * tokens
    scaling = facts.model.get("scaling_parameters")
    core, core_note = _core(facts)
    rows = [
        Figure(
            "parameters", "parameters", facts.model["parameters"], _si(facts.model["parameters"])
        ),
        _figure("scaling_parameters", "of them in matrices and head", scaling, _si),
        Figure("flops_per_token", "FLOPs a token", per_token, _si(per_token), "nanochat's count"),
        _figure("flops_per_token_causal", "causal attention halved", causal, _si),
        Figure("tokens", "tokens", tokens, _si(tokens)),
        _figure(
            "tokens_per_parameter",
            "tokens a parameter",
            tokens / scaling if scaling else None,
            "{:.1f}".format,
        ),
        Figure("flops", "training FLOPs", total, f"{total:.4g}"),
        _figure(
            "core_per_exaflop",
            "CORE per 1e18 FLOPs",
            None if core is None else core / (total / 1e18),
            "{:.4g}".format,
            core_note,
        ),
    ]
    for share in BUDGET_SHARES:
        value = bpb_at(facts, share * total)
        rows.append(
            _figure(
                f"bpb_at_{share:.0%}",
                f"val_bpb at {share * total:.3g} FLOPs",
                value,
                "{:.4f}".format,
                "between evaluations: interpolated over ln FLOPs" if value else "no evaluation",
            )
        )
    if target_bpb is None:
        rows.append(
            Figure("flops_to_target", "FLOPs to target", None, "-", "no --target-bpb given")
        )
    else:
        reached = first_reaching(facts, target_bpb)
        rows.append(
            _figure(
                "flops_to_target",
                f"FLOPs to val_bpb {target_bpb:g}",
                None if reached is None else reached["flops"],
                "{:.4g}".format,
                "" if reached else "never reached",
            )
        )
    return rows


def effective_flops(facts: Facts) -> list[Figure]:
    rows = facts.steps[SKIPPED_STEPS:] or facts.steps
    times = sorted(float(step["dt_s"]) for step in rows if step.get("dt_s"))
    if not times:
        return [Figure("tokens_per_s", "tokens/s", None, "-", "steps carry no times")]
    tokens = rows[-1].get("step_tokens") or _step_tokens(facts)
    median = statistics.median(times)
    mean_speed = tokens * len(times) / sum(times)
    per_token = facts.flops_per_token
    causal = facts.model.get("flops_per_token_causal")
    peak = facts.model.get("peak_flops")
    stage = facts.stages.get("pretrain", {})
    wall = stage.get("stop_s", math.nan) - stage.get("start_s", math.nan)
    waited = [step["wait_s"] for step in rows if step.get("wait_s") is not None]
    whole = facts.steps[-1]["tokens"] / wall if wall > 0 else None
    no_peak = "no peak is known for this device"
    halves = _halves(times_in_order := [float(s["dt_s"]) for s in rows if s.get("dt_s")])
    return [
        Figure("tokens_per_s", "tokens/s, steps only", mean_speed, f"{mean_speed:,.0f}"),
        _figure("tokens_per_s_stage", "tokens/s, whole stage", whole, "{:,.0f}".format),
        Figure(
            "flops_per_s",
            "FLOPs/s, nanochat's count",
            mean_speed * per_token,
            _si(mean_speed * per_token),
        ),
        _figure(
            "flops_per_s_causal", "FLOPs/s, causal halved", causal and mean_speed * causal, _si
        ),
        _figure("flops_per_s_stage", "FLOPs/s, whole stage", whole and whole * per_token, _si),
        _figure(
            "mfu",
            "bf16 MFU",
            peak and mean_speed * per_token / peak,
            "{:.1%}".format,
            "" if peak else no_peak,
        ),
        Figure("step_s_median", "step, median", median, f"{1e3 * median:,.1f} ms"),
        Figure(
            "step_s_p99", "step, p99", _rank(times, 0.99), f"{1e3 * _rank(times, 0.99):,.1f} ms"
        ),
        Figure(
            "step_cv",
            "step, spread over mean",
            (cv := statistics.pstdev(times) / statistics.fmean(times)),
            f"{cv:.1%}",
        ),
        _figure(
            "step_drift",
            "second half against first",
            halves,
            "{:+.1%}".format,
            f"{len(times_in_order)} steps",
        ),
        _figure(
            "wait_share",
            "waiting for data",
            sum(waited) / sum(times) if waited else None,
            "{:.2%}".format,
        ),
    ]


def memory_fit(facts: Facts) -> list[Figure]:
    peaks = [row["peak_bytes"] for row in facts.run.of("memory")]
    peak = max(peaks) if peaks else None
    on_gpu = str(facts.model.get("device", "")).startswith("cuda")
    card = card_bytes(facts.run)
    planned, unlocked, note = None, None, "the recipe cannot be resolved here"
    batch = (facts.recipe.get("pretrain") or {}).get("device_batch_size")
    if facts.recipe:
        planned, note = estimate(facts.recipe)["vram_bytes"]["total"], ""
        if card:
            unlocked = _largest_batch(facts.recipe, card)
    errors = facts.run.of("error")
    stages = facts.stages.values()
    return [
        _figure(
            "peak_bytes", "peak memory", peak, _gib, "" if on_gpu else "of the process: no GPU"
        ),
        _figure("planned_bytes", "planned for bf16 on a GPU", planned, _gib, note),
        _figure(
            "plan_error",
            "plan against peak",
            planned / peak - 1 if planned and peak and on_gpu else None,
            "{:+.1%}".format,
            "" if on_gpu else "only a GPU's peak can be compared",
        ),
        _figure("card_bytes", "the card's memory", card, _gib, "" if card else "no GPU was seen"),
        _figure(
            "headroom",
            "left of it",
            1 - peak / card if card and peak and on_gpu else None,
            "{:.1%}".format,
        ),
        Figure(
            "oom_count",
            "out of memory",
            (oom := sum(error.get("kind") == "out_of_memory" for error in errors)),
            str(oom),
        ),
        Figure(
            "attempts",
            "starts of stages",
            (starts := sum(stage["attempts"] for stage in stages)),
            str(starts),
        ),
        _figure("device_batch_size", "sequences a micro-batch", batch, str),
        _figure(
            "batch_unlocked",
            "largest that is planned to fit",
            unlocked,
            str,
            "" if unlocked else "no GPU was seen" if not card else note,
        ),
    ]


def convergence(facts: Facts) -> list[Figure]:
    steps, evals = facts.steps, facts.evals
    curve = [[s["step"], s["tokens"], 0.0, 0.0, s["loss"]] for s in steps]
    first, last = (evals[0]["value"], evals[-1]["value"]) if evals else (None, None)
    most = None
    if first is not None and last is not None and first > last:
        wanted = first - 0.9 * (first - last)
        reached = first_reaching(facts, wanted)
        most = reached["tokens"] / steps[-1]["tokens"] if reached else None
    core, core_note = _core(facts)
    slope = early_slope(curve)
    tail = [s["loss"] for s in steps[-max(1, len(steps) // 20) :]]
    total = facts.flops_per_token * steps[-1]["tokens"]
    late = _late_exponent(facts)
    return [
        _figure(
            "val_bpb",
            "val_bpb at the end",
            last,
            "{:.4f}".format,
            f"{first:.4f} before" if first else "",
        ),
        Figure(
            "train_loss",
            "training loss, last 5 %",
            statistics.fmean(tail),
            f"{statistics.fmean(tail):.4f}",
            "nats a token",
        ),
        _figure(
            "early_slope",
            "early slope",
            slope,
            "{:.3f}".format,
            "loss for each e-fold of tokens, first quarter",
        ),
        _figure(
            "late_exponent",
            "late exponent",
            late,
            "{:.4f}".format,
            "-d ln bpb / d ln tokens, last two evaluations",
        ),
        _figure("share_to_90_percent", "tokens to 90 % of the gain", most, "{:.0%}".format),
        _figure("core", "CORE", core, "{:.4f}".format, core_note),
        _figure(
            "core_per_step",
            "CORE per 1,000 steps",
            core and core / (len(steps) / 1000),
            "{:.4g}".format,
            core_note,
        ),
        _figure(
            "core_per_billion",
            "CORE per billion tokens",
            core and core / (steps[-1]["tokens"] / 1e9),
            "{:.4g}".format,
            core_note,
        ),
        Figure("bpb_flops", "compute behind it", total, f"{total:.4g} FLOPs"),
    ]


def latency(
    facts: Facts, target_bpb: float | None, study: Mapping[str, Any] | None
) -> list[Figure]:
    run, stages = facts.run, facts.stages
    begin = next((row["t_s"] for row in run.of("run_start")), 0.0)
    end = next((row["t_s"] for row in run.of("run_stop")), None)
    rows = []
    for name, stage in stages.items():
        took = stage["stop_s"] - stage["start_s"] if "stop_s" in stage else None
        rows.append(_figure(f"{name}_s", name, took, _duration, "" if took else "did not end"))
    total = end - begin if end is not None else None
    inside = sum(s["stop_s"] - s["start_s"] for s in stages.values() if "stop_s" in s)
    sft = stages.get("sft", {})
    chat = sft["stop_s"] - begin if sft.get("status") == "complete" else None
    evals = [row.get("elapsed_s") or 0.0 for row in facts.evals]
    saves = [row.get("elapsed_s") or 0.0 for row in run.of("checkpoint", "pretrain")]
    reached = first_reaching(facts, target_bpb) if target_bpb is not None else None
    proxy = (study or {}).get("recommended_proxy")
    rate = next((p for p in (study or {}).get("proxies", ()) if p["name"] == proxy), None)
    return [
        *rows,
        _figure("between_stages_s", "between stages", total and total - inside, _duration),
        _figure("total_s", "whole run", total, _duration, "" if total else "the run has not ended"),
        _figure(
            "chat_model_s",
            "wall clock to a chat model",
            chat,
            _duration,
            "" if chat else "no finished sft stage",
        ),
        _figure(
            "target_s",
            "wall clock to the target",
            None if reached is None else reached["t_s"] - begin,
            _duration,
            "" if reached else "no --target-bpb given" if target_bpb is None else "never reached",
        ),
        Figure("eval_s", "evaluating in pretraining", sum(evals), _duration(sum(evals))),
        Figure("checkpoint_s", "saving checkpoints", sum(saves), _duration(sum(saves))),
        _figure(
            "experiments_per_week", "such runs a week", total and WEEK_S / total, "{:,.1f}".format
        ),
        _figure(
            "proxy_agreement",
            "proxy-to-final accuracy",
            rate and rate["agreement"],
            "{:.0%}".format,
            f"{proxy}, {rate['arms']} changes" if rate else "give a study's findings: --study DIR",
        ),
    ]


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


def _figure(key: str, label: str, value: Any, text: Any, note: str = "") -> Figure:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Figure(key, label, None, "-", note or "not in this run")
    return Figure(key, label, value, text(value), note)


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
