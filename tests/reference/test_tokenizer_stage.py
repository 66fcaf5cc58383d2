from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_training import Recorder

from reference.errors import TrainerError
from reference.request import Request
from reference.rows.documents import Documents, token_folder
from reference.stage import Stopped
from reference.tokenizer import stage as tokenizer_stage
from reference.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(4):
        texts = [f"Owl {shard} saw {i} foxes and {i * shard} hens." for i in range(300)]
        path = folder / f"part-{shard}.parquet"
        pq.write_table(pa.table({"text": [*texts, None]}), path, row_group_size=50)
    return folder


def write_request(corpus: Path, root: Path, attempt: int = 0, **tokenizer: int | str) -> Path:
    now = clock_gettime_ns(CLOCK_BOOTTIME)
    section = {"vocab_size": 300, "max_chars": 20_000, "doc_cap": 100, **tokenizer}
    section = {"digits": 2, "path": "", "digest": "", **section}
    document = {
        "contract": 1, "stage": "tokenizer", "run_id": "r1", "seed": 1, "attempt": attempt,
        "device": "cpu", "threads": 2,
        "recipe": {"data": {"text_column": "text", "anneal": 0}, "tokenizer": section},
        "paths": {
            "recipe_dir": str(root),
            "out": str(root / "tokenizer"), "data": str(corpus), "cache": str(root / "cache"),
        },
        "clock": {
            "start_ns": now, "stage_start_ns": now,
            "deadline_ns": now + 10**12, "budget_s": 1000.0,
        },
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"request-{attempt}.json"
    path.write_text(json.dumps(document))
    return path


def run(corpus: Path, root: Path, attempt: int = 0, **tokenizer: int | str) -> Recorder:
    events = Recorder()
    tokenizer_stage.run(Request.load(write_request(corpus, root, attempt, **tokenizer)), events)
    return events


def outputs(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("tokenizer", "cache")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def test_stage_leaves_a_tokenizer_and_every_document_as_tokens(
    corpus: Path, tmp_path: Path
) -> None:
    events = run(corpus, tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    cache = token_folder(tmp_path / "cache", "r1")
    train = Documents.open(cache, "train", tokenizer)
    validation = Documents.open(cache, "validation", tokenizer)
    assert (len(train), len(validation)) == (900, 300)
    assert tokenizer.decode(train[300][1:].tolist()) == "Owl 1 saw 0 foxes and 0 hens."
    assert tokenizer.decode(validation[2][1:].tolist()) == "Owl 3 saw 2 foxes and 6 hens."

    note = events.data("note")[-1]
    assert note["tokenizer"] == tokenizer.digest and tokenizer.digest in note["text"]
    texts = [tokenizer.decode(train[i][1:].tolist()) for i in range(900)]
    tokens = sum(len(train[i]) - 1 for i in range(900))
    assert note["bytes_per_token"] == pytest.approx(sum(map(len, texts)) / tokens)
    assert note["train_tokens"] == tokens + 900 and note["skipped_documents"] == 4
    progress = [data["done"] for data in events.data("progress")]
    assert progress == sorted(progress) and progress[-1] == 1204


def test_merges_come_from_the_training_shards_only(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    other = pa.table({"text": ["Totally different words, zebra zebra zebra"] * 300})
    pq.write_table(other, tmp_path / "a" / "part-3.parquet")
    run(corpus, tmp_path / "x")
    run(tmp_path / "a", tmp_path / "y")
    first, second = (Tokenizer.load(tmp_path / name / "tokenizer") for name in "xy")
    assert first.digest == second.digest


@pytest.mark.parametrize("after", [0, 40, 100, 121, 130])
def test_stopped_at_any_moment_it_comes_to_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run(corpus, tmp_path / "whole")
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > after * 10

    monkeypatch.setattr(tokenizer_stage, "stop_requested", stop)
    try:
        run(corpus, tmp_path / "parts")
        assert calls <= after * 10
    except Stopped:
        assert calls > after * 10
    monkeypatch.undo()
    run(corpus, tmp_path / "parts", attempt=1)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_process_that_is_ended_leaves_what_the_next_one_completes(
    tmp_path: Path, number: signal.Signals
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for shard in range(3):
        texts = [f"{i} owls and {i % 97} foxes " * 40 for i in range(1200)]
        pq.write_table(
            pa.table({"text": texts}), corpus / f"part-{shard}.parquet", row_group_size=100
        )
    root = tmp_path / "run"
    command = [sys.executable, "-m", "reference"]
    request = write_request(corpus, root, max_chars=100_000)
    process = subprocess.Popen([*command, str(request)], stderr=subprocess.PIPE)
    cache = token_folder(root / "cache", "r1")
    while process.poll() is None and not list(cache.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 3), stderr.decode()
    assert not (cache / "index.json").exists()
    subprocess.run([*command, str(write_request(corpus, root, 1, max_chars=100_000))], check=True)
    run(corpus, tmp_path / "whole", max_chars=100_000)
    torn = {name: data for name, data in outputs(root).items() if not name.endswith(".tmp")}
    assert torn == outputs(tmp_path / "whole")


def test_unusable_shard_is_found_before_the_work(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "data" / "part-2.parquet").write_bytes(b"")
    with pytest.raises(TrainerError, match=r"part-2\.parquet is not a readable parquet file"):
        run(tmp_path / "data", tmp_path / "run")
    assert not list((tmp_path / "run" / "cache").rglob("*.tokens"))


def test_split_without_text_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes((corpus / "part-0.parquet").read_bytes())
    pq.write_table(pa.table({"text": ["", " "]}), tmp_path / "data" / "b.parquet")
    with pytest.raises(TrainerError, match="the validation shards hold no document"):
        run(tmp_path / "data", tmp_path / "run")


def test_too_large_a_vocabulary_is_noted(corpus: Path, tmp_path: Path) -> None:
    events = run(corpus, tmp_path, vocab_size=5000)
    size = Tokenizer.load(tmp_path / "tokenizer").vocab_size
    assert size < 5000
    assert f"merges for {size} tokens, not 5000" in events.data("note")[0]["text"]


def test_each_run_has_a_cache_of_its_own() -> None:
    assert token_folder(Path("c"), "one") != token_folder(Path("c"), "two")
    assert os.path.commonpath([token_folder(Path("c"), "one"), "c"]) == "c"


def test_a_tokenizer_brought_along_is_used_and_held_to_its_digest(
    corpus: Path, tmp_path: Path
) -> None:
    brought = Tokenizer.train(["foxes and hens " * 20], 280)
    brought.save(tmp_path / "brought")
    run(corpus, tmp_path, vocab_size=brought.vocab_size, path="brought", digest=brought.digest)
    assert Tokenizer.load(tmp_path / "tokenizer").digest == brought.digest
    with pytest.raises(TrainerError, match=r"the recipe's tokenizer\.digest"):
        run(corpus, tmp_path / "other", digest=brought.digest)
    brought.save(tmp_path / "third" / "brought")
    with pytest.raises(TrainerError, match=r"tokenizer\.path leads to"):
        run(corpus, tmp_path / "third", vocab_size=300, path="brought")
