"""Runs every check on one result and collects what they find."""

from __future__ import annotations

import gc
import struct
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kit.core_eval.naming import named_scores
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.result_form import Result
from kit.text import plain
from kit.verify import evaluate
from kit.verify.checks import (
    clocks,
    contamination,
    copies,
    course,
    energy,
    identity,
    inputs,
    learning,
    log,
    machine,
    manifest,
    noise,
    numbers,
    physics,
    replay,
    scope,
    seeds,
    training,
)
from kit.verify.evidence import Absent, Evidence, Irrelevant, Options, Refused, read_result
from kit.verify.finding import Check, Finding, Report, concluded, fail, missing, ok, skip
from kit.verify.weights import BrokenWeights

# What a hostile log or file can make arithmetic on it raise. Each becomes a refusal.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,  # torch's, and RecursionError
    MemoryError,
    OSError,
    struct.error,
    BrokenWeights,
)


def _form(evidence: Evidence) -> Iterable[Finding]:
    """The result is strict JSON of the schema, and nothing else."""
    yield ok(f"strictly parsed, fits result schema {evidence.result.schema_version}")


FORM = Check(
    "V01",
    "Form",
    "Malformed and smuggled input: duplicate keys, NaN, numbers and names that two readers would "
    "read differently, fields nobody checks.",
    "result.json against schema/result.schema.json",
    _form,
)

CHECKS: tuple[Check, ...] = tuple(
    sorted(
        (
            FORM,
            *identity.CHECKS,
            *log.CHECKS,
            *clocks.CHECKS,
            *numbers.CHECKS,
            *inputs.CHECKS,
            *machine.CHECKS,
            *physics.CHECKS,
            *energy.CHECKS,
            *learning.CHECKS,
            *seeds.CHECKS,
            *manifest.CHECKS,
            *evaluate.CHECKS,
            *contamination.CHECKS,
            *copies.CHECKS,
            *replay.CHECKS,
            *course.CHECKS,
            *training.CHECKS,
            *scope.CHECKS,
            *noise.CHECKS,
        ),
        key=lambda check: check.id,
    )
)


def check_by_id(name: str) -> Check | None:
    return next((check for check in CHECKS if check.id == name.upper()), None)


def checks_table() -> str:
    """All checks as a Markdown table; documents that show it are tested against this."""
    rows = [f"| {c.id} | {c.title} | {c.looks_at} | {c.protects} |" for c in CHECKS]
    return "\n".join(["| id | check | looks at | stops |", "|---|---|---|---|", *rows])


def verify(run: str | Path, **options: Any) -> Report:
    """Checks the result of a run folder, or of a result.json with its evidence beside it.

    Args:
        options: Fields of `Options`, such as `strict=True`.

    Returns:
        The report; `verdict` is consistent, inconclusive, refused or unreadable.
    """
    return verify_result(Path(run), Options(**options))


def verify_result(path: Path, options: Options | None = None) -> Report:
    """Checks the result at `path` (result.json, or the run folder that holds it).

    Returns:
        All findings; a broken result is no exception.
    """
    began = time.perf_counter()
    options = options or Options()
    if path.is_dir():
        path = path / "result.json"
    report = Report(subject=plain(path.name, 200), strict=options.strict)
    document = _read(path, report)
    collecting = gc.isenabled()
    gc.disable()  # a day's log is a million small objects without a cycle among them
    try:
        _check(document, path.parent, options, report)
    finally:
        if collecting:
            gc.enable()
    report.elapsed_s = time.perf_counter() - began
    return report


def _check(document: dict[str, Any] | None, folder: Path, options: Options, report: Report) -> None:
    if document is not None:
        report.result_id = identity.name_of(document)
        evidence = Evidence(document, folder, options)
        report.facts = _facts(evidence)
        for check in CHECKS:
            report.findings += [replace(f, check=check.id) for f in _run(check, evidence)]


def _read(path: Path, report: Report) -> dict[str, Any] | None:
    """The document when V01 has nothing against it; V01's findings otherwise."""
    from kit.schemas import problems

    def refuse(finding: Finding) -> None:
        report.findings.append(replace(finding, check="V01"))

    try:
        document = read_result(path)
    except OSError as error:
        report.readable = False
        refuse(fail(f"cannot be read: {error.strerror}", path.name))
        return None
    except SchemaError as error:
        report.readable = False
        refuse(fail(error.message, error.facts.get("place")))
        return None
    found = problems(document, "result")
    for problem in found[:20]:
        refuse(fail(f"{problem.found}; {problem.allowed}", problem.path))
    if found or not isinstance(document, dict):
        return None
    try:
        Result.of(document)
    except SchemaError as error:  # stricter than the schema: 1.0 is not a count
        refuse(fail(error.message, error.facts.get("place")))
        return None
    return document


def _run(check: Check, evidence: Evidence) -> list[Finding]:
    """What the check finds; what it found before its evidence gave out stays."""
    found: list[Finding] = []
    try:
        found.extend(check.body(evidence))
    except Absent as absent:
        found.append(missing(str(absent)))
    except (Refused, Irrelevant) as why:
        found.append(skip(str(why)))
    except PrerequisiteError as error:  # this machine lacks it; that says nothing about the run
        found.append(missing(error.message))
    except KitError as error:
        found.append(fail(error.message, error.facts.get("place")))
    except MALFORMED as error:
        sentence = f"the evidence is malformed: {type(error).__name__}: {str(error)[:200]}"
        found.append(fail(sentence))
    return concluded(found)


def _facts(evidence: Evidence) -> dict[str, Any]:
    """The headline of a result, for the top of a report."""
    result, bpb = evidence.result, evidence.result.quality.val_bpb
    facts = {
        "run": result.runs.id,
        "recipe": result.recipe.name,
        "track": result.recipe.track,
        "status": result.claims.status,
        "ranked": result.claims.ranked,
        "total_s": result.timing.total_s,
        **named_scores(evidence.document["quality"]["core"]),
        "val_bpb": bpb and bpb.last,
        "gpu": ((result.hardware.before or {}).get("class") or {}).get("name"),
    }
    return {k: plain(v, 200) if isinstance(v, str) else v for k, v in facts.items()}
