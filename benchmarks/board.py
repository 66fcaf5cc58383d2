"""Times publishing on a board that has thousands of rows already.

The board is generated: each row has a signed result of its own, varied from one real submission,
and counts as judged in earlier passes. Its logs are links to one log, so the first pass hashes less
than a real one would; later passes hash nothing that is unchanged either way. New submissions are
whole synthetic runs, submitted as any other, so that judging them is the real work. The command is
run as its own process, and its peak memory is what the kernel says.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from support.synthetic import gpu_run, safetensors

import kit
from kit.board.decisions import DecisionLog, Decisions
from kit.board.documents import now
from kit.board.layout import REPRODUCTION_NAMESPACE, Layout, SubmissionPath
from kit.board.package import document_items, pack
from kit.board.publish import IN_FOLDER
from kit.board.statistics import figures_of
from kit.board.submit import place, submit_to_folder
from kit.board.tree import tree_of
from kit.errors import KitError, SchemaError
from kit.trust.keys import Signer, load_signer, make_key
from kit.trust.sign import result_id, sign_document

Document = dict[str, Any]
BENCH_SEED = 7
_LINKED = ("events.jsonl", "eval/core.json", "eval/chat.json", "telemetry.jsonl", "README.md")


@dataclass(frozen=True)
class Pass:
    """One run of `board publish`."""

    name: str
    elapsed_s: float
    cpu_s: float  # of the process; what a quiet machine would take
    peak_bytes: int
    judged: int
    rows: int
    events: int


def bench_board(template: Path, rows: int, new: int, work: Path) -> tuple[float, list[Pass]]:
    """Generates a board of `rows` rows in `work` and times passes over it.

    Returns:
        Seconds spent generating, and the passes: all rows read for the first time on this machine,
        nothing new, `new` submissions to judge, the same after it.
    """
    began = time.perf_counter()
    root = work / "board"
    signers = _people(work / "keys", min(100, rows))
    _generate(template, root, rows, signers)
    generated_s = time.perf_counter() - began
    passes = [_publish("first on this machine", root, work), _publish("nothing new", root, work)]
    newcomers = _people(work / "new", new)
    for number in range(new):
        _add_new(root, number, newcomers[number])
    passes.append(_publish(f"{new} new", root, work))
    passes.append(_publish("nothing new", root, work))
    if passes[2].judged != new or passes[2].rows != rows + new:
        raise KitError("the generated submissions were not accepted", rows=passes[2].rows)
    return generated_s, passes


def _people(folder: Path, count: int) -> list[Signer]:
    signers = []
    for number in range(count):
        path = folder / f"person{number}"
        make_key(path)
        signers.append(load_signer(path))
    return signers


def _generate(template: Path, root: Path, rows: int, signers: list[Signer]) -> None:
    """A board of `rows` ranked rows, a reproduction for every fiftieth, all judged earlier."""
    layout = Layout(root)
    root.mkdir(parents=True)
    base = json.loads((template / "result.json").read_bytes())
    pin = json.loads((template / "submission.json").read_bytes())
    rng = random.Random(BENCH_SEED)
    decision_log = DecisionLog(layout, Decisions(), "a generated board", kit.__version__, now())
    checks = {f"V{number:02}": "pass" for number in range(1, 22)}
    earlier: tuple[str, Document] | None = None
    for number in range(rows):
        who = number % len(signers)
        result = _varied(base, rng, number, signers[who])
        path = SubmissionPath("2026", f"person{who}", result_id(result))
        folder = layout.submission(path)
        (folder / "eval").mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False))
        mine = {**pin, "result_id": path.result_id, "submitter": path.submitter}
        (folder / "submission.json").write_text(json.dumps(mine, indent=2))
        for name in _LINKED:
            if (template / name).is_file():
                _link(template / name, folder / name, root.parent)
        decision_log.append(
            "submission",
            path.result_id,
            "consistent: 21 checks passed",
            path=str(path),
            tree=tree_of(folder),
            decision="accepted",
            verdict="consistent",
            checks=checks,
            findings=[],
            source=IN_FOLDER,
            kit=kit.__version__,
        )
        if number % 50 == 1 and earlier is not None:
            statement = _reproduction(earlier, path.result_id, result, signers[who], who)
            place(root, document_items([statement]))
        earlier = (path.result_id, result)
    decision_log.close()


def _link(source: Path, target: Path, work: Path) -> None:
    """A hard link where it can be: ten thousand copies of one log would only fill the disk."""
    copied = work / "shared" / source.name
    if not copied.exists():
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copied)
    try:
        os.link(copied, target)
    except OSError:
        shutil.copyfile(copied, target)


def _varied(base: Document, rng: random.Random, number: int, signer: Signer) -> Document:
    """A result of the ranked track with figures of its own."""
    result = copy.deepcopy(base)
    result["recipe"]["track"] = "rtx4090-24h"
    result["runs"]["id"] = f"generated-{number}"
    result["seed"]["value"] = number
    result["timing"]["total_s"] = round(rng.uniform(60_000, 86_000), 3)
    result["submitter"]["public_key"] = signer.public_key
    result["log"]["head"] = f"sha256:{rng.getrandbits(256):064x}"
    for section in ("core", "chat"):
        if result["quality"][section]:
            result["quality"][section]["digest"] = f"sha256:{rng.getrandbits(256):064x}"
    result["telemetry"]["digest"] = f"sha256:{rng.getrandbits(256):064x}"
    result["claims"] |= {"ranked": True, "why_not_ranked": [], "status": "complete"}
    result["quality"]["val_bpb"] = {"first": 3.2, "last": round(rng.gauss(0.8, 0.01), 6)}
    core = result["quality"]["core"]
    core |= {"value": round(rng.gauss(0.25, 0.012), 6), "partial": False, "bundle": "core"}
    before = result["hardware"]["before"]
    gpu = {
        "name": "a generated card",
        "uuid_hash": f"sha256:{rng.getrandbits(256):064x}",
        "power_limit_w": 450,
    }
    before["gpus"], before["class"] = [gpu], {"name": "4090", "reasons": []}
    for part in ("base", "chat"):
        if result["checkpoint"][part]:
            result["checkpoint"][part]["digest"] = f"sha256:{rng.getrandbits(256):064x}"
    return sign_document({**result, "signatures": []}, signer)


def _reproduction(
    claim: tuple[str, Document], own_id: str, own: Document, signer: Signer, who: int
) -> Document:
    of_id, of = claim
    document = {
        "schema_version": 1,
        "kind": "run",
        "of": {"result_id": of_id, "recipe_digest": of["recipe"]["digest"], "image": None},
        "by": {"name": f"person{who}", "public_key": signer.public_key},
        "at": now(),
        "kit": {"version": kit.__version__, "code": None},
        "result_id": own_id,
        "claimed": figures_of(of),
        "found": figures_of(own),
        "checks": [
            {
                "name": "val_bpb",
                "status": "skip",
                "message": "generated",
                "claimed": None,
                "found": None,
                "limit": None,
            }
        ],
        "verdict": "inconclusive",
        "notes": [],
    }
    return sign_document(document, signer, REPRODUCTION_NAMESPACE)


def _add_new(root: Path, number: int, signer: Signer) -> None:
    """A whole submission: a synthetic day of a 4090, with weights and a card of its own."""
    rng = random.Random(BENCH_SEED + number)
    draft = gpu_run(seed=100 + number, steps=24)
    header = draft.header()
    header["signer"]["public_key"] = signer.public_key
    header["seed"]["value"] = number
    card = f"sha256:{rng.getrandbits(256):064x}"
    for fingerprint in draft.fingerprints():
        fingerprint["gpus"][0]["uuid_hash"] = card
    for record in draft.telemetry:
        if "gpu_uuid_hash" in record:
            record["gpu_uuid_hash"] = card
    for name in draft.files:
        if name.endswith(".safetensors"):
            draft.files[name] = safetensors(rng.getrandbits(31))
    draft.of("eval", "pretrain")[-1]["data"]["value"] = round(rng.gauss(0.84, 0.001), 6)
    draft.key = signer.private_key
    with tempfile.TemporaryDirectory(dir=root.parent) as name:
        draft.write(Path(name) / "run")
        submit_to_folder(root, pack(Path(name) / "run", f"newcomer{number}", board=str(root)))


def _publish(name: str, root: Path, work: Path) -> Pass:
    """`board publish` in a process of its own."""
    command = [sys.executable, "-m", "kit.cli.main", "board", "publish", "--json"]
    command += ["--board", str(root), "--work", str(work)]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        elapsed_s = time.perf_counter() - began
        output.seek(0)
        if process.returncode != 0:
            raise KitError("`board publish` failed", exit_code=process.returncode)
        told = json.loads(output.read())
    peak = used.ru_maxrss * 1024
    judged = len(told["submissions"])
    return Pass(
        name, elapsed_s, used.ru_utime + used.ru_stime, peak, judged, told["rows"], told["events"]
    )


EXAMPLE = Path("submissions/2026/example/9ffdb8e5b168ed02")


@click.command("board")
@click.option(
    "--rows",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows on the board beforehand.",
)
@click.option(
    "--new",
    default=20,
    show_default=True,
    type=click.IntRange(min=0),
    help="New submissions to judge.",
)
@click.option(
    "--template",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=EXAMPLE,
    show_default=True,
    help="The submission that the generated ones are varied from.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def main(rows: int, new: int, template: Path, as_json: bool) -> None:
    """Time `board publish` on a generated board: with nothing new, and with --new to judge.

    Rows of the generated board count as judged earlier; the new ones are judged for real. Half a
    gigabyte of files for 10,000 rows, in the temporary folder, removed afterwards.
    """
    if missing := [n for n in ("result.json", "submission.json") if not (template / n).is_file()]:
        raise SchemaError(
            f"{template} is no submission: it has no {missing[0]}",
            hint="Name a folder of a board, such as submissions/2026/NAME/ID.",
        )
    with tempfile.TemporaryDirectory(prefix="n4090-bench-") as name:
        generated_s, passes = bench_board(template, rows, new, Path(name))
        _show(generated_s, passes, rows, as_json)  # before the removal, which takes its time


def _show(generated_s: float, passes: list[Pass], rows: int, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        told = {"generated_s": generated_s, "passes": [asdict(one) for one in passes]}
        click.echo(json.dumps(told, indent=2))
        return
    table = Table(title=f"board publish, {rows:,} rows (generated in {generated_s:.0f} s)")
    for column in ("pass", "s", "CPU s", "peak MiB", "judged", "events"):
        table.add_column(column, justify="left" if column == "pass" else "right")
    for one in passes:
        table.add_row(
            one.name,
            f"{one.elapsed_s:.1f}",
            f"{one.cpu_s:.1f}",
            f"{one.peak_bytes / 2**20:.0f}",
            str(one.judged),
            f"{one.events:,}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
