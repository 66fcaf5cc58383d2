"""Every document read is in a split of the corpus, or in a count with its reason."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("datatrove")

from reference.data.build import Options, build_corpus
from reference.data.counters import Counters
from reference.data.report import write_report
from reference.data.spec import load_spec
from reference.errors import TrainerError

TEXTS = [
    f"Document {i} tells of river {i * 7} and of mill {i * 13} in its own words."
    for i in range(120)
]
SPECS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "unique_domains": ({"host": [f"site{i}" for i in range(120)]}, ""),
    "unique_domains_capped": (
        {"host": [f"site{i}" for i in range(120)]},
        "[mix]\nmax_mb = 0.004\n",
    ),
    "null_domains": ({"host": [None, "a"] * 60}, ""),
    "number_domains": ({"host": list(range(120))}, ""),
    "shares": (
        {"host": ["a", "b", "c"] * 40},
        "[mix]\nshares = { a = 1.0, b = 3.0 }\n",
    ),
    "a_share_of_one_document": (
        {"host": ["rare", *["b"] * 119]},
        "[mix]\nshares = { rare = 0.01, b = 0.99 }\n",
    ),
    "repeats": (
        {"host": ["a", "b"] * 60},
        "[mix]\nshares = { a = 0.9, b = 0.1 }\nmax_epochs = 3\n",
    ),
    "anneal": ({"host": ["a", "b"] * 60}, "[anneal]\nfraction = 0.2\n"),
    "all_held_out": ({"host": ["a"] * 120}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_no_document_is_lost(name: str, tmp_path: Path) -> None:
    columns, rules = SPECS[name]
    (tmp_path / "in").mkdir()
    texts = [*TEXTS[:-4], TEXTS[0], "", None, "  "]
    pq.write_table(pa.table({"text": texts, **columns}), tmp_path / "in/a.parquet")
    share = 1.0 if name == "all_held_out" else 0.1
    (tmp_path / "s.toml").write_text(
        'name = "t"\n[[source]]\nname = "s"\npath = "in"\ndomain_column = "host"\nfilters = false\n'
        f"[dedup]\nnear = false\n[shards]\nvalidation = {share}\n{rules}"
    )
    manifest = build_corpus(load_spec(tmp_path / "s.toml"), tmp_path / "out", Options(workers=1))
    [source] = manifest["sources"].values()
    removed, left = sum(source["removed"].values()), sum(source.get("left_out", {}).values())
    assert source["documents"] == 120 == removed + left + source["distinct"]
    assert removed == 4, "three empty ones and a copy"
    written = [
        text
        for path in (tmp_path / "out").glob("*.parquet")
        for text in pq.read_table(path)["text"].to_pylist()
    ]
    assert len(set(written)) == source["distinct"]
    held = source["placed"].get("validation", [0, 0])[0]
    if name == "all_held_out":
        assert manifest["problems"] == ["no document is held out for validation: there are too few"]
    else:
        assert held >= 1
    if name == "unique_domains":
        assert left == 0
    if name == "shares":
        assert set(source["left_out"]) <= {"domain", "rate"} and source["left_out"]["domain"] >= 30
    write_report(tmp_path / "out", tmp_path / "report.html", None)


def test_a_sum_that_does_not_hold_ends_the_build() -> None:
    totals = Counters()
    totals.add(
        {
            "kept": 3, "part": {"file": "a", "begin": 0, "end": 0}, "source": "s", "documents": 5,
            "bytes": 9, "removed": {"read/empty": {"documents": 1, "bytes": 0, "samples": []}},
            "problems": [], "overlaps": [], "seconds": {}, "seen": {}, "languages": {},
            "lengths": {}, "scores": [], "content": "",
        }
    )  # fmt: skip
    facts: dict[str, Any] = {"duplicates": [], "left_out": [], "placed": [], "distinct": {"s": 3}}
    with pytest.raises(TrainerError, match="5 documents were read, 1 removed"):
        totals.sources(facts)
    assert totals.sources({**facts, "distinct": {"s": 4}})["s"]["distinct"] == 4
