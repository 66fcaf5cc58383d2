"""Text of several repositories as parquet files, each thinned to its share (`kit.text_mix`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kit.errors import PrerequisiteError, SchemaError
from kit.files import whole_file
from kit.prepare.conversion import Converted
from kit.text_mix import TextSource

_BATCH_ROWS = 1000
_GROUP_ROWS = 10_000  # of the file written


def text_bytes(path: Path, column: str) -> int:
    """UTF-8 bytes of a column of a parquet file."""
    import pyarrow.compute as pc

    return sum(pc.sum(pc.binary_length(texts)).as_py() or 0 for texts in _texts(path, column))


def write_text(
    source: TextSource,
    first: Callable[[], tuple[float, int]] | None,
    column: str,
    files: Sequence[Path],
    target: Path,
) -> Converted:
    """Writes `target` with the text of `files`, thinned to the source's share.

    Args:
        first: (share, text bytes) of the first source of the part; None: this is the first one,
            which is taken whole.
        column: Name of the text column of `target`.

    Raises:
        PrerequisiteError: The files hold less text than the share takes.
        SchemaError: One cannot be read as parquet with that column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    keep = 1.0
    if first is not None:
        share, size = first()
        wanted = size * source.share / share
        there = sum(text_bytes(path, source.column) for path in files)
        if there < wanted * (1 - 1e-3):
            shards = -(-source.shards * wanted // max(1, there))
            raise PrerequisiteError(
                f"{source.repository}: {source.shards} files hold {there / 1e9:.3f} GB of text, a "
                f"share of {source.share:g} takes {wanted / 1e9:.3f} GB",
                hint=f"Set its shards to about {shards:.0f}, or lower its share.",
            )
        keep = min(1.0, wanted / max(1, there))
    schema = pa.schema([(column, pa.large_string())])
    seen = rows = 0
    group: list[Any] = []
    with (
        whole_file(target) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for path in files:
            for texts in _texts(path, source.column):
                # Row i is kept where i * keep passes a whole number: evenly, and without a seed.
                chosen = [
                    n
                    for n in range(len(texts))
                    if int((seen + n + 1) * keep) > int((seen + n) * keep)
                ]
                seen += len(texts)
                texts = texts.take(pa.array(chosen, pa.int64()))
                rows += len(texts)
                group.append(texts)
                if sum(map(len, group)) >= _GROUP_ROWS:
                    writer.write_table(pa.table([pa.chunked_array(group)], schema=schema))
                    group = []
        if group:
            writer.write_table(pa.table([pa.chunked_array(group)], schema=schema))
    return Converted(rows, {"rows left out to keep the share": seen - rows} if seen > rows else {})


def _texts(path: Path, column: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names.count(column) != 1:
                raise SchemaError(
                    f"{path.name} has not one column {column!r}; it has "
                    + ", ".join(file.schema_arrow.names),
                    hint="Name the column that holds the text: `column` of the source.",
                )
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[column]):
                yield batch.column(0).cast(pa.large_string())  # views and dictionaries too
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(
            f"{path.name} cannot be read as parquet: {str(error).splitlines()[0]}",
            hint="Remove that file and run the command again.",
        ) from error
