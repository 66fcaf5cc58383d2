"""Writes the site: an index, a page a row, the rules, the board's log, and the data behind them.

    OUT/index.html rules.html log.html
    OUT/README.md              makes the folder a static Space on the Hub
    OUT/row/<id>.html          a page a submission
    OUT/assets/                one sheet, three small scripts; the only files a page loads
    OUT/data/                  leaderboard.jsonl and board-events.jsonl as the board has them,
                               and a report a row: what `verify` finds in its folder now

The same board gives the same pages: nothing in them depends on the clock or this machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import kit
from kit.board import statistics
from kit.board.load import Board
from kit.board.site.detail import detail
from kit.board.site.text import clean, number, score
from kit.board.site.view import LIMIT_H, TIERS, Row, decided, groups, headline, index_row
from kit.board.statistics import TARGET_CORE as TARGET
from kit.errors import KitError, PrerequisiteError
from kit.tracks import FIRST
from kit.verify import verify_result
from kit.verify.finding import Finding, Report

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
ASSETS = ("site.css", "theme.js", "charts.js", "board.js")
_MARK = ".n4090-site"  # written into a folder that a site may be written over
KWH_PRICE = 0.30  # a stated assumption; readers change it on the page
_LOG_SHOWN = 500
_SHOWN = 100  # rows of a group before "Show all"; without scripts all are shown
# What a static Space on the Hub wants to know; any other web server ignores it.
_SPACE = """---
title: n4090-kit leaderboard
emoji: 📈
colorFrom: green
colorTo: gray
sdk: static
app_file: index.html
---
Written by `n4090-kit board site`.
"""
Progress = Callable[[int, int], None]


class Built(NamedTuple):
    """What was written."""

    rows: int
    pages: int
    index_bytes: int


def build_site(
    board: Board,
    out: Path,
    *,
    currency: str = "$",
    kwh_price: float = KWH_PRICE,
    progress: Progress | None = None,
) -> Built:
    """Writes the site of `board` into the folder `out`, over an earlier one of the same.

    Raises:
        PrerequisiteError: jinja2 is missing, or `out` holds something that is no site.
    """
    built = write_index(board, out, currency=currency, kwh_price=kwh_price)
    template = _environment().get_template("row.html")
    common = _common(board, currency, kwh_price)
    for done, document in enumerate(board.rows, start=1):
        row = index_row(document, kwh_price)
        if row.href:
            report = _report(board, document, out / "data" / f"{row.id}.report.json")
            page = template.render(
                **common, root="../", page="row", **detail(board, document, row, report)
            )
            _write(out / "row" / f"{row.id}.html", page)
        if progress:
            progress(done, len(board.rows))
    return built


def write_index(
    board: Board, out: Path, *, currency: str = "$", kwh_price: float = KWH_PRICE
) -> Built:
    """Everything but the rows' own pages; those of rows that are gone are removed."""
    environment = _environment()
    _prepare(out)
    rows = [index_row(row, kwh_price) for row in board.rows]
    common = {**_common(board, currency, kwh_price), "rows": rows, "root": ""}
    pages = {row.id for row in rows if row.href}
    events = [decided(event) for event in reversed(board.events[-_LOG_SHOWN:])]
    index = environment.get_template("index.html").render(
        **common, page="index", groups=groups(rows), facts=_facts(board, rows), shown=_SHOWN
    )
    _write(out / "index.html", index)
    _write(
        out / "rules.html",
        environment.get_template("rules.html").render(**common, page="rules", rule=statistics),
    )
    log = environment.get_template("log.html")
    _write(
        out / "log.html",
        log.render(**common, page="log", events=events, total=len(board.events), pages=pages),
    )
    shutil.copyfile(board.layout.leaderboard, out / "data" / "leaderboard.jsonl")
    if board.layout.events.is_file():
        shutil.copyfile(board.layout.events, out / "data" / "board-events.jsonl")
    for path in (out / "row").glob("*.html"):
        if path.stem not in pages:
            path.unlink()
    return Built(len(rows), len(pages) + 3, len(index.encode()))


def _common(board: Board, currency: str, kwh_price: float) -> dict[str, Any]:
    """What every page may show."""
    return {
        "board": clean(board.settings.name),
        "target": TARGET,
        "limit": LIMIT_H,
        "kit_version": kit.__version__,
        "currency": clean(currency, 8),
        "price": f"{kwh_price:.2f}",
        "now": board.events[-1]["at"] if board.events else "2026-01-01T00:00:00Z",
        "tiers": TIERS,
    }


def _prepare(out: Path) -> None:
    """Makes the folder and its parts; refuses one that holds anything but a site."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MARK).is_file())):
        raise PrerequisiteError(
            f"`{out}` is not empty and holds no site of this kit",
            hint="name a new folder with --out",
        )
    for part in ("row", "data", "assets"):
        (out / part).mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("written by `n4090-kit board site`\n")
    (out / "README.md").write_text(_SPACE)
    for name in ASSETS:
        shutil.copyfile(_HERE / "assets" / name, out / "assets" / name)


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise PrerequisiteError(
            "jinja2 is missing", hint="in the checkout: pip install '.[board]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"number": number, "score": score}
    return environment


def _facts(board: Board, rows: list[Row]) -> list[dict[str, Any]]:
    """The strip of figures on top of the index."""
    ranked = [row for row in board.rows if row["rank"] is not None and row["track"] == FIRST]
    best = max(ranked, key=lambda row: headline(row)["core"] or 0.0, default=None)
    core = headline(best)["core"] if best else None
    there = [row for row in ranked if row["reaches_target"]]
    fastest = min((headline(row)["total_s"] for row in there), default=None)
    distance = None if core is None else core - TARGET
    said = [row for row in rows if row.track != "reference" and not row.gone]
    reproduced = sum(row["tier"] == "T4" for row in board.rows)
    last = board.events[-1]["at"][:10] if board.events else "\N{EN DASH}"
    return [
        {
            "name": "Best ranked CORE",
            "value": None if core is None else score(core),
            "note": "nobody yet"
            if distance is None
            else f"{score(abs(distance))} {'above' if distance >= 0 else 'below'} the target",
        },
        {
            "name": "Fastest to the target",
            "value": None if fastest is None else f"{number(fastest / 3600, 2)} h",
            "note": "nobody yet" if fastest is None else f"{len(there)} there by the listing rule",
        },
        {
            "name": "Ranked runs",
            "value": f"{len(ranked):,}",
            "note": f"of {len(said):,} submission{'' if len(said) == 1 else 's'}",
        },
        {"name": "Reproduced", "value": f"{reproduced:,}", "note": "by somebody else, tier T4"},
        {"name": "Last decision", "value": last, "note": f"{len(board.events):,} in the log"},
    ]


def _report(board: Board, document: dict[str, Any], path: Path) -> Report | None:
    """What `verify` finds in a row's folder; read back when neither folder nor kit has changed."""
    tree = next(
        (
            event["data"]["tree"]
            for event in reversed(board.events_of(document["id"]))
            if event["ev"] == "submission"
        ),
        None,
    )
    stamp = {"tree": tree, "kit": kit.__version__}
    try:
        kept = json.loads(path.read_bytes())
        if tree is not None and kept["stamp"] == stamp:
            return _from_json(kept["report"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        report = verify_result(board.submission(document).folder)
    except KitError:
        return None
    report.elapsed_s = 0.0  # the same board, the same files
    _write(path, json.dumps({"stamp": stamp, "report": report.to_json()}, ensure_ascii=False))
    return report


def _from_json(document: dict[str, Any]) -> Report:
    return Report(
        subject=document["subject"],
        result_id=document["result_id"],
        findings=[
            Finding(**{key: value for key, value in finding.items()})
            for finding in document["findings"]
        ],
        readable=document["verdict"] != "unreadable",
        strict=document["strict"],
        facts=document["facts"],
    )


def _write(path: Path, text: str) -> None:
    """Whole or not at all; not forced to disk, because everything here can be made again."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(text.encode())
    temporary.replace(path)
