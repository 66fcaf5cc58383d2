"""A study's report: what is better, worse, undecided, and the curves behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reference.lab.ablate import Progress
from reference.lab.curves import EARLY, early_slope, mean_curve
from reference.lab.figures import FAINT, INK, draw, series_style
from reference.lab.findings import Findings
from reference.lab.page import section, table, write_page
from reference.lab.study import BASELINE, Study
from reference.lab.trial import Outcome

X_AXES = (("step", 0), ("tokens", 1), ("FLOPs", 2), ("training seconds", 3))
SHOWN_ARMS = 6  # curves a figure: the baseline and the ends of the ranking


def write_study_page(
    path: Path, study: Study, progress: Progress, findings: Findings, facts: Mapping[str, Any]
) -> None:
    """Writes the report of `study` to `path`; `facts` are lines for the section on how it ran."""
    count = {
        verdict: sum(row.verdict.verdict == verdict for row in findings.rows)
        for verdict in ("better", "worse", "undecided")
    }
    lead = (
        f"{len(findings.rows)} changes against the baseline at equal {study.equal}, "
        f"{len(study.seeds)} seeds: {count['better']} better, {count['worse']} worse, "
        f"{count['undecided']} undecided."
    )
    top = _largest_scale(study, progress)
    shown = _shown(findings)
    write_page(
        path,
        f"Study {study.name}" + (f": {study.title}" if study.title else ""),
        lead,
        [
            section(
                "Verdicts",
                texts=[
                    "A compute multiplier of 1.10 says: the baseline needs 10 % more compute for "
                    "the same bits per byte. Intervals are 95 % each; verdicts keep the chance of "
                    f"any false one below {study.alpha:.0%} over all changes (Holm).",
                ],
                figures=[_forest(findings)],
                tables=[verdict_table(findings), *_warning_tables(findings)],
            ),
            *(_curve_sections(study, progress, top, shown) if top else []),
            section(
                "Proxies",
                texts=[_proxy_text(findings)],
                tables=[_proxy_table(findings)] if findings.proxies else [],
            ),
            section(
                "Stop rules and promotions",
                texts=[
                    f"Asynchronous successive halving: one of {study.halving.eta:g} advances, at "
                    f"least {study.halving.keep_at_least}; a trial ends where its bits per byte "
                    f"exceed the baseline's worst seed by {study.halving.stop_margin:.0%}.",
                ],
                preformatted=["\n".join(progress.decisions) or "none"],
            ),
            section(
                "How it ran",
                tables=[
                    table("", ("", ""), [(k, v) for k, v in facts.items()], text=(0, 1)),
                    table(
                        "Experiments a week at this speed.",
                        ("scale", "a week"),
                        [(k, f"{v:,.0f}") for k, v in findings.experiments_per_week.items()],
                    ),
                ],
            ),
        ],
    )


def verdict_table(findings: Findings) -> dict[str, Any]:
    """The ranking, as the page and the terminal show it."""
    rows = []
    for row in findings.rows:
        verdict = row.verdict
        times, gain = verdict.multiplier, verdict.gain
        rows.append(
            (
                row.arm,
                verdict.verdict,
                verdict.scale,
                "-" if times is None else f"{times.value:.3g}",
                "-" if times is None else f"{times.low:.3g} to {times.high:.3g}",
                "-" if gain is None else f"{-100 * gain.gain:+.2f} %",
                "-" if verdict.p_holm is None else f"{verdict.p_holm:.2g}",
                "-" if row.speed is None else f"{row.speed:.2f}",
                "-" if row.time_multiplier is None else f"{row.time_multiplier:.3g}",
                verdict.reason or row.why,
            )
        )
    return table(
        "The best first; bpb: the change of ln val_bpb; speed: tokens/s over the baseline's, and "
        "time: the multiplier with it: they mean something only where nothing else ran meanwhile.",
        (
            "change",
            "verdict",
            "scale",
            "compute",
            "95 %",
            "bpb",
            "p (Holm)",
            "speed",
            "time",
            "what it is",
        ),
        rows,
        text=(0, 1, 2, 9),
    )


def _warning_tables(findings: Findings) -> list[dict[str, Any]]:
    rows = [(row.arm, text) for row in findings.rows for text in row.warnings]
    caption = "Where bits per byte are known to mislead."
    return [table(caption, ("change", "warning"), rows, text=(0, 1))] if rows else []


def _proxy_text(findings: Findings) -> str:
    if findings.recommended:
        return f"Recommended: {findings.proxy_reason}."
    return f"No proxy is recommended: {findings.proxy_reason}."


def _proxy_table(findings: Findings) -> dict[str, Any]:
    rows = [
        (
            proxy.name + (" (recommended)" if proxy == findings.recommended else ""),
            f"{proxy.share_of_cost:.1%}",
            f"{proxy.rank_correlation:.2f}",
            f"{proxy.rank_low:.2f} to {proxy.rank_high:.2f}",
            f"{proxy.agreement:.0%}",
            f"{proxy.agreement_low:.0%}",
        )
        for proxy in findings.proxies
    ]
    headings = ("proxy", "cost", "rank correlation", "95 %", "pairs alike", "at least (95 %)")
    return table(
        "Against the final bits per byte at the largest scale; the cheapest first.", headings, rows
    )


def _forest(findings: Findings) -> str:
    rows = [row for row in findings.rows if row.verdict.multiplier]

    def paint(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            times = row.verdict.multiplier
            assert times is not None
            low, high = max(times.low, 0.05), min(times.high, 20.0)
            index = {"better": 2, "worse": 1, "undecided": 0}[row.verdict.verdict]
            style = series_style(index)
            axes.plot([low, high], [place, place], color=style["color"], lw=2)
            axes.plot([min(max(times.value, low), high)], [place], ls="", **style)
        axes.set_yticks(range(len(rows)), [row.arm for row in reversed(rows)])
        axes.axvline(1.0, color=FAINT, ls="--")
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        wide = right / left > 5
        if wide:
            ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
            axes.set_xticks([tick for tick in ticks if left <= tick <= right])
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.xaxis.set_minor_formatter("" if wide else "{x:.3g}")
        axes.set_xlabel("compute multiplier, 95 %")

    return draw(
        "Compute multipliers",
        "; ".join(
            f"{row.arm}: {row.verdict.multiplier.value:.3g}, {row.verdict.verdict}"
            for row in rows
            if row.verdict.multiplier
        ),
        paint,
        size=(7.2, 1.2 + 0.3 * len(rows)),
    )


def _shown(findings: Findings) -> list[str]:
    ranked = [row.arm for row in findings.rows if row.verdict.gain]
    ends = ranked if len(ranked) < SHOWN_ARMS else [*ranked[: SHOWN_ARMS - 3], *ranked[-2:]]
    return [BASELINE, *ends]


def _largest_scale(study: Study, progress: Progress) -> str | None:
    reached = [s.name for s in study.scales if any(k.scale == s.name for k in progress.outcomes)]
    return reached[-1] if reached else None


def _curve_sections(
    study: Study, progress: Progress, top: str, shown: Sequence[str]
) -> list[dict[str, Any]]:
    first = study.scales[0].name
    sections = []
    for scale in dict.fromkeys((first, top)):
        curves = {arm: outcomes for arm in shown if (outcomes := _finished(progress, arm, scale))}
        if not curves:
            continue
        sections.append(
            section(
                f"Loss at {scale}",
                figures=[_curves(curves, axis, name, scale) for name, axis in X_AXES],
                tables=[_slope_table(curves)],
            )
        )
    return sections


def _finished(progress: Progress, arm: str, scale: str) -> list[Outcome]:
    return [
        outcome
        for slot, outcome in sorted(progress.outcomes.items())
        if slot.arm == arm and slot.scale == scale and len(outcome.curve) > 4
    ]


def _curves(curves: Mapping[str, Sequence[Outcome]], axis: int, name: str, scale: str) -> str:
    def paint(axes: Any) -> None:
        lowest = []
        for index, (arm, outcomes) in enumerate(curves.items()):
            x, y = mean_curve(outcomes, axis)
            style = series_style(index)
            if arm == BASELINE:
                style = {"color": INK, "marker": "o"}
            axes.plot(x, y, label=arm, markevery=max(1, len(x) // 8), ms=4, lw=1.4, **style)
            lowest += [y.min(), y[len(y) // 10]]
        axes.set_ylim(min(lowest) * 0.98, max(lowest) * 1.02)
        axes.set_xlabel(name)
        axes.set_ylabel("training loss, nats a token")
        axes.legend()

    return draw(
        f"Training loss over {name} at {scale}",
        f"Mean over seeds, smoothed, of {', '.join(curves)}.",
        paint,
    )


def _slope_table(curves: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    rows = []
    for arm, outcomes in curves.items():
        slopes = [early_slope(outcome.curve) for outcome in outcomes]
        known = [slope for slope in slopes if slope is not None]
        if known:
            rows.append((arm, f"{np.mean(known):.3f}", f"{np.std(known):.3f}"))
    caption = f"Early slope: loss for each e-fold of tokens, over the first {EARLY:.0%} of steps."
    return table(caption, ("change", "slope", "between seeds"), rows)
