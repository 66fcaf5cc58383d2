"""How often `verify` refuses honest days and misses forged ones: `python tests/kit/rates.py [N]`.

Days are drawn from the measured spreads (power limit, heat, speed, resumes, sleep); forgeries come
in sizes, so that the table shows where each check begins to see. Prints Markdown.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tamper
from tamper import Draft, gpu_run

from kit.verify import verify_result


def honest_day(seed: int) -> Draft:
    """A random honest day of a 4090."""
    rng = random.Random(seed)
    power = rng.uniform(240, 450)
    speed = (power / 415) ** 0.55 * rng.gauss(1, 0.025)  # 2.5 % between cards
    draft = gpu_run(
        seed=seed,
        power_w=power,
        step_s=11.6 / speed,
        temperature_c=rng.uniform(52, 90),
        throttle=rng.choice((0x0, 0x4, 0x20, 0x64)),
        resume_at=rng.choice((None, None, 12, 37)),
        reboot=rng.random() < 0.5,
        sleep_at=rng.choice((None, None, None, 20)),
    )
    for found, warm in zip(draft.fingerprints(), (1.0, rng.uniform(0.93, 1.0)), strict=True):
        for name in ("bf16_tflops", "copy_gb_s", "fp32_tflops"):
            found["probes"]["gpu"][name] *= warm
        found["probes"]["gpu"]["bf16_tflops"] *= min(1.0, speed * 1.04)
        found["gpus"][0]["power_limit_w"] = float(max(power * 1.02, 250))
        tamper.reclassify(found)
    return draft


def shortened(draft: Draft, factor: float) -> None:
    """Every clock and the step times say that less time passed."""
    from test_verify_tamper import scale, step_times

    scale(draft, factor, "twrsu")
    step_times(draft, factor)
    for event in draft.of("resume"):
        event["data"]["downtime_s"] *= factor


def slowed(draft: Draft, factor: float) -> None:
    """libc's clocks run slow; the system call and /proc/uptime do not."""
    from test_verify_tamper import scale

    scale(draft, factor, "twr", telemetry=False)
    for event in draft.of("step"):
        event["data"]["dt_s"] *= factor
    for event in draft.of("resume"):
        event["data"]["downtime_s"] *= factor
    for record in draft.telemetry:
        offset = record["wall_ms"] - record["t_ms"]
        record["t_ms"] = int(record["t_ms"] * factor)
        record["wall_ms"] = record["t_ms"] + offset


def miscounted(draft: Draft, share: float) -> None:
    """The energy counter says less than the power."""
    for record in draft.telemetry:
        if "gpu_energy_j" in record:
            record["gpu_energy_j"] *= 1 - share


def warmed_up(draft: Draft, nats: float) -> None:
    """The model starts that much better than a fresh one."""
    for event in draft.of("step", "pretrain")[:1]:
        event["data"]["loss"] -= nats


FORGERIES: dict[str, tuple[str, Callable[[Draft, float], None], tuple[float, ...]]] = {
    "all times shortened to": ("V13", shortened, (0.95, 0.9, 0.8, 0.75, 0.7, 0.6)),
    "libc clocks slowed to": ("V06", slowed, (0.999, 0.997, 0.995, 0.99, 0.98)),
    "energy counter short by": ("V15", miscounted, (0.02, 0.04, 0.06, 0.1)),
    "first loss better by (nats)": ("V17", warmed_up, (0.2, 0.4, 0.6, 1.0)),
}


def false_refusals(days: int, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """How many of `days` honest days each check refused, and how many it warned of."""
    refused: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    for seed in range(days):
        report = verify_result(honest_day(seed).write(folder / f"honest{seed}"))
        refused.update(report.refused_by)
        warned.update(check for check in report.checks() if report.status(check) == "warn")
    return refused, warned


def misses(days: int, folder: Path) -> list[tuple[str, str, float, int]]:
    """(forgery, check, size, how many of `days` no check refused)."""
    rows = []
    for name, (check, forge, sizes) in FORGERIES.items():
        for size in sizes:
            missed = 0
            for seed in range(days):
                draft = honest_day(1000 + seed)
                forge(draft, size)
                path = folder / f"{check}-{size}-{seed}"
                missed += not verify_result(draft.write(path)).refused_by
            rows.append((name, check, size, missed))
    return rows


def main() -> None:
    days = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        refused, warned = false_refusals(days, Path(name))
        print(f"{days} honest days: refused {sum(refused.values())} {dict(refused) or ''}".rstrip())
        print("warned: " + ", ".join(f"{check} {n}" for check, n in sorted(warned.items())) + "\n")
        print("| forgery | size | check | missed |\n|---|---:|---|---:|")
        for forgery, check, size, missed in misses(days, Path(name)):
            print(f"| {forgery} | {size:g} | {check} | {missed} of {days} |")


if __name__ == "__main__":
    main()
