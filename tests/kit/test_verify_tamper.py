"""The tamper suite: every mutation is refused by the check that is meant for it, and no other.

Mutations come in three kinds, by what the forger could redo. `draft`: the run itself is changed,
then chained, built and signed again. `result`: the result is changed and signed again. `file`:
files are changed after signing. The table goes to the file that N4090_TAMPER_TABLE names.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tamper
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from tamper import Draft, chain_lines, gpu_run, scale, step_times

from kit.core_eval.statistics import TaskOutcomes, normal_interval
from kit.run.log import LOG_KIND
from kit.run.process import HELD_REPORTS
from kit.run.telemetry import TELEMETRY_KIND
from kit.trust import sshsig
from kit.trust.sign import signed_bytes
from kit.verify import CHECKS, Options, Report, verify_result
from kit.verify.thresholds import LOST_STEPS


@dataclass(frozen=True)
class Mutation:
    name: str
    base: str
    kind: str
    expected: frozenset[str]
    apply: Callable[..., Any]
    options: Callable[[Path], Options] = lambda folder: Options()


MUTATIONS: list[Mutation] = []


def mutation(
    name: str, expected: str, *, kind: str, base: str = "4090", options: Any = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(apply: Callable[..., Any]) -> Callable[..., Any]:
        extra = {"options": options} if options else {}
        MUTATIONS.append(Mutation(name, base, kind, frozenset(expected.split()), apply, **extra))
        return apply

    return keep


# --- honest runs -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cpu_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run through the supervisor, with the forty-line trainer."""
    pytest.importorskip("pyarrow")
    return tamper.supervised_run(tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest) -> Callable[[str], Draft]:
    """A fresh copy of an honest run, by name."""
    made: dict[str, Draft] = {}
    synthetic: dict[str, Callable[[], Draft]] = {
        "4090": gpu_run,
        "long": lambda: gpu_run(steps=90),
        "resumed": lambda: gpu_run(seed=4, resume_at=37),
        "long, resumed": lambda: gpu_run(seed=4, steps=90, resume_at=37),
        "failed": lambda: gpu_run(seed=8, fail_at=33),
    }

    def get(name: str) -> Draft:
        if name not in made:
            if name == "cpu":
                run = request.getfixturevalue("cpu_run")
                key = load_ssh_private_key(
                    (run.parents[1] / "keys/n4090_ed25519").read_bytes(), password=None
                )
                made[name] = tamper.load_draft(run, key)
            else:
                made[name] = synthetic[name]()
        return made[name].copy()

    return get


def explain(report: Report) -> str:
    return "\n".join(
        f"{f.check} {f.status}: {f.message} | {f.place} | {f.expected} | {f.found}"
        for f in report.findings
        if f.status in ("fail", "warn") or f.missing
    )


@pytest.mark.parametrize("name", tamper.HONEST)
def test_an_honest_run_passes_whatever_its_day(tmp_path: Path, name: str) -> None:
    report = verify_result(tamper.HONEST[name]().write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


def test_a_process_held_up_between_two_clocks_is_no_forgery(tmp_path: Path) -> None:
    draft = gpu_run()
    for event in (draft.events[0], draft.of("step")[9], draft.events[-1]):
        event["wall_ms"] += 4000
        for name, unit in (("raw_ns", 10**9), ("syscall_ns", 10**9), ("uptime_ms", 1000)):
            event["clocks"][name] += 4 * unit
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


def test_an_interface_that_went_away_during_the_run_is_no_forgery(tmp_path: Path) -> None:
    draft = gpu_run()
    draft.events[-1]["data"]["environment"]["rx_bytes"] = 0
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.verdict == "consistent", explain(report)


@pytest.mark.parametrize(
    ("lost", "status"), [(HELD_REPORTS, "warn"), (LOST_STEPS - 1, "warn"), (LOST_STEPS, "fail")]
)
def test_reports_that_died_with_a_supervisor_are_forgiven_up_to_a_limit(
    tmp_path: Path, base: Callable[[str], Draft], lost: int, status: str
) -> None:
    draft = base("long, resumed")
    resume = draft.events.index(draft.of("resume")[0])
    last = max(e["data"]["step"] for e in draft.events[:resume] if e["ev"] == "step")
    draft.events[resume:] = [
        e for e in draft.events[resume:] if e["ev"] != "step" or e["data"]["step"] > last + lost
    ]
    report = verify_result(draft.write(tmp_path / "run"))
    assert report.status("V08") == status, explain(report)
    assert report.verdict == ("refused" if status == "fail" else "consistent"), explain(report)
    assert any(f"{lost} steps" in f.message or "jumps" in f.message for f in report.of("V08"))


def test_a_real_run_through_the_supervisor_passes(cpu_run: Path) -> None:
    report = verify_result(cpu_run / "result.json")
    assert report.verdict == "consistent", explain(report)
    # On a busy machine the CPU may well be slower after the run.
    assert {f.check for f in report.findings if f.status == "warn"} <= {"V12"}, explain(report)


# --- V01: form ---------------------------------------------------------------------------------


def text_mutation(name: str, change: Callable[[bytes], bytes]) -> None:
    @mutation(name, "V01", kind="file")
    def apply(folder: Path) -> None:
        path = folder / "result.json"
        path.write_bytes(change(path.read_bytes()))


text_mutation("empty file", lambda data: b"")
text_mutation("an array", lambda data: b"[]")
text_mutation("cut in half", lambda data: data[: len(data) // 2])
text_mutation("a second document behind it", lambda data: data + b"{}")
text_mutation(
    "duplicate key", lambda data: data.replace(b'"claims": {', b'"claims": {"ranked": true, ', 1)
)
text_mutation("NaN", lambda data: data.replace(b'"total_s": ', b'"total_s": NaN, "x": ', 1))
text_mutation(
    "Infinity", lambda data: data.replace(b'"budget_s": ', b'"budget_s": Infinity,"x":', 1)
)
text_mutation(
    "overflowing float", lambda data: data.replace(b'"budget_s": ', b'"budget_s": 1e999,"x":', 1)
)
text_mutation(
    "integer past 2^53",
    lambda data: data.replace(b'"count": ', b'"count": 9007199254740993, "x": ', 1),
)
text_mutation(
    "lone surrogate", lambda data: data.replace(b'"notes": [', b'"notes": ["\\ud800", ', 1)
)
text_mutation("byte order mark", lambda data: b"\xef\xbb\xbf" + data)
text_mutation("not UTF-8", lambda data: data.replace(b'"notes": [', b'"notes": ["\xff", ', 1))
text_mutation("UTF-16", lambda data: data.decode().encode("utf-16"))
text_mutation("nested 100,000 deep", lambda data: b'{"a":' * 10**5 + b"1" + b"}" * 10**5)
text_mutation("comments", lambda data: data.replace(b"{", b"{ // honest\n", 1))


@mutation("100 MB", "V01", kind="file")
def _(folder: Path) -> None:
    with (folder / "result.json").open("r+b") as file:
        file.truncate(100 * 2**20)


@mutation("result.json is a link", "V01", kind="file")
def _(folder: Path) -> None:
    (folder / "result.json").rename(folder / "elsewhere.json")
    (folder / "result.json").symlink_to("elsewhere.json")


def typed(name: str, expected: str, *path: str | int, value: Any, base: str = "4090") -> None:
    """A value typed into the result, which is signed again."""

    @mutation(name, expected, kind="result", base=base)
    def apply(result: dict[str, Any]) -> None:
        place: Any = result
        for part in path[:-1]:
            place = place[part]
        last: Any = path[-1]
        place[last] = value(place[last]) if callable(value) else value


@mutation("field nobody checks", "V01", kind="result")
def _(result: dict[str, Any]) -> None:
    result["verified_by"] = "a friend"


@mutation("section left out", "V01", kind="result")
def _(result: dict[str, Any]) -> None:
    del result["environment"]


typed("another schema version", "V01", "schema_version", value=2)
typed("a number as text", "V01", "timing", "total_s", value="1")
typed("negative time", "V01", "timing", "total_s", value=-1.0)
typed("score above one", "V01", "quality", "core", "value", value=1.5)
typed("look-alike letters in a name", "V01", "recipe", "name", value="d2\u043e")
typed("unknown track", "V01", "recipe", "track", value="rtx4090-24h ")
typed("digest in capitals", "V01", "log", "head", value=lambda digest: digest.upper())

# --- V02, V03: signature and signer ------------------------------------------------------------


@mutation("no signature", "V01", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result.update(signatures=[]))


@mutation("one digit changed after signing", "V02 V07", kind="file")
def _(folder: Path) -> None:
    edit_json(
        folder, lambda result: result["timing"].update(total_s=result["timing"]["total_s"] - 1)
    )


@mutation("CORE changed after signing", "V02 V07", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result["quality"]["core"].update(value=0.26))


@mutation("signed for another purpose", "V02", kind="draft")
def _(draft: Draft) -> None:
    draft.namespace = "file"


@mutation("signed for another purpose, called a result", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        entry = result["signatures"][0]
        entry["signature"] = sshsig.sign(signed_bytes(result), "git", tamper.KEY)

    edit_json(folder, change)


@mutation("signature of another result", "V02", kind="file")
def _(folder: Path) -> None:
    other = sshsig.sign(b"{}", sshsig.RESULT_NAMESPACE, tamper.KEY)
    edit_json(folder, lambda result: result["signatures"][0].update(signature=other))


@mutation("signed by another key under the submitter's name", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        armored = sshsig.sign(signed_bytes(result), sshsig.RESULT_NAMESPACE, tamper.OTHER_KEY)
        result["signatures"][0]["signature"] = armored

    edit_json(folder, change)


@mutation("SHA-1 signature", "V02", kind="file")
def _(folder: Path) -> None:
    import base64
    import hashlib
    import struct

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    key = rsa.generate_private_key(65537, 2048)

    def wire(*fields: bytes) -> bytes:
        return b"".join(struct.pack(">I", len(f)) + f for f in fields)

    def change(result: dict[str, Any]) -> None:
        digest = hashlib.sha512(signed_bytes(result)).digest()
        names = (sshsig.RESULT_NAMESPACE.encode(), b"", b"sha512")
        raw = key.sign(b"SSHSIG" + wire(*names, digest), padding.PKCS1v15(), hashes.SHA1())
        public = sshsig.public_key(key)
        blob = b"SSHSIG\0\0\0\1" + wire(public.blob, *names, wire(b"ssh-rsa", raw))
        text = base64.b64encode(blob).decode()
        result["signatures"][0]["signature"] = (
            f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"
        )

    edit_json(folder, change)


@mutation("signature cut short", "V02", kind="file")
def _(folder: Path) -> None:
    edit_json(
        folder,
        lambda result: result["signatures"][0].update(
            signature=result["signatures"][0]["signature"][:-60] + "-----END SSH SIGNATURE-----\n"
        ),
    )


@mutation("a second, bad signature beside the good one", "V02", kind="file")
def _(folder: Path) -> None:
    def change(result: dict[str, Any]) -> None:
        bad = sshsig.sign(b"{}", sshsig.RESULT_NAMESPACE, tamper.OTHER_KEY)
        line = sshsig.public_key(tamper.OTHER_KEY).line
        result["signatures"].append(
            {**result["signatures"][0], "public_key": line, "signature": bad}
        )

    edit_json(folder, change)


@mutation("somebody else's run under one's own key", "V03", kind="draft")
def _(draft: Draft) -> None:
    draft.key = tamper.OTHER_KEY
    line = sshsig.public_key(tamper.OTHER_KEY).line
    draft.result_edits.append(lambda result: result["submitter"].update(public_key=line))


def with_list(name: str, content: str) -> Callable[[Path], Options]:
    def options(folder: Path) -> Options:
        path = folder.with_name(folder.name + "-list")
        path.write_text(content)
        return Options(**{name: path})

    return options


def accounts() -> Callable[[Path], Options]:
    """A verifier who looked up what alice shows: another key."""

    def options(folder: Path) -> Options:
        path = folder.with_name(folder.name + "-accounts")
        entry = {"service": "github", "user": "alice", "keys": [OTHER_LINE]}
        entry["fetched_at"] = "2026-11-01T00:00:00Z"
        path.write_text(json.dumps({"schema_version": 1, "accounts": [entry]}))
        return Options(identities=path)

    return options


HONEST_LINE, OTHER_LINE = (sshsig.public_key(key).line for key in (tamper.KEY, tamper.OTHER_KEY))
mutation(
    "revoked key", "V03", kind="file", options=with_list("revoked", f"# lost\n{HONEST_LINE}\n")
)(lambda folder: None)
mutation(
    "nobody's key where a signer is asked for",
    "V03",
    kind="file",
    options=with_list("allowed_signers", f"mallory {OTHER_LINE}\n"),
)(lambda folder: None)

# --- V04: the log, not chained again -----------------------------------------------------------


def edit_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result, indent=2))


def line_mutation(
    name: str, change: Callable[[list[bytes]], Any], file: str = "events.jsonl"
) -> None:
    @mutation(name, "V04", kind="file")
    def apply(folder: Path) -> None:
        lines = (folder / file).read_bytes().splitlines(keepends=True)
        change(lines)
        (folder / file).write_bytes(b"".join(lines))


def replace_in(lines: list[bytes], old: bytes, new: bytes) -> None:
    """Changes the tenth line that holds `old`."""
    index = [i for i, line in enumerate(lines) if old in line][9]
    lines[index] = lines[index].replace(old, new, 1)


line_mutation("an event edited", lambda lines: replace_in(lines, b'"loss":', b'"loss":1'))
line_mutation("an event dropped", lambda lines: lines.pop(30))
line_mutation("two events swapped", lambda lines: lines.insert(30, lines.pop(31)))
line_mutation("an event twice", lambda lines: lines.insert(30, lines[30]))
line_mutation("the last event dropped", lambda lines: lines.pop())
line_mutation("an event added", lambda lines: lines.append(b'{"ev":"note"}\n'))
line_mutation("last line torn", lambda lines: lines.append(lines.pop()[:-20]))
line_mutation("zeros at the end", lambda lines: lines.append(b"\0" * 512))
line_mutation(
    "a key twice in an event",
    lambda lines: replace_in(lines, b'"ev":"step"', b'"ev":"step","ev":"step"'),
)
line_mutation("NaN in an event", lambda lines: replace_in(lines, b'"lr":1', b'"lr":NaN'))
line_mutation(
    "an event of 2 MB", lambda lines: replace_in(lines, b'"lr":1', b'"lr":1' + b"0" * 2**21)
)
line_mutation(
    "an event 100,000 deep", lambda lines: replace_in(lines, b'"lr":1', b'"lr":' + b"[" * 10**5)
)
line_mutation("a header that is none", lambda lines: lines.pop(0))
line_mutation("an empty log", lambda lines: lines.clear())
line_mutation(
    "telemetry edited",
    lambda lines: replace_in(lines, b'"gpu_util":', b'"gpu_util":1'),
    "telemetry.jsonl",
)
line_mutation("telemetry cut", lambda lines: lines.__delitem__(slice(500, None)), "telemetry.jsonl")
line_mutation("telemetry padded", lambda lines: lines.append(b"{}\n"), "telemetry.jsonl")


@mutation("an edited log, chained again but not signed", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "events.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[40]["data"]["loss"] = 1.0
    path.write_bytes(chain_lines(records, LOG_KIND))


@mutation("another run's log", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    shutil.copy(folder / "other/events.jsonl", folder)


@mutation("the end of another run's log spliced on", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    mine, theirs = (
        (place / "events.jsonl").read_bytes().splitlines(True)
        for place in (folder, folder / "other")
    )
    (folder / "events.jsonl").write_bytes(b"".join(mine[:50] + theirs[50:]))


@mutation("a faster run's steps spliced in", "V05 V06 V13 V14", kind="draft")
def _(draft: Draft) -> None:
    mine = draft.of("step", "pretrain")
    theirs = gpu_run(seed=99, step_s=5.0).of("step", "pretrain")
    for own, other in list(zip(mine, theirs, strict=True))[len(mine) // 2 :]:
        own.clear()
        own.update(other)


@mutation("another run's telemetry", "V04", kind="file")
def _(folder: Path) -> None:
    gpu_run(seed=99).write(folder / "other")
    shutil.copy(folder / "other/telemetry.jsonl", folder)


@mutation("telemetry chained as another kind of log", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "telemetry.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_bytes(chain_lines(records, LOG_KIND))


@mutation("the log is a link", "V04", kind="file")
def _(folder: Path) -> None:
    (folder / "events.jsonl").rename(folder / "elsewhere")
    (folder / "events.jsonl").symlink_to("elsewhere")


@mutation("an unknown kind of event", "V04", kind="draft")
def _(draft: Draft) -> None:
    draft.of("note")[0]["ev"] = "notice"


@mutation("the trainer speaks for the supervisor", "V04", kind="draft")
def _(draft: Draft) -> None:
    draft.of("checkpoint")[0]["src"] = "sup"


@mutation("time as text", "V04", kind="file")
def _(folder: Path) -> None:
    path = folder / "events.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[40]["t_ns"] = str(records[40]["t_ns"])
    data = chain_lines(records, LOG_KIND)
    path.write_bytes(data)
    resign_log(folder, data)


def resign_log(folder: Path, data: bytes) -> None:
    from kit.trust.digest import sha256_bytes

    result = json.loads((folder / "result.json").read_text())
    lines = data.splitlines()
    result["log"] = {"head": sha256_bytes(lines[-1]), "count": len(lines), "bytes": len(data)}
    tamper.write_signed(folder, result)


# --- V05: order --------------------------------------------------------------------------------


def move(draft: Draft, event: dict[str, Any], index: int) -> None:
    """Puts an event elsewhere, with the time of its new place."""
    draft.events.remove(event)
    draft.events.insert(index, event)
    neighbour = draft.events[index - 1]
    for name in ("t_ns", "wall_ms", "clocks"):
        event[name] = neighbour[name]


@mutation("stop line moved before the last stage", "V05", kind="draft")
def _(draft: Draft) -> None:
    stage = next(e for e in draft.of("stage_start") if e["data"]["stage"] == "chat_eval")
    move(draft, draft.of("run_stop")[0], draft.events.index(stage))


@mutation("stop time set back, its line left in place", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.of("run_stop")[0]
    stop["t_ns"] -= 400 * 10**9


@mutation("start line moved behind tokenizer training", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.of("stage_stop")[0]
    move(draft, draft.of("run_start")[0], draft.events.index(stop))


@mutation("stop before start", "V01", kind="draft")
def _(draft: Draft) -> None:
    move(draft, draft.of("run_stop")[0], draft.events.index(draft.of("run_start")[0]))


@mutation("two starts", "V05", kind="draft")
def _(draft: Draft) -> None:
    stop = draft.events.index(draft.of("stage_stop")[0])
    again = json.loads(json.dumps(draft.of("run_start")[0]))
    draft.events.insert(stop + 1, again)
    move(draft, again, stop + 1)


@mutation("no stop", "V05", kind="draft")
def _(draft: Draft) -> None:
    draft.events.remove(draft.of("run_stop")[0])


@mutation("steps after their stage has ended", "V05", kind="draft")
def _(draft: Draft) -> None:
    move(draft, draft.of("memory")[0], len(draft.events) - 5)


@mutation("a stage inside another", "V05", kind="draft")
def _(draft: Draft) -> None:
    stops = draft.of("stage_stop")
    draft.events.remove(stops[0])


@mutation("a complete stage done again", "V05", kind="draft")
def _(draft: Draft) -> None:
    first, last = (
        e for e in draft.events if e["data"].get("stage") == "core" and "attempt" in e["data"]
    )
    begin, end = draft.events.index(first), draft.events.index(last)
    again = json.loads(json.dumps([first, last]))
    for event in again:
        for name in ("t_ns", "wall_ms", "clocks"):
            event[name] = last[name]
    again[0]["data"]["attempt"] = 1
    again[1]["data"]["attempt"] = 1
    draft.events[end + 1 : end + 1] = again
    assert begin < end


@mutation("a complete run goes on", "V05", kind="draft")
def _(draft: Draft) -> None:
    last = draft.events[-1]
    data = {"rebooted": False, "downtime_s": 0.0, "boot": tamper.BOOT}
    draft.events.append({**last, "ev": "resume", "data": data})


@mutation("one event steps back in time", "V05", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step")[20]["t_ns"] -= 30 * 10**9


@mutation("the evaluator speaks outside CORE", "V05", kind="draft")
def _(draft: Draft) -> None:
    draft.of("eval", "sft")[0]["src"] = "eval"


# --- V06: clocks -------------------------------------------------------------------------------


@mutation("libfaketime at 0.98", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 0.98, "twr", telemetry=False)
    for event in draft.of("step"):
        event["data"]["dt_s"] *= 0.98
    for record in draft.telemetry:
        offset = record["wall_ms"] - record["t_ms"]
        record["t_ms"] = int(record["t_ms"] * 0.98)
        record["wall_ms"] = record["t_ms"] + offset


@mutation("a preloaded library", "V06", kind="draft")
def _(draft: Draft) -> None:
    draft.header()["environment"]["ld_preload"] = True


@mutation("a shifted time namespace", "V06", kind="draft")
def _(draft: Draft) -> None:
    draft.header()["environment"]["time_namespace"] = "boottime 86400 0"


@mutation("libc's clock and the system call's disagree", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 1.01, "s", telemetry=False)


@mutation("/proc/uptime stands still", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.events:
        event["clocks"]["uptime_ms"] = 100


@mutation("raw clocks run fast", "V06", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 1.02, "rs", telemetry=False)


@mutation("the run's clock loses a minute", "V06", kind="draft")
def _(draft: Draft) -> None:
    middle = draft.events.index(draft.of("step")[24])
    for event in draft.events[middle:]:
        event["t_ns"] -= 5 * 10**9


@mutation("the GPU's own clock counts twice the time", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["cuda_s"] *= 2


@mutation("a trainer whose clock runs slow beside its GPU's", "V06", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] *= 0.97


# --- V07: figures ------------------------------------------------------------------------------

typed("typed CORE", "V07", "quality", "core", "value", value=0.2571)
typed("typed accuracy of a task", "V07", "quality", "core", "tasks", 3, "accuracy", value=0.9)
typed("typed val_bpb", "V07", "quality", "val_bpb", "last", value=0.81)
typed("typed chat score", "V07", "quality", "chat", "value", value=0.5)
typed("typed total time", "V07", "timing", "total_s", value=600.0)
typed("typed stage time", "V07", "timing", "stages", 1, "elapsed_s", value=600.0)
typed("typed downtime", "V07", "timing", "downtime_s", value=0.0, base="resumed")
typed("typed tokens a second", "V07", "training", "tokens_per_s", value=99_999.0)
typed("typed steps", "V07", "training", "steps", value=100)
typed("typed FLOPs", "V07", "training", "flops", value=1e20)
typed("typed parameters", "V07", "training", "parameters", value=124_000_000)
typed("typed final loss", "V07", "training", "final_loss", value=2.0)
typed("a failed run called complete", "V07", "claims", "status", value="complete", base="failed")
typed("called ranked", "V07", "claims", "ranked", value=True, base="cpu")
typed("another run's name", "V07", "runs", "id", value="d20-20260922-120000-abcd")
typed("typed traffic", "V07", "environment", "rx_bytes", value=0)
typed("a note added", "V07", "notes", value=lambda notes: [*notes, "approved"])
typed("partial CORE called whole", "V07", "quality", "core", "partial", value=True)


@mutation("a narrower interval in CORE's own file", "V07", kind="draft")
def _(draft: Draft) -> None:
    document = json.loads(draft.files["eval/core.json"])
    low, high = document["interval"]["low"], document["interval"]["high"]
    document["interval"] = {"low": low + (high - low) / 4, "high": high}
    draft.files["eval/core.json"] = json.dumps(document).encode()


@mutation("too many values for a result", "V01", kind="file")
def _(folder: Path) -> None:
    edit_json(folder, lambda result: result.update(notes=[""] * 20_000))


# --- V08: gaps ---------------------------------------------------------------------------------


@mutation("ten steps cut out", "V08", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step", "pretrain")[20:30]:
        draft.events.remove(event)


@mutation("five silent minutes", "V08", kind="draft")
def _(draft: Draft) -> None:
    step = draft.of("step", "pretrain")[24]
    at_ns = step["t_ns"]
    pause = 300
    for event in draft.events[draft.events.index(step) :]:
        event["t_ns"] += pause * 10**9
        event["wall_ms"] += pause * 1000
        event["clocks"]["raw_ns"] += pause * 10**9
        event["clocks"]["syscall_ns"] += pause * 10**9
        event["clocks"]["uptime_ms"] += pause * 1000
    index = next(i for i, r in enumerate(draft.telemetry) if r["t_ms"] * 10**6 > at_ns)
    model = draft.telemetry[index]
    for record in draft.telemetry[index:]:
        record["t_ms"] += pause * 1000
        record["wall_ms"] += pause * 1000
        record["gpu_energy_j"] += 415.0 * pause
    draft.telemetry[index:index] = [
        {
            **model,
            "t_ms": model["t_ms"] - (pause - i) * 1000,
            "wall_ms": model["wall_ms"] - (pause - i) * 1000,
            "gpu_power_w": 415.0,
            "gpu_energy_j": model["gpu_energy_j"] - 415.0 * (pause - i),
        }
        for i in range(pause)
    ]


@mutation("a reboot that is not owned up to", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("resume")[0]["data"]["boot"] = tamper.SECOND_BOOT


@mutation("downtime forgiven", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("resume")[0]["data"]["downtime_s"] = 0.5


@mutation("an attempt left out of the count", "V08", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    for event in draft.of("stage_start", "pretrain")[1:]:
        event["data"]["attempt"] = 3


@mutation("a resume that skips twenty steps", "V08", kind="draft", base="long, resumed")
def _(draft: Draft) -> None:
    resume = draft.events.index(draft.of("resume")[0])
    for event in draft.events[resume:]:
        if event["ev"] == "step" and event["data"]["step"] < 57:
            event["data"]["drop"] = True
    draft.events = [event for event in draft.events if "drop" not in event["data"]]


# --- V09: software -----------------------------------------------------------------------------

typed(
    "another recipe's text", "V09", "recipe", "text", value=lambda text: text.replace("0.0", "0.00")
)
typed("typed kit version", "V09", "kit", "version", value="9.9")
typed("typed code digest", "V09", "kit", "code", value="sha256:" + "0" * 64)
typed("typed image digest", "V09", "image", "digest", value="sha256:" + "0" * 64)
typed("typed torch version", "V09", "software", "torch", value="2.99")
typed("the track of another recipe", "V09", "recipe", "track", value="open")
typed("the division of another recipe", "V09", "recipe", "division", value="open")
typed("another recipe's name", "V09", "recipe", "name", value="other")


@mutation("a stage of the recipe left out", "V09", kind="draft")
def _(draft: Draft) -> None:
    inside = False
    for event in list(draft.events):
        if event["ev"] == "stage_start":
            inside = event["data"]["stage"] == "sft"
        if inside:
            draft.events.remove(event)
        if event["ev"] == "stage_stop":
            inside = False


# --- V10: data ---------------------------------------------------------------------------------

typed("typed data digest", "V10", "data", "data", "digest", value="sha256:" + "0" * 64)
typed("typed data size", "V10", "data", "sft", "bytes", value=1)


@mutation("an input's files changed in the log", "V10", kind="draft")
def _(draft: Draft) -> None:
    draft.of("inputs")[0]["data"]["data"]["files"][0]["sha256"] = "sha256:" + "0" * 64


@mutation("the validation shard among the training shards", "V10", kind="draft")
def _(draft: Draft) -> None:
    from kit.trust.digest import FileDigest, manifest_digest

    part = draft.of("inputs")[0]["data"]["data"]
    part["files"][0]["sha256"] = part["files"][-1]["sha256"]
    files = [FileDigest(f["path"], f["bytes"], f["sha256"]) for f in part["files"]]
    part["digest"] = manifest_digest(files)


@mutation("tokens that were not seen", "V10", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step", "pretrain"):
        event["data"]["tokens"] += 524288 * 7


@mutation("tokens that stand still", "V10", kind="draft")
def _(draft: Draft) -> None:
    steps = draft.of("step", "pretrain")
    steps[30]["data"]["tokens"] = steps[29]["data"]["tokens"]


def core_mutation(name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """CORE's file changed before it was counted, so that every digest is right."""

    @mutation(name, "V10", kind="draft")
    def apply(draft: Draft) -> None:
        document = json.loads(draft.files["eval/core.json"])
        change(document)
        tasks = [
            TaskOutcomes(t["label"], t["file"], t["baseline"], t["outcomes"])
            for t in document["tasks"]
        ]
        low, high, _ = normal_interval(tasks)
        document["interval"] = {"low": low, "high": high}
        draft.files["eval/core.json"] = json.dumps(document).encode()


def easier(document: dict[str, Any]) -> None:
    document["tasks"][3]["outcomes"] = document["tasks"][3]["outcomes"].replace("0", "")


core_mutation("only the easy examples of a task", easier)
core_mutation("a kinder baseline", lambda document: document["tasks"][20].update(baseline=25))
core_mutation("the worst task left out", lambda document: document["tasks"].pop(20))
core_mutation("a good task twice", lambda document: document["tasks"].append(document["tasks"][0]))
core_mutation("a task of one's own", lambda document: document["tasks"][0].update(label="easy"))
core_mutation(
    "another bundle called CORE",
    lambda document: document["bundle"].update(digest="sha256:" + "1" * 64),
)


def chat_mutation(name: str, **fields: Any) -> None:
    @mutation(name, "V10", kind="draft")
    def apply(draft: Draft) -> None:
        document = json.loads(draft.files["eval/chat.json"])
        document["tasks"]["mmlu"].update(fields)
        draft.files["eval/chat.json"] = json.dumps(document).encode()


chat_mutation("chat answers worth more than one", outcomes=[0] * 190 + [2] * 10)
chat_mutation("chat answers better than wrong", outcomes=[0.9] * 200)
chat_mutation("a guess that is never right", baseline=-1.0)

# --- V11, V12: machine -------------------------------------------------------------------------


@mutation("two GPUs", "V11", kind="draft")
def _(draft: Draft) -> None:
    for found in draft.fingerprints():
        found["gpus"].append(tamper.gpu_4090(uuid_hash="sha256:" + "5" * 64))


@mutation("a neighbour on the GPU", "V11", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[0]["gpus"][0].update(processes=2, foreign_processes=2)


@mutation("five gigabytes from the network", "V11", kind="draft")
def _(draft: Draft) -> None:
    draft.events[-1]["data"]["environment"]["rx_bytes"] += 5 * 10**9


def machine_mutation(
    name: str, change: Callable[[dict[str, Any]], Any], expected: str = "V12"
) -> None:
    """Both fingerprints of another machine, with the class that the kit gives them."""

    @mutation(name, expected, kind="draft")
    def apply(draft: Draft) -> None:
        for found in draft.fingerprints():
            change(found)
            tamper.reclassify(found)


def probe(**figures: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found["probes"]["gpu"].update(figures)


machine_mutation(
    "an H100 that calls itself a 4090",
    probe(capability=[9, 0], sm_count=132, fp16_accumulation_ratio=1.0, fp64_share=0.9),
)
machine_mutation(
    "an L40S slowed down to a 4090's speed",
    probe(sm_count=142, fp16_accumulation_ratio=1.01, l2_knee_bytes=100_663_296.0),
)
machine_mutation("an A100's ratios", probe(capability=[8, 0], fp64_share=0.5))
machine_mutation("a 4090 D", probe(sm_count=114))
machine_mutation("a laptop's 4090", probe(sm_count=76, copy_gb_s=540.0))
machine_mutation("a 3090", probe(capability=[8, 6], sm_count=82, l2_knee_bytes=6_291_456.0))
machine_mutation("a 5090", probe(capability=[12, 0], sm_count=170, copy_gb_s=1600.0))
machine_mutation("a 4090 with 48 GB", probe(memory_bytes=51_000_000_000))
machine_mutation("a 4090 D's PCI id", lambda found: found["gpus"][0].update(pci_id="10de:2685"))
machine_mutation("CUDA names another card", probe(name="NVIDIA L40S"))
machine_mutation("faster than any 4090", probe(bf16_tflops=330.0))
typed("typed GPU class", "V12", "hardware", "before", "class", "name", value="5090")
typed("typed host", "V12", "hardware", "before", "host", "cpu_model", value="AMD Ryzen 5 3600")
typed("fingerprint left out", "V12", "hardware", "after", value=None)


@mutation("another card after the run", "V12", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["gpus"][0]["uuid_hash"] = "sha256:" + "5" * 64


@mutation("another host after the run", "V12", kind="draft", base="cpu")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["host"]["cpu_model"] = "Another CPU"


@mutation("a card twice as fast before the run as after", "V12", kind="draft")
def _(draft: Draft) -> None:
    draft.fingerprints()[1]["probes"]["gpu"]["bf16_tflops"] /= 1.4


@mutation("the machine not measured again", "V12", kind="draft")
def _(draft: Draft) -> None:
    draft.events.remove(draft.of("fingerprint")[1])


# --- V13, V14: physics -------------------------------------------------------------------------


@mutation("all times halved, on every clock", "V13", kind="draft")
def _(draft: Draft) -> None:
    scale(draft, 0.5, "twrsu")
    step_times(draft, 0.5)


@mutation("times halved, with pauses written in to hide it", "V13", kind="draft", base="long")
def _(draft: Draft) -> None:
    """Every second of the day is accounted for; only the steps themselves are impossible."""
    steps = draft.of("step", "pretrain")
    for block in range(0, len(steps) - 10, 10):
        start = steps[block]["t_ns"]
        for step in steps[block + 1 : block + 10]:
            earlier = (step["t_ns"] - start) // 2
            step["t_ns"] -= earlier
            step["wall_ms"] -= earlier // 10**6
            step["clocks"]["raw_ns"] -= earlier
            step["clocks"]["syscall_ns"] -= earlier
            step["clocks"]["uptime_ms"] -= earlier // 10**7 * 10
    saved = draft.of("checkpoint")[0]
    for step in steps[10::10]:
        stamps = {name: step[name] for name in ("t_ns", "wall_ms", "clocks")}
        draft.events.insert(draft.events.index(step), {**saved, **stamps})
    draft.events.sort(key=lambda event: event["t_ns"])
    step_times(draft, 0.5)


@mutation("a model that costs less than it is large", "V13", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["flops_per_token"] /= 3


@mutation("another model than the recipe's", "V13", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["config"]["n_layer"] = 12


@mutation("steps evenly spaced", "V14", kind="draft")
def _(draft: Draft) -> None:
    steps = draft.of("step", "pretrain")
    start = steps[0]["t_ns"]
    spacing = (steps[-1]["t_ns"] - start) // (len(steps) - 1)
    for index, event in enumerate(steps):
        shift = start + index * spacing - event["t_ns"]
        event["t_ns"] += shift
        event["wall_ms"] += shift // 10**6
        event["clocks"]["raw_ns"] += shift
        event["clocks"]["syscall_ns"] += shift
        event["clocks"]["uptime_ms"] += shift // 10**6
    draft.events.sort(key=lambda event: event["t_ns"])


@mutation("step times without jitter", "V14", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] = 11.6


@mutation("steps that took longer than the run", "V14", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("step"):
        event["data"]["dt_s"] = round(event["data"]["dt_s"] * 1.5, 6)
        del event["data"]["cuda_s"]


@mutation("a step of negative duration", "V14", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step")[20]["data"].update(dt_s=-11.6, cuda_s=-11.6)


# --- V15, V16: energy and settings -------------------------------------------------------------


def telemetry_mutation(name: str, change: Callable[[Draft], Any], expected: str = "V15") -> None:
    mutation(name, expected, kind="draft")(change)


def every_sample(change: Callable[[dict[str, Any]], Any]) -> Callable[[Draft], None]:
    def apply(draft: Draft) -> None:
        for record in draft.telemetry:
            if record["ev"] == "sample":
                change(record)

    return apply


def idle(record: dict[str, Any]) -> None:
    record["gpu_power_w"] = 31.0
    record["gpu_energy_j"] = 1e6 + record["t_ms"] * 0.031


def half_counter(record: dict[str, Any]) -> None:
    record["gpu_energy_j"] /= 2


def yesterday(record: dict[str, Any]) -> None:
    record["wall_ms"] -= 86_400_000


def overdriven(record: dict[str, Any]) -> None:
    record["gpu_power_w"] = 520.0 + record["t_ms"] % 7
    record["gpu_energy_j"] = 1e6 + record["t_ms"] * 0.523


telemetry_mutation("an idle card's power", every_sample(idle))
telemetry_mutation("counter and power disagree", every_sample(half_counter))
telemetry_mutation("yesterday's telemetry", every_sample(yesterday))
telemetry_mutation("more power than the card's limit", every_sample(overdriven), "V16")


@mutation("another card's telemetry", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry[0]["gpu_uuid_hash"] = "sha256:" + "5" * 64


@mutation("half of the telemetry", "V15", kind="draft")
def _(draft: Draft) -> None:
    del draft.telemetry[200:600]


@mutation("telemetry that runs backwards", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry[200], draft.telemetry[260] = draft.telemetry[260], draft.telemetry[200]


@mutation("no telemetry at all", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.telemetry = []
    draft.events.remove(draft.of("telemetry")[0])


@mutation("typed peak temperature in the log", "V15", kind="draft")
def _(draft: Draft) -> None:
    draft.summary_edits["gap_s"] = 12.0


typed("typed kWh", "V15", "energy", "kwh", value=0.01)
typed("typed telemetry summary", "V15", "telemetry", "summary", "samples", value=86_400)


@mutation("a divided card (MIG)", "V16", kind="draft")
def _(draft: Draft) -> None:
    for found in draft.fingerprints():
        found["gpus"][0]["mig"] = True


# --- V17 to V20: learning and seeds ------------------------------------------------------------


@mutation("a pre-trained start", "V17", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step", "pretrain")[0]["data"]["loss"] = 3.9


@mutation("a loss below zero", "V17", kind="draft")
def _(draft: Draft) -> None:
    draft.of("step", "pretrain")[-1]["data"]["loss"] = -0.1


@mutation("better than the card can be", "V17", kind="draft")
def _(draft: Draft) -> None:
    draft.of("eval", "pretrain")[-1]["data"]["value"] = 0.55


@mutation("a trainer that does not say what it began with", "V18", kind="draft")
def _(draft: Draft) -> None:
    for event in draft.of("model"):
        del event["data"]["initial_weights"]


@mutation("other weights after a resume", "V18", kind="draft", base="resumed")
def _(draft: Draft) -> None:
    draft.of("model")[-1]["data"]["initial_weights"] = sha(b"better ones")


@mutation("initial weights that are no digest", "V18", kind="draft")
def _(draft: Draft) -> None:
    draft.of("model")[0]["data"]["initial_weights"] = "from scratch, honestly"


typed("typed seed", "V19", "seed", "value", value=7)
typed("typed source of the seed", "V19", "seed", "source", value="recipe")


@mutation("a lucky seed called the recipe's", "V19", kind="draft", base="cpu")
def _(draft: Draft) -> None:
    draft.header()["seed"] = {"value": 4711, "source": "recipe"}


@mutation("a seed that its challenge does not give", "V19", kind="draft")
def _(draft: Draft) -> None:
    tamper.enrol(draft, 0)
    draft.header()["seed"]["value"] = 4711


@mutation("a challenge seed without a group", "V19", kind="draft")
def _(draft: Draft) -> None:
    draft.header()["seed"]["source"] = "challenge"


def group_mutation(name: str, expected: str = "V20", others: Any = None, **enrolment: Any) -> None:
    """Run 0 of a group; `others` are (index, change) of the results shown beside it."""

    def options(folder: Path) -> Options:
        paths = []
        for place, (index, change) in enumerate(others):
            draft = tamper.enrol(gpu_run(seed=70 + place, steps=24), index)
            if change:
                change(draft)
            paths.append(draft.write(folder.with_name(f"{folder.name}-other{place}")))
        return Options(group=tuple(paths))

    extra = {"options": options} if others is not None else {}

    @mutation(name, expected, kind="draft", **extra)
    def apply(draft: Draft) -> None:
        tamper.enrol(draft, enrolment.pop("index", 0), enrolment.get("document"))


def lucky(draft: Draft) -> None:
    draft.header()["seed"]["value"] = 4711


def strangers(draft: Draft) -> None:
    draft.key = tamper.OTHER_KEY


def forged_registration() -> dict[str, Any]:
    """One more run than was signed for."""
    return {**tamper.registration(), "runs": 4}


group_mutation("the last run of the group not shown", others=[(1, None)])
group_mutation("a run in the middle of the group not shown", others=[(2, None)])
group_mutation("a lucky seed among the group's runs", others=[(1, lucky), (2, None)])
group_mutation("two results for one registered run", others=[(1, None), (1, None), (2, None)])
group_mutation("a stranger's run among the group's", others=[(1, strangers), (2, None)])
group_mutation("a registration changed after signing", document=forged_registration())
group_mutation(
    "somebody else's registration", "V19 V20", document=tamper.registration(tamper.OTHER_KEY)
)
group_mutation(
    "registered for another recipe",
    document=tamper.registration(recipe=tamper.RECIPE.replace("d20", "d21")),
)
group_mutation(
    "registered after the run", document=tamper.registration(registered_at="2027-01-01T00:00:00Z")
)
group_mutation("a run past the registered ones", index=3)
typed("typed group", "V07", "runs", "group", value="0123456789abcdef")


@mutation("an account that does not show the key", "V03", kind="draft", options=accounts())
def _(draft: Draft) -> None:
    claim = {"github": {"user": "alice", "fetched_at": "2026-09-01T12:00:00Z"}}
    draft.header()["signer"]["identities"] = claim


typed(
    "an account typed into the result",
    "V03",
    "submitter",
    "identities",
    value={"hf": {"user": "alice", "fetched_at": "2026-09-01T12:00:00Z"}},
)

# --- V25: copies -------------------------------------------------------------------------------


def copy_mutation(name: str, change: Callable[[Draft, Draft], Any], **other: Any) -> None:
    """`change` gets the run and another row, of another seed, key and day."""

    def options(folder: Path) -> Options:
        return Options(against=(folder.with_name(folder.name + "-board"),))

    def write_row(folder: Path) -> None:
        draft = row()
        draft.write(folder.with_name(folder.name + "-board") / "row")

    def row() -> Draft:
        draft = gpu_run(seed=88, steps=90, **other)
        draft.header()["seed"]["value"] = 88
        draft.header()["signer"]["public_key"] = OTHER_LINE
        draft.key = tamper.OTHER_KEY
        draft.header()["run"] = "d20-20260920-120000-0000"
        for found in draft.fingerprints():
            found["gpus"][0]["uuid_hash"] = "sha256:" + "8" * 64
        draft.telemetry[0]["gpu_uuid_hash"] = "sha256:" + "8" * 64
        return draft

    @mutation(
        name, "V25", kind="draft", base="long", options=lambda f: (write_row(f), options(f))[1]
    )
    def apply(draft: Draft) -> None:
        change(draft, row())


def same_weights(draft: Draft, other: Draft) -> None:
    for name, content in other.files.items():
        if name.startswith("checkpoints/pretrain"):
            draft.files[name] = content


def same_answers(draft: Draft, other: Draft) -> None:
    draft.files["eval/core.json"] = other.files["eval/core.json"]


def same_losses(draft: Draft, other: Draft, noise: float = 0.0) -> None:
    rng = random.Random(4)
    for mine, theirs in zip(
        draft.of("step", "pretrain"), other.of("step", "pretrain"), strict=True
    ):
        loss = theirs["data"]["loss"]
        mine["data"]["loss"] = loss + (rng.gauss(0, noise) if mine["data"]["step"] else 0.0)


def same_telemetry(draft: Draft, other: Draft) -> None:
    """The row's whole machine, telemetry included, under another recipe of the day."""
    draft.events, draft.telemetry, draft.files = other.events, other.telemetry, other.files
    draft.header()["signer"]["public_key"] = HONEST_LINE
    for event in draft.of("step", "pretrain")[1:]:
        event["data"]["loss"] *= 1.01
    draft.files = {
        name: tamper.safetensors(5) if name.endswith("safetensors") else content + b" "
        for name, content in draft.files.items()
    }


copy_mutation("another row's weights", same_weights)
copy_mutation("another row's answers", same_answers)
copy_mutation("another row's losses", same_losses)
copy_mutation(
    "another row's losses with noise of one's own",
    lambda draft, other: same_losses(draft, other, 0.012),
)
copy_mutation("another row's telemetry", same_telemetry)


# --- V21: checkpoint ---------------------------------------------------------------------------

WEIGHTS = "checkpoints/pretrain/model.safetensors"


def file_mutation(name: str, change: Callable[[Path], Any], expected: str = "V21") -> None:
    mutation(name, expected, kind="file")(change)


def write(relative: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / relative).write_bytes(content)


def link(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights")
    (folder / WEIGHTS).symlink_to(folder / "weights")


def link_folder(folder: Path) -> None:
    (folder / "checkpoints/pretrain").rename(folder / "moved")
    (folder / "checkpoints/pretrain").symlink_to(folder / "moved")


file_mutation("other weights of the same size", write(WEIGHTS, tamper.safetensors(77)))
file_mutation("weights cut short", write(WEIGHTS, tamper.safetensors(1)[:-9]))
file_mutation("weights behind a link", link)
file_mutation("a folder behind a link", link_folder)
file_mutation("code beside the weights", write("checkpoints/sft/modeling.py", b"import os\n"))
file_mutation("a pickle beside the weights", write("checkpoints/sft/extra.pkl", b"\x80\x04."))
file_mutation("edited CORE outcomes", write("eval/core.json", b"{}"))
file_mutation("another tokenizer", write("tokenizer/tokenizer.json", b'{"kind":"new"}'))
typed(
    "typed weights digest",
    "V21",
    "checkpoint",
    "base",
    "files",
    1,
    "sha256",
    value="sha256:" + "0" * 64,
)
typed(
    "typed tokenizer digest", "V21", "checkpoint", "tokenizer", "digest", value="sha256:" + "0" * 64
)
typed("checkpoint not shown", "V21", "checkpoint", "chat", value=None)


def manifest_mutation(name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """A name or size changed in the log's manifest, digest and all."""

    @mutation(name, "V21", kind="draft")
    def apply(draft: Draft) -> None:
        from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes

        event = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")
        files = [
            {
                "path": path.removeprefix("checkpoints/sft/"),
                "bytes": len(c),
                "sha256": sha256_bytes(c),
            }
            for path, c in sorted(draft.files.items())
            if path.startswith("checkpoints/sft/")
        ]
        change(files)
        event["data"]["files"] = files
        event["data"]["digest"] = manifest_digest(
            [FileDigest(f["path"], f["bytes"], f["sha256"]) for f in files]
        )


manifest_mutation(
    "a name that climbs out", lambda files: files[0].update(path="../../../etc/passwd")
)
manifest_mutation("an absolute name", lambda files: files[0].update(path="/etc/passwd"))
manifest_mutation("a Windows name", lambda files: files[0].update(path="..\\..\\secret"))
manifest_mutation("a name with two slashes", lambda files: files[0].update(path="a//b"))
manifest_mutation(
    "a name with an invisible letter", lambda files: files[0].update(path="config\u200b.json")
)
manifest_mutation(
    "a name in look-alike letters", lambda files: files[1].update(path="m\u043edel.safetensors")
)
manifest_mutation("a name with a line end", lambda files: files[0].update(path="a\nb"))
manifest_mutation("a name twice", lambda files: files.append(files[0]))
manifest_mutation(
    "names apart only in case", lambda files: files.append({**files[0], "path": "Config.json"})
)
manifest_mutation("a wrong size", lambda files: files[1].update(bytes=1))
manifest_mutation(
    "a pickle in the manifest", lambda files: files.append({**files[0], "path": "x.pkl"})
)
manifest_mutation(
    "code in the manifest", lambda files: files.append({**files[0], "path": "modeling.py"})
)


def content_mutation(name: str, file: str, content: bytes) -> None:
    """A file of the checkpoint that was bad from the beginning."""

    @mutation(name, "V21", kind="draft")
    def apply(draft: Draft) -> None:
        draft.files[f"checkpoints/sft/{file}"] = content


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 10_000_000)
    return buffer.getvalue()


content_mutation("a pickle called config.json", "config.json", b"\x80\x04\x95.")
content_mutation("a zip bomb called tokenizer.json", "tokenizer.json", zipped())
content_mutation("a script called tokenizer.json", "tokenizer.json", b"#!/bin/sh\nrm -rf /\n")
content_mutation(
    "safetensors with bytes to spare", "model.safetensors", tamper.safetensors(2) + b"more"
)
content_mutation("safetensors with a lying header", "model.safetensors", b"\xff" * 8 + b"{}")


@mutation("a digest of a manifest that is not its files'", "V21", kind="draft")
def _(draft: Draft) -> None:
    manifest = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")["data"]
    files = [
        {"path": p.removeprefix("checkpoints/sft/"), "bytes": len(c), "sha256": sha(c)}
        for p, c in sorted(draft.files.items())
        if p.startswith("checkpoints/sft/")
    ]
    manifest.update(files=files, digest="sha256:" + "0" * 64)


def sha(content: bytes) -> str:
    from kit.trust.digest import sha256_bytes

    return sha256_bytes(content)


@mutation("outputs in another stage's folder", "V21", kind="draft")
def _(draft: Draft) -> None:
    manifest = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "sft")["data"]
    manifest["folder"] = "checkpoints/pretrain"


# --- the suite ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def table() -> Iterator[list[tuple[str, str, str, str]]]:
    rows: list[tuple[str, str, str, str]] = []
    yield rows
    target = os.environ.get("N4090_TAMPER_TABLE")
    if target and rows:
        lines = ["| mutation | redone by the forger | refused by | finding |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        Path(target).write_text("\n".join(lines) + "\n")


def test_honest_rows_beside_each_other_are_no_copies(tmp_path: Path) -> None:
    for seed in range(6):
        draft = gpu_run(seed=seed, steps=90)
        draft.header()["seed"]["value"] = seed
        draft.write(tmp_path / "board" / str(seed))
    for seed in range(6):
        options = Options(against=(tmp_path / "board",))
        report = verify_result(tmp_path / "board" / str(seed), options)
        assert report.status("V25") == "pass", explain(report)


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda case: case.name.replace(" ", "-"))
def test_a_tampered_run_is_refused_by_its_own_check(
    tmp_path: Path,
    base: Callable[[str], Draft],
    table: list[tuple[str, str, str, str]],
    case: Mutation,
) -> None:
    draft = base(case.base)
    folder = tmp_path / "run"
    if case.kind == "draft":
        case.apply(draft)
    elif case.kind == "result":
        draft.result_edits.append(case.apply)
    path = draft.write(folder)
    if case.kind == "file":
        case.apply(folder)
    report = verify_result(path, case.options(folder))
    assert set(report.refused_by) == case.expected, explain(report)
    assert report.exit_code == (2 if not report.readable else 1)
    redone = {"draft": "everything", "result": "the signature", "file": "nothing"}[case.kind]
    first = next(f for f in report.findings if f.status == "fail")
    table.append((case.name, redone, ", ".join(report.refused_by), first.message))


def test_the_suite_has_a_mutation_for_every_check_that_refuses() -> None:
    refused = {check for case in MUTATIONS for check in case.expected}
    # These need a model or a corpus: test_verify_evaluate, _replay and _contamination have them.
    never = {"V22", "V23", "V24", "V26"}
    assert refused == {check.id for check in CHECKS} - never
    assert len(MUTATIONS) >= 80
    assert len({case.name for case in MUTATIONS}) == len(MUTATIONS)


def test_telemetry_kind_is_its_own() -> None:
    assert TELEMETRY_KIND != LOG_KIND
