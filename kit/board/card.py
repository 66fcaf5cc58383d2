"""What a model's page shows: its scores, how it was made, its curves, and how to load and chat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from kit.board.model_index import CardFacts, end_of_run, model_index
from kit.board.row import title_of
from kit.core_eval.naming import is_core, score_name
from kit.events import Event
from kit.model_export import usage
from kit.run_log import RunLog
from kit.text import markdown, plain

Document = dict[str, Any]
Points = list[tuple[float, float]]

_WIDTH, _HEIGHT, _EDGE = 640, 240, 40
_MAX_POINTS = 300


def curves(log: RunLog) -> dict[str, Points]:
    """Training loss and validation bits per byte over hours since the run's start."""
    start = log.run_start
    loss: Points = []
    bpb: Points = []
    if start is not None:
        loss = [(_hours(start, step), step.data.loss) for step in log.steps()]
        bpb = [
            (_hours(start, found), float(found.data.value))
            for found in log.evaluations("val_bpb")
            if isinstance(found.data.value, int | float)
        ]
    return {"training loss": _thinned(loss), "validation bits per byte": _thinned(bpb)}


def _hours(start: Event[Any], event: Event[Any]) -> float:
    return (event.t_ns - start.t_ns) / 3.6e12


def _thinned(points: Points) -> Points:
    stride = max(1, -(-len(points) // _MAX_POINTS))
    return points if stride == 1 else [*points[::stride], points[-1]]


def curves_svg(series: dict[str, Points]) -> str:
    """The curves as one picture, a panel each; readable on light and dark."""
    panels = [(name, points) for name, points in series.items() if len(points) > 1]
    height = _HEIGHT * max(1, len(panels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="training curves">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, (name, points) in enumerate(panels):
        parts += _panel(name, points, number * _HEIGHT)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, points: Points, top: int) -> Iterator[str]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    wide, tall = (xs[-1] - xs[0]) or 1.0, (high - low) or 1.0
    inner_w, inner_h = _WIDTH - 2 * _EDGE, _HEIGHT - 2 * _EDGE

    def place(x: float, y: float) -> str:
        across = _EDGE + (x - xs[0]) / wide * inner_w
        return f"{across:.1f},{top + _EDGE + (high - y) / tall * inner_h:.1f}"

    bottom = top + _HEIGHT - _EDGE
    line = " ".join(place(x, y) for x, y in points)
    yield f'<text x="{_EDGE}" y="{top + 24}" fill="#222">{name}</text>'
    yield (
        f'<path d="M{_EDGE} {top + _EDGE}V{bottom}H{_WIDTH - _EDGE}" fill="none" stroke="#999"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.5"/>'
    )
    for y, value in ((top + _EDGE + 4, high), (bottom, low)):
        yield f'<text x="4" y="{y}" fill="#555">{value:.3g}</text>'
    yield f'<text x="{_WIDTH - _EDGE}" y="{bottom + 16}" text-anchor="end" fill="#555">'
    yield f"{xs[-1]:.2f} h</text>"


def model_card(
    result: Document,
    series: dict[str, Points],
    repository: str,
    board: str,
    result_id: str,
    facts: CardFacts | None = None,
    *,
    exported: Sequence[str] = (),
) -> str:
    """README.md of the model repository."""
    front = model_index(result, facts).splitlines()
    return (
        "\n".join([*front, "", f"# {markdown(repository.split('/')[-1], 200)}", ""])
        + f"\nTrained from scratch by recipe {markdown(result['recipe']['name'], 120)} "
        f"({markdown(title_of(result['recipe']), 300)}) with "
        "n4090-kit. The figures below are the submitter's signed claim; `verify` checks what can "
        "be checked, and only somebody else's reproduction shows more.\n\n"
        + facts_table(result)
        + "\n## Curves\n\n![training curves](curves.svg)\n\n"
        + curve_table(series)
        + "\n## Use\n\n"
        + _transformers_lines(repository, exported)
        + "With n4090-kit:\n\n```sh\n"
        "pip install '.[train]'               # in a checkout of n4090-kit\n"
        f"hf download {plain(repository, 200)} --local-dir model\n"
        "n4090-kit chat model                 # the finetuned model, checkpoints/sft\n"
        "n4090-kit verify model/result.json   # signature, log, clocks, scores, files\n"
        "```\n\n"
        "The base model is in `checkpoints/pretrain`, the chat model in `checkpoints/sft`, both as "
        "safetensors; the tokenizer in `tokenizer`. None of them has to be unpickled or run.\n"
        f"\nRow `{result_id}` of {markdown(board, 200)}.\n"
    )


def _transformers_lines(repository: str, exported: Sequence[str]) -> str:
    """How plain transformers runs the files `exported` into the repository."""
    if not exported:
        return ""
    chat = "hf/chat_template.jinja" in exported
    remote = any(path.endswith(".py") for path in exported)
    place = f'snapshot_download("{plain(repository, 200)}", allow_patterns="hf/*") + "/hf"'
    lines = usage(place, chat=chat, remote_code=remote)
    code = (
        "`trust_remote_code` runs `hf/modeling_n4090.py`: torch and transformers only, to be read "
        "before it is run. "
        if remote
        else ""
    )
    return (
        "With transformers, without n4090-kit:\n\n```python\n"
        "from huggingface_hub import snapshot_download\n"
        f"{lines}```\n\n"
        f"{code}`hf/` is `checkpoints/{'sft' if chat else 'pretrain'}` for transformers; "
        "the signature covers the checkpoint, and `n4090-kit export model` writes `hf/` from it "
        "again.\n\n"
    )


def submission_readme(result: Document, series: dict[str, Points], result_id: str) -> str:
    """README.md of the submission's folder on the board."""
    title = markdown(title_of(result["recipe"]), 300)
    return (
        f"# {title}\n\nResult `{result_id}`. What follows is the submitter's claim.\n\n"
        + facts_table(result)
        + "\n"
        + curve_table(series)
    )


def facts_table(result: Document) -> str:
    """The headline of a result as a Markdown table."""
    timing, training, quality = result["timing"], result["training"], result["quality"]
    recipe = result["recipe"]
    core, gpus = quality["core"], (result["hardware"]["before"] or {}).get("gpus") or []
    rows: list[tuple[str, str]] = [
        ("recipe", markdown(f"{recipe['name'][:120]}, track {recipe['track']}", 200)),
        ("status", markdown(result["claims"]["status"], 40)),
        ("time", f"{timing['total_s'] / 3600:.3f} h of {timing['budget_s'] / 3600:.1f} h"),
        ("GPU", markdown(gpus[0].get("name"), 100) if gpus else "none"),
    ]
    if core:
        between = (
            f", 95 % interval {core['interval'][0]:.4f} to {core['interval'][1]:.4f}"
            if core["interval"]
            else ""
        )
        rows.append((score_name(core), f"{core['value']:.4f}{between}"))
        if core.get("answer_bpb") is not None:
            rows.append(("bits per byte of right answers", f"{core['answer_bpb']:.4f}"))
    if quality["val_bpb"]:
        rows.append(("bits per byte", f"{quality['val_bpb']['last']:.4f}"))
    if quality["chat"] and quality["chat"]["value"] is not None:
        rows.append(("chat score", f"{quality['chat']['value']:.4f}"))
    if training["parameters"]:
        rows.append(("parameters", f"{training['parameters']:,}"))
    rows.append(("tokens", f"{training['tokens']:,} in {training['steps']:,} steps"))
    if result["energy"]["kwh"] is not None:
        rows.append(("energy", f"{result['energy']['kwh']:.3f} kWh"))
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def curve_table(series: dict[str, Points], rows: int = 10) -> str:
    """The curves as a short table: for those who see no picture."""
    loss, bpb = series["training loss"], series["validation bits per byte"]
    if not loss:
        return ""
    stride = max(1, (len(loss) - 1) // rows)
    picked: Sequence[tuple[float, float]] = [*loss[::stride], loss[-1]]
    lines = ["| hours | training loss | bits per byte, last measured |", "|---:|---:|---:|"]
    for hours, value in dict.fromkeys(picked):
        known = [y for x, y in bpb if x <= hours]
        lines.append(f"| {hours:.3f} | {value:.4f} | {f'{known[-1]:.4f}' if known else 'none'} |")
    return "\n".join(lines) + "\n"


def eval_results(
    result: Document, dataset: str, *, revision: str | None = None, source_url: str | None = None
) -> str | None:
    """`.eval_results/core.yaml`: the CORE score in the Hub's own format, JSON being YAML.

    The Hub ranks bigger values first and knows one task, `core`: bits per byte and smaller scores
    are left out.

    Args:
        dataset: The board's dataset on the Hub, and `revision` its commit.
        source_url: The signed result, at the commit of the model repository that holds it.

    Returns:
        The file's text, or None for a result without a CORE score.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    core, end = result["quality"]["core"], end_of_run(result)
    if not is_core(core):
        return None
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id="core",
        value=core["value"],
        dataset_revision=revision,
        date=None if end is None else end.date().isoformat(),
        source_url=source_url,
        source_name="signed result" if source_url else None,
        notes="self-reported",
    )
    return json.dumps(eval_result_entries_to_yaml([entry]), indent=2) + "\n"
