"""The metadata of a model card: `model-index`, licence, language, datasets, CO2 of the energy."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from kit.conversations import conversation_sources
from kit.core_eval.naming import OWN_SCORE, PARTIAL_SCORE, score_key, score_name
from kit.errors import SchemaError
from kit.text import plain
from kit.text_mix import text_entries

Document = dict[str, Any]

# Grams of CO2 a kWh of the world's electricity caused in 2024 (Ember, Global Electricity Review
# 2025); `--grid-co2` states the submitter's own grid.
WORLD_GRID_G_PER_KWH = 473.0
# What each score was measured on.
_DATASETS = {
    "CORE": "CORE bundle",
    PARTIAL_SCORE: "some items of the evaluation bundle",
    OWN_SCORE: "questions made by n4090-kit",
}
# Corpora whose licence and language are known: the text decides what a model may be used for.
_CORPORA = {
    "karpathy/climbmix-400b-shuffle": ("cc-by-nc-4.0", "en"),
    "stories": ("mit", "en"),
}


class CardFacts(NamedTuple):
    """What only the publisher of a model knows.

    Attributes:
        license: The Hub's identifier; None: that of the corpus, `unknown` for other corpora.
        language: ISO 639 code; None: that of the corpus, left out for other corpora.
        grid_g_per_kwh: Grams of CO2 of a kWh; None: the world's mean.
        source_url: Where the signed result lies.
    """

    license: str | None = None
    language: str | None = None
    grid_g_per_kwh: float | None = None
    source_url: str | None = None


def model_index(result: Document, facts: CardFacts | None = None) -> str:
    """YAML front matter of a model card."""
    facts = facts or CardFacts()
    name = f"{result['recipe']['name']} ({result['runs']['id']})"
    lines = ["---", "library_name: n4090-kit", "pipeline_tag: text-generation"]
    lines += ["tags:", "  - n4090-kit", *_origin(result, facts), *_emissions(result, facts)]
    results = [line for metric in _metrics(result) for line in _entry(metric, facts.source_url)]
    lines += ["model-index:", f"  - name: {_quoted(name)}"]
    lines += ["    results:", *results] if results else ["    results: []"]
    return "\n".join([*lines, "---"]) + "\n"


def end_of_run(result: Document) -> datetime | None:
    """When the run stopped, UTC; None for a run that did not start."""
    started = result["timing"]["started_at"]
    if started is None:
        return None
    begun = datetime.fromisoformat(started)
    return begun + timedelta(seconds=result["timing"]["total_s"])


def _metrics(result: Document) -> Iterator[tuple[str, str, str, float]]:
    """(label, type, dataset, value) of each score."""
    quality = result["quality"]
    core, bpb, chat = quality["core"], quality["val_bpb"], quality["chat"]
    if core:
        label = score_name(core)
        yield label, score_key(core), _DATASETS[label], core["value"]
    if bpb:
        yield "bits per byte", "bits_per_byte", "validation shard", bpb["last"]
    if chat and chat["value"] is not None:
        yield "chat score", "accuracy", "chat evaluation", chat["value"]


def _entry(metric: tuple[str, str, str, float], source_url: str | None) -> list[str]:
    label, kind, dataset, value = metric
    source = ["        source:", "          name: signed result", f"          url: {source_url}"]
    return [
        "      - task:",
        "          type: text-generation",
        "        dataset:",
        f"          name: {_quoted(dataset)}",
        f"          type: {_quoted(dataset.lower().replace(' ', '-'))}",
        "        metrics:",
        f"          - type: {_quoted(kind)}",
        f"            name: {_quoted(label)}",
        f"            value: {value!r}",
        "            verified: false",
        *(source if source_url else ()),
    ]


def _origin(result: Document, facts: CardFacts) -> Iterator[str]:
    """Licence, language and datasets, from the recipe and what the publisher states."""
    data = _recipe(result).get("data") or {}
    stories = data.get("kind", "stories") == "stories"
    corpus = "stories" if stories else str(data.get("repo", ""))
    licence, language = _CORPORA.get(corpus, ("unknown", None))
    licence = str(data.get("licence") or licence)
    yield f"license: {_quoted(facts.license or licence)}"
    if spoken := facts.language or language:
        yield f"language: {_quoted(spoken)}"
    repositories = dict.fromkeys([] if stories else _repositories(data))
    if repositories:
        yield "datasets:"
        yield from (f"  - {_quoted(name)}" for name in repositories)


def _repositories(data: Mapping[str, Any]) -> Iterator[str]:
    """Datasets that a recipe's `data` section names; nothing of entries that cannot be read."""
    with contextlib.suppress(SchemaError, KeyError, TypeError, AttributeError, ValueError):
        yield str(data["natural_repo"] if data.get("natural_only") else data["repo"])
        for entry in text_entries(data):
            if not data.get("natural_only") or entry.get("synthetic") == "none":
                yield entry["repo"]
        yield from (entry.repository for entry in conversation_sources(data.get("sft") or ()))


def _emissions(result: Document, facts: CardFacts) -> Iterator[str]:
    """CO2 of the measured energy; nothing where energy could not be read."""
    kwh = result["energy"]["kwh"]
    if kwh is None:
        return
    grid = facts.grid_g_per_kwh
    origin = "stated by the submitter" if grid is not None else "world mean of 2024, Ember"
    grid = WORLD_GRID_G_PER_KWH if grid is None else grid
    gpus = (result["hardware"]["before"] or {}).get("gpus") or []
    yield "co2_eq_emissions:"
    yield f"  emissions: {kwh * grid:.6g}"
    yield f"  source: {_quoted(f'{kwh:.6g} kWh measured, {grid:g} g/kWh ({origin})')}"
    yield "  training_type: pre-training"
    if gpus:
        yield f"  hardware_used: {_quoted(str(gpus[0].get('name')))}"


def _recipe(result: Document) -> Document:
    try:
        return tomllib.loads(result["recipe"]["text"])
    except (ValueError, RecursionError):
        return {}


def _quoted(text: str) -> str:
    """A YAML string, without hidden characters: a JSON string is a YAML string."""
    return json.dumps(plain(text, 300), ensure_ascii=False)
