"""Studies: TOML in, the recipe of every trial out.

A study compares named changes of recipe fields with a baseline, at a ladder of scales, with equal
FLOPs or equal time and several seeds. Fields are written `section.field`; the kit checks every
recipe that comes of it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

from reference.errors import TrainerError
from reference.model.cost import estimate

SCHEMA = Path(__file__).with_name("study.schema.json")
BASELINE = "baseline"
MILESTONES = 4  # evaluations a trial, evenly over its horizon; the last one is its end
_COUNTING_STEPS = 1000  # for the FLOPs of a step


@dataclass(frozen=True)
class Scale:
    """A rung of the ladder: a size, and a budget in FLOPs or in seconds.

    Args:
        seeds: Of its trials; empty: the study's.
    """

    name: str
    fields: Mapping[str, Any]
    flops: float | None = None
    seconds: float | None = None
    seeds: tuple[int, ...] = ()

    @property
    def budget(self) -> float:
        return self.flops or self.seconds or 0.0


@dataclass(frozen=True)
class Arm:
    """The baseline, or a change of it.

    Args:
        data: A folder of parquet files instead of the study's.
        expect: What the author knows beforehand, to test the study itself.
        at: Scale's name -> further fields there, for what depends on the size.
        stop_margin: Instead of the study's, for what is behind at first by its nature; 0: never.
        control: Goes to the largest scale whatever its rank: its verdict is known beforehand.
        up_to: The largest scale that it may reach; None: the study's.
    """

    name: str
    fields: Mapping[str, Any]
    why: str = ""
    data: Path | None = None
    expect: str | None = None
    at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stop_margin: float | None = None
    control: bool = False
    up_to: str | None = None

    @property
    def paths(self) -> list[str]:
        """Every field that it changes anywhere."""
        return sorted({*self.fields, *(path for fields in self.at.values() for path in fields)})


@dataclass(frozen=True)
class Halving:
    """Who goes on to the next scale, and when a trial is ended early.

    Args:
        eta: Of `eta` arms one goes on.
        keep_at_least: So many go on in any case, once all of a scale are done.
        stop_margin: A trial ends at a milestone where its bits per byte exceed the baseline's worst
            seed by this share. 0: never.
    """

    eta: float = 2.0
    keep_at_least: int = 3
    stop_margin: float = 0.05


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    baseline: str
    scales: tuple[Scale, ...]
    arms: tuple[Arm, ...]  # the baseline first
    seeds: tuple[int, ...]
    fields: Mapping[str, Any]
    folder: Path
    alpha: float = 0.05
    reliability: float = 0.8
    halving: Halving = field(default_factory=Halving)
    core: Mapping[str, Any] | None = None

    @property
    def equal(self) -> str:
        return "time" if self.scales[0].seconds else "FLOPs"

    def seeds_at(self, scale: str) -> tuple[int, ...]:
        """The seeds of the trials at this scale."""
        return next(row.seeds for row in self.scales if row.name == scale) or self.seeds

    def recipe(self, resolved: Mapping[str, Any], arm: Arm, scale: Scale) -> dict[str, Any]:
        """The recipe of one trial, horizon included, from the resolved baseline.

        The kit has not seen it yet: `reference.lab.trial.checked_recipe`.
        """
        document = copy.deepcopy(dict(resolved))
        for fields in (self.fields, scale.fields, arm.fields, arm.at.get(scale.name, {})):
            for path, value in fields.items():
                _put(document, path, value)
        document["name"] = f"{self.name}-{arm.name}-{scale.name}"[:40].rstrip("-")
        document["title"] = f"study {self.name}: {arm.name} at {scale.name}"
        document["track"], document["division"] = "open", "open"
        document["stages"] = ["tokenizer", "pretrain", "core"] if self.core else _TWO_STAGES
        pretrain = document["pretrain"]
        pretrain["checkpoint_every"] = 0
        pretrain.pop("fill_budget", None)  # the scale's budget is the horizon, not the recipe's day
        if scale.seconds:
            pretrain["num_steps"], pretrain["hours"] = 0, scale.seconds / 3600
        else:
            pretrain["num_steps"], pretrain["hours"] = steps_of(document, scale.budget), 0
            pretrain["eval_every"] = max(1, -(-pretrain["num_steps"] // MILESTONES))
        if self.core:
            document["core"].update(self.core)
        return document


_TWO_STAGES = ["tokenizer", "pretrain"]


def steps_of(document: Mapping[str, Any], flops: float) -> int:
    """Optimizer steps that cost `flops` by nanochat's count; at least one per milestone."""
    pretrain = {**document["pretrain"], "num_steps": _COUNTING_STEPS, "hours": 0}
    cost = estimate({**document, "pretrain": pretrain})["flops"]["nanochat"] / _COUNTING_STEPS
    return max(MILESTONES, round(flops / cost))


def load_study(path: Path) -> Study:
    """The study in this file.

    Raises:
        TrainerError: Not TOML, or wrong fields; every problem is named.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainerError(
            "bad_input", f"study {path}: {error}", "Give a TOML file; reference/studies has some."
        ) from error
    found = _problems(document)
    if found:
        raise TrainerError(
            "bad_input",
            f"{path.name} has {len(found)} problem{'s' if len(found) > 1 else ''}:\n"
            + "\n".join(f"  {problem}" for problem in found),
            "reference/lab/study.schema.json has every field with its meaning.",
        )
    folder = path.resolve().parent
    seeds = document.get("seeds", 3)
    changes = [
        Arm(
            name=row["name"],
            fields=row.get("set", {}),
            why=row.get("why", ""),
            data=(folder / row["data"]) if "data" in row else None,
            expect=row.get("expect"),
            at=row.get("at", {}),
            stop_margin=row.get("stop_margin"),
            control=row.get("control", False),
            up_to=row.get("up_to"),
        )
        for row in document["change"]
    ]
    named = folder / document["baseline"]
    return Study(
        name=document["name"],
        title=document.get("title", ""),
        baseline=str(named) if named.is_file() else document["baseline"],
        scales=tuple(
            Scale(
                row["name"],
                row.get("set", {}),
                row.get("flops"),
                row.get("seconds"),
                _seeds(row.get("seeds", ())),
            )
            for row in document["scale"]
        ),
        arms=(Arm(BASELINE, {}), *changes),
        seeds=_seeds(seeds),
        fields=document.get("set", {}),
        folder=folder,
        alpha=document.get("alpha", 0.05),
        reliability=document.get("reliability", 0.8),
        halving=Halving(**document.get("halving", {})),
        core=document.get("core"),
    )


def _seeds(given: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(range(1, given + 1)) if isinstance(given, int) else tuple(given)


def _problems(document: Mapping[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    found = [
        f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"
        for error in sorted(validator.iter_errors(document), key=lambda e: str(e.absolute_path))
    ]
    if found:
        return found
    for kind, key in (("change", "change"), ("scale", "scale")):
        names = [row["name"] for row in document[key]]
        found += [f"{kind} {n!r} is given twice" for n in set(names) if names.count(n) > 1]
    if any(row["name"] == BASELINE for row in document["change"]):
        found.append(f"change {BASELINE!r}: that is the name of what it is compared with")
    kinds = {"flops" in row for row in document["scale"]}
    if len(kinds) > 1:
        found.append("scale: all budgets in flops, or all in seconds")
    budgets = [row.get("flops") or row.get("seconds") for row in document["scale"]]
    if budgets != sorted(set(budgets)):
        found.append("scale: budgets have to grow from one to the next")
    scales = [row["name"] for row in document["scale"]]
    for row in document["change"]:
        found += [
            f"change {row['name']!r} at {name!r}: no such scale; there are {', '.join(scales)}"
            for name in (*row.get("at", {}), *([row["up_to"]] if "up_to" in row else []))
            if name not in scales
        ]
        changed = row.get("set") or row.get("at") or "data" in row
        if not changed and row.get("expect") != "undecided":
            found.append(f"change {row['name']!r} changes nothing (an A/A says expect = undecided)")
    return found


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    """Sets `section.field`; an unknown one is left for the kit to refuse, by its name."""
    *sections, name = path.split(".")
    for key in sections:
        document = document.setdefault(key, {})
    document[name] = value


def trial_id(recipe: Mapping[str, Any], seed: int, data: str) -> str:
    """Names a trial by what determines its outcome: the same work is never done twice."""
    told = {key: recipe[key] for key in recipe if key not in ("name", "title", "budget_s")}
    text = json.dumps([told, seed, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
