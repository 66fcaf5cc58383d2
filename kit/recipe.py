"""Recipes: TOML in, a resolved and checked description of a run out.

A recipe is checked twice: against schema/recipe.schema.json together with the schemas of the
sections that the recipe's trainer owns (`kit.trainer`), whose defaults are then filled in, and
against the few rules a schema cannot say (which stage needs which; the trainer's own rules). All
problems are reported together, each with its path and line.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit.conversations import conversation_sources
from kit.errors import PrerequisiteError, SchemaError
from kit.schemas import NO_SUCH_FIELD, Problem, load_schema, schema_problems, with_defaults
from kit.text_mix import text_mix
from kit.tracks import is_ranked
from kit.trainer import Facts, Trainer, facts_of, find_trainer

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
        trainer: Owns the sections that are not the kit's; None where that is code beside the recipe
            that may not run.
    """

    name: str
    track: str
    division: str
    budget_s: float
    stages: tuple[str, ...]
    document: dict[str, Any]
    text: str
    folder: Path
    trainer: Trainer | None = None

    @cached_property
    def facts(self) -> Facts:
        """What the recipe's trainer says of it."""
        return facts_of(self.trainer, self.document)

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

    >>> recipe = load_recipe("smoke")
    >>> recipe.track, recipe.stages
    ('smoke', ('tokenizer', 'pretrain', 'core', 'sft', 'chat_eval'))

    Raises:
        SchemaError: No such recipe, not TOML, or wrong values; the message lists every problem.
    """
    named = named_recipes()
    path = named.get(reference) or Path(reference)
    if not path.is_file():
        own = Path(f"{reference}.toml")
        close = [str(own)] if own.is_file() else difflib.get_close_matches(reference, named, n=1)
        meant = close[0] if close else None
        raise SchemaError(
            f"there is no recipe `{reference}`",
            hint=(f"Did you mean `{meant}`? " if meant else "")
            + f"Named ones: {', '.join(named) or 'none installed'}; or give a TOML file.",
        )
    text = read_recipe_text(path)
    return parse_recipe(text, folder=path.resolve().parent, label=path.name, run_code=True)


def read_recipe_text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        SchemaError: It cannot be read, is too long, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_RECIPE_BYTES:
            raise SchemaError(
                f"recipe {path.name} has {len(data)} bytes",
                hint=f"A recipe travels in the result: at most {MAX_RECIPE_BYTES} bytes.",
            )
        return data.decode("utf-8-sig")  # Windows editors begin files with a BOM
    except UnicodeDecodeError as error:
        raise SchemaError(f"recipe {path.name} is not UTF-8: {error}") from error
    except OSError as error:
        raise SchemaError(f"recipe {path.name} cannot be read: {error.strerror}") from error


def parse_recipe(
    text: str,
    *,
    folder: Path,
    label: str = "recipe",
    run_code: bool = False,
    of_result: bool = False,
) -> Recipe:
    """Checks and resolves a recipe's text.

    Args:
        run_code: The recipe's trainer may be code beside the recipe: the caller chose to run it.
        of_result: The recipe was run already. Fields that its trainer no longer knows stay as they
            were written, so that old results can be verified.

    Raises:
        SchemaError: The message lists every problem.
    """
    if len(text) > MAX_RECIPE_BYTES:
        raise SchemaError(f"{label} is too long", limit=MAX_RECIPE_BYTES, found=len(text))
    if _DEEP_KEY.search(text):
        raise SchemaError(f"{label} has a key of more than {MAX_KEY_PARTS} parts")
    try:
        source = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: an integer of 5,000 digits
        raise SchemaError(f"{label} is not TOML: {error}") from error
    schema = load_schema("recipe")
    trainer = _trainer_of(source, folder if run_code else None, of_result)
    sections = trainer.sections() if trainer else {}
    known = {**schema, "properties": {**schema["properties"], **sections}}
    if trainer is not None:
        known["additionalProperties"] = False
    found = schema_problems(source, known)
    if of_result:
        ours = schema["properties"]
        found = [p for p in found if p.found != NO_SUCH_FIELD or p.path.split(".")[0] in ours]
    usable = _without(source, found)
    document: dict[str, Any] = {}
    if not found or not schema_problems(usable, known):
        document = with_defaults(usable, known)
        rules = _inconsistencies(document)
        if trainer is not None:
            rules += [Problem(*problem) for problem in trainer.problems(document)]
        found += _independent(rules, found)
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
        trainer=trainer,
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


def _trainer_of(source: dict[str, Any], folder: Path | None, of_result: bool) -> Trainer | None:
    """The trainer that a recipe names, before anything of the recipe has been checked."""
    section = source.get("trainer")
    default = load_schema("recipe")["properties"]["trainer"]["properties"]["config"]["default"]
    name = section.get("config", default) if isinstance(section, dict) else default
    if not isinstance(name, str):
        return None  # the schema says so
    try:
        return find_trainer(name, folder)
    except PrerequisiteError as error:
        if of_result:  # the result can be verified without it, as far as that goes
            return None
        raise SchemaError(error.message, hint=error.hint) from error


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
    data = document["data"]
    if data["kind"] == "hub" and ("/" not in data["repo"] or data["shards"] < 1):
        found.append(
            Problem("data.repo", "incomplete", "kind hub needs repo OWNER/NAME and shards above 0")
        )
    if data["kind"] == "hub":
        found += _data_inconsistencies(data)
    if is_ranked(document["track"]):
        found += _track_inconsistencies(document)
    return found


def _data_inconsistencies(data: dict[str, Any]) -> Iterator[Problem]:
    checks: dict[str, Callable[[], object]] = {
        "data.text": lambda: text_mix(data),
        "data.sft": lambda: conversation_sources(data["sft"]),
    }
    for field, check in checks.items():
        try:
            check()
        except SchemaError as error:
            yield Problem(field, error.message.removeprefix(f"{field}: "), error.hint or "")


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
