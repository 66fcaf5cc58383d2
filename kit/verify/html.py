"""The report as one self-contained page: no script, no outside file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from kit.timing import duration
from kit.verify.finding import Report
from kit.verify.run import check_by_id

# The board's colours (kit/board/site/assets/site.css).
_STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfcfa; --ink: #17191c; --soft: #555b63; --line: #e3e3dd;
  --good: #0f6b4c; --good-soft: #e4f1ea; --warm: #8f5a00; --warm-soft: #fbf0d9;
  --bad: #b3261e; --bad-soft: #fbe6e3; --sunk: #f3f3ef; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1113; --ink: #eceeee; --soft: #a9b0b7;
  --line: #272c31; --good: #5fd0a0; --good-soft: #143226; --warm: #efb755; --warm-soft: #33270f;
  --bad: #ff8d83; --bad-soft: #3a1714; --sunk: #1b1f23; } }
*, ::before, ::after { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem clamp(1rem, 4vw, 2.5rem) 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 "Inter", ui-sans-serif, system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1, h2 { line-height: 1.2; letter-spacing: -.02em; font-weight: 650; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 1rem + 2vw, 2rem); margin: 0 0 1.2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; }
.kit { color: var(--soft); margin: 0 0 .3rem; }
.verdict { margin: 0; padding: 1rem 1.2rem; border-left: 4px solid;
  border-radius: 0 .5rem .5rem 0; }
.verdict strong { display: block; font-size: 1.15rem; letter-spacing: .02em; }
.verdict span { color: var(--ink); }
.verdict.pass { background: var(--good-soft); } .verdict.fail { background: var(--bad-soft); }
.verdict.warn { background: var(--warm-soft); }
dl { margin: 0; display: grid;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1.1rem 1.6rem; }
dt, .note, summary { color: var(--soft); font-size: .86rem; }
dd { margin: .1rem 0 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .75rem 1.2rem .75rem 0;
  border-top: 1px solid var(--line); }
th { width: 17rem; font-weight: 600; } th .note { font-weight: 400; margin-top: .15rem; }
td:first-of-type { width: 7rem; } td { overflow-wrap: anywhere; }
td p { margin: 0; } td p + p { margin-top: .5rem; }
.status { display: inline-block; white-space: nowrap; padding: 0 .55rem; border-radius: 1rem;
  font-size: .82rem;
  font-weight: 600; background: var(--sunk); color: var(--soft); }
.pass { color: var(--good); } .fail { color: var(--bad); } .warn { color: var(--warm); }
.status.pass { background: var(--good-soft); } .status.fail { background: var(--bad-soft); }
.status.warn { background: var(--warm-soft); }
details { margin-top: 1.4rem; } summary { cursor: pointer; padding: .4rem 0; }
@media (max-width: 40rem) { th, td { display: block; width: auto !important; padding: .3rem 0; }
  td { border: 0; } th { border: 0; } tr { display: block; padding: .6rem 0;
  border-top: 1px solid var(--line); } }
"""
# What is told of the checks, and in which order they stand.
_COUNTED = {"fail": "refused", "warn": "warned", "missing": "lack evidence", "pass": "passed"}
_UNUSED = "unused"
_TONE = {"consistent": "pass", "refused": "fail", "unreadable": "fail", "inconclusive": "warn"}


def page(report: Report) -> str:
    """HTML of a report. Every word that came from the result is escaped."""
    groups: dict[str, list[str]] = {status: [] for status in (*_COUNTED, _UNUSED)}
    for name in report.checks():
        groups[_status(report, name)].append(name)
    told = [f"{len(groups[status])} {word}" for status, word in _COUNTED.items() if groups[status]]
    body = "".join(_row(report, name) for status in _COUNTED for name in groups[status])
    aside = "".join(_row(report, name) for name in groups[_UNUSED])
    folded = (
        f"<details><summary>{len(groups[_UNUSED])} do not apply to this run</summary>"
        f"<table>{aside}</table></details>"
        if aside
        else ""
    )
    said = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{_shown(value)}</dd></div>"
        for label, value in _facts(report)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.subject)}: {report.verdict}</title><style>{_STYLE}</style></head>"
        '<body><p class="kit">n4090-kit verify</p>'
        f"<h1>{escape(str(report.facts.get('run', report.subject)))}</h1>"
        f'<p class="verdict {_TONE[report.verdict]}"><strong>{report.verdict.upper()}</strong>'
        f"<span>{escape(report.sentence)}</span></p>"
        f"{f'<h2>What the result says</h2><dl>{said}</dl>' if said else ''}"
        f"<h2>Checks: {', '.join(told) or 'none ran'}</h2><table>{body}</table>{folded}"
        "</body></html>\n"
    )


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    """The headline as people say it."""
    facts = report.facts
    if facts:
        yield "recipe", f"{facts['recipe']}, track {facts['track']}"
        yield "status", f"{facts['status']}, {'ranked' if facts['ranked'] else 'not ranked'}"
        yield "wall clock, everything counted", duration(facts["total_s"])
        if facts["core"] is not None:
            yield "CORE", f"{facts['core']:.4f}"
        if facts["score"] is not None:
            yield facts["score"]["name"], f"{facts['score']['value']:.4f}"
        if facts["val_bpb"] is not None:
            yield "val_bpb", f"{facts['val_bpb']:.4f}"
        yield "GPU", facts["gpu"] or "none"
    if report.result_id:
        yield "id", report.result_id


def _row(report: Report, name: str) -> str:
    """One check: what it stops, what it found."""
    check = check_by_id(name)
    title = f"{name} {check.title}" if check else name
    stops = f'<div class="note">{escape(check.protects)}</div>' if check else ""
    texts = []
    for finding in report.of(name):
        details = [f"{label} {_shown(value)}" for label, value in finding.details]
        note = f'<br><span class="note">{"<br>".join(details)}</span>' if details else ""
        tone = f' class="{finding.status}"' if finding.status in ("fail", "warn") else ""
        texts.append(f"<p><span{tone}>{escape(finding.message)}</span>{note}</p>")
    status = _status(report, name)
    return (
        f"<tr><th>{escape(title)}{stops}</th>"
        f'<td><span class="status {status}">{status}</span></td><td>{"".join(texts)}</td></tr>'
    )


def _status(report: Report, name: str) -> str:
    status = report.status(name)
    if status == "skip":
        return "missing" if report.applies(name) else _UNUSED
    return str(status)


def _shown(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= 500 else text[:499] + "…")
