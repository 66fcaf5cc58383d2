"""Which documents of the parts are in the corpus, and where: duplicates, mixture, order.

The only step that looks at all documents at once. Its result, `index.json` in the build folder, is
written last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from reference.data import index
from reference.data.document_pipeline import open_texts
from reference.data.spec import Spec
from reference.data.workers import Workers
from reference.files import whole_file, write_whole

_STEP = "finding duplicates"


def read_selection(build: Path) -> dict[str, Any]:
    """What `select` wrote: the shards' names, candidates, sampling and facts for the report."""
    return dict(json.loads((build / "index.json").read_text()))


def select(
    build: Path,
    spec: Spec,
    workers: Workers,
    memory_bytes: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Writes the order of every shard and `index.json` into `build`, unless it is done.

    Args:
        memory_bytes: For the database; beyond that it works on disk.

    Raises:
        TrainerError: No document is left, or `mix.shares` names no domain there is.
    """
    if (build / "index.json").is_file():
        return
    progress(_STEP, 0, 4)
    db = index.open_index(build, memory_bytes, max(1, workers.count))
    try:
        documents = index.read_documents(db, build, spec)
        index.remove_exact(db, spec)
        progress(_STEP, 1, 4)
        candidates = 0
        if spec.dedup.near and documents:
            candidates = index.find_candidates(db, build)
            progress(_STEP, 2, 4)
            groups = pq.read_metadata(build / "candidates.parquet").num_row_groups
            jobs = [(build, group, spec.dedup.ngram) for group in range(groups)]
            for _ in workers.run(_compare, jobs):
                pass
            progress(_STEP, 3, 4)
            index.remove_near(
                db, build, spec, documents, lambda group: np.load(_pairs(build, group))
            )
        sampling = index.choose(db, spec)
        shutil.rmtree(build / "orders", ignore_errors=True)
        names = list(index.write_orders(db, build, spec))
        facts = index.facts(db)
    finally:
        db.close()
    examples = [_example(build, *example) for example in facts.pop("examples")]
    document = {
        "shards": names,
        "candidates": candidates,
        "examples": examples,
        **sampling,
        **facts,
    }
    write_whole(build / "index.json", json.dumps(document).encode())
    progress(_STEP, 4, 4)


def _pairs(build: Path, group: int) -> Path:
    return build / "pairs" / f"{group:05d}.npy"


def _compare(build: Path, group: int, ngram: int) -> None:
    path = _pairs(build, group)
    if path.is_file():
        return
    values = index.compare_pairs(build, group, ngram)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def _example(
    build: Path, worse: str, better: str, similarity: float, *places: int
) -> dict[str, Any]:
    texts = [
        open_texts(build, part)["text"][row].as_py()[:700] for part, row in (places[:2], places[2:])
    ]
    return {"sources": [worse, better], "similarity": similarity, "texts": texts}
