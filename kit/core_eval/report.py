"""Evaluations for people: beside the published GPT-2 columns, and two against each other.

The published figures come with the conditions they were measured under; `differences` says for
each condition what ours were, so that nobody compares what is not comparable.
"""

from __future__ import annotations

import functools
import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from kit.core_eval.likelihood import LikelihoodComparison, compare_likelihoods
from kit.core_eval.naming import is_core, score_name
from kit.core_eval.statistics import Comparison, TaskOutcomes, centered, compare
from kit.errors import PrerequisiteError, SchemaError

Document = Mapping[str, Any]
BAR_WIDTH = 10  # cells of a terminal bar
_COLORS = ("#2a6fbb", "#b8c4ce", "#94a7b8", "#6f8aa3", "#4d6d8b")


class Difference(NamedTuple):
    """One condition of a CORE figure."""

    condition: str
    ours: str
    published: str
    effect: str


@functools.cache
def published() -> dict[str, Any]:
    """The GPT-2 family in nanochat's harness: `models` -> core_metric, max_per_task, accuracy."""
    text = importlib.resources.files("kit.core_eval").joinpath("published.json").read_text("utf-8")
    return cast(dict[str, Any], json.loads(text))


def read_document(path: Path) -> Document:
    """An evaluation file, as `eval core --out` and the `core` stage write it."""
    if path.is_dir():
        path = path / "eval" / "core.json"
    try:
        document = json.loads(path.read_text("utf-8"))
        outcomes(document)
    except FileNotFoundError as error:
        raise PrerequisiteError(
            f"there is no evaluation at {path}", hint="Make one with `n4090-kit eval core --out`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path} is not a CORE evaluation ({type(error).__name__}: {str(error)[:200]})",
            hint="Name what `n4090-kit eval core --out` wrote, or a run's eval/core.json.",
        ) from error
    return cast(Document, document)


def outcomes(document: Document) -> list[TaskOutcomes]:
    """The per-example outcomes of an evaluation, checked."""
    tasks = [
        TaskOutcomes(t["label"], t["file"], float(t["baseline"]), str(t["outcomes"]))
        for t in document["tasks"]
    ]
    if not tasks or any(not t.outcomes or set(t.outcomes) - {"0", "1"} for t in tasks):
        raise ValueError("tasks without outcomes")
    return tasks


def compare_documents(a: Document, b: Document) -> Comparison:
    """The paired comparison. Raises `SchemaError` when the items are not the same."""
    for name, x, y in (
        ("bundle", a["bundle"]["digest"], b["bundle"]["digest"]),
        ("max_per_task", a["max_per_task"], b["max_per_task"]),
        ("tasks", _labels(a), _labels(b)),
    ):
        if x != y:
            raise SchemaError(
                f"the two evaluations have different {name}: other items, or other examples",
                hint="Evaluate both models with the same --core, --tasks and --max-per-task.",
                a=x,
                b=y,
            )
    try:
        return compare(outcomes(a), outcomes(b))
    except ValueError as error:
        raise SchemaError(str(error)) from error


def compare_answers(a: Document, b: Document) -> LikelihoodComparison | None:
    """The paired answer likelihoods; None where one of the evaluations did not measure them.

    Raises `SchemaError` when the answers are not the same.
    """
    try:
        return compare_likelihoods(a["tasks"], b["tasks"])
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"the answer likelihoods cannot be compared ({str(error)[:200]})",
            hint="Make both evaluations again with `n4090-kit eval core --out`.",
        ) from error


def differences(document: Document) -> list[Difference]:
    """Why this figure and the published ones may differ beyond the models themselves."""
    model, cap = document["model"], document["max_per_task"]
    limit = model["max_seq_len"]
    second = document["core_metric_v2"]
    return [
        Difference(
            "baselines",
            "version 1" + ("" if second is None else f" (version 2 gives {second:.4f})"),
            "version 1",
            "version 2 raises three baselines and lowers CORE by about 0.026 at GPT-2 size",
        ),
        Difference(
            "items per task",
            "all" if cap < 0 else f"first {cap} of the shuffled list",
            "gpt2: all; medium, large, xl: first 1,000",
            "another sample, and other examples: they are drawn from the capped list",
        ),
        Difference(
            "prompt length",
            "whole prompts" if limit is None else f"the last {limit:,} tokens",
            "the last 1,024 tokens",
            "decides much of squad, boolq and language identification: most of their prompts are "
            "longer",
        ),
        Difference(
            "tokenizer",
            f"{model['vocab_size']:,} tokens",
            "GPT-2, 50,257 tokens",
            "moves the scored regions and the exact matches",
        ),
        Difference(
            "precision",
            str(model["dtype"]),
            "not stated",
            "near-ties move; repeats of one model by others differ by up to 0.0055",
        ),
        Difference(
            "noise",
            f"±{1.96 * document['interval']['standard_error']:.4f} from the items (95 %)",
            "not stated",
            "training seeds add their own: seven equal nanochat d24 runs spread over 0.0165",
        ),
        Difference(
            "harness",
            "nanochat's rules",
            "nanochat",
            "DCLM's own harness draws other examples and cuts otherwise (squad 31 % against 37 %)",
        ),
    ]


def chart_rows(document: Document) -> list[tuple[str, list[tuple[str, float]]]]:
    """(task, [(model, centered accuracy)]) for this model and the GPT-2 family; CORE comes last."""
    columns = published()["models"]
    rows = []
    for task in document["tasks"]:
        bars = [("this model", float(task["centered"]))]
        for name, column in columns.items():
            value = column["accuracy"].get(task["label"])
            if value is not None:
                bars.append((name, centered(value, task["baseline"])))
        rows.append((str(task["label"]), bars))
    total = [("this model", float(document["core_metric"]))]
    if is_core(document):
        total += [(name, float(column["core_metric"])) for name, column in columns.items()]
    return [*rows, (score_name(document), total)]


def bar(value: float, width: int = BAR_WIDTH) -> str:
    """A bar for a value between 0 and 1, in eighths of a cell; below zero there is none."""
    eighths = round(max(0.0, min(1.0, value)) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def html_page(document: Document, title: str) -> str:
    """One self-contained page: bars against the GPT-2 family, the figures, the conditions."""
    interval = document["interval"]
    facts = (
        f"{score_name(document)} {document['core_metric']:.4f}, 95 % interval "
        f"{interval['low']:.4f} to {interval['high']:.4f}"
    )
    if likelihood := document.get("answer_bpb"):
        facts += (
            f"; answer likelihood {likelihood['value']:.4f} bits per byte, "
            f"{likelihood['low']:.4f} to {likelihood['high']:.4f}"
        )
    if document["partial"]:
        facts += "; partial: not all items of all tasks"
    names = ["this model", *published()["models"]]
    legend = "".join(
        f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
        for name, color in zip(names, _COLORS, strict=True)
    )
    figures = "".join(
        f"<tr><td>{html.escape(t['label'])}<td>{t['n']}<td>{t['accuracy']:.4f}"
        f"<td>{t['standard_error']:.4f}<td>{t['baseline']:g} %<td>{t['centered']:.4f}"
        f"<td>{_figure(t.get('answer_bpb'))}"
        for t in document["tasks"]
    )
    conditions = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row)
        for row in differences(document)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
 padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .7rem .15rem 0; text-align: left;
 vertical-align: top; }}
td:not(:first-child) {{ font-variant-numeric: tabular-nums; }}
.legend span {{ margin-right: 1.2rem; white-space: nowrap; }}
.legend i {{ display: inline-block; width: .8em; height: .8em; margin-right: .4em; }}
svg {{ width: 100%; height: auto; }} svg text {{ fill: currentColor; font-size: 12px; }}
.scroll {{ overflow-x: auto; }}
</style></head><body>
<h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>
<p class="legend">{legend}</p>
<p>Centered accuracy: 0 is guessing, 1 is perfect.</p>{_svg(chart_rows(document))}
<h2>Figures</h2><div class="scroll"><table>
<tr><th>task<th>n<th>accuracy<th>s.e.<th>guess<th>centered<th>bits per byte
{figures}</table></div>
<h2>What differs from the published measurements</h2><div class="scroll"><table>
<tr><th>condition<th>here<th>published<th>what it does{conditions}</table></div>
</body></html>
"""


def _svg(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Grouped horizontal bars from -0.2 to 1."""
    left, right, thick, low = 235, 890, 6, -0.2
    scale = (right - left) / (1.0 - low)

    def x(value: float) -> float:
        return left + (max(low, min(1.0, value)) - low) * scale

    parts, y = [], 26
    bottom = y + sum(len(bars) * thick + 12 for _, bars in rows)
    for tick in (-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        width = 1.2 if tick == 0 else 0.4
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="20" y2="{bottom}" '
            f'stroke="currentColor" stroke-width="{width}" opacity=".5"/>'
            f'<text x="{x(tick):.1f}" y="14" text-anchor="middle">{tick:g}</text>'
        )
    for label, bars in rows:
        middle = y + len(bars) * thick / 2 + 4
        parts.append(
            f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(label)}</text>'
        )
        for (name, value), color in zip(bars, _COLORS, strict=False):
            begin, end = sorted((x(0.0), x(value)))
            parts.append(
                f'<rect x="{begin:.1f}" y="{y}" width="{max(end - begin, 0.8):.1f}" '
                f'height="{thick - 1}" fill="{color}">'
                f"<title>{html.escape(name)}: {value:.4f}</title></rect>"
            )
            y += thick
        y += 12
    return (
        f'<svg viewBox="0 0 900 {y}" role="img" '
        f'aria-label="Centered accuracy per task">{"".join(parts)}</svg>'
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _labels(document: Document) -> list[str]:
    return [str(task["label"]) for task in document["tasks"]]
