"""`data diff A B`: how two corpora differ, document by document and field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from reference.data.manifest import read_manifest, whole_manifest


def diff(first: Path, second: Path) -> dict[str, Any]:
    """What changed from one corpus to the other.

    Returns:
        spec: {field: [before, after]}; sources: documents of each in both; documents: how many
        texts are shared and how many only in one; same: whether the files are equal.
    """
    before, after = read_manifest(first), read_manifest(second)
    with whole_manifest(first, second):
        return _differences(first, before, second, after)


def _differences(
    first: Path, before: dict[str, Any], second: Path, after: dict[str, Any]
) -> dict[str, Any]:
    ours, theirs = _hashes(first, before), _hashes(second, after)
    spec_a, spec_b = _flat(before["spec"]), _flat(after["spec"])
    names = sorted(set(before["sources"]) | set(after["sources"]))
    removed = sorted(set(before["removed"]) | set(after["removed"]))
    return {
        "same": before["digest"] == after["digest"],
        "digests": [before["digest"], after["digest"]],
        "spec": {
            field: [spec_a.get(field), spec_b.get(field)]
            for field in sorted(set(spec_a) | set(spec_b))
            if spec_a.get(field) != spec_b.get(field)
        },
        "documents": {
            "shared": len(np.intersect1d(ours, theirs, assume_unique=True)),
            "only_first": len(np.setdiff1d(ours, theirs, assume_unique=True)),
            "only_second": len(np.setdiff1d(theirs, ours, assume_unique=True)),
        },
        "text_bytes": [_text_bytes(before), _text_bytes(after)],
        "sources": {name: [_placed(before, name), _placed(after, name)] for name in names},
        "removed": {
            name: [_removed(before, name), _removed(after, name)]
            for name in removed
            if _removed(before, name) != _removed(after, name)
        },
    }


def _hashes(folder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Sorted 64-bit hashes of the texts of a corpus."""
    import hashlib

    found: list[int] = []
    for shard in manifest["shards"]:
        with pq.ParquetFile(folder / shard["path"]) as file:
            for batch in file.iter_batches(512, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
                    found.append(int.from_bytes(digest, "little"))
    return np.unique(np.array(found, dtype=np.uint64))


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: list[tuple[str, Any]] = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = [(item.get("name", str(index)), item) for index, item in enumerate(value)]
    else:
        return {where: value}
    found: dict[str, Any] = {}
    for key, item in items:
        found.update(_flat(item, f"{where}.{key}" if where else key))
    return found


def _text_bytes(manifest: dict[str, Any]) -> int:
    return sum(shard["text_bytes"] for shard in manifest["shards"])


def _placed(manifest: dict[str, Any], source: str) -> int:
    placed = manifest["sources"].get(source, {}).get("placed", {})
    return sum(count for count, _ in placed.values())


def _removed(manifest: dict[str, Any], name: str) -> int:
    return int(manifest["removed"].get(name, {"documents": 0})["documents"])
