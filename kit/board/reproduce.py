"""Running somebody else's recipe again, or scoring their weights again, and signing what came out.

A claim is text of a stranger. Before anything of it is done again it must pass every check of its
text, and its recipe must be one that runs the installed trainer and names no places of this
machine; a trainer of its own is never fetched and runs only from a folder that the reproducer
names. What is compared, and when it counts as confirmed, is in `kit.board.statistics`; the board
computes it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kit
from kit.board.claim import Claim
from kit.board.documents import now
from kit.board.layout import REPRODUCTION_NAMESPACE, is_name
from kit.board.statistics import compare_check, compare_run, figures_of, noise_of
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.events import Model
from kit.recipe import Recipe, parse_recipe
from kit.run.code import code_digest
from kit.schemas import problems
from kit.timing import boottime_ns
from kit.trust.keys import Signer
from kit.trust.sign import result_id, sign_document
from kit.verify import Options, verify_result
from kit.verify.checks.replay import initial_weights_problem, replay
from kit.verify.evaluate import OtherBundle, probes, rescore
from kit.verify.evidence import Absent, Evidence, Irrelevant, Refused
from kit.verify.finding import Finding
from kit.verify.thresholds import RE_EVALUATION_AGREEMENT

Document = dict[str, Any]
_REFERENCE = {
    "command": ["python", "-m", "reference"],
    "loader": "reference",
    "config": "reference",
}
_SENTENCES = ("title",)  # fields of a recipe that are words, not names of anything


def safe_recipe(claim: Claim, trainer_code: Path | None) -> Recipe:
    """The claim's recipe, when it may be run here.

    Args:
        trainer_code: Folder with the reproducer's own copy of a trainer that is not the reference.

    Raises:
        KitError: The claim is refused or withdrawn, or the recipe would run what it brings along.
    """
    if claim.state == "withdrawn":
        raise KitError("this row is withdrawn: there is nothing left to reproduce")
    report = verify_result(claim.folder)
    if report.verdict in ("refused", "unreadable"):
        first = next(finding for finding in report.findings if finding.status == "fail")
        raise KitError(
            f"the row does not hold by itself: {first.check} {first.message}",
            hint=f"`n4090-kit verify {claim.folder}` shows everything; tell the board with "
            "`n4090-kit board dispute`",
        )
    if claim.result["claims"]["status"] != "complete":
        raise KitError(f"the row's run is {claim.result['claims']['status']}, not complete")
    recipe = parse_recipe(
        claim.result["recipe"]["text"],
        folder=(trainer_code or claim.folder).resolve(),
        run_code=trainer_code is not None,
    )
    trainer = recipe.section("trainer")
    if trainer_code is None and any(trainer[key] != value for key, value in _REFERENCE.items()):
        raise KitError(
            "the recipe brings a trainer of its own, and no stranger's code is run unasked",
            hint="get that code, read it, and name its folder: --trainer-code DIR",
            command=" ".join(trainer["command"])[:300],
            loader=trainer["loader"][:100],
        )
    for place, text in _strings(recipe.document):
        if trainer_code is None and leads_elsewhere(text):
            raise KitError("the recipe names a place on this machine", place=place, found=text[:80])
    return recipe


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and place not in _SENTENCES:
        yield place, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, place)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{place}.{key}".lstrip("."))


def leads_elsewhere(text: str) -> bool:
    """Whether a recipe's string could name a file outside the folders that a run is given."""
    return (
        text.startswith(("/", "~"))
        or "\\" in text
        or "://" in text
        or not text.isprintable()
        or ".." in text.replace(":", "/").split("/")
    )


def refuse_same_person(claim: Claim, signer: Signer, name: str) -> None:
    """Refuses the row's own submitter: that is another run of theirs, not a reproduction."""
    if not is_name(name):
        raise SchemaError(f"`{name[:60]}` cannot be a name here")
    if claim.result["submitter"]["public_key"] == signer.public_key:
        raise KitError(
            "this key signed the row itself; a reproduction is somebody else's",
            hint="submit another run of yours as a run; sign with another person's --key",
        )
    if claim.submitter is not None and claim.submitter.casefold() == name.casefold():
        raise KitError(f"the row is {name}'s own; a reproduction is somebody else's")


def refuse_same_card(claim: Claim) -> None:
    """Refuses the very card of the claim, before a day is spent on it."""
    from kit.hardware import gpu_facts

    gpus = gpu_facts()["gpus"] or []
    theirs = figures_of(claim.result)["gpu_hash"]
    if theirs is not None and any(gpu.get("uuid_hash") == theirs for gpu in gpus):
        raise KitError("this is the very card that the row was made on")


def own_seed(claim: Claim) -> int:
    """A random seed that is not the claim's."""
    while (seed := secrets.randbits(31)) == claim.result["seed"]["value"]:
        pass
    return seed


def refuse_other_inputs(claim: Claim, described: Document) -> None:
    """Refuses inputs that are not the claim's, byte for byte.

    Args:
        described: Digests of the inputs here, as `kit.prepare.inputs.describe` gives them.
    """
    differ = [
        name
        for name, part in claim.result["data"].items()
        if part is not None and (described.get(name) or {}).get("digest") != part["digest"]
    ]
    if differ:
        raise PrerequisiteError(
            f"the inputs here are not the row's: {', '.join(differ)}",
            hint="a reproduction reads the same files; `n4090-kit prepare` fetches those of its "
            "recipe, and --data, --sft, --chat-eval and --core name folders",
            **{
                name: f"{claim.result['data'][name]['digest']}, here "
                f"{(described.get(name) or {}).get('digest', 'none')}"
                for name in differ
            },
        )


def compare(claim: Claim, own: Document) -> tuple[list[Document], str, list[str]]:
    """An own run of the claim's recipe against the claim: checks, verdict, notes.

    Raises:
        KitError: The run is no reproduction of it: incomplete, of another recipe or seed.
    """
    if own["claims"]["status"] != "complete":
        raise KitError(f"this run is {own['claims']['status']}; a reproduction is a complete run")
    if own["recipe"]["digest"] != claim.result["recipe"]["digest"]:
        raise KitError("this run is of another recipe than the row's")
    if own["seed"]["value"] == claim.result["seed"]["value"]:
        raise KitError("this run has the row's own seed, so it shows nothing about chance")
    refuse_other_inputs(claim, own["data"])
    noise = noise_of(own["recipe"]["track"])
    checks, verdict = compare_run(figures_of(claim.result), figures_of(own), noise)
    return checks, verdict, differences(claim.result, own)


def differences(claimed: Document, own: Document) -> list[str]:
    """What else was not the same, for readers to weigh."""
    pairs: list[tuple[str, Any, Any]] = [
        ("image", claimed["image"]["digest"], own["image"]["digest"]),
        ("kit", claimed["kit"]["version"], own["kit"]["version"]),
        ("code", claimed["kit"]["code"], own["kit"]["code"]),
        *(
            (name, claimed["software"].get(name), own["software"].get(name))
            for name in ("torch", "triton", "python")
        ),
    ]
    return [
        f"{name}: {theirs or 'none'} in the row, {ours or 'none'} here"[:2000]
        for name, theirs, ours in pairs
        if theirs != ours
    ]


def check_again(
    claim: Claim, *, core: Path | None, data: Path | None, device: str
) -> tuple[Document, list[Document], str]:
    """The claim's weights scored and probed again: figures, checks, verdict.

    Args:
        core: The bundle that the row was scored on.
        data: Its training shards, for val_bpb; None leaves that out.

    Raises:
        PrerequisiteError: Weights, bundle or loader are missing.
    """
    evidence = Evidence(
        claim.result,
        claim.folder,
        Options(re_evaluate=True, core=core, data=data, device=device),
    )
    began_ns = boottime_ns()
    claimed = figures_of(claim.result)
    found: Document = dict.fromkeys(claimed)
    extra: list[Document] = []
    try:
        stated = evidence.evaluation_file("core")
        if stated is not None:
            if core is None:
                raise PrerequisiteError(
                    "scoring again needs the bundle that the row was scored on",
                    hint="name its folder with --core DIR; `n4090-kit prepare` fetches CORE",
                )
            again = rescore(evidence, stated)
            found["score"] = again.score
            found["core"] = None if claimed["core"] is None else again.score
            extra.append(
                {
                    "name": "answers",
                    "status": "pass" if again.agreement >= RE_EVALUATION_AGREEMENT else "fail",
                    "message": f"the same on {again.agreement:.2%} of {again.answers:,} questions",
                    "claimed": 1.0,
                    "found": again.agreement,
                    "limit": RE_EVALUATION_AGREEMENT,
                }
            )
        if data is not None and claimed["val_bpb"] is not None:
            found["val_bpb"] = evidence.replayed.val_bpb
        extra += [_as_check("probes", finding) for finding in probes(evidence)]
    except OtherBundle as other:
        raise PrerequisiteError(str(other), expected=other.expected, found=other.found) from None
    except (Absent, Irrelevant, Refused) as why:
        raise PrerequisiteError(f"the weights cannot be scored again: {why}") from None
    found["total_s"] = round((boottime_ns() - began_ns) / 1e9, 3)
    checks, verdict = compare_check(claimed, found)
    if any(check["status"] == "fail" for check in extra):
        verdict = "worse"
    return found, checks + extra, verdict


def replay_again(
    claim: Claim, *, windows: int, data: Path | None, device: str, sft: Path | None = None
) -> tuple[Document, list[Document], str, Document]:
    """Random windows of the claim's training done again (V26).

    Returns:
        Figures, checks, verdict, and the losses that the board compares itself.

    Raises:
        PrerequisiteError: Nothing of it could be done again here.
    """
    began_ns = boottime_ns()
    options = Options(replay=windows, data=data, sft=sft, device=device)
    evidence = Evidence(claim.result, claim.folder, options)
    try:
        findings = list(replay(evidence))
        weights = [event.data.initial_weights for event in evidence.log.of("pretrain", Model)]
        if weights and weights[-1] and evidence.replayed.initial_weights:
            problem = initial_weights_problem(evidence, weights[-1])
            findings += [problem] if problem else []
    except (Absent, Irrelevant, Refused) as why:
        raise PrerequisiteError(
            f"nothing of the run could be done again: {why}",
            hint="the row's own shards are needed: --data DIR",
        ) from None
    checks = [_as_check("replay", finding) for finding in findings]
    found: Document = dict.fromkeys(figures_of(claim.result))
    found["total_s"] = round((boottime_ns() - began_ns) / 1e9, 3)
    statuses = {check["status"] for check in checks}
    if statuses <= {"skip"}:
        raise PrerequisiteError(
            f"nothing of the run could be done again: {checks[0]['message']}",
            hint="the row's own shards are needed: --data DIR",
        )
    losses = evidence.replayed.losses
    windows_done = [
        {
            "first": window.step,
            "losses": [
                losses[step]
                for step in range(window.step, window.step + len(window.progress))
                if step in losses
            ],
        }
        for window in evidence.replayed.windows
    ]
    shown = {"windows": [window for window in windows_done if window["losses"]]}
    return found, checks, "worse" if "fail" in statuses else "confirmed", shown


def _as_check(name: str, finding: Finding) -> Document:
    status = {"pass": "pass", "fail": "fail"}.get(finding.status, "skip")
    return {
        "name": name,
        "status": status,
        "message": finding.message[:600],
        "claimed": None,
        "found": None,
        "limit": None,
    }


def statement(
    claim: Claim,
    kind: str,
    *,
    name: str,
    signer: Signer,
    own: Document | None,
    found: Document,
    checks: Iterable[Document],
    verdict: str,
    notes: Iterable[str],
    evidence: Document | None = None,
) -> Document:
    """The signed statement (schema/reproduction.schema.json).

    Args:
        own: The own run's result, for kind `run`.
        evidence: Losses that the board compares, for kind `replay`.
    """
    document = {
        "schema_version": 1,
        "kind": kind,
        "of": {
            "result_id": claim.id,
            "recipe_digest": claim.result["recipe"]["digest"],
            "image": claim.result["image"]["digest"],
        },
        "by": {"name": name, "public_key": signer.public_key},
        "at": now(),
        "kit": {"version": kit.__version__, "code": code_digest()},
        "result_id": None if own is None else result_id(own),
        "claimed": figures_of(claim.result),
        "found": found,
        "checks": list(checks),
        "verdict": verdict,
        "notes": list(notes),
        **({} if evidence is None else {"evidence": evidence}),
    }
    signed = sign_document(document, signer, REPRODUCTION_NAMESPACE)
    if wrong := problems(signed, "reproduction"):
        raise SchemaError(f"the statement does not fit its schema: {wrong[0]}")
    return signed
