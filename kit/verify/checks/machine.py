"""V11, V12 and V16: which machine it was, that it was alone, and how it was set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kit.hardware.fingerprint import classify
from kit.hardware.gpu_class import kind
from kit.tracks import RANKED, is_ranked
from kit.verify.checks.numbers import unequal
from kit.verify.evidence import Absent, Evidence, Irrelevant
from kit.verify.finding import Check, Finding, conclude, fail, missing, warn
from kit.verify.thresholds import (
    BEFORE_AFTER_CPU,
    BEFORE_AFTER_GPU,
    IDLE_NETWORK_BYTES,
    POWER_LIMIT_SLACK,
    THERMAL_SHARE_WARN,
)

# What a class must be for a track; others take any one GPU or none.
TRACK_CLASS = {track.name: track.gpu_class for track in RANKED.values()}


def alone(evidence: Evidence) -> Iterator[Finding]:
    """No network, one GPU, nobody else on it."""
    result = evidence.result
    ranked = is_ranked(evidence.track)
    traffic = [result.environment.rx_bytes, result.environment.tx_bytes]
    known = [value for value in traffic if value is not None]
    others = known and max(known) > IDLE_NETWORK_BYTES and _stages_were_offline(evidence)
    if known and max(known) > IDLE_NETWORK_BYTES and not others:
        say = fail if ranked else warn
        yield say(
            f"{max(known) / 2**20:,.0f} MiB went over the network during the run",
            "environment",
            expected=f"at most {IDLE_NETWORK_BYTES // 2**20} MiB",
            found=f"rx {traffic[0]}, tx {traffic[1]}",
        )
    elif not known and ranked:
        yield warn("network traffic could not be counted over a resume", "environment.rx_bytes")
    if evidence.uses_gpu:
        for when in ("before", "after"):
            measured = getattr(result.hardware, when)
            gpus = (measured or {}).get("gpus")
            if gpus is None:
                if measured is not None:
                    text = f"the GPU could not be asked who else uses it ({when})"
                    yield fail(text) if ranked else missing(text)
                continue
            if len(gpus) != 1:
                yield fail(
                    "not exactly one GPU was visible",
                    f"hardware.{when}.gpus",
                    expected=1,
                    found=len(gpus),
                )
            for gpu in gpus:
                if gpu["foreign_processes"]:
                    yield fail(
                        "other processes used the GPU",
                        f"hardware.{when}.gpus",
                        expected=0,
                        found=gpu["foreign_processes"],
                    )
    heard = f"{max(known) / 2**20:,.1f} MiB of traffic" if known else "traffic not counted"
    if others:
        heard += " by other programs (no stage held a socket to another machine)"
    yield conclude(
        heard + (", one GPU, no other process on it" if evidence.uses_gpu else ""), unless="warn"
    )


def _stages_were_offline(evidence: Evidence) -> bool:
    """Whether the supervisor looked at every stage's own sockets and found none to elsewhere.

    A stage that ends within seconds may go without a look; then only the machine's counter speaks.
    """
    stops = [stop.data for stage in evidence.log.stages.values() for stop in stage.stops]
    return bool(stops) and all(stop.socket_looks and stop.remote_sockets == 0 for stop in stops)


def machine(evidence: Evidence) -> Iterator[Finding]:
    """The machine is one and the same, and its GPU what it says it is."""
    document, log = evidence.document, evidence.log
    for when in ("before", "after"):
        logged = log.fingerprints.get(when)
        yield from unequal(logged, document["hardware"][when], f"hardware.{when}", "the log")
    before, after = evidence.result.hardware.before, evidence.result.hardware.after
    if before is None:
        yield missing("the machine was not measured before the run")
        return
    yield from _class(evidence, before, "before")
    if after is not None:
        yield from _class(evidence, after, "after")
        rebooted = any(event.data.rebooted for event in log.resumes)
        yield from _same_machine(before, after, rebooted=rebooted)
    elif evidence.complete:
        yield fail("a complete run that did not measure its machine again", "hardware")
    name = before["class"]["name"]
    what = before["host"]["cpu_model"] or "unnamed CPU"
    yield conclude(f"class {name}, {what}" + (", the same after the run" if after else ""))


def _class(evidence: Evidence, found: dict[str, Any], when: str) -> Iterator[Finding]:
    place = f"hardware.{when}.class"
    probe = found["probes"]["gpu"]
    measured = classify(found["gpus"], probe)
    name = found["class"]["name"]
    if measured["name"] != name:
        yield fail(
            "the class is not the one its figures give",
            place,
            expected=f"{measured['name']} ({'; '.join(measured['reasons'])[:200]})",
            found=name,
        )
    wanted = TRACK_CLASS.get(evidence.track)
    if wanted is not None and measured["name"] != wanted:
        # A run that was asked to stop has no time to measure its machine again.
        excused = probe is None and when == "after" and not evidence.complete
        say = warn if excused else fail
        yield say(
            f"track {evidence.track} is for class {wanted}",
            place,
            expected=wanted,
            found=f"{measured['name']} ({'; '.join(measured['reasons'])[:200]})",
        )
    known = kind(measured["name"])
    for gpu in found["gpus"] or []:
        if known and known.pci_ids and gpu["pci_id"] and gpu["pci_id"] not in known.pci_ids:
            yield fail(
                "the PCI id is that of another card",
                f"hardware.{when}.gpus",
                expected=" or ".join(known.pci_ids),
                found=gpu["pci_id"],
            )
        if probe and probe.get("name") and gpu["name"] and probe["name"] != gpu["name"]:
            yield fail(
                "NVML and CUDA name different cards",
                f"hardware.{when}.gpus",
                expected=gpu["name"],
                found=probe["name"],
            )


def _same_machine(
    before: dict[str, Any], after: dict[str, Any], *, rebooted: bool
) -> Iterator[Finding]:
    for name in ("cpu_model", "cores_logical", "ram_bytes", "kernel", "architecture"):
        if before["host"][name] != after["host"][name]:
            if name == "cores_logical" and rebooted and _threads_switched(before, after):
                continue
            # A reboot may bring another kernel and gives or takes a little memory.
            if name in ("kernel", "ram_bytes") and _near(before["host"], after["host"], name):
                continue
            yield fail(
                "the host is another after the run",
                f"hardware.after.host.{name}",
                expected=before["host"][name],
                found=after["host"][name],
            )
    gpus_before, gpus_after = before["gpus"] or [], after["gpus"] or []
    for one, other in zip(gpus_before, gpus_after, strict=False):
        if one["uuid_hash"] != other["uuid_hash"]:
            yield fail(
                "the GPU is another card after the run",
                "hardware.after.gpus",
                expected=one["uuid_hash"],
                found=other["uuid_hash"],
            )
    if len(gpus_before) != len(gpus_after):
        yield fail(
            "the number of GPUs changed",
            "hardware.after.gpus",
            expected=len(gpus_before),
            found=len(gpus_after),
        )
    for part, names, allowed in (
        ("gpu", ("bf16_tflops", "copy_gb_s", "fp32_tflops"), BEFORE_AFTER_GPU),
        ("cpu", ("matmul_gflops", "copy_gb_s"), BEFORE_AFTER_CPU),
    ):
        first, second = before["probes"][part], after["probes"][part]
        for name in names if first and second else ():
            left, right = first.get(name), second.get(name)
            if left and right and abs(left - right) > allowed * max(left, right):
                say = fail if part == "gpu" else warn
                yield say(
                    f"`{name}` is another after the run",
                    f"hardware.after.probes.{part}.{name}",
                    expected=f"within {allowed:.0%} of {left}",
                    found=right,
                )


def _threads_switched(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether simultaneous multithreading was switched on or off: half or twice the cores."""
    counts = sorted(found["host"]["cores_logical"] or 0 for found in (before, after))
    return counts[0] > 0 and counts[1] == 2 * counts[0]


def _near(before: dict[str, Any], after: dict[str, Any], name: str) -> bool:
    if name == "kernel":
        return True
    left, right = before[name], after[name]
    return bool(left and right and abs(left - right) < 0.02 * left)


def settings(evidence: Evidence) -> Iterator[Finding]:
    """Power limit, clock offsets and heat stay within the card's own limits."""
    if not evidence.uses_gpu:
        raise Irrelevant("the run used no GPU")
    for when in ("before", "after"):
        for gpu in evidence.gpus(when):
            place = f"hardware.{when}.gpus"
            limit, default = gpu["power_limit_w"], gpu["power_default_w"]
            if limit and default and limit > default * POWER_LIMIT_SLACK:
                yield warn(
                    "the power limit is raised above the card's own",
                    place,
                    expected=f"{default} W",
                    found=f"{limit} W",
                )
            for name in ("sm_offset_mhz", "memory_offset_mhz"):
                if gpu[name]:
                    yield warn(
                        "the card is overclocked", f"{place}.{name}", expected=0, found=gpu[name]
                    )
            if gpu["mig"]:
                yield fail("the card is divided (MIG)", place)
    try:
        summary = evidence.telemetry.summary.to_json()
    except Absent as absent:
        yield missing(str(absent))
        return
    peak, limit = summary["peaks"]["gpu_power_w"], _limit_w(evidence)
    if peak and limit and summary["means"]["gpu_power_w"] > limit * POWER_LIMIT_SLACK:
        yield fail(
            "the mean power is above the card's limit",
            "telemetry",
            expected=f"at most {limit} W",
            found=f"{summary['means']['gpu_power_w']} W",
        )
    hot = {
        name: share
        for name, share in summary["throttled_share"].items()
        if name in ("software_thermal", "hardware_thermal", "hardware_slowdown", "power_brake")
        and share > THERMAL_SHARE_WARN
    }
    if hot:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in hot.items())
        yield warn(f"the card slowed itself down: {shares} of the run", "telemetry")
    yield conclude(
        f"limit {limit or 'unknown'} W, no offsets, no thermal throttling to speak of",
        unless="warn",
    )


def _limit_w(evidence: Evidence) -> float | None:
    gpus = evidence.gpus()
    return gpus[0]["power_limit_w"] if gpus else None


CHECKS = (
    Check(
        "V11",
        "Alone",
        "Weights fetched or work sent elsewhere during the run, a second GPU, a neighbour's help.",
        "environment, hardware.*.gpus",
        alone,
    ),
    Check(
        "V12",
        "Machine",
        "A faked card: another GPU behind a 4090's name, another machine after the run.",
        "hardware.before and .after, against the bands of kit/hardware/gpu_class.py",
        machine,
    ),
    Check(
        "V16",
        "Settings",
        "Undeclared overclocking and power limits; throttling that explains a slow run.",
        "hardware.*.gpus, telemetry.jsonl",
        settings,
    ),
)
