"""One output shard: rows gathered from the parts in the order the index gave."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.data.document_pipeline import open_texts
from reference.files import whole_file

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("score", pa.float32()),
    ]
)
_GROUP_ROWS = 1000
_GROUP_BYTES = 16_000_000


def write_shard(build: Path, name: str) -> dict[str, Any]:
    """Writes `build/shards/NAME.parquet`, whole or not at all; its facts for the manifest."""
    order = pq.read_table(build / "orders" / f"{name}.parquet")
    parts, rows = (order[column].to_numpy() for column in ("part", "row"))
    texts: list[str | None] = [None] * len(order)
    for part in np.unique(parts):
        places = np.flatnonzero(parts == part)
        places = places[np.argsort(rows[places], kind="stable")]  # the file in its own order
        column = open_texts(build, int(part))["text"]
        for place in places:
            texts[place] = column[int(rows[place])].as_py()

    folder = build / "shards"
    final = folder / f"{name}.parquet"
    content = hashlib.sha256()
    size = 0
    with (
        whole_file(final) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        for begin, end in _groups([len(text or "") for text in texts]):
            group = texts[begin:end]
            for text in group:
                data = (text or "").encode()
                content.update(data + b"\0")
                size += len(data)
            columns = [pa.array(group, pa.large_string())]
            columns += [
                order[field.name][begin:end].combine_chunks().cast(field.type)
                for field in list(SCHEMA)[1:]
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=1 << 30)
    with final.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "path": final.name,
        "split": name.rpartition("-")[0],
        "rows": len(order),
        "text_bytes": size,
        "bytes": final.stat().st_size,
        "sha256": f"sha256:{digest}",
        "content": f"sha256:{content.hexdigest()}",
    }


def _groups(lengths: list[int]) -> list[tuple[int, int]]:
    """Row groups of at most 1000 documents and about 16 MB."""
    found, begin, held = [], 0, 0
    for index, length in enumerate(lengths):
        if index > begin and (index - begin == _GROUP_ROWS or held + length > _GROUP_BYTES):
            found.append((begin, index))
            begin, held = index, 0
        held += length
    return [*found, (begin, len(lengths))] if lengths else []
