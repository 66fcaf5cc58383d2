"""One part of the inputs through all steps that look at one document at a time.

Out come, under final names only when whole: `N.arrow` (the kept texts, uncompressed so that any row
can be read alone), `N.index.parquet` (what the global steps need), `N.json` (counts, samples,
times; written last: a part without it is not there).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.data import minhash
from reference.data.filters import LanguageFilter, rules
from reference.data.linear import LinearModel
from reference.data.overlap import OverlapIndex
from reference.data.sources import Part, RawDocument, read_part
from reference.data.spec import Spec
from reference.data.words import mix, normalise, shingles, word_hashes
from reference.errors import TrainerError
from reference.files import whole_file, write_whole
from reference.rows.reader import BadText, not_utf8

SAMPLES = 6  # removed documents shown for each reason, a part
SAMPLE_CHARS = 700
_BATCH_BYTES = 8 << 20
_SCORE_BINS = 50
TEXTS = pa.schema([("text", pa.large_string())])
INDEX = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.int32()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("score", pa.float32()),
        ("bytes", pa.int64()),
        ("high", pa.uint64()),  # the text's digest, 128 bits
        ("low", pa.uint64()),
        ("order_key", pa.uint64()),
        ("bands", pa.list_(pa.uint64())),
    ]
)


class Steps:
    """The models and rules of a build, opened once a process."""

    def __init__(self, build: Path) -> None:
        document = json.loads((build / "plan.json").read_text())
        self.spec = Spec.from_json(document["spec"])
        self.parts = [Part(**item) for item in document["parts"]]
        spec = self.spec
        self.rules = list(rules(spec.filters))
        self.language = LanguageFilter(spec.language) if spec.language.keep else None
        self.quality = _model(build / "quality.npz")
        self.domains = _model(build / "domains.npz")
        overlap = build / "overlap"
        self.overlap = OverlapIndex(overlap) if overlap.is_dir() else None


def _model(path: Path) -> LinearModel | None:
    return LinearModel.load(path) if path.is_file() else None


@lru_cache(1)
def open_steps(build: Path, _digest: str) -> Steps:
    """The steps of the build in `build`; the digest of its plan tells builds apart."""
    return Steps(build)


def part_record(build: Path, number: int) -> Path:
    """Where a finished part says what it did."""
    return build / "parts" / f"{number:05d}.json"


def process_part(build: Path, number: int, digest: str) -> None:
    """Does part `number` of the build in `build`, unless it is done.

    Raises:
        TrainerError: The input cannot be read; nothing is left under a final name.
    """
    record = part_record(build, number)
    if record.is_file():
        return
    steps = open_steps(build, digest)
    work = _PartWork(steps, number, build / "parts" / f"{number:05d}")
    summary = work.run()
    write_whole(record, json.dumps(summary, indent=1).encode())


class _PartWork:
    def __init__(self, steps: Steps, number: int, stem: Path) -> None:
        self.steps, self.number, self.stem = steps, number, stem
        self.part = steps.parts[number]
        self.source = steps.spec.source[self.part.source]
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.seen: dict[str, list[int]] = {}  # step -> [documents, bytes] that reached it
        self.removed: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self.documents = self.bytes = self.kept = self.kept_bytes = 0
        self.languages: Counter[str] = Counter()
        self.scores = np.zeros(_SCORE_BINS, dtype=int)
        self.lengths: Counter[int] = Counter()
        self.overlaps: list[dict[str, Any]] = []
        self.hash = hashlib.sha256()

    def run(self) -> dict[str, Any]:
        texts, index = self.stem.with_suffix(".arrow"), self.stem.with_suffix(".index.parquet")
        began = time.perf_counter()
        with (
            whole_file(index) as new_index,
            whole_file(texts) as new_texts,
            pa.OSFile(str(new_texts), "wb") as sink,
            pa.ipc.new_file(sink, TEXTS) as text_writer,
            pq.ParquetWriter(new_index, INDEX, compression="zstd") as index_writer,
        ):
            rows: list[dict[str, Any]] = []
            held = 0
            for text, row in self._kept():
                rows.append({"text": text, **row})
                held += row["bytes"]
                if held >= _BATCH_BYTES:
                    self._write(rows, text_writer, index_writer)
                    rows, held = [], 0
            self._write(rows, text_writer, index_writer)
        self.seconds["read"] = time.perf_counter() - began - sum(self.seconds.values())
        return {
            "part": self.part.to_json(),
            "source": self.source.name,
            "documents": self.documents,
            "bytes": self.bytes,
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "removed": self.removed,
            "problems": self.problems,
            "languages": dict(sorted(self.languages.items())),
            "scores": self.scores.tolist(),
            "lengths": {str(size): count for size, count in sorted(self.lengths.items())},
            "overlaps": self.overlaps,
            "content": f"sha256:{self.hash.hexdigest()}",
            "seconds": {name: round(value, 6) for name, value in sorted(self.seconds.items())},
            "seen": self.seen,
        }

    def _write(self, rows: list[dict[str, Any]], texts: Any, index: pq.ParquetWriter) -> None:
        with self._timed("write"):
            if rows:
                texts.write_batch(pa.record_batch([[row["text"] for row in rows]], schema=TEXTS))
            index.write_table(pa.Table.from_pylist(rows, schema=INDEX))

    def _kept(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            limit = int(self.steps.spec.normalize.max_document_mb * 1e6)
            for document in read_part(self.source, self.part, limit):
                self.documents += 1
                found = self._one(document)
                if found is not None:
                    yield found
        except TrainerError as error:
            if self.steps.spec.on_error == "stop":
                raise
            self.problems.append(error.message)

    @contextmanager
    def _timed(self, step: str, size: int = 0) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[step] += time.perf_counter() - began
        seen = self.seen.setdefault(step, [0, 0])
        seen[0] += 1
        seen[1] += size

    def _remove(self, step: str, reason: str, text: str, size: int, **also: Any) -> None:
        entry = self.removed.setdefault(
            f"{step}/{reason}", {"documents": 0, "bytes": 0, "samples": []}
        )
        entry["documents"] += 1
        entry["bytes"] += size
        if len(entry["samples"]) < SAMPLES:
            sample = text[:SAMPLE_CHARS].encode("utf-8", "replace").decode()
            entry["samples"].append({"text": sample, "chars": len(text), **also})

    def _pass_over(self, document: RawDocument, bad: BadText) -> None:
        """Counts what could not be read, or ends the build with it.

        Raises:
            TrainerError: The spec does not say that it may be skipped.
        """
        if self.steps.spec.on_error == "stop":
            raise bad.error()
        data = document.data or b""
        self.documents += bad.rows - 1
        self.bytes += len(data)
        self.hash.update(data + b"\0")
        shown = data[: 4 * SAMPLE_CHARS].decode("utf-8", "replace")
        for _ in range(bad.rows):
            self._remove("read", bad.reason, shown, len(data), place=document.place)
        self.problems.append(bad.message)

    def _decode(self, document: RawDocument) -> str | None:
        if document.bad is not None:
            self._pass_over(document, document.bad)
            return None
        data = document.data
        if data is None or not data.strip():
            self._remove("read", "empty", "", 0)
            return None
        size = document.size or len(data)
        self.bytes += size
        self.hash.update(data + b"\0")
        if size > self.steps.spec.normalize.max_document_mb * 1e6:
            head = data[: 4 * SAMPLE_CHARS].decode("utf-8", "replace")
            self._remove("read", "too_large", head, size, place=document.place)
            self.problems.append(
                f"{document.place}: {size / 1e6:.1f} MB in one document; "
                f"normalize.max_document_mb is {self.steps.spec.normalize.max_document_mb:g}"
            )
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.bytes -= size  # counted again as what was passed over
            self._pass_over(document, not_utf8(document.place, error.start))
            return None

    def _one(self, document: RawDocument) -> tuple[str, dict[str, Any]] | None:
        """The document as it goes on, or None when a step removed it."""
        steps, spec = self.steps, self.steps.spec
        text = self._decode(document)
        if text is None:
            return None
        size = len(document.data or b"")
        self.lengths[size.bit_length()] += 1
        if spec.normalize.enabled:
            with self._timed("normalise", size):
                text = normalise(text)
            if not text:
                self._remove("read", "empty", "", size)
                return None
        language = ""
        if steps.language is not None and self.source.filters:
            with self._timed("language", size):
                language, probability, kept = steps.language(text)
            self.languages[language] += 1
            if not kept:
                self._remove("language", language, text, size, probability=round(probability, 3))
                return None
        if self.source.filters:
            for name, rule in steps.rules:
                answer, text = self._judge(name, rule, text, size)
                if answer is not None:
                    self._remove(name, answer, text, size)
                    return None
        with self._timed("hash words", size):
            words = word_hashes(text)
        score = 0.0
        if steps.quality is not None:
            with self._timed("quality", size):
                score = float(steps.quality.probabilities(words)[-1])
            self.scores[min(_SCORE_BINS - 1, int(score * _SCORE_BINS))] += 1
            if score < spec.quality.min_score:
                self._remove("quality", "low score", text, size, score=round(score, 4))
                return None
        domain = document.domain
        if steps.domains is not None:
            with self._timed("domain", size):
                domain = steps.domains.labels[int(steps.domains.probabilities(words).argmax())]
        if steps.overlap is not None:
            with self._timed("overlap", size):
                overlap = steps.overlap.find(words)
            if overlap is not None:
                removed = overlap.matches >= spec.decontaminate.min_matches
                self.overlaps.append({**overlap._asdict(), "removed": removed})
                if removed:
                    facts = {"item": overlap.item, "matches": overlap.matches}
                    self._remove("overlap", overlap.task, text, size, **facts)
                    return None
        with self._timed("minhash", size):
            grams = shingles(words, spec.dedup.ngram) if spec.dedup.near else words[:0]
            bands = minhash.band_keys(grams).tolist() if len(grams) else []
        data = text.encode()
        digest = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype="<u8")
        order_key = int(mix(digest[:1] ^ np.uint64(spec.seed))[0])
        row = {
            "part": self.number,
            "row": self.kept,
            "source": self.source.name,
            "domain": domain,
            "language": language,
            "score": score,
            "bytes": len(data),
            "high": int(digest[0]),
            "low": int(digest[1]),
            "order_key": order_key,
            "bands": bands,
        }
        self.kept += 1
        self.kept_bytes += len(data)
        return text, row

    def _judge(self, name: str, rule: Any, text: str, size: int) -> tuple[str | None, str]:
        """Why the rule removes the text (None: it stays), and the text, which C4's rule trims."""
        from datatrove.data import Document

        document = Document(text=text, id="")
        with self._timed(name, size), np.errstate(all="ignore"):
            answer = rule(document) if text.strip() else (False, "empty")
        kept, reason = answer if isinstance(answer, tuple) else (answer, "")
        return (None if kept else reason or "removed"), document.text


def open_texts(build: Path, number: int) -> pa.Table:
    """The kept texts of a part, memory-mapped."""
    source = pa.memory_map(str(build / "parts" / f"{number:05d}.arrow"))
    return pa.ipc.open_file(source).read_all()
