"""The report as one self-contained page: no script, no outside file."""

from __future__ import annotations

from html import escape
from typing import Any

from kit.verify.finding import Report
from kit.verify.run import check_by_id

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } .verdict { font-size: 1.2rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .4rem .6rem; border-top: 1px solid #8884; }
.pass { color: #178a3d; } .fail { color: #d02626; font-weight: 600; } .warn { color: #a86a00; }
.skip, .note { color: #777; } .note { font-size: .85rem; overflow-wrap: anywhere; }
"""
_SENTENCE = {
    "consistent": "Nothing here contradicts this result. That does not prove the time it claims; "
    "only somebody else's reproduction does.",
    "refused": "This result is refused.",
    "unreadable": "This is no result that can be read.",
    "inconclusive": "Nothing here contradicts this result, but evidence is missing that could.",
}


def page(report: Report) -> str:
    """HTML of a report. Every word that came from the result is escaped."""
    facts = "".join(
        f"<tr><th>{escape(key.replace('_', ' '))}</th><td>{_shown(value)}</td></tr>"
        for key, value in report.facts.items()
        if value is not None
    )
    rows = "".join(_rows(report, check) for check in report.checks())
    tone = {"consistent": "pass", "refused": "fail", "unreadable": "fail", "inconclusive": "warn"}
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.subject)}: {report.verdict}</title><style>{_STYLE}</style></head>"
        f"<body><h1>n4090-kit verify: {escape(str(report.facts.get('run', report.subject)))}</h1>"
        f'<p class="verdict {tone[report.verdict]}">{report.verdict.upper()}</p>'
        f"<p>{_SENTENCE[report.verdict]}</p>"
        f"<table>{facts}<tr><th>id</th><td>{escape(str(report.result_id))}</td></tr></table>"
        "<h2>Checks</h2><table><tr><th>check</th><th></th><th>finding</th><th>stops</th></tr>"
        f"{rows}</table></body></html>\n"
    )


def _rows(report: Report, name: str) -> str:
    check = check_by_id(name)
    rows = []
    for index, finding in enumerate(report.of(name)):
        title = f"{name} {check.title}" if check and index == 0 else ""
        stops = check.protects if check and index == 0 else ""
        details = [
            f"{label}: {_shown(value)}"
            for label, value in (
                ("at", finding.place),
                ("expected", finding.expected),
                ("found", finding.found),
            )
            if value is not None
        ]
        note = f'<div class="note">{"<br>".join(details)}</div>' if details else ""
        status = "missing" if finding.missing else finding.status
        rows.append(
            f'<tr><td>{escape(title)}</td><td class="{finding.status}">{status}</td>'
            f'<td>{escape(finding.message)}{note}</td><td class="note">{escape(stops)}</td></tr>'
        )
    return "".join(rows)


def _shown(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= 500 else text[:499] + "…")
