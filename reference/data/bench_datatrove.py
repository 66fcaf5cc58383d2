"""datatrove's own blocks as published, to measure the steps of `data build` beside them.

As a module it runs them one after the other over a folder of parquet files, in one process:
`python -m reference.data.bench_datatrove IN OUT`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reference.data import minhash
from reference.data.filters import rules
from reference.data.spec import Dedup, Filters
from reference.data.words import shingles, word_hashes


def has_spacy() -> bool:
    """Whether datatrove's words for English can be had."""
    return find_spec("spacy") is not None


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of `work`, and its result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def speed(seconds: float, texts: Sequence[str]) -> dict[str, float]:
    size = sum(len(text.encode()) for text in texts)
    return {
        "documents_per_s": len(texts) / max(seconds, 1e-9),
        "mb_per_s": size / 1e6 / max(seconds, 1e-9),
    }


def beside_datatrove(texts: Sequence[str]) -> dict[str, Any]:
    """Rules and signatures here and by datatrove's blocks as they come."""
    if not has_spacy():
        return {"ratio": None, "reason": "datatrove's English needs spaCy: pip install spacy"}
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    texts = [text for text in texts if text.strip()][:150]
    theirs = [GopherQualityFilter(), FineWebQualityFilter(), GopherRepetitionFilter()]
    by_name = dict(rules(Filters()))
    ours = [by_name[name] for name in ("gopher_quality", "fineweb", "gopher_repetition")]

    def judge(judges: Sequence[Callable[[Any], Any]]) -> list[bool]:
        kept = []
        for text in texts:
            answers = (rule(Document(text=text, id="")) for rule in judges)
            kept.append(all(answer is True for answer in answers))
        return kept

    with np.errstate(all="ignore"):
        judge([rule.filter for rule in theirs[:1]])  # loads spaCy
        their_s, their_answers = timed(lambda: judge([rule.filter for rule in theirs]))
        our_s, our_answers = timed(lambda: judge(ours))
    with tempfile.TemporaryDirectory() as folder:
        block = MinhashDedupSignature(folder, minhash_config())

        def their_signatures() -> None:
            for text in texts:
                grams = block.get_shingles(text)
                if grams.size:
                    block.get_signature(grams)

        def our_signatures() -> None:
            for text in texts:
                grams = shingles(word_hashes(text), Dedup().ngram)
                if len(grams):
                    minhash.band_keys(grams)

        with np.errstate(over="ignore"):
            their_minhash_s, _ = timed(their_signatures)
        our_minhash_s, _ = timed(our_signatures)
    same = np.mean(np.array(their_answers) == np.array(our_answers))
    return {
        "documents": len(texts),
        "rules": {"ours": speed(our_s, texts), "datatrove": speed(their_s, texts)},
        "rules_ratio": their_s / our_s,
        "rules_agree": float(same),
        "minhash": {
            "ours": speed(our_minhash_s, texts),
            "datatrove": speed(their_minhash_s, texts),
        },
        "minhash_ratio": their_minhash_s / our_minhash_s,
    }


def run_blocks(source: Path, out: Path) -> None:
    """Reads, filters by the same rules as a build's defaults, removes near-duplicates, writes."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    config = minhash_config()
    filtered, signatures, buckets, remove = (
        str(out / name) for name in ("filtered", "signatures", "buckets", "remove")
    )
    stages: list[list[Any]] = [
        [
            ParquetReader(str(source)),
            GopherQualityFilter(),
            FineWebQualityFilter(),
            GopherRepetitionFilter(),
            ParquetWriter(filtered),
        ],
        [ParquetReader(filtered), MinhashDedupSignature(signatures, config)],
        [MinhashDedupBuckets(signatures, buckets, config=config)],
        [MinhashDedupCluster(buckets, remove, config=config)],
        [
            ParquetReader(filtered),
            MinhashDedupFilter(remove),
            ParquetWriter(str(out / "corpus"), compression="zstd"),
        ],
    ]
    for number, stage in enumerate(stages):
        tasks = config.num_buckets if isinstance(stage[0], MinhashDedupBuckets) else 1
        logs = str(out / "logs" / str(number))
        LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=logs).run()


def minhash_config() -> Any:
    """Their default: 14 bands of 8 rows; ours has 20 of 6, that is 120 hashes beside 112.

    SHA-1, because datatrove's xxhash call does not know xxhash 4; hashing is a small part.
    """
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    return MinhashConfig(hash_config=HashConfig(hash_fc="sha1", precision=64))


if __name__ == "__main__":
    with np.errstate(all="ignore"):
        run_blocks(Path(sys.argv[1]), Path(sys.argv[2]))
