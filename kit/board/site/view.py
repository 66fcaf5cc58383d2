"""What the pages show of a board, as plain values: cleaned of hostile text, formatted, grouped.

Ranks, ties, tiers and intervals are the table's own; nothing is ranked or judged here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kit.board.site.text import clean, clean_all, compact, hours, number, score
from kit.tracks import FIRST, RANKED, Track, is_ranked

Document = dict[str, Any]
LIMIT_H = 24
# The intervals' little axis: CORE from here to there over so many pixels.
# `site.css` draws the axis, and the target's tick at 71 % of it, which is where it lies.
_AXIS_LOW, _AXIS_HIGH, _AXIS_PX = 0.15, 0.30, 88
TIERS = {
    "T0": ("Signed", "The form is right and the signature holds."),
    "T1": ("Self-reported", "Every check that text allows agrees. Not ranked."),
    "T2": ("Re-evaluated", "The board scored the published weights on questions drawn afterwards."),
    "T3": ("Replayed", "A vouched account executed windows of the training again."),
    "T4": ("Reproduced", "A vouched account ran the recipe on another card, and it held."),
}
STATES = {
    "pending": ("pending", "info", "An open pull request: checked, not merged yet."),
    "disputed": ("disputed", "bad", "Somebody doubts this row, with reasons."),
    "withdrawn": ("withdrawn", "warn", "Taken back."),
}
_STATUS = {"failed": "failed run", "stopped": "stopped run"}


class Chip(NamedTuple):
    text: str
    tone: str
    title: str


class Interval(NamedTuple):
    """Pixel places on the little axis."""

    low: float
    high: float
    at: float


@dataclass(frozen=True)
class Row:
    """One row of the table. Strings are cleaned; `data` holds sort keys."""

    id: str
    href: str
    name: str
    sub: str
    narrow: str
    rank: int | None
    ties: int
    why_not: str
    mark: str
    track: str
    division: str
    tier: str | None
    tier_title: str
    chips: list[Chip]
    core: str | None
    spread: str | None
    core_note: str | None
    interval: Interval | None
    hours: str | None
    n: int | None
    gpu: str
    kwh: str | None
    cost: str | None
    submitter: str
    date: str | None
    full: bool
    source: tuple[str, str] | None
    gone: bool
    data: dict[str, str] = field(default_factory=dict)


class Group(NamedTuple):
    title: str
    note: str
    rows: list[Row]


def index_row(document: Document, kwh_price: float = 0.0) -> Row:
    """The table's row of a line of leaderboard.jsonl; `kwh_price` makes kWh a cost."""
    row: Document = clean_all(document)
    reference = row["kind"] == "reference"
    figures = headline(row)
    core, low, high = figures["core"], figures["low"], figures["high"]
    seconds = figures["total_s"]
    full = core is not None and row["score"] is None
    note = f"{score(core)} {row['score']['name']}" if core is not None and not full else None
    recipe = (row["recipe"] or {}).get("name")
    gpu = gpu_name(row)
    date = (row["submitted_at"] or row["started_at"] or "")[:10] or None
    training = row["training"] or {}
    facts = [
        f"{compact(training['parameters'])} parameters" if training.get("parameters") else "",
        f"{compact(training['tokens'])} tokens" if training.get("tokens") else "",
    ]
    if reference:
        name, sub = row["title"] or row["id"], (row["source"] or {}).get("text", "")
    else:
        name = recipe or row["title"] or row["id"]
        title = row["title"] if row["title"] != name else ""
        sub = ", ".join(part for part in (title, *facts) if part)
    kwh = row["kwh"]
    data = {
        "rank": row["rank"],
        "core": core if full else None,
        "low": low if full else None,
        "high": high if full else None,
        "hours": None if seconds is None else seconds / 3600,
        "n": figures["n"],
        "kwh": kwh,
        "date": date,
    }
    return Row(
        id=row["id"],
        href="" if reference else f"row/{row['id']}.html",
        name=name,
        sub=sub,
        narrow=", ".join(p for p in (row["submitter"], date, gpu) if p and p != "\N{EN DASH}"),
        rank=row["rank"],
        ties=row["ties"],
        why_not="; ".join(row["why_not_ranked"]) or "not ranked",
        mark=mark_of(row),
        track="reference" if reference else row["track"] or "",
        division=row["division"] or "",
        tier=row["tier"],
        tier_title=": ".join(TIERS[row["tier"]]) if row["tier"] else "",
        chips=chips(row),
        core=score(core) if core is not None and full else None,
        spread=None if not full or low is None or high is None else f"±{(high - low) / 2:.4f}",
        core_note=note,
        interval=_interval(core, low, high) if full else None,
        hours=None if seconds is None else hours(seconds),
        n=figures["n"],
        gpu=gpu,
        kwh=None if kwh is None else number(kwh, 2 if kwh >= 0.095 else 4),
        cost=None if kwh is None else number(kwh * kwh_price, 2),
        submitter=row["submitter"],
        date=date,
        full=full,
        source=source_of(document),
        gone=row["state"] == "withdrawn",
        data={key: f"{value:.8g}" if isinstance(value, float) else str(value)
              for key, value in data.items() if value is not None},
    )  # fmt: skip


def headline(row: Document) -> Document:
    """Mean, interval, hours and number of runs: pooled where the table pools, else the run's.

    `core` is the row's score, whatever its name is; `row["score"]` is set where it is not CORE.
    """
    pooled, core = row["pooled"], row["core"] or row["score"]
    found: Document = {"core": None, "low": None, "high": None, "total_s": row["total_s"], "n": 1}
    if core is not None:
        found |= {"core": core["value"], "low": core["low"], "high": core["high"]}
    if pooled is not None:
        found |= {"total_s": pooled["total_s"], "n": pooled["n"]}
        kind = "core" if pooled["core"] is not None else "score"
        if pooled[kind] is not None:
            found |= {
                "core": pooled[kind],
                "low": pooled[f"{kind}_low"],
                "high": pooled[f"{kind}_high"],
            }
    if row["kind"] == "reference":
        found["n"] = pooled["n"] if pooled else None
    return found


def mark_of(row: Document) -> str:
    """How a row is drawn."""
    if row["kind"] == "reference":
        return "reference"
    if row["state"] in ("disputed", "withdrawn"):
        return "disputed"
    if row["rank"] is not None and row["track"] == FIRST:
        return "ranked"  # the frontier is one track's
    if row["track"] == FIRST:
        return "unranked"
    return "open" if row["track"] == "open" or is_ranked(row["track"]) else "smoke"


def chips(row: Document) -> list[Chip]:
    """What has to be said beside a row's name."""
    found = [Chip(*STATES[row["state"]])] if row["state"] in STATES else []
    if row["standing"] == "record":
        found.append(Chip("record", "good", "Three or more runs, significantly ahead."))
    if row["status"] in _STATUS:
        found.append(Chip(_STATUS[row["status"]], "bad", "The run did not end as its recipe asks."))
    if row["kind"] == "submission" and row["verdict"] in ("refused", "unreadable"):
        found.append(Chip(row["verdict"], "bad", "A check refuses this result."))
    return found


def decided(event: Document) -> Document:
    """A board event as the pages show it: when, about which row, a chip, the reason."""
    data, kind = event["data"], event["ev"]
    chip = Chip(clean(kind), "", "")
    if kind in ("tier", "state"):
        to = clean(str(data.get("to") or "none"))
        tone = to if to in TIERS else STATES[to][1] if to in STATES else "good"
        chip = Chip(to, tone, f"{kind}, before: {clean(str(data.get('from') or 'none'))}")
    elif data.get("decision"):
        who = f" by {clean(str(data['by']))}" if data.get("by") else ""
        what = clean(str(data.get("kind") or kind)) + who
        tone = "good" if data["decision"] == "accepted" else "bad"
        chip = Chip(f"{what} {clean(str(data['decision']))}", tone, "")
    return {
        "at": event["at"],
        "id": event["id"],
        "chip": chip,
        "reason": clean(event["reason"], 600),
    }


def gpu_name(row: Document) -> str:
    gpu = row["gpu"]
    if gpu is None or gpu["class"] == "none":
        return row["cpu"] or "\N{EN DASH}"
    name = (gpu["name"] or gpu["class"]).removeprefix("NVIDIA ").removeprefix("GeForce ")
    return f"{gpu['count']} \N{MULTIPLICATION SIGN} {name}" if gpu["count"] > 1 else name


def source_of(document: Document) -> tuple[str, str] | None:
    """(words, address) of a citation; addresses other than https are no links."""
    source = document["source"]
    if not source or not str(source["url"]).startswith("https://"):
        return None
    return clean(source["text"]), str(source["url"])


def groups(rows: list[Row]) -> list[Group]:
    """The table's parts. What is not compared does not share one."""
    here = [row for row in rows if not row.gone]
    parts = (
        *(part for track in RANKED.values() for part in _track_groups(track, here)),
        Group("Open track", "any one machine; shown apart, never ranked",
              [r for r in here if r.track == "open"]),
        Group("Smoke", "does everything work? never ranked",
              [r for r in here if r.track == "smoke"]),
        Group("Published references", "cited from elsewhere, never ranked here",
              [r for r in here if r.track == "reference"]),
        Group("Withdrawn", "kept, so that nothing vanishes without a reason",
              [r for r in rows if r.gone]),
    )  # fmt: skip
    return [part for part in parts if part.rows]


def _track_groups(track: Track, rows: list[Row]) -> tuple[Group, Group]:
    """The rows of a ranked track: its board, and what waits or fell out."""
    own = [row for row in rows if row.track == track.name]
    first = "Ranked" if track.name == FIRST else f"Ranked, {track.card}"
    return (
        Group(first, f"{track.card}, 24 hours, everything counted", [r for r in own if r.rank]),
        Group(
            f"{track.card}, 24 hours, not ranked",
            "incomplete, disputed or waiting",
            [r for r in own if not r.rank],
        ),
    )


def _interval(core: float | None, low: float | None, high: float | None) -> Interval | None:
    if core is None:
        return None

    def place(value: float) -> float:
        share = (value - _AXIS_LOW) / (_AXIS_HIGH - _AXIS_LOW)
        return round(min(1.0, max(0.0, share)) * _AXIS_PX, 1)

    return Interval(
        place(core if low is None else low),
        place(core if high is None else high),
        place(core),
    )
