"""Recipes: TOML in, a resolved and checked description of a run out.

A recipe is checked twice: against schema/recipe.schema.json, whose defaults are then filled in, and
against the few rules a schema cannot say (what divides what, which stage needs which). All problems
are reported together, each with its path and line.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit.errors import SchemaError
from kit.growth import growth_problems
from kit.schemas import Problem, load_schema, problems, with_defaults

STAGES = ("tokenizer", "pretrain", "core", "sft", "chat_eval")
# What has to have run before a stage can.
_NEEDS = {"pretrain": "tokenizer", "core": "pretrain", "sft": "pretrain", "chat_eval": "sft"}
MAX_RECIPE_BYTES = 65_536


_SHOWN_PROBLEMS = 50
# tomllib takes memory by the square of a dotted key's parts: gigabytes for a key of 64 kB.
MAX_KEY_PARTS = 16
_DEEP_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}""")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        document: Every field, defaults filled in; what stages receive.
        text: The file as written; it travels in the result.
        folder: Where the file lies, for trainers and loaders named relative to it.
    """

    name: str
    track: str
    division: str
    budget_s: float
    stages: tuple[str, ...]
    document: dict[str, Any]
    text: str
    folder: Path

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.text.encode()).hexdigest()

    def section(self, name: str) -> dict[str, Any]:
        value = self.document[name]
        assert isinstance(value, dict)
        return value


def named_recipes() -> dict[str, Path]:
    """Recipes that come with installed trainers, by name."""
    found: dict[str, Path] = {}
    for entry in entry_points(group="n4090_kit.recipes"):
        spec = find_spec(entry.module)
        for root in spec.submodule_search_locations or [] if spec else []:
            for path in sorted((Path(root) / "recipes").glob("*.toml")):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def load_recipe(reference: str) -> Recipe:
    """The recipe of this name, or in this file.

    Raises:
        SchemaError: No such recipe, not TOML, or wrong values; the message lists every problem.
    """
    named = named_recipes()
    path = named.get(reference) or Path(reference)
    if not path.is_file():
        close = difflib.get_close_matches(reference, named, n=1)
        raise SchemaError(
            f"there is no recipe `{reference}`",
            hint=(f"Did you mean `{close[0]}`? " if close else "")
            + f"Named ones: {', '.join(named) or 'none installed'}; or give a TOML file.",
        )
    try:
        data = path.read_bytes()
        if len(data) > MAX_RECIPE_BYTES:
            raise SchemaError(
                f"recipe {path.name} has {len(data)} bytes",
                hint=f"A recipe travels in the result: at most {MAX_RECIPE_BYTES} bytes.",
            )
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"recipe {path.name} is not UTF-8: {error}") from error
    except OSError as error:
        raise SchemaError(f"recipe {path.name} cannot be read: {error.strerror}") from error
    return parse_recipe(text, folder=path.resolve().parent, label=path.name)


def parse_recipe(text: str, *, folder: Path, label: str = "recipe") -> Recipe:
    """Checks and resolves a recipe's text. Raises `SchemaError` with every problem found."""
    if len(text) > MAX_RECIPE_BYTES:
        raise SchemaError(f"{label} is too long", limit=MAX_RECIPE_BYTES, found=len(text))
    if _DEEP_KEY.search(text):
        raise SchemaError(f"{label} has a key of more than {MAX_KEY_PARTS} parts")
    try:
        source = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: an integer of 5,000 digits
        raise SchemaError(f"{label} is not TOML: {error}") from error
    found = problems(source, "recipe")
    usable = _without(source, found)
    document: dict[str, Any] = {}
    if not found or not problems(usable, "recipe"):
        document = with_defaults(usable, load_schema("recipe"))
        found += _independent(_inconsistencies(document), found)
    if found:
        shown = found[:_SHOWN_PROBLEMS]
        lines = [str(replace(problem, line=_line_of(text, problem.path))) for problem in shown]
        if len(found) > len(shown):
            lines.append(f"and {len(found) - len(shown)} more")
        count = f"{len(found)} problem" + ("s" if len(found) > 1 else "")
        raise SchemaError(
            f"{label} has {count}:\n" + "\n".join(f"  {problem}" for problem in lines),
            hint="`n4090-kit recipes schema` prints every field with its meaning.",
        )
    return Recipe(
        name=document["name"],
        track=document["track"],
        division=document["division"],
        budget_s=float(document["budget_s"]),
        stages=tuple(document["stages"]),
        document=document,
        text=text,
        folder=folder,
    )


def _without(source: dict[str, Any], found: list[Problem]) -> dict[str, Any]:
    """`source` without the fields that have problems."""
    usable = copy.deepcopy(source)
    for problem in found:
        *sections, field = problem.path.split(".")
        place: Any = usable
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(field, None)
    return usable


def _independent(values: list[Problem], found: list[Problem]) -> list[Problem]:
    """The problems of values that name no field of `found`: those stand in for it by default."""
    fields = {problem.path.split(".")[-1] for problem in found}
    fields |= {problem.suggestion for problem in found if problem.suggestion}
    return [one for one in values if not fields & set(re.findall(r"\w+", str(one)))]


def _inconsistencies(document: dict[str, Any]) -> list[Problem]:
    """What a schema cannot say."""
    found = []
    stages = document["stages"]
    if stages != [stage for stage in STAGES if stage in stages]:
        order = ", ".join(STAGES)
        found.append(Problem("stages", f"found {', '.join(stages)}", f"the order is {order}"))
    for stage in stages:
        needed = _NEEDS.get(stage)
        if needed and needed not in stages:
            found.append(Problem("stages", f"`{stage}` without `{needed}`", f"add `{needed}`"))
    if document["trainer"]["command"] == ["python", "-m", "reference"]:
        found += _reference_inconsistencies(document)
    data = document["data"]
    if data["kind"] == "hub" and ("/" not in data["repo"] or data["shards"] < 1):
        found.append(
            Problem("data.repo", "incomplete", "kind hub needs repo OWNER/NAME and shards above 0")
        )
    if document["track"] == "rtx4090-24h":
        found += _track_inconsistencies(document)
    return found


def _reference_inconsistencies(document: dict[str, Any]) -> list[Problem]:
    found = []
    model, pretrain, sft = document["model"], document["pretrain"], document["sft"]
    if model["n_embd"] % model["n_head"] or (model["n_embd"] // model["n_head"]) % 2:
        found.append(
            Problem(
                "model.n_head",
                f"found {model['n_head']}",
                f"must divide n_embd ({model['n_embd']}) into heads of even width",
            )
        )
    if model["n_head"] % model["n_kv_head"]:
        found.append(
            Problem(
                "model.n_kv_head",
                f"found {model['n_kv_head']}",
                f"must divide n_head ({model['n_head']})",
            )
        )
    for name, section in (("pretrain", pretrain), ("sft", sft)):
        micro = max(1, section["device_batch_size"]) * model["seq_len"]
        if name in document["stages"] and section["total_batch_size"] % micro:
            found.append(
                Problem(
                    f"{name}.total_batch_size",
                    f"found {section['total_batch_size']}",
                    f"must be a multiple of device_batch_size * seq_len = {micro}",
                )
            )
    found += _ramp_problems(model, pretrain) + _mixing_problems(pretrain)
    found += growth_problems(model, pretrain)
    if "pretrain" in document["stages"] and (pretrain["num_steps"] > 0) == (pretrain["hours"] > 0):
        found.append(
            Problem(
                "pretrain.num_steps",
                f"found {pretrain['num_steps']} with hours {pretrain['hours']}",
                "exactly one of num_steps and hours is above 0",
            )
        )
    return found


def _ramp_problems(model: dict[str, Any], pretrain: dict[str, Any]) -> list[Problem]:
    """Ramps begin at share 0, only move on, end at the full value, and cut batches evenly."""
    found = []
    length, micro = model["seq_len"], max(1, pretrain["device_batch_size"]) * model["seq_len"]
    for name, full, unit in (
        ("seq_len_ramp", length, None),
        ("window_ramp", 1, None),
        ("batch_ramp", pretrain["total_batch_size"], micro),
    ):
        ramp = pretrain[name]
        if not ramp:
            continue
        shares, values = [share for share, _ in ramp], [value for _, value in ramp]
        if shares[0] != 0 or sorted(set(shares)) != shares:
            found.append(
                Problem(f"pretrain.{name}", f"found shares {shares}", "must rise, from 0 on")
            )
        if values[-1] != full:
            found.append(
                Problem(f"pretrain.{name}", f"ends with {values[-1]}", f"must end with {full}")
            )
        uneven = [
            value
            for value in values
            if (unit and value % unit) or (name == "seq_len_ramp" and length % value)
        ]
        if uneven:
            rule = f"a multiple of {unit}" if unit else f"a divisor of {length}"
            found.append(Problem(f"pretrain.{name}", f"found {uneven[0]}", f"must be {rule}"))
    return found


def _mixing_problems(pretrain: dict[str, Any]) -> list[Problem]:
    """Rows of other sources leave room for new ones, and come when all rows have full length."""
    found = []
    together = pretrain["replay_share"] + pretrain["sft_share"]
    if together > 0.9:
        found.append(
            Problem(
                "pretrain.replay_share",
                f"with sft_share it is {together:g}",
                "together at most 0.9: the rest are new rows",
            )
        )
    ramp = pretrain["seq_len_ramp"]
    full = ramp[-1][0] if ramp else 0.0
    for name in ("replay", "sft"):
        begin = pretrain[f"{name}_from"]
        # Replayed rows are kept from half of `replay_from` on, and rows of other lengths are of no
        # use; conversations are packed into rows of full length.
        if pretrain[f"{name}_share"] and begin < full:
            found.append(
                Problem(
                    f"pretrain.{name}_from",
                    f"found {begin:g}",
                    f"seq_len_ramp reaches its end at {full:g}: not before that",
                )
            )
    return found


def _track_inconsistencies(document: dict[str, Any]) -> list[Problem]:
    found = []
    if document["budget_s"] != 86_400:
        found.append(Problem("budget_s", f"found {document['budget_s']}", "the track's is 86400"))
    if tuple(document["stages"]) != STAGES:
        found.append(Problem("stages", "some are missing", "the track runs all five"))
    if document["core"]["max_per_task"] != -1 or document["core"]["tasks"]:
        found.append(Problem("core", "capped", "the track scores all items of all tasks"))
    return found


def _line_of(text: str, path: str) -> int | None:
    """The line on which `path` (section.key…) is set, or its section opens."""
    section, _, key = path.rpartition(".")
    current, opened = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        if header:
            current = header[1].replace('"', "")
            if current in (section, path):
                opened = number
        elif current == section and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
    return opened


def resolved_toml(recipe: Recipe) -> str:
    """`recipe` as TOML with every default written out."""
    return toml_text(recipe.document)


def toml_text(document: dict[str, Any]) -> str:
    """A document of plain values and sections as TOML."""
    lines = [f"{key} = {_toml(value)}" for key, value in document.items() if not _table(value)]
    for key, value in document.items():
        if _table(value):
            lines += [
                "",
                f"[{key}]",
                *(f"{name} = {_toml(inner)}" for name, inner in value.items()),
            ]
    return "\n".join(lines) + "\n"


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
