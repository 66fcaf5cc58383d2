"""V15: telemetry covers the run, and its energy fits the work that was done."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from kit.events import Step
from kit.tracks import is_ranked
from kit.typed import to_json
from kit.verify import recompute
from kit.verify.checks.clocks import boots, slept_s
from kit.verify.checks.numbers import unequal
from kit.verify.checks.physics import known_gpu, work_rate
from kit.verify.evidence import Evidence, Irrelevant
from kit.verify.finding import Check, Finding, conclude, fail, missing
from kit.verify.thresholds import (
    BUSY_MFU,
    BUSY_POWER_SHARE,
    ENERGY_SHARE,
    TELEMETRY_COVERAGE,
    TELEMETRY_OFFSET_S,
    TELEMETRY_SLACK_S,
)


def energy(evidence: Evidence) -> Iterator[Finding]:
    """Telemetry covers the run, adds up to what is stated, and fits the work."""
    document, log = evidence.document, evidence.log
    if evidence.result.telemetry.digest is None:
        if evidence.complete:
            yield fail("a complete run without telemetry", "telemetry")
            return
        raise Irrelevant("the run ended before telemetry began")
    told = log.telemetry
    telemetry = evidence.telemetry
    if telemetry.chain.problems or (told and told.head != telemetry.chain.head):
        raise Irrelevant("the telemetry cannot be relied on (V04)")
    summary = telemetry.summary.to_json()
    stated = to_json(told) if told else {}
    told_of = {key: stated[key] for key in summary if key in stated}
    yield from unequal(summary, told_of, "telemetry.summary", "the telemetry itself")
    in_result = document["telemetry"]["summary"]
    yield from unequal(stated or None, in_result, "telemetry.summary", "the log")
    yield from unequal(recompute.energy(log), document["energy"], "energy", "the log")
    yield from _coverage(evidence)
    if evidence.uses_gpu:
        yield from _gpu_energy(evidence, summary)
    kwh = evidence.result.energy.kwh
    said = "no energy to be read on this machine" if kwh is None else f"{kwh:.4g} kWh"
    yield conclude(f"{summary['samples']:,} samples, {said}")


def _coverage(evidence: Evidence) -> Iterator[Finding]:
    log, telemetry = evidence.log, evidence.telemetry
    if telemetry.backwards:
        yield fail("telemetry runs backwards", "telemetry.jsonl")
    start, stop = log.run_start, log.run_stop
    if start is None or stop is None or not telemetry.times:
        return
    span_s = (stop.t_ns - start.t_ns) / 1e9
    down_s = sum(event.data.downtime_s for event in log.resumes)
    down_s += sum(slept_s(boot) for boot in boots(log.events))
    expected = (span_s - down_s - TELEMETRY_SLACK_S) / telemetry.summary.interval_s
    from_ms, to_ms = start.t_ns / 1e6 - 1500, stop.t_ns / 1e6 + 1500
    within = [at for at, _ in telemetry.times if from_ms <= at <= to_ms]
    if len(within) < TELEMETRY_COVERAGE * expected:
        yield fail(
            "telemetry covers too little of the run",
            "telemetry.jsonl",
            expected=f"at least {TELEMETRY_COVERAGE * expected:,.0f} samples",
            found=len(within),
        )
        return
    # Wall time minus run time is one and the same for both files, until somebody sets the clock.
    offsets = [event.wall_ms - event.t_ns / 1e6 for event in log.events]
    low, high = min(offsets), max(offsets)
    slack = TELEMETRY_OFFSET_S * 1000
    least, most = low - slack, high + slack
    strays = [wall - at for at, wall in telemetry.times if not least <= wall - at <= most]
    if strays:
        yield fail(
            "telemetry was taken at another time than the run",
            "telemetry.jsonl",
            expected=f"wall minus run time {low:,.0f} to {high:,.0f} ms",
            found=f"{strays[0]:,.0f} ms",
        )


def _gpu_energy(evidence: Evidence, summary: dict[str, Any]) -> Iterator[Finding]:
    gpus = evidence.gpus()
    hashes = {gpu["uuid_hash"] for gpu in gpus}
    if gpus and not evidence.telemetry.uuid_hashes <= hashes:
        yield fail(
            "telemetry is another card's",
            "telemetry.jsonl",
            expected=", ".join(map(str, hashes)),
            found=", ".join(evidence.telemetry.uuid_hashes),
        )
    power_w = summary["means"]["gpu_power_w"]
    if power_w is None:
        text = "the GPU's power could not be read"
        yield fail(text) if is_ranked(evidence.track) else missing(text)
        return
    # Over a gap (a resume, sleep) only the counter goes on: what lies beside it is compared.
    counter = evidence.telemetry.summary.counter_beside_j
    integrated = evidence.telemetry.summary.integrated_j
    if counter and integrated:
        share = abs(counter - integrated) / max(counter, integrated)
        if share > ENERGY_SHARE:
            yield fail(
                "the energy counter and the integrated power disagree",
                "energy",
                expected=f"within {ENERGY_SHARE:.0%}",
                found=f"{share:.1%}: {counter:,.0f} J and {integrated:,.0f} J",
            )
    limit = gpus[0]["power_limit_w"] if gpus else None
    utilisation, drawn_w = _utilisation(evidence), _power_while_training_w(evidence)
    low_w = BUSY_POWER_SHARE * limit if limit else 0.0
    if utilisation and drawn_w is not None and utilisation > BUSY_MFU and drawn_w < low_w:
        yield fail(
            "the card drew too little power for the work",
            "telemetry",
            expected=f"at least {low_w:,.0f} W at {utilisation:.0%} of its peak",
            found=f"{drawn_w:,.0f} W while it trained",
        )


def _power_while_training_w(evidence: Evidence) -> float | None:
    """The median power of the samples between the first and the last step."""
    steps = evidence.log.of("pretrain", Step)
    if not steps:
        return None
    begin, end = steps[0].t_ns // 10**6, steps[-1].t_ns // 10**6
    found = [watts for at_ms, watts in evidence.telemetry.power if begin <= at_ms <= end]
    return statistics.median(found) if found else None


def _utilisation(evidence: Evidence) -> float | None:
    """Share of the card's specified peak while it trained."""
    known, per_token = known_gpu(evidence), evidence.result.training.flops_per_token
    if known is None or not per_token:
        return None
    rate = work_rate(evidence, per_token)
    return None if rate is None else float(rate / (known.spec_bf16_tflops * 1e12))


CHECKS = (
    Check(
        "V15",
        "Energy",
        "Work done elsewhere, telemetry invented or copied from another run.",
        "telemetry.jsonl, energy, hardware",
        energy,
    ),
)
