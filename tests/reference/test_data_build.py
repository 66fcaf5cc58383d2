"""Building a corpus: same bytes however it is built, resumes, says what is wrong, loses nothing."""

import gzip
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("duckdb")
pytest.importorskip("datatrove")

from reference.data import build as build_module
from reference.data.build import Options, build_corpus
from reference.data.manifest import corpus_digest, read_manifest
from reference.data.spec import Spec, load_spec
from reference.data.workers import open_workers
from reference.errors import TrainerError

SENTENCE = (
    "the be to of and that have with river stone music engine garden paper winter window letter "
    "village school doctor market bridge forest silver morning"
)
WORDS = list(SENTENCE.split())


def made_text(seed: int, words: int = 120) -> str:
    """Sentences nobody has written, good enough for the rules."""
    rng = np.random.default_rng(seed)
    lines = []
    while words > 0:
        length = int(rng.integers(8, 16))
        chosen = [
            f"{WORDS[i]}{rng.integers(0, 40)}" if i > 14 else WORDS[i]
            for i in rng.integers(0, len(WORDS), length)
        ]
        lines.append(" ".join(chosen).capitalize() + ".")
        words -= length
    return "\n".join(lines)


def write_parquet(path: Path, texts: list, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=20)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write_parquet(folder / "a.parquet", [made_text(i) for i in range(60)])
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        for i in range(60, 90):
            file.write(json.dumps({"text": made_text(i)}) + "\n")
    import zstandard

    lines = "".join(json.dumps({"text": made_text(i)}) + "\n" for i in range(90, 100))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (folder / "d.txt").write_text(made_text(100))
    return folder


def spec_of(folder: Path, text: str = "", source: str = "") -> Spec:
    path = folder / "spec.toml"
    path.write_text(
        f'name = "t"\npart_mb = 0.02\n[[source]]\nname = "s"\npath = "in"\n{source}\n'
        f"[shards]\ntext_mb = 0.03\nvalidation = 0.1\n{text}"
    )
    return load_spec(path)


ONE = Options(workers=1)


def texts_of(folder: Path, pattern: str = "*.parquet") -> list[str]:
    return [t for p in sorted(folder.glob(pattern)) for t in pq.read_table(p)["text"].to_pylist()]


def test_the_corpus_holds_each_document_once_and_is_the_same_for_any_number_of_workers(
    tmp_path: Path, inputs: Path
) -> None:
    spec = spec_of(tmp_path)
    one = build_corpus(spec, tmp_path / "one", ONE)
    two = build_corpus(spec, tmp_path / "two", Options(workers=2))
    assert one["digest"] == two["digest"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "one").glob("*.parquet")} == {
        p.name: p.read_bytes() for p in (tmp_path / "two").glob("*.parquet")
    }
    assert sorted(texts_of(tmp_path / "one")) == sorted(made_text(i) for i in range(101))
    assert texts_of(tmp_path / "one", "train-*") != sorted(texts_of(tmp_path / "one", "train-*"))
    assert len(list((tmp_path / "one").glob("train-*"))) > 1
    assert not (tmp_path / "one" / ".build").exists()


def test_a_stopped_build_goes_on_at_the_last_finished_part(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path)
    whole = build_corpus(spec, tmp_path / "whole", ONE)
    real, done = build_module.process_part, []

    def stops_at_third(*job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job[1])
        return real(*job)

    monkeypatch.setattr(build_module, "process_part", stops_at_third)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(spec, tmp_path / "cut", ONE)
    assert not list((tmp_path / "cut").glob("*.parquet"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut/.build/parts").glob("*.json")}
    assert len(before) == 3
    monkeypatch.setattr(build_module, "process_part", real)
    resumed = build_corpus(spec, tmp_path / "cut", Options(workers=1, keep_work=True))
    assert resumed["digest"] == whole["digest"]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def test_equal_and_similar_documents_stay_once(tmp_path: Path) -> None:
    base = [made_text(i) for i in range(20)]
    similar = [text + " And one more." for text in base[:5]]
    write_parquet(tmp_path / "in/a.parquet", base + base[:7] + similar)
    manifest = build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    removed = manifest["sources"]["s"]["removed"]
    assert removed == {"exact duplicate": 7, "near duplicate": 5}
    assert len(texts_of(tmp_path / "out")) == 20


def test_a_corpus_of_one_text_repeated_becomes_one_document(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/a.parquet", [made_text(1)] * 50)
    build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    assert texts_of(tmp_path / "out") == [made_text(1)]


def test_shares_and_anneal_part(tmp_path: Path) -> None:
    texts = [made_text(i) for i in range(120)]
    write_parquet(tmp_path / "in/a.parquet", texts, d=["x"] * 100 + ["y"] * 20)
    text = "[mix]\nshares = {x = 0.5, y = 0.5}\nmax_epochs = 2\n[anneal]\nfraction = 0.2\n"
    manifest = build_corpus(spec_of(tmp_path, text, 'domain_column = "d"'), tmp_path / "out", ONE)
    size = {"x": 0, "y": 0}
    for split, _, domain, _, count in manifest["placed"]:
        size[domain] += count if split != "validation" else 0
    assert 0.8 < size["x"] / size["y"] < 1.25
    counts = [
        texts_of(tmp_path / "out", f"{split}-*") for split in ("train", "anneal", "validation")
    ]
    train, anneal, validation = counts
    assert 0.12 < sum(map(len, anneal)) / sum(map(len, train + anneal)) < 0.28
    assert not set(validation) & set(train + anneal)
    assert max(train.count(text) + anneal.count(text) for text in texts) <= 2


def test_overlap_with_an_evaluation_set_is_removed_and_reported(tmp_path: Path) -> None:
    question = " ".join(f"q{i}" for i in range(20))
    write_parquet(
        tmp_path / "in/a.parquet", [made_text(i) for i in range(30)] + [made_text(50) + question]
    )
    (tmp_path / "exam.jsonl").write_text(
        json.dumps({"question": question}) + "\n" + json.dumps({"question": "too short"}) + "\n"
    )
    spec = spec_of(tmp_path, '[decontaminate]\nextra = ["exam.jsonl"]\n')
    manifest = build_corpus(spec, tmp_path / "out", ONE)
    assert manifest["overlaps"] == {"exam": {"documents": 1, "removed": 1, "items": 1}}
    assert manifest["models"]["benchmarks"][0]["unchecked"] == 1
    sample = manifest["removed"]["overlap/exam"]["samples"][0]
    assert (sample["item"], sample["matches"]) == (0, 8)
    assert not any(question in text for text in texts_of(tmp_path / "out"))


def test_quality_score_parts_clean_from_noisy(tmp_path: Path) -> None:
    noisy = [f"cookie accept menu login share buy now click {i} " * 12 for i in range(40)]
    clean = [made_text(i) for i in range(40)]
    write_parquet(tmp_path / "ex/clean.parquet", clean[20:])
    write_parquet(tmp_path / "ex/noisy.parquet", noisy[20:])
    write_parquet(tmp_path / "in/a.parquet", clean[:20] + noisy[:20])
    text = (
        '[quality]\nclean = ["ex/clean.parquet"]\nnoisy = ["ex/noisy.parquet"]\nmin_score = 0.5\n'
        "[filters]\ngopher_quality = false\ngopher_repetition = false\nfineweb = false\n"
        "[dedup]\nnear = false\n"
    )
    manifest = build_corpus(spec_of(tmp_path, text), tmp_path / "out", ONE)
    assert manifest["models"]["quality"]["auc"] == 1.0
    assert manifest["removed"]["quality/low score"]["documents"] == 20
    assert sorted(texts_of(tmp_path / "out")) == sorted(clean[:20])


def test_domain_labels_are_learnt_from_examples(tmp_path: Path) -> None:
    recipes = [f"Stir the flour, butter and {i} eggs, then bake the cake well." for i in range(40)]
    games = [f"The striker scored {i} goals, so the team won the final match." for i in range(40)]
    write_parquet(tmp_path / "ex/food.parquet", recipes[20:])
    write_parquet(tmp_path / "ex/sport.parquet", games[20:])
    write_parquet(tmp_path / "in/a.parquet", recipes[:20] + games[:20])
    text = (
        '[domains.examples]\nfood = "ex/food.parquet"\nsport = "ex/sport.parquet"\n'
        "[filters]\ngopher_quality = false\ngopher_repetition = false\nfineweb = false\n"
        "[dedup]\nnear = false\n[mix]\nshares = {sport = 1.0}\n"
    )
    manifest = build_corpus(spec_of(tmp_path, text), tmp_path / "out", ONE)
    assert manifest["models"]["domains"]["accuracy"] == 1.0
    assert sorted(texts_of(tmp_path / "out")) == sorted(games[:20])


def test_memory_bounds_the_number_of_workers() -> None:
    def count(memory_gb: float, wanted: int = 8) -> int:
        return open_workers(wanted, int(memory_gb * 2**30), 100_000_000, 8_000_000).count

    assert [count(0.6), count(1.4), count(2.5)] == [1, 2, 4]
    assert count(64) == 8
    with pytest.raises(TrainerError, match=r"--memory is 322 MB, but one worker needs 582 MB"):
        count(0.3)


# --- bad input ---------------------------------------------------------------------------------


def break_file(inputs: Path, kind: str) -> str:
    """Adds one bad file; the words that the message has to hold."""
    path = inputs / "z.parquet"
    if kind == "corrupt":
        shutil.copy(inputs / "a.parquet", path)
        data = bytearray(path.read_bytes())
        data[40:4000] = b"\xff" * 3960
        path.write_bytes(data)
    elif kind == "no parquet":
        path.write_bytes(b"hello")
    elif kind == "wrong column":
        pq.write_table(pa.table({"body": ["x"]}), path)
    elif kind == "invalid UTF-8":
        bad = pa.array([b"fine text", b"\xff\xfe broken"], pa.binary())
        pq.write_table(pa.table({"text": bad}), path)
    elif kind == "torn gzip":
        path = inputs / "z.jsonl.gz"
        path.write_bytes((inputs / "b.jsonl.gz").read_bytes()[:-200])
    elif kind == "no JSON":
        path = inputs / "z.jsonl"
        path.write_text('{"text": "fine"}\n{"text": \n')
    return path.name


@pytest.mark.parametrize(
    "kind", ["corrupt", "no parquet", "wrong column", "invalid UTF-8", "torn gzip", "no JSON"]
)
def test_a_bad_file_is_named_and_passed_over_where_asked(
    tmp_path: Path, inputs: Path, kind: str
) -> None:
    name = break_file(inputs, kind)
    with pytest.raises(TrainerError) as caught:
        build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    assert name in caught.value.message
    assert caught.value.hint
    assert not list((tmp_path / "out").glob("*.parquet"))
    spec = spec_of(tmp_path)
    skipping = Spec.from_json({**spec.to_json(), "on_error": "skip"})
    manifest = build_corpus(skipping, tmp_path / "other", ONE)
    assert any(name in line for line in manifest["problems"])
    assert set(made_text(i) for i in range(101)) <= set(texts_of(tmp_path / "other"))


def test_an_empty_shard_holds_nothing_up(tmp_path: Path, inputs: Path) -> None:
    write_parquet(inputs / "z.parquet", pa.array([], pa.string()))
    manifest = build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    assert manifest["sources"]["s"]["documents"] == 101


def test_a_huge_document_is_left_out_with_its_place(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in/a.parquet", [made_text(0), "word " * 20_000_000])
    manifest = build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    assert "100.0 MB in one document" in manifest["problems"][0]
    assert "row 1" in manifest["problems"][0]
    assert texts_of(tmp_path / "out") == [made_text(0)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_huge_line_or_file_is_not_read_whole(tmp_path: Path, name: str) -> None:
    from reference.data.sources import find_parts, read_part

    (tmp_path / "in").mkdir()
    huge = json.dumps({"text": "word " * 20_000_000}) + "\n"
    (tmp_path / "in" / name).write_text(huge + json.dumps({"text": made_text(0)}) + "\n")
    spec = spec_of(tmp_path)
    (part,) = find_parts(spec.source[0], 0, 1 << 30, lambda error: None)
    tracemalloc.start()
    documents = list(read_part(spec.source[0], part, 8_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert documents[0].size > 100_000_000 > len(documents[0].data or b"") * 1000
    assert peak < 150_000_000  # a line of up to six bytes a character is read before it is left
    manifest = build_corpus(spec, tmp_path / "out", ONE) if name == "a.jsonl" else None
    if manifest is not None:
        assert "100.0 MB in one document" in manifest["problems"][0]
        assert texts_of(tmp_path / "out") == [made_text(0)]


def test_a_changed_input_or_spec_is_refused(tmp_path: Path, inputs: Path) -> None:
    spec = spec_of(tmp_path)
    build_corpus(spec, tmp_path / "out", ONE)
    assert build_corpus(spec, tmp_path / "out", ONE) == read_manifest(tmp_path / "out")
    write_parquet(inputs / "a.parquet", [made_text(999)])
    with pytest.raises(TrainerError, match="holds another corpus"):
        build_corpus(spec, tmp_path / "out", ONE)
    manifest = build_corpus(spec, tmp_path / "out", Options(workers=1, restart=True))
    assert manifest["sources"]["s"]["documents"] == 42


def test_a_file_that_changes_while_the_build_runs_is_named(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_module.process_part

    def swap(build: Path, number: int, digest: str):
        if number == 1:
            write_parquet(inputs / "a.parquet", [made_text(999)])
        return real(build, number, digest)

    monkeypatch.setattr(build_module, "process_part", swap)
    with pytest.raises(TrainerError, match=r"a\.parquet has changed since the build began"):
        build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    with pytest.raises(TrainerError, match=r"inputs have changed: .*a\.parquet"):
        build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)


def test_a_full_disk_is_named_and_leaves_no_half_file(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*job):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    real = build_module.write_shard
    monkeypatch.setattr(build_module, "write_shard", full)
    spec = spec_of(tmp_path)
    with pytest.raises(TrainerError) as caught:
        build_corpus(spec, tmp_path / "out", ONE)
    assert caught.value.kind == "disk_full"
    assert not list((tmp_path / "out").glob("*.parquet"))
    monkeypatch.setattr(build_module, "write_shard", real)
    assert len(build_corpus(spec, tmp_path / "out", ONE)["shards"]) > 1


def test_a_spec_with_problems_names_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'nmae = "x"\n[[source]]\nname = "a"\n[dedup]\njaccard = 3\nkeep = "worst"\n'
    )
    with pytest.raises(TrainerError) as caught:
        load_spec(tmp_path / "s.toml")
    for words in ("did you mean `name`", "allowed: 'best', 'first'"):
        assert words in caught.value.message
    (tmp_path / "s.toml").write_text('[[source]]\nname = "a"\n[dedup]\njaccard = 3\n')
    with pytest.raises(TrainerError) as caught:
        load_spec(tmp_path / "s.toml")
    assert "needs either `path` or `dataset`" in caught.value.message
    assert "dedup.jaccard: found 3.0" in caught.value.message


def test_the_example_is_a_spec() -> None:
    path = Path(build_module.__file__).with_name("example.toml")
    spec = load_spec(path)
    assert [source.name for source in spec.source] == ["web", "news", "textbook"]
    assert spec.source[0].path == str(path.parent / "pretrain/web-raw-*.parquet")


def test_the_digest_is_the_one_a_run_writes_down(tmp_path: Path, inputs: Path) -> None:
    from kit.trust.digest import tree_digest

    manifest = build_corpus(spec_of(tmp_path), tmp_path / "out", ONE)
    assert tree_digest(tmp_path / "out", ("*.parquet",)) == manifest["digest"]
    assert corpus_digest(manifest["shards"]) == manifest["digest"]


def test_a_folder_is_a_spec_and_the_report_escapes_hostile_text(
    tmp_path: Path, inputs: Path
) -> None:
    from reference.data.diff import diff
    from reference.data.report import write_report

    hostile = "<script>alert(1)</script> " * 5
    write_parquet(inputs / "h.parquet", [hostile])
    manifest = build_corpus(load_spec(inputs), tmp_path / "out", ONE)
    assert manifest["name"] == "in"
    write_report(tmp_path / "out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    other = build_corpus(spec_of(tmp_path, "[dedup]\nexact = false\n"), tmp_path / "b", ONE)
    found = diff(tmp_path / "out", tmp_path / "b")
    assert found["documents"]["shared"] == 101 and not found["same"]
    assert found["spec"]["dedup.exact"] == [True, False]
    assert found["digests"] == [manifest["digest"], other["digest"]]


def everything_under(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("place", ["in", "in/corpus", "in/a/b", "link", "link/corpus", "x/../in"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_corpus_is_never_written_among_its_inputs(
    inputs: Path, tmp_path: Path, place: str, restart: bool
) -> None:
    (tmp_path / "link").symlink_to(inputs)
    (tmp_path / "x").mkdir()
    spec = spec_of(tmp_path)
    before = everything_under(tmp_path)
    with pytest.raises(TrainerError, match="which it is made from") as error:
        build_corpus(spec, tmp_path / place, Options(1, restart=restart))
    assert "--out" in error.value.hint
    assert everything_under(tmp_path) == before


def test_folders_of_linked_and_named_files_are_inputs_too(inputs: Path, tmp_path: Path) -> None:
    """A snapshot of the Hub's cache is a folder of links into a folder of blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "a.parquet").symlink_to(inputs / "a.parquet")
    with pytest.raises(TrainerError, match="which it is made from"):
        build_corpus(load_spec(snapshot), inputs, Options(1))
    spec = tmp_path / "one.toml"
    for path in ("in/d.txt", "in/*.parquet"):
        spec.write_text(f'name = "t"\n[[source]]\nname = "s"\npath = "{path}"\n')
        with pytest.raises(TrainerError, match="which it is made from"):
            build_corpus(load_spec(spec), inputs, Options(1))


def test_a_spec_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    spec_of(tmp_path)
    plain = load_spec(tmp_path / "spec.toml")
    (tmp_path / "spec.toml").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "spec.toml").read_bytes())
    assert load_spec(tmp_path / "spec.toml") == plain
