"""`prepare` against a real server on the loopback: what it fetches, and where it lies."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from prepare_place import (
    CONVERSATIONS,
    CORPUS,
    Place,
    no_half_files,
    recipe_of,
    recipe_text,
    said,
    shard,
)
from prepare_place import hub as hub
from prepare_place import place as place

from kit.cli.prepare import fetch_for_run
from kit.errors import KitError, PrerequisiteError
from kit.prepare.fetch import check, inputs_for_run, prepare
from kit.prepare.inputs import locate
from kit.prepare.job import Need


def test_everything_a_recipe_reads_is_fetched_and_found(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    assert place.prepare() is True
    inputs = locate(place.recipe, place.work, {})
    assert inputs.data == place.folder / "pretrain"
    # The first two by name to train on, the last one of all for validation.
    assert place.shards() == ["shard_00000.parquet", "shard_00001.parquet", "shard_00004.parquet"]
    questions = {
        path.name: path.read_text("utf-8") for path in (place.folder / "chat_eval").glob("*")
    }
    assert [json.loads(line) for line in questions["arc_easy_test.jsonl"].splitlines()] == [
        {
            "id": "a1",
            "question": "Which is wet?",
            "choices": ["sand", "water", "air"],
            "letters": ["A", "B", "C"],
            "answer": 1,
        },
        {
            "id": "a2",
            "question": "Which is dry?",
            "choices": ["sand", "sea", "rain", "ice"],
            "letters": ["A", "B", "C", "D"],
            "answer": 0,
        },
    ]
    assert json.loads(questions["mmlu_test.jsonl"]) == {
        "subject": "logic",
        "question": "1 + 1?",
        "choices": ["1", "2", "3", "4"],
        "answer": 1,
    }
    assert json.loads(questions["gsm8k_test.jsonl"]) == {
        "question": "How many?",
        "answer": "Two. #### 2",
    }
    assert "arc_challenge_test.jsonl" in questions
    assert no_half_files(place.work)


def test_conversations_keep_their_text_and_say_what_was_left_out(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    place.prepare(parts=["sft"])
    path = place.folder / "sft" / "chats.jsonl"
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        CONVERSATIONS[0],
        [said("user", "Be brief.\n\nWhy?"), said("assistant", "Because.")],
    ]
    [file] = place.lock()["sft"]["files"]
    assert file["rows"] == 2
    assert file["notes"] == {
        "dropped: an empty message": 1,
        "dropped: no question and answer": 2,
        "dropped: user and assistant do not take turns": 1,
        "system message folded into the first user message": 1,
    }
    assert [source["path"] for source in file["sources"]] == [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]


def test_the_made_files_are_read_by_the_reference_trainer(place: Place) -> None:
    pytest.importorskip("torch")
    conversation = pytest.importorskip("reference.chat.conversation")
    dataset = pytest.importorskip("reference.rows.documents")
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    place.prepare()
    [source] = conversation.find_sources(place.folder / "sft")
    assert len(list(conversation.read_conversations(source))) == 2
    shards = dataset.find_shards(place.folder / "pretrain")
    assert [path.name for path in shards.validation] == ["shard_00004.parquet"]


def test_the_lock_names_repository_commit_digest_rows_and_licence(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    place.prepare()
    lock = place.lock()
    [corpus] = lock["pretrain"]["repositories"]
    assert (corpus["commit"], corpus["licence"]) == (place.hub.head[CORPUS], "odc-by")
    [chats] = lock["sft"]["repositories"]
    assert (chats["licence"], chats["licence_reason"]) == (None, "the dataset card states none")
    for part in lock.values():
        assert part["complete"]
        for file in part["files"]:
            data = (place.folder / file["path"]).read_bytes()
            assert file["sha256"] == "sha256:" + hashlib.sha256(data).hexdigest()
            assert file["bytes"] == len(data)
            assert file["rows"] > 0


def test_a_second_run_needs_no_network_and_fetches_nothing(place: Place) -> None:
    place.prepare()
    before = len(place.hub.requests)
    gone = replace(place.settings, mirror="http://127.0.0.1:1")
    assert prepare(place.recipe, place.work, place.watcher, gone) is False
    assert len(place.hub.requests) == before
    check(place.recipe, place.work, ["pretrain"])


def test_a_moved_branch_changes_nothing_that_is_locked(place: Place) -> None:
    place.prepare()
    pinned = place.hub.head[CORPUS]
    place.hub.commit(CORPUS, {f"shard_{index:05d}.parquet": shard(9 + index) for index in range(7)})
    path = place.folder / "pretrain" / "shard_00001.parquet"
    data = path.read_bytes()
    path.unlink()
    shutil.rmtree(place.work / "data" / "hub")
    assert place.prepare() is True
    assert path.read_bytes() == data
    assert place.lock()["pretrain"]["repositories"][0]["commit"] == pinned
    assert len(place.hub.fetched("shard_00000")) == 1  # what was there is not fetched again


def test_a_second_recipe_on_the_same_corpus_fetches_only_what_is_new(place: Place) -> None:
    place.prepare()
    text = recipe_text().replace("shards = 2", "shards = 3")
    place.recipe = recipe_of(text, place.root)
    place.prepare()
    assert len(place.shards()) == 4
    assert len(place.hub.fetched("shard_0000")) == 4


def test_shards_can_be_fewer_now_and_more_later(place: Place) -> None:
    place.prepare(shards=1)
    assert place.shards() == ["shard_00000.parquet", "shard_00004.parquet"]
    assert place.prepare() is True
    assert len(place.shards()) == 3
    assert place.prepare(shards=1) is False
    with pytest.raises(PrerequisiteError, match="5 parquet files"):
        place.prepare(shards=9)


def test_files_that_are_numbered_get_new_numbers_with_more_of_them(place: Place) -> None:
    names = ["a/0.parquet", "b/0.parquet", "b/1.parquet", "validation/0.parquet"]
    place.hub.commit(CORPUS, {name: shard(index) for index, name in enumerate(names)})
    place.prepare()
    assert place.shards() == [f"00000{i}-0.parquet" for i in range(3)]
    place.prepare(shards=3)
    assert place.shards() == [f"00000{i}-{'0010'[i]}.parquet" for i in range(4)]
    assert place.prepare() is False


@pytest.mark.parametrize(
    "names",
    [
        ["a.parquet", "b/c.parquet", "b/d.parquet"],
        ["train/0.parquet", "train/1.parquet", "validation/0.parquet"],
        ["data/validation-0.parquet", "data/web-0.parquet", "data/web-1.parquet"],
    ],
)
def test_the_last_file_stays_validation_whatever_the_names(place: Place, names: list[str]) -> None:
    dataset = pytest.importorskip("reference.rows.documents")
    files = {name: shard(index) for index, name in enumerate(names)}
    place.hub.commit(CORPUS, files)
    place.prepare()
    shards = dataset.find_shards(place.folder / "pretrain")
    assert [path.read_bytes() for path in shards.validation] == [files[names[-1]]]
    assert [path.read_bytes() for path in shards.train] == [files[name] for name in names[:-1]]
    assert place.shards()[-1] == shards.validation[0].name


def test_paths_that_leave_the_folder_are_not_taken(place: Place) -> None:
    files = place.hub.commits[CORPUS][place.hub.head[CORPUS]]
    place.hub.commit(CORPUS, {**files, "../../../zz.parquet": shard(5), "/zz.parquet": shard(6)})
    place.prepare()
    assert place.shards()[-1] == "shard_00004.parquet"
    assert not list(place.root.rglob("zz*"))


def test_a_mirror_is_not_told_the_login(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    place.prepare()
    assert place.hub.tokens == []
    shutil.rmtree(place.work)
    place.prepare(mirror=None)  # the endpoint of huggingface_hub, here the same server
    assert "Bearer hf_secret" in place.hub.tokens


@pytest.mark.parametrize("layout", ["plain", "datasets", "cache"])
def test_a_folder_serves_as_mirror(place: Place, layout: str) -> None:
    commit = place.hub.head[CORPUS]
    folder = {
        "plain": place.root / "mirror" / CORPUS,
        "datasets": place.root / "mirror" / "datasets" / CORPUS,
        "cache": place.root / "mirror" / "datasets--maker--corpus" / "snapshots" / commit,
    }[layout]
    folder.mkdir(parents=True)
    for name, data in place.hub.commits[CORPUS][commit].items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\nA corpus.\n")
    place.prepare(mirror=place.root / "mirror")
    assert not place.hub.requests
    [locked] = place.lock()["pretrain"]["repositories"]
    assert locked["commit"] == (commit if layout == "cache" else None)
    assert locked["commit_reason"] == (
        None if layout == "cache" else "copied from a folder that does not state it"
    )
    assert locked["licence"] == "odc-by"
    # A copy: what happens to the mirror does not happen to the prepared data.
    (folder / "shard_00000.parquet").write_bytes(b"changed")
    assert place.prepare(mirror=place.root / "mirror") is False
    (place.folder / "pretrain" / "shard_00000.parquet").unlink()
    with pytest.raises(KitError) as refused:
        place.prepare(mirror=place.root / "mirror")
    assert {"expected", "found"} <= set(refused.value.facts)
    with pytest.raises(PrerequisiteError, match="is not a folder"):
        place.prepare(mirror=place.root / "nowhere")


def test_another_machines_pool_serves_as_mirror(place: Place, tmp_path: Path) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    place.prepare()
    first, there = place.lock(), place.work
    place.hub.requests.clear()
    place.work = tmp_path / "elsewhere"
    place.prepare(mirror=there / "data" / "hub")
    assert not place.hub.requests
    second = place.lock()
    for part in first:
        assert second[part]["files"] == first[part]["files"]


def test_a_run_fetches_what_it_lacks_and_only_that(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    own = place.root / "own"
    own.mkdir()
    (own / "a.parquet").write_bytes(shard(1))
    fetch = fetch_for_run(quiet=True)
    inputs = inputs_for_run(place.recipe, place.work, {"data": own}, fetch)
    assert inputs.data == own
    assert inputs.sft == place.folder / "sft"
    assert not place.hub.fetched("shard")
    with pytest.raises(PrerequisiteError, match="lacks inputs"):
        inputs_for_run(place.recipe, place.root / "other", {}, None)


def test_two_at_once_in_one_folder_are_refused(place: Place) -> None:
    def again(need: Need) -> bool:
        with pytest.raises(PrerequisiteError, match="another `n4090-kit prepare` is at work"):
            place.prepare()
        return True

    place.prepare(agree=again)
