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

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.data import index as global_index
from reference.data.linear import HELD_OUT, LinearModel, auc
from reference.data.overlap import build_index
from reference.data.part import open_texts, process_part
from reference.data.shards import write_shard
from reference.data.sources import Part, find_parts, read_examples
from reference.data.spec import Spec, identity
from reference.data.words import word_hashes
from reference.data.workers import Workers, open_workers
from reference.dataset import write_whole
from reference.errors import TrainerError

MANIFEST = "corpus.json"
FORMAT = 1
SAMPLES = 6  # removed documents kept for the report, a reason
_DECIDING = (
    "filters",
    "index",
    "linear",
    "minhash",
    "overlap",
    "part",
    "shards",
    "sources",
    "words",
)
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
        if self.options.restart:
            self._clear()
        problems: list[str] = []
        parts = self._cut(problems)
        plan = {
            "format": FORMAT,
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
            summaries = self._timed("parts", lambda: self._parts(workers, len(parts), digest))
            if not any(summary["kept"] for summary in summaries):
                raise _nothing_left(summaries)
            self._timed("near-duplicates", lambda: self._index(workers, summaries))
            shards = self._timed("shards", lambda: self._shards(workers))
        finally:
            workers.close()
        manifest = self._manifest(digest, summaries, shards, models, problems)
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
                "Name another folder with --out, or build it anew with --restart.",
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
                what = "this program has changed"
            raise TrainerError(
                "bad_input",
                f"{self.out} holds an unfinished build, and since then {what}",
                "Put things back to go on, or begin anew with --restart.",
            )
        if self.out.is_dir() and any(self.out.glob("*.parquet")):
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
        spec, found = self.spec, {}
        self.progress("learning models", 0, 1)
        if spec.quality.clean:
            examples = {
                "noisy": _examples(spec.quality.noisy, spec.quality.text, spec.quality.examples),
                "clean": _examples(spec.quality.clean, spec.quality.text, spec.quality.examples),
            }
            found["quality"] = _learn(examples, self.work / "quality.npz")
        if spec.domains.examples:
            examples = {
                name: _examples((path,), spec.domains.text, spec.domains.per_domain)
                for name, path in sorted(spec.domains.examples.items())
            }
            found["domains"] = _learn(examples, self.work / "domains.npz")
        rules = spec.decontaminate
        if rules.core or rules.chat_eval or rules.extra:
            benchmarks = build_index(rules, self.work / "overlap")
            found["benchmarks"] = [dataclasses.asdict(item) for item in benchmarks]
        write_whole(record, json.dumps(found).encode())
        self.progress("learning models", 1, 1)
        return found

    # --- 3. parts ------------------------------------------------------------------------------

    def _parts(self, workers: Workers, count: int, digest: str) -> list[dict[str, Any]]:
        jobs = [(self.work, number, digest) for number in range(count)]
        return self._all("reading and filtering", workers, process_part, jobs)

    def _all(
        self, step: str, workers: Workers, function: Callable[..., Any], jobs: Sequence[tuple]
    ) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        self.progress(step, 0, len(jobs))
        for done, (number, result) in enumerate(workers.run(function, jobs), start=1):
            results[number] = result
            self.progress(step, done, len(jobs))
        return results

    # --- 4. duplicates and mixture -------------------------------------------------------------

    def _index(self, workers: Workers, summaries: list[dict[str, Any]]) -> None:
        if (self.work / "index.json").is_file():
            return
        self.progress("finding duplicates", 0, 4)
        db = global_index.open_index(
            self.work, self.options.memory_bytes // 2, max(1, workers.count)
        )
        try:
            documents = global_index.read_documents(db, self.work, self.spec)
            global_index.remove_exact(db, self.spec)
            self.progress("finding duplicates", 1, 4)
            candidates = 0
            if self.spec.dedup.near and documents:
                candidates = global_index.find_candidates(db, self.work)
                self.progress("finding duplicates", 2, 4)
                groups = pq.ParquetFile(self.work / "candidates.parquet").num_row_groups
                jobs = [(self.work, group, self.spec.dedup.ngram) for group in range(groups)]
                for _ in workers.run(_compare, jobs):
                    pass
                self.progress("finding duplicates", 3, 4)
                global_index.remove_near(
                    db,
                    self.work,
                    self.spec,
                    documents,
                    lambda group: np.load(self.work / "pairs" / f"{group:05d}.npy"),
                )
            sampling = global_index.choose(db, self.spec)
            shutil.rmtree(self.work / "orders", ignore_errors=True)
            names = list(global_index.write_orders(db, self.work, self.spec))
            facts = global_index.facts(db)
        finally:
            db.close()
        examples = []
        for worse, better, similarity, *places in facts.pop("examples"):
            texts = [
                open_texts(self.work, part)["text"][row].as_py()[:700]
                for part, row in (places[:2], places[2:])
            ]
            examples.append({"sources": [worse, better], "similarity": similarity, "texts": texts})
        document = {
            "shards": names,
            "candidates": candidates,
            "examples": examples,
            **sampling,
            **facts,
        }
        write_whole(self.work / "index.json", json.dumps(document).encode())
        self.progress("finding duplicates", 4, 4)

    # --- 5. shards -----------------------------------------------------------------------------

    def _shards(self, workers: Workers) -> list[dict[str, Any]]:
        names = json.loads((self.work / "index.json").read_text())["shards"]
        jobs = [(self.work, name) for name in names]
        return self._all("writing shards", workers, _shard, jobs)

    # --- 6. manifest ---------------------------------------------------------------------------

    def _manifest(
        self,
        digest: str,
        summaries: list[dict[str, Any]],
        shards: list[dict[str, Any]],
        models: dict[str, Any],
        problems: list[str],
    ) -> dict[str, Any]:
        found = json.loads((self.work / "index.json").read_text())
        return {
            "format": FORMAT,
            "name": self.spec.name,
            "digest": corpus_digest(shards),
            "content": _content_digest(shards),
            "plan": f"sha256:{digest}",
            "spec": identity(self.spec),
            "models": models,
            "shards": shards,
            "inputs": [_input(summary) for summary in summaries],
            "sources": _by_source(summaries, found),
            "removed": _merge_removed(summaries),
            "problems": problems + [line for item in summaries for line in item["problems"]],
            "overlaps": _merge_overlaps(summaries),
            "near": {
                "candidates": found["candidates"],
                "similarity": found["similarity"],
                "examples": found["examples"],
            },
            "mix": {"available_bytes": found["available_bytes"], "rates": found["rates"]},
            "placed": found["placed"],
            "steps": _merge_steps(summaries),
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


def _compare(build: Path, group: int, ngram: int) -> None:
    path = build / "pairs" / f"{group:05d}.npy"
    if path.is_file():
        return
    path.parent.mkdir(exist_ok=True)
    values = global_index.compare_pairs(build, group, ngram)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, values)
    temporary.replace(path)


def _shard(build: Path, name: str) -> dict[str, Any]:
    record = build / "shards" / f"{name}.json"
    if record.is_file():
        return dict(json.loads(record.read_text()))
    facts = write_shard(build, name)
    write_whole(record, json.dumps(facts).encode())
    return facts


def _examples(patterns: Sequence[str], text: str, limit: int) -> list[str]:
    share = max(1, limit // len(patterns))
    return [item for pattern in patterns for item in read_examples(pattern, text, share)]


def _learn(examples: dict[str, list[str]], path: Path) -> dict[str, Any]:
    """Learns a model, and from four fifths of the examples another to say how good it is."""
    labels = list(examples)
    for label, texts in examples.items():
        if len(texts) < HELD_OUT:
            raise TrainerError(
                "bad_input",
                f"{label}: {len(texts)} example documents are too few to learn from",
                f"Give at least {HELD_OUT}; hundreds are better.",
            )
    texts = [text for label in labels for text in examples[label]]
    classes = [number for number, label in enumerate(labels) for _ in examples[label]]
    held = np.arange(len(texts)) % HELD_OUT == 0
    trained = LinearModel.train(
        [text for text, out in zip(texts, held, strict=True) if not out],
        [known for known, out in zip(classes, held, strict=True) if not out],
        labels,
    )
    truth = np.asarray(classes)[held]
    scores = np.stack(
        [
            trained.probabilities(word_hashes(text))
            for text, out in zip(texts, held, strict=True)
            if out
        ]
    )
    model = LinearModel.train(texts, classes, labels)
    model.save(path)
    found = {
        "labels": labels,
        "examples": {label: len(texts) for label, texts in examples.items()},
        "digest": model.digest,
        "held_out": int(held.sum()),
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
    }
    if len(labels) == 2:
        found["auc"] = auc(scores[truth == 1, 1], scores[truth == 0, 1])
    return found


def _nothing_left(summaries: list[dict[str, Any]]) -> TrainerError:
    removed = _merge_removed(summaries)
    worst = sorted(removed.items(), key=lambda item: -item[1]["documents"])[:5]
    lines = [f"  {name}: {entry['documents']}" for name, entry in worst]
    lines += [f"  {line}" for item in summaries for line in item["problems"]][:5]
    return TrainerError(
        "bad_input",
        "no document is left after the filters:\n" + "\n".join(lines or ["  the inputs are empty"]),
        "Relax the spec, or check the sources.",
    )


def corpus_digest(shards: Sequence[dict[str, Any]]) -> str:
    """The digest a run's log gives this folder: of the lines `sha256sum *.parquet` prints."""
    lines = sorted((shard["path"], shard["sha256"].removeprefix("sha256:")) for shard in shards)
    text = "".join(f"{digest}  {path}\n" for path, digest in lines)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def code_digest() -> str:
    """Of the modules that decide what a corpus holds; a build does not go on with others."""
    found = hashlib.sha256()
    for name in _DECIDING:
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return f"sha256:{found.hexdigest()}"


def folder_digest(folder: Path) -> str:
    """The digest of any folder of parquet files, as `corpus_digest` has it.

    Raises:
        TrainerError: There is none.
    """
    shards = []
    for path in sorted(folder.glob("*.parquet")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append({"path": path.name, "sha256": f"sha256:{digest}"})
    if not shards:
        raise TrainerError("bad_input", f"no *.parquet file in {folder}", "Name another folder.")
    return corpus_digest(shards)


def _content_digest(shards: Sequence[dict[str, Any]]) -> str:
    """Of the texts alone: the same whatever release of pyarrow wrote the files."""
    lines = sorted(f"{shard['path']} {shard['content']}\n" for shard in shards)
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """corpus.json of a finished corpus.

    Raises:
        TrainerError: The folder holds none.
    """
    path = folder / MANIFEST if folder.is_dir() else folder
    try:
        manifest = dict(json.loads(path.read_text()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        unfinished = (folder / ".build").is_dir()
        raise TrainerError(
            "bad_input",
            f"{folder} holds no finished corpus ({MANIFEST})",
            "Give `n4090-kit data build` again: it goes on where it stopped."
            if unfinished
            else "Name a folder that `n4090-kit data build` wrote.",
        ) from error
    return manifest


def _input(summary: dict[str, Any]) -> dict[str, Any]:
    part = summary["part"]
    return {
        "source": summary["source"],
        "file": Path(part["file"]).name,
        "begin": part["begin"],
        "end": part["end"],
        "documents": summary["documents"],
        "bytes": summary["bytes"],
        "content": summary["content"],
    }


def _merge_removed(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for summary in summaries:
        for name, entry in summary["removed"].items():
            known = merged.setdefault(
                name, {"documents": 0, "bytes": 0, "sources": {}, "samples": []}
            )
            known["documents"] += entry["documents"]
            known["bytes"] += entry["bytes"]
            sources = known["sources"]
            sources[summary["source"]] = sources.get(summary["source"], 0) + entry["documents"]
            for sample in entry["samples"][: SAMPLES // 2]:
                if len(known["samples"]) < SAMPLES:
                    known["samples"].append({"source": summary["source"], **sample})
    return dict(sorted(merged.items()))


def _merge_overlaps(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for summary in summaries:
        for found in summary["overlaps"]:
            entry = merged.setdefault(found["task"], {"documents": 0, "removed": 0, "items": []})
            entry["documents"] += 1
            entry["removed"] += found["removed"]
            if found["item"] not in entry["items"]:
                entry["items"].append(found["item"])
    for entry in merged.values():
        entry["items"] = len(entry["items"])
    return dict(sorted(merged.items()))


def _merge_steps(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for summary in summaries:
        for step, seconds in summary["seconds"].items():
            entry = merged.setdefault(step, {"seconds": 0.0, "documents": 0, "bytes": 0})
            documents, size = summary["seen"].get(step, (summary["documents"], summary["bytes"]))
            entry["seconds"] = round(entry["seconds"] + seconds, 6)
            entry["documents"] += documents
            entry["bytes"] += size
    return merged


def _by_source(summaries: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    """Per source: what was read, what each step took away, what is in the corpus."""
    merged: dict[str, Any] = {}
    for summary in summaries:
        entry = merged.setdefault(
            summary["source"],
            {
                "documents": 0,
                "bytes": 0,
                "removed": {},
                "languages": {},
                "lengths": {},
                "scores": [],
            },
        )
        entry["documents"] += summary["documents"]
        entry["bytes"] += summary["bytes"]
        for name, reason in summary["removed"].items():
            step = name.partition("/")[0]
            entry["removed"][step] = entry["removed"].get(step, 0) + reason["documents"]
        for field in ("languages", "lengths"):
            for key, count in summary[field].items():
                entry[field][key] = entry[field].get(key, 0) + count
        scores = entry["scores"] or [0] * len(summary["scores"])
        entry["scores"] = [a + b for a, b in zip(scores, summary["scores"], strict=True)]
    for source, why, count, _ in found["duplicates"]:
        merged[source]["removed"][f"{why} duplicate"] = count
    for split, source, _, count, size in found["placed"]:
        merged[source].setdefault("placed", {})
        placed = merged[source]["placed"].setdefault(split, [0, 0])
        placed[0] += count
        placed[1] += size
    return merged


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
