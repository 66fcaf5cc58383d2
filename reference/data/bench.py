"""`bench data`: how fast each step is on one core, beside datatrove's own blocks; and whether the
steps find what they should.

Speeds are of processor time, one process, the two sides in turn, so that other work on the machine
falls on both. datatrove runs its blocks as published, with spaCy's words for English; where spaCy
is not installed that side is left out and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.data import minhash
from reference.data.bench_datatrove import beside_datatrove, has_spacy, speed, timed
from reference.data.build import Options, build_corpus
from reference.data.filters import LanguageFilter, rules
from reference.data.linear import LinearModel, auc
from reference.data.overlap import OverlapIndex, build_index
from reference.data.spec import Decontaminate, Dedup, Filters, Language, ShardRules, Source, Spec
from reference.data.words import normalise, shingles, word_hashes
from reference.errors import TrainerError
from reference.rows.reader import files_ending, open_parquet
from reference.tables import print_table

NGRAM = 5
THRESHOLD = 0.8
PAIRS = 400  # planted, of similarities between 0.5 and 1
CLEANEST, NOISIEST = "textbook", "web-raw"


def bench(texts: Path | None, core: Path | None, documents: int) -> dict[str, Any]:
    """All figures as plain JSON; those that could not be taken are None, with the reason."""
    by_source = read_sources(texts, documents) if texts else {"made up": made_texts(documents)}
    if not any(by_source.values()):
        raise TrainerError(
            "bad_input",
            f"{texts} holds no documents in parquet files",
            "Name a folder of parquet files with a column `text`, or leave --texts out.",
        )
    every = [text for source in by_source.values() for text in source]
    rng = np.random.default_rng(0)
    chosen = [every[index] for index in rng.permutation(len(every))[:documents]]
    steps = time_steps(chosen, core)
    return {
        "documents": len(chosen),
        "bytes": sum(len(text.encode()) for text in chosen),
        "steps": steps,
        "datatrove": beside_datatrove(chosen),
        "tokenizer": time_tokenizer(chosen),
        "packing": packing(chosen),
        "build": whole_build(chosen),
        "near_duplicates": planted_duplicates(every),
        "quality": quality_auc(texts) if texts else {"auc": None, "reason": "needs --texts"},
    }


def read_sources(folder: Path, documents: int) -> dict[str, list[str]]:
    """Up to `documents` texts of each source, by the column `source` or the file's name."""
    found: dict[str, list[str]] = {}
    for path in files_ending(folder, ".parquet"):
        with open_parquet(path, "text") as file:
            label = "source" in file.schema_arrow.names
            for batch in file.iter_batches(256, columns=["text", *(["source"] if label else [])]):
                names = batch.column(1).to_pylist() if label else [path.stem] * len(batch)
                for name, text in zip(names, batch.column(0).to_pylist(), strict=True):
                    kept = found.setdefault(name, [])
                    if text and len(kept) < documents:
                        kept.append(text)
    return found


def made_texts(documents: int) -> list[str]:
    """Random words with a natural skew of frequencies."""
    rng = np.random.default_rng(1)
    words = np.array(["the", "of", "and", *(f"w{index}" for index in range(5000))])
    return [
        "\n".join(
            " ".join(words[np.minimum(rng.zipf(1.3, 12) - 1, len(words) - 1)]) + "."
            for _ in range(40)
        )
        for _ in range(documents)
    ]


def _judged(rule: Callable[[Any], Any], texts: Sequence[str]) -> list[Any]:
    from datatrove.data import Document

    return [rule(Document(text=text, id="")) for text in texts]


def time_steps(texts: Sequence[str], core: Path | None) -> dict[str, dict[str, float]]:
    """Each step alone, over all texts."""
    language = LanguageFilter(Language(keep=("en",)))
    language(texts[0])  # loads its model
    word_hashes("é")
    steps: dict[str, dict[str, float]] = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        seconds, result = timed(work)
        steps[name] = speed(seconds, texts)
        return result

    clean = measure("normalise", lambda: [normalise(text) for text in texts])
    measure("language", lambda: [language(text) for text in clean])
    for name, rule in rules(Filters(c4=True)):
        measure(name, partial(_judged, rule, clean))
    words = measure("hash words", lambda: [word_hashes(text) for text in clean])
    measure(
        "minhash", lambda: [minhash.band_keys(s) for w in words if len(s := shingles(w, NGRAM))]
    )
    half = len(clean) // 2
    model = LinearModel.train(clean[:half][:200], [i % 2 for i in range(half)][:200], ["a", "b"])
    measure("quality", lambda: [model.probabilities(w) for w in words])
    if core is not None:
        with tempfile.TemporaryDirectory() as folder:
            build_index(Decontaminate(core=str(core)), Path(folder))
            index = OverlapIndex(Path(folder))
            measure("overlap", lambda: [index.find(w) for w in words])
    return steps


def time_tokenizer(texts: Sequence[str]) -> dict[str, float]:
    """Tokens/s on one core beside tiktoken's batch mode."""
    from reference.tokenizer.bpe import Tokenizer
    from reference.tokenizer.compare import measure_speed

    tokenizer = Tokenizer.train(texts[:200], 4096)
    return measure_speed(tokenizer, texts, repeats=5)


class TokenizedTexts:
    """Documents of tokens in memory, for the loader."""

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        bos = np.array([tokenizer.bos_id], dtype=np.uint32)
        self._documents = [np.concatenate([bos, ids]) for ids in tokenizer.encode_arrays(texts)]
        self.lengths = np.array([len(document) for document in self._documents])
        self.digest = "in memory"

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


def packing(texts: Sequence[str], seq_len: int = 2048) -> dict[str, float]:
    """Tokens dropped to fill rows: our loader's, and nanochat's rule on the same documents."""
    from reference.rows.packing import PackedLoader
    from reference.tokenizer.bpe import Tokenizer

    documents = TokenizedTexts(texts, Tokenizer.train(texts[:100], 2048))
    loader = PackedLoader(documents, 8, seq_len, seed=0, prefetch=False)
    while not loader.epoch:
        loader.next_batch()
    return {
        "seq_len": seq_len,
        "crop_rate": loader.crop_rate,
        "pad_rate": 0.0,  # rows are always full
        "whole_documents_crop_rate": whole_document_crop_rate(documents.lengths, seq_len),
    }


def whole_document_crop_rate(lengths: np.ndarray, seq_len: int, buffer: int = 1000) -> float:
    """Share of tokens dropped when rows take whole documents, best fit first, and the rest of a
    document that fills a row is lost: nanochat's rule."""
    waiting = [int(length) for length in lengths]
    held, waiting = sorted(waiting[:buffer]), waiting[buffer:][::-1]
    used = cropped = 0
    while held:
        space = seq_len + 1
        while space and held:
            fitting = bisect_right(held, space)
            length = held.pop(fitting - 1) if fitting else held.pop(0)
            taken = min(length, space)
            used, cropped, space = used + taken, cropped + length - taken, space - taken
            if waiting:
                insort(held, waiting.pop())
    return cropped / max(1, used + cropped)


def whole_build(texts: Sequence[str]) -> dict[str, Any]:
    """A build from parquet to shards, and datatrove's own blocks one after the other, each in a
    process of its own: speed and peak memory, the start of the process included."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        pq.write_table(pa.table({"text": list(texts)}), root / "in" / "a.parquet")
        ours = ["kit.cli.main", "data", "build", str(root / "in"), "--workers", "1"]
        found = {"ours": measure([*ours, "--out", str(root / "out")], texts)}
        if has_spacy():
            theirs = ["reference.data.bench_datatrove", str(root / "in"), str(root / "theirs")]
            found["datatrove"] = measure(theirs, texts)
    return found


def measure(module: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Speed by the processor time of `python -m module…`, and its highest resident memory.

    The memory is the kernel's own peak for the process, read until it ends: the one that `wait4`
    gives counts what this process held when it started the other.
    """
    command = [sys.executable, "-m", *module]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        errors = process.stderr
        assert errors is not None
        os.set_blocking(errors.fileno(), False)
        said = b""
        while True:
            peak = max(peak, peak_bytes(process.pid))
            said += errors.read() or b""
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TrainerError(
            "internal",
            f"{' '.join(command)} failed: {said.decode(errors='replace').strip()[-300:]}",
            "Give the command by hand.",
        )
    return {**speed(usage.ru_utime + usage.ru_stime, texts), "memory_peak_bytes": peak}


def peak_bytes(pid: int) -> int:
    """The highest resident memory of a process so far; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, ProcessLookupError):
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else 0


def planted_duplicates(texts: Sequence[str], pairs: int = PAIRS) -> dict[str, Any]:
    """Recall and precision of near-duplicate removal on pairs of known similarity.

    Each pair is a text and a copy with some words replaced; the truth is the exact Jaccard
    similarity of their word 5-grams.
    """
    rng = np.random.default_rng(7)
    spare = [f"planted{index}" for index in range(1000)]
    originals, copies, truth = [], [], []
    pool = [text.split() for text in texts]
    long = [words[:400] for words in pool if len(words) >= 80]
    for index in range(min(pairs, len(long))):
        # A unique mark keeps originals apart; the pairs alone are similar.
        words = [
            f"mark{index}word{place}" if place % 11 == 0 else word
            for place, word in enumerate(long[index])
        ]
        share = float(rng.uniform(0.0, 0.05))
        changed = [
            spare[int(rng.integers(len(spare)))] if rng.random() < share else word for word in words
        ]
        changed[len(changed) // 2] = spare[index % len(spare)]  # no copy is equal
        first, second = " ".join(words), " ".join(changed)
        originals.append(first)
        copies.append(second)
        grams = [shingles(word_hashes(text), NGRAM) for text in (first, second)]
        truth.append(minhash.jaccard(*grams))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        pq.write_table(pa.table({"text": originals + copies}), root / "in" / "a.parquet")
        off = Filters(gopher_quality=False, gopher_repetition=False, fineweb=False)
        spec = Spec(
            source=(Source(name="a", path=str(root / "in")),),
            filters=off,
            dedup=Dedup(jaccard=THRESHOLD, ngram=NGRAM, exact=False),
            shards=ShardRules(validation=0.0),
        )
        build_corpus(spec, root / "out", Options(workers=1))
        kept = {
            text
            for path in (root / "out").glob("*.parquet")
            for text in pq.read_table(path)["text"].to_pylist()
        }
    similar = np.array(truth) >= THRESHOLD
    removed = np.array([copy not in kept for copy in copies])
    found = int((similar & removed).sum())
    return {
        "pairs": len(truth),
        "similar": int(similar.sum()),
        "removed": int(removed.sum()),
        "recall": found / max(1, int(similar.sum())),
        "precision": found / max(1, int(removed.sum())),
    }


def quality_auc(texts: Path, examples: int = 600) -> dict[str, Any]:
    """The score between held-out parts of the cleanest and the noisiest source."""
    by_source = read_sources(texts, examples)
    if not {CLEANEST, NOISIEST} <= set(by_source):
        return {"auc": None, "reason": f"needs sources {CLEANEST} and {NOISIEST}"}
    learnt, held = {}, {}
    for name in (NOISIEST, CLEANEST):
        half = len(by_source[name]) // 2
        learnt[name], held[name] = by_source[name][:half], by_source[name][half:]
    seconds, model = timed(
        lambda: LinearModel.train(
            [text for items in learnt.values() for text in items],
            [number for number, items in enumerate(learnt.values()) for _ in items],
            list(learnt),
        )
    )
    scores = {
        name: np.array([model.probabilities(word_hashes(text))[1] for text in items])
        for name, items in held.items()
    }
    return {
        "auc": auc(scores[CLEANEST], scores[NOISIEST]),
        "held_out": sum(len(items) for items in held.values()),
        "training_s": seconds,
    }


def print_tables(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    rows = {**found["steps"], "whole build": found["build"]["ours"]}
    if "datatrove" in found["build"]:
        rows["datatrove's blocks, whole"] = found["build"]["datatrove"]
    print_table(
        f"one core, {found['documents']} documents",
        ("step", "documents/s", "MB/s"),
        [
            (name, f"{entry['documents_per_s']:,.0f}", f"{entry['mb_per_s']:.1f}")
            for name, entry in rows.items()
        ],
    )
    theirs = found["datatrove"]
    if "rules" in theirs:
        console.print(
            f"beside datatrove's blocks ({theirs['documents']} documents): rules "
            f"{theirs['rules_ratio']:.1f}x as fast ({theirs['rules']['ours']['mb_per_s']:.2f} and "
            f"{theirs['rules']['datatrove']['mb_per_s']:.2f} MB/s), the same verdict on "
            f"{theirs['rules_agree']:.1%}; MinHash {theirs['minhash_ratio']:.1f}x "
            f"({theirs['minhash']['ours']['mb_per_s']:.2f} and "
            f"{theirs['minhash']['datatrove']['mb_per_s']:.2f} MB/s)"
        )
    else:
        console.print(f"beside datatrove: not measured ({theirs['reason']})")
    tokens = found["tokenizer"]
    console.print(
        f"tokenizer: {tokens['tokens_per_s']:,.0f} tokens/s a core, "
        f"{tokens['speed_beside_tiktoken']:.2f}x tiktoken's batch mode "
        f"(as arrays {tokens['arrays_beside_tiktoken']:.2f}x)"
    )
    rows = found["packing"]
    console.print(
        f"packing at {rows['seq_len']} tokens: {rows['crop_rate']:.1%} cropped, "
        f"{rows['pad_rate']:.1%} padded; {rows['whole_documents_crop_rate']:.1%} cropped by "
        "nanochat's rule"
    )
    near = found["near_duplicates"]
    console.print(
        f"near-duplicates, {near['pairs']} planted pairs, {near['similar']} at Jaccard 0.8 or "
        f"more: recall {near['recall']:.3f}, precision {near['precision']:.3f}"
    )
    quality = found["quality"]
    if quality["auc"] is None:
        console.print(f"quality score: not measured ({quality['reason']})")
    else:
        console.print(
            f"quality score: AUC {quality['auc']:.4f} on {quality['held_out']} held-out documents "
            f"of {CLEANEST} and {NOISIEST}, learnt in {quality['training_s']:.1f} s"
        )
    peaks = [
        f"{name} {entry['memory_peak_bytes'] / 2**20:,.0f} MiB"
        for name, entry in found["build"].items()
    ]
    console.print(f"peak memory of the whole build: {', '.join(peaks)}")
