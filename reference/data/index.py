"""What needs a view of all documents: duplicates, the mixture, and which shard a document goes to.

DuckDB does the sorting and grouping within a memory limit and on disk beyond it. Texts never enter
it: a document is about 250 bytes here, most of them its MinHash bands. Every query orders by keys
that are unique, so the answer does not depend on threads.

Near-duplicates: two documents that share a band are compared by their exact sets of word n-grams.
Documents are then taken in order of preference; one is removed if it is similar enough to one that
stays. So every removed document has a kept twin, and chains of small changes do not eat each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reference.data.document_pipeline import open_texts
from reference.data.minhash import jaccard
from reference.data.spec import Spec
from reference.data.words import shingles, word_hashes
from reference.errors import TrainerError

PAIRS_A_JOB = 4000
_CACHED_BYTES = 64 << 20  # of n-grams that a job keeps
_FOUND = 100_000  # pairs held before they go to the database
_LEADERS = 3  # of a band's members, compared with all others


def open_index(build: Path, memory_bytes: int, threads: int) -> duckdb.DuckDBPyConnection:
    """An empty database in the build folder, limited in memory and threads."""
    path = build / "index.duckdb"
    path.unlink(missing_ok=True)
    connection = duckdb.connect(str(path))
    connection.execute(f"SET memory_limit = '{max(128, memory_bytes >> 20)}MiB'")
    connection.execute(f"SET threads = {threads}")
    connection.execute(f"SET temp_directory = '{build / 'spill'}'")
    connection.execute("SET preserve_insertion_order = false")
    return connection


def read_documents(db: duckdb.DuckDBPyConnection, build: Path, spec: Spec) -> int:
    """Table `docs`, numbered by preference (`rank`); returns how many there are."""
    preference = "score DESC, part, row" if spec.dedup.keep == "best" else "part, row"
    files = str(build / "parts" / "*.index.parquet")
    db.execute(
        "CREATE TABLE docs AS SELECT row_number() OVER (ORDER BY "
        f"{preference}) - 1 AS rank, * EXCLUDE (bands) FROM read_parquet(?)",
        [files],
    )
    return _number(db, "SELECT count(*) FROM docs")


def remove_exact(db: duckdb.DuckDBPyConnection, spec: Spec) -> int:
    """Table `gone` with all but the preferred of equal texts; returns how many."""
    db.execute("CREATE TABLE gone (rank BIGINT, twin BIGINT, similarity FLOAT, why VARCHAR)")
    if spec.dedup.exact:
        db.execute(
            "INSERT INTO gone SELECT rank, twin, 1.0, 'exact' FROM (SELECT rank, "
            "min(rank) OVER (PARTITION BY high, low) AS twin FROM docs) WHERE rank > twin"
        )
    return _number(db, "SELECT count(*) FROM gone")


def find_candidates(db: duckdb.DuckDBPyConnection, build: Path) -> int:
    """Writes pairs that share a band to candidates.parquet; returns how many."""
    db.execute(
        "CREATE TEMP TABLE keys AS SELECT unnest(bands) AS key, rank "
        "FROM read_parquet(?) JOIN docs USING (part, row) "
        "WHERE rank NOT IN (SELECT rank FROM gone)",
        [str(build / "parts" / "*.index.parquet")],
    )
    db.execute(
        "CREATE TEMP TABLE members AS SELECT key, rank, "
        "row_number() OVER (PARTITION BY key ORDER BY rank) AS place FROM keys "
        "SEMI JOIN (SELECT key FROM keys GROUP BY key HAVING count(*) > 1) USING (key)"
    )
    target = build / "candidates.parquet"
    db.execute(
        "COPY (SELECT DISTINCT b.rank AS worse, a.rank AS better, x.part AS part_a, x.row AS row_a,"
        " y.part AS part_b, y.row AS row_b FROM members a JOIN members b "
        f"ON a.key = b.key AND a.place < b.place AND (a.place <= {_LEADERS} "
        "OR a.place = b.place - 1) JOIN docs x ON x.rank = b.rank JOIN docs y ON y.rank = a.rank "
        f"ORDER BY worse, better) TO '{target}' (FORMAT parquet, ROW_GROUP_SIZE {PAIRS_A_JOB})"
    )
    db.execute("DROP TABLE keys")
    db.execute("DROP TABLE members")
    return int(pq.read_metadata(target).num_rows)


def compare_pairs(build: Path, group: int, ngram: int) -> np.ndarray:
    """(N,) float32, the exact Jaccard similarity of the pairs in one row group of candidates."""
    with pq.ParquetFile(build / "candidates.parquet") as file:
        table = file.read_row_group(group).to_pydict()
    texts: dict[int, pa.ChunkedArray] = {}
    known: dict[tuple[int, int], np.ndarray] = {}
    held = 0

    def grams(part: int, row: int) -> np.ndarray:
        nonlocal held
        if (part, row) not in known:
            if part not in texts:
                texts[part] = open_texts(build, part)["text"]
            if held >= _CACHED_BYTES:
                known.clear()
                held = 0
            known[part, row] = shingles(word_hashes(texts[part][row].as_py()), ngram)
            held += known[part, row].nbytes
        return known[part, row]

    columns = (table["part_a"], table["row_a"], table["part_b"], table["row_b"])
    pairs = zip(*columns, strict=True)
    return np.array([jaccard(grams(a, r), grams(b, s)) for a, r, b, s in pairs], dtype=np.float32)


def remove_near(
    db: duckdb.DuckDBPyConnection,
    build: Path,
    spec: Spec,
    documents: int,
    similarities: Callable[[int], np.ndarray],
) -> int:
    """Adds near-duplicates to `gone`; returns how many.

    Args:
        similarities: Row group of the candidates -> what `compare_pairs` gave.
    """
    # One byte a document on disk, so that memory does not grow with their number.
    path = build / "removed.npy"
    removed = np.lib.format.open_memmap(path, mode="w+", dtype=bool, shape=(documents,))
    found: list[tuple[int, int, float]] = []
    count = 0
    with pq.ParquetFile(build / "candidates.parquet") as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["worse", "better"])
            worse, better = (table[name].to_numpy() for name in ("worse", "better"))
            values = similarities(group)
            for index in np.flatnonzero(values >= spec.dedup.jaccard):
                first, second = int(better[index]), int(worse[index])
                if not removed[second] and not removed[first]:
                    removed[second] = True
                    found.append((second, first, float(values[index])))
            if found and (len(found) >= _FOUND or group == file.num_row_groups - 1):
                _add_near(db, found)
                count += len(found)
                found = []
    del removed
    path.unlink()
    return count


def _add_near(db: duckdb.DuckDBPyConnection, found: list[tuple[int, int, float]]) -> None:
    ranks, twins, values = (list(column) for column in zip(*found, strict=True))
    db.register("found", pa.table({"rank": ranks, "twin": twins, "similarity": values}))
    db.execute("INSERT INTO gone SELECT rank, twin, similarity, 'near' FROM found")
    db.unregister("found")


def choose(db: duckdb.DuckDBPyConnection, spec: Spec) -> dict[str, Any]:
    """Table `chosen`: every document of the corpus with its split and its place in it.

    Returns:
        Text bytes by domain before and after, and the rate each domain was sampled at.

    Raises:
        TrainerError: No document is left, or `mix.shares` names no domain there is.
    """
    db.execute(
        "CREATE TABLE left_over AS SELECT d.* FROM docs d ANTI JOIN gone g ON d.rank = g.rank"
    )
    total = _number(db, "SELECT count(*) FROM left_over")
    if not total:
        raise TrainerError(
            "bad_input",
            "no document is left: the steps removed all of them",
            "Look at what each removed (`removed` in .build/parts/*.json) and relax the spec.",
        )
    wanted = [name for name, share in spec.mix.shares.items() if share > 0]
    db.execute("CREATE TABLE wanted (domain VARCHAR)")
    if wanted:
        db.executemany("INSERT INTO wanted VALUES (?)", [[name] for name in wanted])
        eligible = "left_over SEMI JOIN wanted USING (domain)"
    else:
        eligible = "left_over"
    db.execute(f"CREATE VIEW eligible AS SELECT left_over.* FROM {eligible}")
    # Two halves of the text's digest are two independent random numbers; the order key is a third.
    limit = spec.shards.validation * 2.0**64
    db.execute(
        "CREATE TABLE held AS SELECT rank FROM eligible WHERE low < ? "
        "UNION SELECT rank FROM (SELECT rank FROM eligible ORDER BY low, rank LIMIT 1) "
        "WHERE ? > 0",
        [limit, limit],
    )
    if wanted:  # a domain of which all was held out has to give the mixture something
        db.execute(
            "DELETE FROM held WHERE rank IN (SELECT rank FROM eligible WHERE domain NOT IN "
            "(SELECT domain FROM eligible ANTI JOIN held USING (rank)))"
        )
    if _number(db, "SELECT count(*) FROM eligible ANTI JOIN held USING (rank)"):
        db.execute("CREATE VIEW pool AS SELECT * FROM left_over ANTI JOIN held USING (rank)")
    else:  # nothing but held-out documents: the corpus is for training first
        db.execute("DELETE FROM held")
        db.execute("CREATE VIEW pool AS SELECT * FROM left_over")
    available = dict(_rows(db, "SELECT domain, sum(bytes)::BIGINT FROM pool GROUP BY 1 ORDER BY 1"))
    rates = sampling_rates(available, spec)
    db.execute("CREATE TABLE rates (domain VARCHAR, rate DOUBLE)")
    db.executemany("INSERT INTO rates VALUES (?, ?)", list(rates.items()))
    db.execute(
        "CREATE TABLE mixed AS SELECT p.*, (floor(rate) + CASE WHEN high < (rate - floor(rate)) * "
        "18446744073709551616.0 THEN 1 ELSE 0 END)::INT AS copies FROM pool p JOIN rates "
        "USING (domain)"
    )
    db.execute("DELETE FROM mixed WHERE copies = 0")
    _choose_anneal(db, spec)
    db.execute(
        "CREATE TABLE chosen AS "
        "SELECT 'validation' AS split, 0 AS copy, rank FROM held "
        "UNION ALL SELECT 'anneal', 0, rank FROM annealed "
        "UNION ALL SELECT 'train', unnest(range(copies - (rank IN (SELECT rank FROM annealed))"
        "::INT)), rank FROM mixed"
    )
    return {"available_bytes": available, "rates": rates}


def sampling_rates(available: dict[str, int], spec: Spec) -> dict[str, float]:
    """How many times each domain's documents stand in the corpus, on average.

    As much text as `max_epochs` of the scarcest domain and `max_mb` allow, in the wanted shares.
    """
    mix = spec.mix
    shares = {name: share for name, share in mix.shares.items() if share > 0}
    epochs = mix.max_epochs or 1.0
    if not shares:
        size = sum(available.values())
        rate = min(epochs, mix.max_mb * 1e6 / size) if mix.max_mb else epochs
        return dict.fromkeys(available, rate)
    missing = sorted(set(shares) - set(available))
    if missing:
        raise TrainerError(
            "bad_input",
            f"mix.shares names {', '.join(map(repr, missing))}, but the domains are "
            f"{', '.join(map(repr, available))}",
            "Correct the names, or the sources' `domain`.",
        )
    weight = sum(shares.values())
    total = min(available[name] * epochs * weight / share for name, share in shares.items())
    if mix.max_mb:
        total = min(total, mix.max_mb * 1e6)
    return {name: share / weight * total / available[name] for name, share in shares.items()}


def _choose_anneal(db: duckdb.DuckDBPyConnection, spec: Spec) -> None:
    """Table `annealed`: the best documents by score, up to each domain's part."""
    db.execute("CREATE TABLE annealed (rank BIGINT)")
    rules = spec.anneal
    if not rules.fraction:
        return
    total = _number(db, "SELECT coalesce(sum(bytes * copies), 0)::BIGINT FROM mixed")
    shares = rules.shares
    for domain, share in (shares or {"": 1.0}).items():
        wanted = rules.fraction * total * share / (sum(shares.values()) or 1.0)
        where = "WHERE domain = ?" if shares else "WHERE ? = ''"
        db.execute(
            "INSERT INTO annealed SELECT rank FROM (SELECT rank, sum(bytes) OVER (ORDER BY "
            f"score DESC, order_key, rank) - bytes AS before FROM mixed {where}) WHERE before < ?",
            [domain, wanted],
        )


def write_orders(db: duckdb.DuckDBPyConnection, build: Path, spec: Spec) -> Iterator[str]:
    """Writes one file a shard that says which rows it holds, in order; yields the shards' names."""
    folder = build / "orders"
    folder.mkdir(exist_ok=True)
    size = int(spec.shards.text_mb * 1e6)
    db.execute(
        "CREATE TABLE placed AS SELECT split, part, row, source, domain, language, score, bytes, "
        "key, copy, ((sum(bytes) OVER (PARTITION BY split ORDER BY key, rank, copy) - bytes) // "
        f"{size})::INT AS shard FROM (SELECT c.split, c.copy, d.*, (d.order_key::HUGEINT + c.copy "
        "* 11400714819323198485) % 18446744073709551616 AS key FROM chosen c JOIN docs d "
        "USING (rank))"
    )
    for split, shard in _rows(db, "SELECT DISTINCT split, shard FROM placed ORDER BY 1, 2"):
        name = f"{split}-{shard:05d}"
        rows = db.sql(
            "SELECT part, row, source, domain, language, score FROM placed "
            "WHERE split = ? AND shard = ? ORDER BY key, part, row, copy",
            params=[split, shard],
        ).to_arrow_table()
        pq.write_table(rows, folder / f"{name}.parquet")
        yield name


def facts(db: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Counts for the report: by source and reason, by split and domain, sizes of duplicates."""
    by_source = _rows(
        db,
        "SELECT source, why, count(*), sum(bytes)::BIGINT FROM gone JOIN docs USING (rank) "
        "GROUP BY 1, 2 ORDER BY 1, 2",
    )
    by_split = _rows(
        db,
        "SELECT split, source, domain, count(*), sum(bytes)::BIGINT FROM placed "
        "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )
    similarity = _rows(
        db,
        "SELECT floor(similarity * 50)::INT, count(*) FROM gone WHERE why = 'near' "
        "GROUP BY 1 ORDER BY 1",
    )
    examples = _rows(
        db,
        "SELECT w.source, b.source, similarity, w.part, w.row, b.part, b.row FROM gone g "
        "JOIN docs w ON w.rank = g.rank JOIN docs b ON b.rank = g.twin "
        "WHERE why = 'near' ORDER BY w.order_key, g.rank LIMIT 8",
    )
    left_out = _rows(
        db,
        "SELECT source, CASE WHEN domain IN (SELECT domain FROM rates) THEN 'rate' ELSE 'domain' "
        "END, count(*), sum(bytes)::BIGINT FROM left_over ANTI JOIN chosen USING (rank) "
        "GROUP BY 1, 2 ORDER BY 1, 2",
    )
    distinct = _rows(
        db,
        "SELECT source, count(DISTINCT rank) FROM chosen JOIN docs USING (rank) "
        "GROUP BY 1 ORDER BY 1",
    )
    return {
        "left_out": [list(row) for row in left_out],
        "distinct": dict(distinct),
        "duplicates": [list(row) for row in by_source],
        "placed": [list(row) for row in by_split],
        "similarity": {str(bin_): count for bin_, count in similarity},
        "examples": [list(row) for row in examples],
    }


def _rows(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return list(db.execute(query).fetchall())


def _number(db: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(_rows(db, query)[0][0])
