"""`data build`: plan, parts, duplicates, mixture, shards, manifest; each step resumes.

All work happens in `OUT/.build`. The finished shards move to OUT at the very end and `corpus.json`
comes last, so a folder with it is a whole corpus and one without is none. A second call with the
same spec and inputs goes on where the first stopped; other ones are refused.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from reference.data.counters import Counters
from reference.data.document_pipeline import part_record, process_part
from reference.data.learn import learn_domains, learn_quality
from reference.data.manifest import (
    FORMAT,
    MANIFEST,
    code_digest,
    content_digest,
    corpus_digest,
    read_manifest,
)
from reference.data.overlap import build_index
from reference.data.selection import read_selection, select
from reference.data.shards import write_shard
from reference.data.sources import Part, find_parts, refuse_inside
from reference.data.spec import Spec, identity
from reference.data.workers import Workers, open_workers
from reference.errors import TrainerError
from reference.files import write_whole
from reference.rows.reader import files_ending

Progress = Callable[[str, int, int], None]


class Options(NamedTuple):
    """How, not what: none of this changes a byte of the corpus."""

    workers: int = 0  # 0: all cores
    memory_bytes: int = 4 << 30
    ray: str = ""
    restart: bool = False
    keep_work: bool = False


def build_corpus(
    spec: Spec, out: Path, options: Options | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Builds the corpus of `spec` in `out`; returns its manifest.

    Args:
        progress: Called with step, jobs done and jobs in all.

    Raises:
        TrainerError: Unreadable input, another build in the folder, a full disk, or workers that
            keep being killed. What is finished is kept; the same call goes on from there.
    """
    options = options or Options()
    try:
        return _Build(spec, out, options, progress or (lambda step, done, total: None)).run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(out, error) from error
    except Exception as error:
        if type(error).__module__.startswith(("_duckdb", "duckdb")) and "space" in str(error):
            raise _disk_full(out, error) from error
        raise


def _disk_full(out: Path, error: Exception) -> TrainerError:
    return TrainerError(
        "disk_full",
        f"the disk under {out} is full: {str(error).splitlines()[0]}",
        "Free some space and give the same command again: finished parts are kept.",
    )


class _Build:
    def __init__(self, spec: Spec, out: Path, options: Options, progress: Progress) -> None:
        self.spec, self.out, self.options, self.progress = spec, out, options, progress
        self.work = out / ".build"
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        refuse_inside(self.out, self.spec)
        if self.options.restart:
            self._clear()
        problems: list[str] = []
        parts = self._cut(problems)
        plan = {
            "format": FORMAT,
            "program": code_digest(),
            "spec": self.spec.to_json(),
            "parts": [p.to_json() for p in parts],
        }
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        done = self._finished(digest)
        if done is not None:
            return done
        self._enter(plan)
        spec = self.spec
        workers = open_workers(
            self.options.workers,
            self.options.memory_bytes,
            int(spec.shards.text_mb * 1e6),
            int(spec.normalize.max_document_mb * 1e6),
            self.options.ray,
        )
        try:
            models = self._timed("models", self._models)
            self._timed("parts", lambda: self._parts(workers, len(parts), digest))
            totals = self._totals(len(parts))
            if not totals.kept:
                raise _nothing_left(totals)
            memory = self.options.memory_bytes // 2  # the other half is the processes themselves
            self._timed(
                "near-duplicates",
                lambda: select(self.work, spec, workers, memory, self.progress),
            )
            shards = self._timed("shards", lambda: self._shards(workers))
        finally:
            workers.close()
        manifest = self._manifest(digest, totals, shards, models, problems)
        self._finish(shards, manifest)
        return manifest

    def _clear(self) -> None:
        """Removes what an earlier build left here, and nothing else."""
        shutil.rmtree(self.work, ignore_errors=True)
        if (self.out / MANIFEST).is_file():
            old = read_manifest(self.out)
            (self.out / MANIFEST).unlink()  # first: without it the folder is no corpus
            for shard in old["shards"]:
                (self.out / Path(shard["path"]).name).unlink(missing_ok=True)

    def _timed(self, step: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        self.seconds[step] = round(time.perf_counter() - began, 3)
        return result

    # --- 1. plan -------------------------------------------------------------------------------

    def _cut(self, problems: list[str]) -> list[Part]:
        def on_bad(error: TrainerError) -> None:
            if self.spec.on_error == "stop":
                raise error
            problems.append(error.message)

        size = int(self.spec.part_mb * 1e6)
        found = [
            part
            for number, source in enumerate(self.spec.source)
            for part in find_parts(source, number, size, on_bad)
        ]
        if not found:
            raise TrainerError(
                "bad_input",
                "the sources hold no documents"
                + (":\n" + "\n".join(f"  {line}" for line in problems) if problems else ""),
                "Check the sources' paths.",
            )
        return found

    def _finished(self, digest: str) -> dict[str, Any] | None:
        path = self.out / MANIFEST
        if not path.is_file():
            return None
        manifest = read_manifest(self.out)
        if manifest["plan"] != f"sha256:{digest}":
            raise TrainerError(
                "bad_input",
                f"{self.out} holds another corpus (other spec, inputs or program)",
                "Name another folder with --out, or build it from scratch with --restart.",
            )
        return manifest

    def _enter(self, plan: dict[str, Any]) -> None:
        """Opens the work folder; refuses one of another spec or of inputs that have changed."""
        path = self.work / "plan.json"
        if path.is_file():
            old = json.loads(path.read_text())
            if old == plan:
                return
            changed = sorted(
                {part["file"] for part in old["parts"] if part not in plan["parts"]}
                | {part["file"] for part in plan["parts"] if part not in old["parts"]}
            )
            if old["spec"] != plan["spec"]:
                what = "the spec has changed"
            elif changed:
                what = f"inputs have changed: {', '.join(changed[:5])}"
            else:
                what = "the program has changed"
            raise TrainerError(
                "bad_input",
                f"{self.out} holds an unfinished build, and since then {what}",
                "Restore the old state to resume, or build from scratch with --restart.",
            )
        if files_ending(self.out, ".parquet"):
            raise TrainerError(
                "bad_input",
                f"{self.out} already holds parquet files that this command did not write",
                "Name an empty folder with --out.",
            )
        self.work.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan).encode())

    # --- 2. models -----------------------------------------------------------------------------

    def _models(self) -> dict[str, Any]:
        """Learns the quality score and the domain labels, indexes the evaluation sets."""
        record = self.work / "models.json"
        if record.is_file():
            return dict(json.loads(record.read_text()))
        spec = self.spec
        found: dict[str, Any] = {}
        self.progress("learning models", 0, 1)
        if spec.quality.clean:
            found["quality"] = learn_quality(spec.quality, self.work / "quality.npz")
        if spec.domains.examples:
            found["domains"] = learn_domains(spec.domains, self.work / "domains.npz")
        rules = spec.decontaminate
        if rules.core or rules.chat_eval or rules.extra:
            benchmarks = build_index(rules, self.work / "overlap")
            found["benchmarks"] = [dataclasses.asdict(item) for item in benchmarks]
        write_whole(record, json.dumps(found).encode())
        self.progress("learning models", 1, 1)
        return found

    # --- 3. parts ------------------------------------------------------------------------------

    def _parts(self, workers: Workers, count: int, digest: str) -> None:
        jobs = [(self.work, number, digest) for number in range(count)]
        self._all("reading and filtering", workers, process_part, jobs)

    def _all(
        self,
        step: str,
        workers: Workers,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
    ) -> None:
        self.progress(step, 0, len(jobs))
        for done, _ in enumerate(workers.run(function, jobs), start=1):
            self.progress(step, done, len(jobs))

    def _totals(self, count: int) -> Counters:
        totals = Counters()
        for number in range(count):
            totals.add(json.loads(part_record(self.work, number).read_text()))
        return totals

    # --- 4. shards -----------------------------------------------------------------------------

    def _shards(self, workers: Workers) -> list[dict[str, Any]]:
        names = read_selection(self.work)["shards"]
        jobs = [(self.work, name) for name in names]
        self._all("writing shards", workers, _shard, jobs)
        return [json.loads(_shard_record(self.work, name).read_text()) for name in names]

    # --- 5. manifest ---------------------------------------------------------------------------

    def _manifest(
        self,
        digest: str,
        totals: Counters,
        shards: list[dict[str, Any]],
        models: dict[str, Any],
        problems: list[str],
    ) -> dict[str, Any]:
        found = read_selection(self.work)
        _check_rows(found["placed"], shards)
        held = any(row[0] == "validation" for row in found["placed"])
        few = ["no document is held out for validation: there are too few"]
        problems = problems + totals.problems
        if self.spec.shards.validation and not held:
            problems += few
        return {
            "format": FORMAT,
            "name": self.spec.name,
            "digest": corpus_digest(shards),
            "content": content_digest(shards),
            "plan": f"sha256:{digest}",
            "spec": identity(self.spec),
            "models": models,
            "shards": shards,
            "inputs": totals.inputs,
            "sources": totals.sources(found),
            "removed": totals.removed,
            "problems": problems,
            "overlaps": totals.overlaps,
            "near": {
                "candidates": found["candidates"],
                "similarity": found["similarity"],
                "examples": found["examples"],
            },
            "mix": {"available_bytes": found["available_bytes"], "rates": found["rates"]},
            "placed": found["placed"],
            "steps": totals.steps,
            "seconds": self.seconds,
            "software": {"pyarrow": pa.__version__, "datatrove": _version("datatrove")},
        }

    def _finish(self, shards: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
        for shard in shards:
            source = self.work / "shards" / shard["path"]
            if source.is_file():  # else an earlier call moved it
                source.replace(self.out / shard["path"])
        write_whole(self.out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        if not self.options.keep_work:
            shutil.rmtree(self.work)


def _check_rows(placed: Sequence[Sequence[Any]], shards: Sequence[dict[str, Any]]) -> None:
    """Holds the rows of the written shards to the documents that were chosen for them."""
    for split in sorted({row[0] for row in placed} | {shard["split"] for shard in shards}):
        chosen = sum(row[3] for row in placed if row[0] == split)
        written = sum(shard["rows"] for shard in shards if shard["split"] == split)
        if chosen != written:
            raise TrainerError(
                "internal",
                f"{chosen} documents were chosen for {split}, and its shards hold {written}",
                "The build lost documents: report it, with the spec.",
            )


def _shard_record(build: Path, name: str) -> Path:
    return build / "shards" / f"{name}.json"


def _shard(build: Path, name: str) -> None:
    record = _shard_record(build, name)
    if not record.is_file():
        write_whole(record, json.dumps(write_shard(build, name)).encode())


def _nothing_left(totals: Counters) -> TrainerError:
    worst = sorted(totals.removed.items(), key=lambda item: -item[1]["documents"])[:5]
    lines = [f"  {name}: {entry['documents']}" for name, entry in worst]
    lines += [f"  {line}" for line in totals.problems[:5]]
    return TrainerError(
        "bad_input",
        "no document is left after the filters:\n" + "\n".join(lines or ["  the inputs are empty"]),
        "Relax the spec, or check the sources.",
    )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
