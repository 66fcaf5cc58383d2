"""How often `verify` refuses honest days and misses forged ones.

`PYTHONPATH=tests python tests/kit/rates.py [N]` prints the tables; with `--write` it puts them
into SECURITY.md.
`--kinds` writes only the table of the tamper suite's kinds there, which takes no runs.

Days are drawn from the measured spreads (power limit, heat, speed, resumes, sleep); forgeries come
in sizes, so that the table shows where each check begins to see. Checks that compare exactly
(signature, chain, schema, figures, digests, seeds) have no rates: they miss nothing and refuse
nothing honest, and the tamper suite is their proof.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tamper
from mutations import BY_SUBJECT, MUTATIONS, SUBJECTS
from tamper import Draft, gpu_run, scale, step_times

from kit.verify import Options, verify_result

PAGE = Path(__file__).parents[2] / "SECURITY.md"
BEGIN = "<!-- rates: written by `PYTHONPATH=tests python tests/kit/rates.py --write` -->"
END = "<!-- end of rates -->"
KINDS_BEGIN = "<!-- kinds: written by `PYTHONPATH=tests python tests/kit/rates.py --kinds` -->"
KINDS_END = "<!-- end of kinds -->"


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
    scale(draft, factor, "twrsu")
    step_times(draft, factor)
    for event in draft.of("resume"):
        event["data"]["downtime_s"] *= factor


def slowed(draft: Draft, factor: float) -> None:
    """libc's clocks run slow; the system call and /proc/uptime do not."""
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


def device_clock(draft: Draft, share: float) -> None:
    """The GPU's own clock ran faster than the trainer's."""
    for event in draft.of("step"):
        event["data"]["cuda_s"] *= 1 + share


def paused(draft: Draft, seconds: float) -> None:
    """Nothing is heard for a while, every clock and the telemetry going on."""
    middle = draft.of("step", "pretrain")[24]
    at_ns, shift = middle["t_ns"], int(seconds * 1e9)
    for event in draft.events[draft.events.index(middle) :]:
        event["t_ns"] += shift
        event["wall_ms"] += shift // 10**6
        for name, unit in (("raw_ns", 1), ("syscall_ns", 1), ("uptime_ms", 10**6)):
            event["clocks"][name] += shift // unit
    index = next(i for i, r in enumerate(draft.telemetry) if r["t_ms"] * 10**6 > at_ns)
    model = draft.telemetry[index]
    for record in draft.telemetry[index:]:
        record["t_ms"] += shift // 10**6
        record["wall_ms"] += shift // 10**6
        if "gpu_energy_j" in record:
            record["gpu_energy_j"] += 400.0 * seconds
    filled = [
        {
            **model,
            "t_ms": model["t_ms"] - ms,
            "wall_ms": model["wall_ms"] - ms,
            "gpu_power_w": 400.0,
            "gpu_energy_j": model["gpu_energy_j"] - 0.4 * ms,
        }
        for ms in range(shift // 10**6, 0, -1000)
    ]
    draft.telemetry[index:index] = filled


def faded(draft: Draft, share: float) -> None:
    """The card after the run is that much slower than before."""
    draft.fingerprints()[1]["probes"]["gpu"]["bf16_tflops"] = (1 - share) * draft.fingerprints()[0][
        "probes"
    ]["gpu"]["bf16_tflops"]


def cheaper(draft: Draft, share: float) -> None:
    """The model says it costs that much less than it does."""
    for event in draft.of("model"):
        event["data"]["flops_per_token"] *= 1 - share


def rounded(draft: Draft, seconds: float) -> None:
    """Step times written down to a grid."""
    for event in draft.of("step"):
        value = round(round(event["data"]["dt_s"] / seconds) * seconds, 6)
        event["data"].update(dt_s=value, cuda_s=value)


def idling(draft: Draft, share: float) -> None:
    """The card drew that share of the power."""
    for record in draft.telemetry:
        if "gpu_power_w" in record:
            record["gpu_power_w"] *= share
            record["gpu_energy_j"] *= share


def thinned(draft: Draft, share: float) -> None:
    """A stretch of the telemetry is left out."""
    count = int(share * len(draft.telemetry))
    del draft.telemetry[300 : 300 + count]


def narrowed(draft: Draft, share: float) -> None:
    """CORE's interval begins that share of its width later."""
    document = json.loads(draft.files["eval/core.json"])
    low, high = document["interval"]["low"], document["interval"]["high"]
    document["interval"]["low"] = low + share * (high - low)
    draft.files["eval/core.json"] = json.dumps(document).encode()


Forge = Callable[[Draft, float], None]
FORGERIES: dict[str, tuple[str, Forge, tuple[float, ...]]] = {
    "libc clocks slowed to": ("V06", slowed, (0.999, 0.997, 0.995, 0.99, 0.98)),
    "GPU's clock ahead by": ("V06", device_clock, (0.002, 0.005, 0.01, 0.02)),
    "CORE's interval cut by": ("V07", narrowed, (0.05, 0.1, 0.15, 0.3)),
    "a silence of (s)": ("V08", paused, (30, 45, 60, 120)),
    "card slower after the run by": ("V12", faded, (0.05, 0.1, 0.2, 0.3)),
    "all times shortened to": ("V13", shortened, (0.95, 0.9, 0.8, 0.75, 0.7, 0.6)),
    "model's cost understated by": ("V13", cheaper, (0.03, 0.05, 0.1)),
    "step times on a grid of (s)": ("V14", rounded, (0.001, 0.01, 0.1, 1)),
    "energy counter short by": ("V15", miscounted, (0.02, 0.04, 0.06, 0.1)),
    "power understated to": ("V15", idling, (0.6, 0.4, 0.3, 0.2)),
    "telemetry left out": ("V15", thinned, (0.05, 0.1, 0.15, 0.3)),
    "first loss better by (nats)": ("V17", warmed_up, (0.2, 0.4, 0.6, 1.0)),
}
NOISES = (0.0, 0.01, 0.02, 0.04)


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
                path = folder / f"{len(rows)}-{seed}"
                missed += not verify_result(draft.write(path)).refused_by
            rows.append((name, check, size, missed))
    return rows


def copied_curves(days: int, folder: Path) -> list[tuple[str, str, float, int]]:
    """The same for V25: another row's losses, with noise of one's own added."""
    rows = []
    for seed in range(days):
        board = gpu_run(seed=3000 + seed, steps=90)
        board.header()["seed"]["value"] = seed
        board.write(folder / "board" / str(seed))
    for noise in NOISES:
        missed = 0
        for seed in range(days):
            rng = random.Random(seed)
            mine, theirs = gpu_run(seed=5000 + seed, steps=90), folder / "board" / str(seed)
            logged = [json.loads(line) for line in (theirs / "events.jsonl").open()]
            losses = [e["data"]["loss"] for e in logged if e["ev"] == "step"]
            for event, loss in zip(mine.of("step", "pretrain"), losses, strict=False):
                first = event["data"]["step"] == 0
                event["data"]["loss"] = loss + (0.0 if first else rng.gauss(0, noise))
            path = mine.write(folder / f"copy-{noise}-{seed}")
            missed += "V25" not in verify_result(path, Options(against=(theirs,))).refused_by
        rows.append(("another row's losses, noise added (nats)", "V25", noise, missed))
    return rows


def honest_rows_refused(days: int, folder: Path) -> int:
    """How many of the honest rows V25 takes for copies of each other."""
    options = Options(against=(folder / "board",))
    reports = (verify_result(folder / "board" / str(seed), options) for seed in range(days))
    return sum("V25" in report.refused_by for report in reports)


def tables(days: int) -> str:
    """Both tables as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        refused, warned = false_refusals(days * 8, Path(name))
        forged = misses(days, Path(name))
    with tempfile.TemporaryDirectory() as name:
        forged += copied_curves(days, Path(name))
        taken = honest_rows_refused(days, Path(name))
    said = ", ".join(f"{check} {n}" for check, n in sorted(warned.items()))
    lines = [
        f"Of {days * 8} honest days {sum(refused.values())} were refused "
        f"{dict(refused) or ''}".rstrip()
        + f"; warnings, by check: {said or 'none'}.",
        f"Of {days} honest rows beside each other V25 took {taken} for copies.",
        "",
        "| forgery | size | check | missed |",
        "|---|---:|---|---:|",
    ]
    for forgery, check, size, missed in sorted(forged, key=lambda row: row[1]):
        lines.append(f"| {forgery} | {size:g} | {check} | {missed} of {days} |")
    return "\n".join(lines) + "\n"


def kinds() -> str:
    """Kinds of forgeries as Markdown. The tamper suite tries each one at every run of the tests."""
    lines = ["| kind | tried | refused by |", "|---|---:|---|"]
    for subject, cases in BY_SUBJECT.items():
        checks = sorted({check for case in cases for check in case.expected})
        lines.append(f"| {SUBJECTS[subject]} | {len(cases)} | {', '.join(checks)} |")
    lines.append(f"| all | {len(MUTATIONS)} | each by the checks that its test names, no other |")
    return "\n".join(lines) + "\n"


def write(begin: str, text: str, end: str) -> None:
    """Puts `text` between two marks of SECURITY.md."""
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(before + begin + "\n" + text + end + rest.split(end)[1])


def main() -> None:
    if "--kinds" in sys.argv:
        write(KINDS_BEGIN, kinds(), KINDS_END)
        return
    numbers = [word for word in sys.argv[1:] if word.isdigit()]
    text = tables(int(numbers[0]) if numbers else 20)
    print(text)
    if "--write" in sys.argv:
        write(BEGIN, text, END)


if __name__ == "__main__":
    main()
