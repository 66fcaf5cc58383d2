"""V09 and V10: what ran, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import kit
from kit.core_eval.bundle import core_facts
from kit.errors import SchemaError
from kit.events import InputFiles
from kit.recipe import parse_recipe
from kit.tracks import is_ranked
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from kit.typed import to_json
from kit.verify import recompute
from kit.verify.checks.numbers import unequal
from kit.verify.evidence import Absent, Evidence, Refused
from kit.verify.finding import Check, Finding, conclude, fail, ok, warn
from kit.verify.thresholds import CORE_TASKS, PUBLISHED_IMAGES


def _stated(evidence: Evidence) -> Iterator[Finding]:
    """Kit, image and recipe against the log's header, the stages against the recipe."""
    result, header = evidence.result, evidence.header
    stated_by_log = {
        "kit": to_json(header.kit),
        "image": to_json(header.image),
        "software": header.software,
    }
    for section, logged in stated_by_log.items():
        yield from unequal(logged, evidence.document[section], section, "the log's header")
    recipe = result.recipe
    digest = sha256_bytes(recipe.text.encode())
    stated = {"recipe.digest": recipe.digest, "the log's header": header.recipe.digest}
    for place, value in stated.items():
        if value != digest:
            yield fail(
                "is not the digest of the recipe's text", place, expected=digest, found=value
            )
    try:
        parsed = parse_recipe(recipe.text, folder=evidence.folder, label="recipe", of_result=True)
    except SchemaError as error:
        yield fail(error.message.splitlines()[0], "recipe.text")
        return
    for name in ("name", "track", "division"):
        if getattr(recipe, name) != getattr(parsed, name):
            yield fail(
                "is not what the recipe's text says",
                f"recipe.{name}",
                expected=getattr(parsed, name),
                found=getattr(recipe, name),
            )
    began = {name for name, stage in evidence.log.stages.items() if stage.starts}
    if not began <= set(parsed.stages):
        yield fail(
            "the run did stages that its recipe does not have",
            "recipe.stages",
            expected=", ".join(parsed.stages),
            found=", ".join(sorted(began)),
        )
    if evidence.complete and began != set(parsed.stages):
        yield fail(
            "a complete run left out stages of its recipe",
            "recipe.stages",
            expected=", ".join(parsed.stages),
            found=", ".join(sorted(began)),
        )


def software(evidence: Evidence) -> Iterator[Finding]:
    """Kit, image and recipe are the ones the log began with."""
    problems = list(_stated(evidence))
    if problems:
        yield from problems
        return
    result = evidence.result
    own = _own_code()
    if result.kit.version != kit.__version__:
        yield ok(f"made by kit {result.kit.version}; this is {kit.__version__}")
    elif own is not None and result.kit.code != own:
        ranked = is_ranked(evidence.track) and evidence.recipe.division == "closed"
        say = fail if ranked else warn
        yield say(
            "made by other code than this kit's, of the same version",
            "kit.code",
            expected=own,
            found=result.kit.code,
        )
    else:
        yield ok("kit, image and recipe are those of the log; the code is this kit's")
    if result.image.digest is None and is_ranked(evidence.track):
        yield warn("not run from a published image", "image.digest")
    elif is_ranked(evidence.track) and result.image.digest not in PUBLISHED_IMAGES:
        yield warn(
            "run from an image that was not published",
            "image.digest",
            expected=", ".join(PUBLISHED_IMAGES) or "none was published yet",
            found=result.image.digest,
        )


def _own_code() -> str | None:
    """The digest of the installed kit and trainer; None without the trainer."""
    from importlib.util import find_spec

    if find_spec("reference") is None:
        return None
    from kit.run.code import code_digest

    return code_digest()


def data(evidence: Evidence) -> Iterator[Finding]:
    """Inputs are those of the log, canonical where they must be, and the tokens add up."""
    document, log = evidence.document, evidence.log
    yield from unequal(recompute.data(log), document["data"], "data", "the log's inputs")
    for name, part in log.inputs.items():
        files = [FileDigest(f.path, f.bytes, f.sha256) for f in part.files]
        digest = manifest_digest(files)
        if digest != part.digest:
            yield fail(
                "the digest of an input is not that of its files",
                f"inputs.{name}",
                expected=digest,
                found=part.digest,
            )
    yield from _validation(log.inputs.data)
    yield from _bundle(evidence)
    yield from _chat(evidence)
    yield from _tokens(evidence)
    shards = log.inputs.data
    what = f"{len(shards.files)} training files" if shards else "no training data"
    yield conclude(f"{what}, {document['training']['tokens']:,} tokens add up")


def _validation(shards: InputFiles | None) -> Iterator[Finding]:
    """No file twice: a copy of the validation shard among the training ones shows here."""
    seen: dict[str, str] = {}
    for file in shards.files if shards else ():
        if file.sha256 in seen:
            yield fail(
                "the same file twice among the shards (is validation data trained on?)",
                f"inputs.data: {file.path}",
                found=seen[file.sha256],
            )
        seen[file.sha256] = file.path


def _bundle(evidence: Evidence) -> Iterator[Finding]:
    core = evidence.result.quality.core
    if core is None:
        return
    real = core_facts()["digest"]
    if (core.bundle == "core") != (core.bundle_digest == real):
        yield fail(
            "the score's bundle is not what it is called",
            "quality.core.bundle_digest",
            expected=real if core.bundle == "core" else "another digest than the real bundle's",
            found=core.bundle_digest,
        )
    try:
        scored = evidence.evaluation_file("core")
    except (Absent, Refused):
        return
    if scored is None or core.bundle != "core":
        return
    for task in scored["tasks"]:
        count, baseline = CORE_TASKS.get(task["label"], (0, 0.0))
        place = f"eval/core.json: {task['label']}"[:120]
        if task["baseline"] != baseline:
            yield fail("not the baseline of CORE", place, expected=baseline, found=task["baseline"])
        examples = len(task["outcomes"])
        if examples > count or (examples < count and not core.partial):
            yield fail("not the examples of CORE", place, expected=count, found=examples)
    labels = [task["label"] for task in scored["tasks"]]
    if len(set(labels)) != len(labels) or (not core.partial and set(labels) != set(CORE_TASKS)):
        yield fail(
            "not each task of CORE once",
            "eval/core.json",
            expected=f"{len(CORE_TASKS)} tasks",
            found=f"{len(set(labels))} tasks in {len(labels)} rows",
        )


def _chat(evidence: Evidence) -> Iterator[Finding]:
    """Answers are right or wrong, and a guess is right with a probability."""
    try:
        scored = evidence.evaluation_file("chat_eval")
    except (Absent, Refused):
        return
    for name, task in scored["tasks"].items() if scored else []:
        place = f"eval/chat.json: {name}"[:120]
        odd = [value for value in [*task["outcomes"], *task["ended"]] if value not in (0, 1)]
        if odd:
            yield fail("an answer neither right nor wrong", place, expected="0 or 1", found=odd[0])
        baseline = task["baseline"]
        if baseline is not None and not 0 <= baseline < 1:
            yield fail("no share of right guesses", place, expected="0 to 1", found=baseline)


def _tokens(evidence: Evidence) -> Iterator[Finding]:
    """Tokens grow by the same batch at every step; by the recipe's where its trainer says it."""
    steps = [event.data for event in evidence.log.steps()]
    if not steps:
        return
    for before, after in pairwise(steps):
        if after.tokens <= before.tokens:
            yield fail(
                "tokens do not grow from step to step",
                f"pretrain step {after.step}",
                expected=f"more than {before.tokens}",
                found=after.tokens,
            )
            return
    course, last, last_tokens = evidence.course, -1, 0
    if course is None:
        return
    for step in steps:
        # The batch of a step is the recipe's at the progress that the step reports.
        batch = course.batch_tokens("pretrain", 1.0 if step.progress is None else step.progress)
        if batch is None or step.step != last + 1:
            return  # V08 says so
        expected = last_tokens + batch
        last, last_tokens = step.step, step.tokens
        if step.tokens != expected:
            yield fail(
                "tokens are not steps times batch",
                f"pretrain step {step.step}",
                expected=expected,
                found=step.tokens,
            )
            return


CHECKS = (
    Check(
        "V09",
        "Software",
        "A patched kit, another image, another recipe than the one shown.",
        "kit, image, software, recipe; the log's header",
        software,
    ),
    Check(
        "V10",
        "Data",
        "Easier data, training on the validation shard, another test, tokens that were not seen.",
        "data, inputs event, quality.core.bundle_digest, step events",
        data,
    ),
)
