"""`prepare` against a real server on the loopback: what it fetches, and what it survives."""

import errno
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from kit.cli.prepare import fetch_for_run, say_need
from kit.cli.prepare import prepare as command
from kit.core_eval.bundle import open_bundle
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.prepare import core_files
from kit.prepare.fetch import check, inputs_for_run, prepare
from kit.prepare.job import Need, Settings
from kit.prepare.transfer import Retry, retry_after_s
from kit.recipe import Recipe, parse_recipe
from kit.run.inputs import Inputs, describe, locate, prepared_folder
from kit.schemas import problems

SHARED = Path(os.environ.get("N4090_SHARED", Path(__file__).parents[3] / "shared"))
CORPUS, CHATS = "maker/corpus", "maker/chats"
RECIPE = f"""
schema_version = 1
name = "tiny"
title = "a recipe for the tests of prepare"
track = "open"
division = "open"
budget_s = 60
stages = ["tokenizer", "pretrain", STAGES]
[data]
kind = "hub"
repo = "{CORPUS}"
shards = 2
SOURCES
[pretrain]
num_steps = 1
total_batch_size = 16384
[sft]
total_batch_size = 16384
"""


def _load_hub_server() -> Any:
    path = Path(__file__).with_name("hub_server.py")
    spec = importlib.util.spec_from_file_location("hub_server", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


hub_server = _load_hub_server()
Answer = hub_server.Answer


def recipe_text(*, everything: bool = False, core: bool = False) -> str:
    stages = (['"core"'] if core else []) + (['"sft"', '"chat_eval"'] if everything else [])
    sources = (
        f'sft = ["{CHATS}:data/train-*.parquet"]\n'
        'chat_eval = ["arc_easy", "arc_challenge", "mmlu", "gsm8k"]'
        if everything
        else ""
    )
    return RECIPE.replace("STAGES", ", ".join(stages)).replace("SOURCES", sources)


def recipe_of(text: str, folder: Path) -> Recipe:
    return parse_recipe(text, folder=folder)


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="none")
    return buffer.getvalue()


def shard(seed: int, documents: int = 40) -> bytes:
    source = random.Random(seed)
    return parquet(text=[source.randbytes(500).hex() for _ in range(documents)])


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    [said("user", "Hello?"), said("assistant", "Good “day” at 20°C.")],
    [said("system", "Be brief."), said("user", "Why?"), said("assistant", "Because.")],
    [said("user", "Anyone?")],
    [said("assistant", "Me first."), said("user", "No.")],
    [said("user", "1"), said("assistant", " "), said("user", "2"), said("assistant", "3")],
    [],
]
ARC = {
    "id": ["a1", "a2"],
    "question": ["Which is wet?", "Which is dry?"],
    "choices": [
        {"text": ["sand", "water", "air"], "label": ["A", "B", "C"]},
        {"text": ["sand", "sea", "rain", "ice"], "label": ["1", "2", "3", "4"]},
    ],
    "answerKey": ["B", "1"],
}


def fill(hub: Any) -> None:
    """A corpus of five shards, two files of conversations, and the four question sets."""
    shards = {f"shard_{index:05d}.parquet": shard(index) for index in range(5)}
    hub.commit(CORPUS, {**shards, "README.md": b"card", ".gitattributes": b""}, licence="odc-by")
    hub.commit(
        CHATS,
        {
            "data/train-00000-of-00002.parquet": parquet(messages=CONVERSATIONS[:3]),
            "data/train-00001-of-00002.parquet": parquet(messages=CONVERSATIONS[3:]),
            "data/test-00000-of-00001.parquet": parquet(messages=CONVERSATIONS[:1]),
        },
    )
    hub.commit(
        "allenai/ai2_arc",
        {
            f"{name}/{split}-00000-of-00001.parquet": parquet(**ARC)
            for name in ("ARC-Easy", "ARC-Challenge")
            for split in ("test", "train")
        },
        licence="cc-by-sa-4.0",
    )
    mmlu = {"subject": ["logic"], "question": ["1 + 1?"], "choices": [["1", "2", "3", "4"]]}
    hub.commit("cais/mmlu", {"all/test-00000-of-00001.parquet": parquet(**mmlu, answer=[1])})
    gsm8k = parquet(question=["How many?"], answer=["Two. #### 2"])
    hub.commit("openai/gsm8k", {"main/test-00000-of-00001.parquet": gsm8k})


class Watcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.what, self.done, self.total = "", 0, 0

    def begin(self, total_bytes: int, what: str) -> None:
        self.what, self.done, self.total = what, 0, total_bytes

    def advance(self, count: int) -> None:
        self.done += count

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None:
        if self.total and not self.what.startswith("checking"):
            assert self.done == self.total, "progress ends at the announced total"


class Place:
    """A work folder and a Hub to fill it from."""

    def __init__(self, hub: Any, folder: Path) -> None:
        self.hub, self.root, self.work = hub, folder, folder / "work"
        self.recipe = recipe_of(recipe_text(), folder)
        self.settings = Settings(mirror=hub.url, retry=Retry(attempts=3, base_s=0.01, cap_s=0.02))
        self.watcher = Watcher()

    @property
    def folder(self) -> Path:
        return prepared_folder(self.work, self.recipe)

    def prepare(self, **changes: Any) -> bool:
        return prepare(self.recipe, self.work, self.watcher, replace(self.settings, **changes))

    def lock(self) -> dict[str, Any]:
        document = json.loads((self.folder / "dataset.lock.json").read_bytes())
        assert problems(document, "dataset-lock") == []
        parts = document["parts"]
        assert isinstance(parts, dict)
        return parts

    def shards(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "pretrain").glob("*"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with hub_server.serving(hub_server.Hub()) as hub:
        fill(hub)
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def place(hub: Any, tmp_path: Path) -> Place:
    return Place(hub, tmp_path)


def no_half_files(root: Path) -> bool:
    return not [path for path in root.rglob("*") if path.suffix in (".part", ".tmp")]


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
    conversation = pytest.importorskip("reference.conversation")
    dataset = pytest.importorskip("reference.dataset")
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
    dataset = pytest.importorskip("reference.dataset")
    files = {name: shard(index) for index, name in enumerate(names)}
    place.hub.commit(CORPUS, files)
    place.prepare()
    shards = dataset.find_shards(place.folder / "pretrain")
    assert [path.read_bytes() for path in shards.validation] == [files[names[-1]]]
    assert [path.read_bytes() for path in shards.train] == [files[name] for name in names[:-1]]
    assert place.shards()[-1] == shards.validation[0].name


def test_a_broken_connection_is_resumed_where_it_broke(place: Place) -> None:
    place.hub.faults["shard_00001.parquet"] = [Answer(cut=15_000), Answer(cut=5_000)]
    place.prepare()
    assert place.hub.fetched("shard_00001") == [None, "bytes=15000-", "bytes=20000-"]


def test_a_server_without_ranges_is_read_from_the_start(place: Place) -> None:
    data = place.hub.commits[CORPUS][place.hub.head[CORPUS]]["shard_00001.parquet"]
    place.hub.faults["shard_00001.parquet"] = [Answer(cut=15_000), Answer(status=416), Answer()]
    place.prepare()
    assert (place.folder / "pretrain" / "shard_00001.parquet").read_bytes() == data
    assert place.hub.fetched("shard_00001")[-1] is None


@pytest.mark.parametrize("name", ["shard_00000.parquet", "main", "COMMIT"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for(place: Place, name: str, status: int) -> None:
    name = name.replace("COMMIT", place.hub.head[CORPUS])
    headers = {"Retry-After": "1"} if name == "shard_00000.parquet" else {}
    place.hub.faults[name] = [Answer(status=status, headers=headers)]
    begun = time.monotonic()
    place.prepare()
    if headers:
        assert time.monotonic() - begun >= 0.95
    if name == "shard_00000.parquet":
        [note] = place.watcher.notes
        assert note == f"shard_00000.parquet: the server answers {status}; waiting 1 s as it asks"


def test_a_server_that_stays_busy_ends_in_one_message(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(status=503)] * 3
    with pytest.raises(PrerequisiteError, match="answers 503, 3 times in a row") as ended:
        place.prepare()
    assert "goes on where it stopped" in (ended.value.hint or "")
    assert place.prepare() is True


def test_a_wait_of_hours_is_not_begun(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(status=429, headers={"Retry-After": "7200"})]
    with pytest.raises(PrerequisiteError, match="come back in 120 minutes"):
        place.prepare()


def test_retry_after_is_understood_in_all_its_forms() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"Retry-After": "soon"}) is None
    assert retry_after_s({"ratelimit": '"api";r=0;t=55'}) == 55
    assert retry_after_s({}) is None


def test_a_wrong_digest_is_refused_with_both_digests(place: Place) -> None:
    right = place.hub.commits[CORPUS][place.hub.head[CORPUS]]["shard_00000.parquet"]
    wrong = right[:-1] + b"?"
    place.hub.faults["shard_00000.parquet"] = [Answer(body=wrong)]
    with pytest.raises(KitError, match="not the file that was announced") as refused:
        place.prepare()
    assert refused.value.exit_code == 1
    assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(right).hexdigest()
    assert refused.value.facts["found"] == "sha256:" + hashlib.sha256(wrong).hexdigest()
    assert not list(place.work.rglob("shard_00000.parquet*"))
    with pytest.raises(PrerequisiteError, match="lacks inputs"):
        locate(place.recipe, place.work, {})
    assert place.prepare() is True


def test_left_over_bytes_of_another_file_are_fetched_anew(place: Place) -> None:
    place.hub.faults["shard_00000.parquet"] = [Answer(cut=9_000)] + [Answer(status=503)] * 2
    with pytest.raises(PrerequisiteError):
        place.prepare()
    [part] = place.work.rglob("shard_00000.parquet.part")
    part.write_bytes(b"x" * 9_000)
    place.hub.faults.clear()
    place.prepare()
    assert place.hub.fetched("shard_00000")[-2:] == ["bytes=9000-", None]
    assert "fetching it anew" in place.watcher.notes[-1]


def test_a_remote_file_that_changed_is_refused_with_both_digests(place: Place) -> None:
    place.prepare()
    files = place.hub.commits[CORPUS][place.hub.head[CORPUS]]
    old, new = files["shard_00001.parquet"], shard(77)
    files["shard_00001.parquet"] = new
    (place.folder / "pretrain" / "shard_00001.parquet").unlink()
    with pytest.raises(KitError, match="changed at its source") as refused:
        place.prepare()
    assert hashlib.sha256(old).hexdigest() in refused.value.facts["expected"]
    assert hashlib.sha256(new).hexdigest() in refused.value.facts["found"]
    assert "dataset.lock.json" in (refused.value.hint or "")


def test_a_local_file_that_changed_is_refused_with_both_digests(place: Place) -> None:
    place.prepare()
    path = place.folder / "pretrain" / "shard_00001.parquet"
    right = path.read_bytes()
    path.unlink()
    path.write_bytes(right + b"more")
    for attempt in (
        place.prepare,
        lambda: check(place.recipe, place.work, ["pretrain"]),
        lambda: inputs_for_run(place.recipe, place.work, {}, None),
    ):
        with pytest.raises(KitError, match="has changed since it was prepared") as refused:
            attempt()
        assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(right).hexdigest()
        assert refused.value.facts["found"].startswith("sha256:")
    path.unlink()  # the remedy the message names
    assert place.prepare() is True
    assert path.read_bytes() == right


def test_a_file_beside_the_locked_ones_is_refused(place: Place) -> None:
    place.prepare()
    (place.folder / "pretrain" / "mine.parquet").write_bytes(shard(3))
    with pytest.raises(KitError, match=r"mine\.parquet is not in dataset\.lock\.json"):
        place.prepare()


def test_a_damaged_lock_is_named(place: Place) -> None:
    place.prepare()
    (place.folder / "dataset.lock.json").write_text('{"parts": {"pretrain": {}}}')
    with pytest.raises(SchemaError, match="is damaged"):
        place.prepare()


def test_a_small_disk_is_refused_before_the_first_byte(place: Place) -> None:
    needs: list[Need] = []
    with pytest.raises(PrerequisiteError, match=r"too small: .* needed, 0\.00 GiB free") as refused:
        place.prepare(free_bytes=lambda folder: 1000, agree=lambda need: bool(needs.append(need)))
    assert "--shards" in (refused.value.hint or "")
    assert not place.hub.fetched("shard")
    assert (needs[0].files, needs[0].free_bytes) == (3, 1000)
    assert "Time: unknown yet" in say_need(needs[0])


def test_a_full_disk_ends_in_one_message_and_goes_on_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.hardlink_to

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(PrerequisiteError, match="No space left on device") as ended:
        place.prepare()
    assert "--work" in (ended.value.hint or "")
    monkeypatch.setattr(Path, "hardlink_to", real)
    assert place.prepare() is True
    assert len(place.hub.fetched("shard")) == 3


def test_declining_fetches_nothing(place: Place) -> None:
    with pytest.raises(PrerequisiteError, match="nothing was fetched"):
        place.prepare(agree=lambda need: False)
    assert not place.hub.fetched("shard")


def test_no_network_is_one_message_with_the_remedy(place: Place) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(PrerequisiteError, match="cannot be reached") as ended:
            place.prepare(mirror=address)
    assert address in ended.value.message
    assert "--mirror DIR" in (ended.value.hint or "")


def test_a_network_that_goes_away_keeps_what_came(place: Place) -> None:
    place.hub.faults["shard_00004.parquet"] = [Answer(cut=12_000), Answer(cut=0), Answer(cut=0)]
    with pytest.raises(PrerequisiteError, match="3 times in a row"):
        place.prepare()
    [part] = place.work.rglob("shard_00004.parquet.part")
    assert part.stat().st_size == 12_000
    assert place.prepare() is True
    assert place.hub.fetched("shard_00004")[-1] == "bytes=12000-"


def test_an_unknown_repository_or_revision_is_named(place: Place) -> None:
    place.recipe = recipe_of(recipe_text().replace(CORPUS, "maker/corpse"), place.root)
    with pytest.raises(PrerequisiteError, match="has no dataset maker/corpse"):
        place.prepare()
    text = recipe_text().replace("shards = 2", f'shards = 2\nrevision = "{"0" * 40}"')
    place.recipe = recipe_of(text, place.root)
    with pytest.raises(PrerequisiteError, match="has no revision 0000"):
        place.prepare()


def test_a_server_that_is_no_hub_is_named(place: Place) -> None:
    place.hub.plain[f"/no/api/datasets/{CORPUS}/revision/main"] = b"<html>Welcome</html>"
    with pytest.raises(SchemaError, match="does not answer like the Hub"):
        place.prepare(mirror=f"{place.hub.url}/no")


def test_a_pattern_without_files_is_named(place: Place) -> None:
    text = recipe_text(everything=True).replace("data/train-*", "data/drain-*")
    place.recipe = recipe_of(text, place.root)
    with pytest.raises(PrerequisiteError, match=r"no file data/drain-\*\.parquet") as ended:
        place.prepare(parts=["sft"])
    assert "data/train-00000-of-00002.parquet" in (ended.value.hint or "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no parquet at all", "cannot be read as parquet"),
        (parquet(body=["a"]), "has no column 'text'; it has body"),
        (parquet(text=pa.array([], pa.string())), "holds no documents"),
    ],
)
def test_a_bad_shard_is_named_and_not_used(place: Place, data: bytes, message: str) -> None:
    files = place.hub.commits[CORPUS][place.hub.head[CORPUS]]
    place.hub.commit(CORPUS, {**files, "shard_00001.parquet": data})
    with pytest.raises(SchemaError, match=message) as refused:
        place.prepare()
    assert "shard_00001.parquet" in refused.value.message
    with pytest.raises(PrerequisiteError):
        locate(place.recipe, place.work, {})


def test_bad_rows_are_named(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(everything=True), place.root)
    bad = parquet(**{**ARC, "answerKey": ["B", "9"]})
    place.hub.commit(
        "allenai/ai2_arc", {"ARC-Easy/test-0.parquet": bad, "ARC-Challenge/test-0.parquet": bad}
    )
    with pytest.raises(SchemaError, match="row 1"):
        place.prepare(parts=["chat_eval"])
    place.hub.commit(CHATS, {"data/train-0.parquet": parquet(text=["no messages"])})
    with pytest.raises(SchemaError, match="has no column messages; it has text"):
        place.prepare(parts=["sft"])


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
    with pytest.raises(PrerequisiteError, match="is no folder"):
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


# ---- the CORE bundle, in small

SMALL = {
    "core.yaml": b"icl_tasks: []\n",
    "eval_meta_data.csv": b"Eval Task,Random baseline\n",
    "eval_data/world/a.jsonl": b'{"a": 1}\n' * 200,
}


@pytest.fixture
def small_core(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in SMALL.items()
    }
    monkeypatch.setattr(core_files, "core_facts", lambda: {"files": files})


def archive(files: dict[str, bytes], prefix: str = "eval_bundle/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(prefix + name, data)
    return buffer.getvalue()


@pytest.fixture
def core_place(place: Place, small_core: None) -> Place:
    place.recipe = recipe_of(recipe_text(core=True), place.root)
    place.settings = replace(
        place.settings, parts=["core"], core_url=f"{place.hub.url}/published.zip"
    )
    return place


@pytest.mark.parametrize("where", ["/eval_bundle.zip", "/published.zip"])
def test_the_core_bundle_comes_from_the_mirror_or_else_from_where_it_is_published(
    core_place: Place, where: str
) -> None:
    evil = {"../../evil.txt": b"out", "/evil.txt": b"out", "eval_data/evil.jsonl": b"unknown"}
    core_place.hub.plain[where] = archive({**SMALL, **evil})
    core_place.hub.faults[where[1:]] = [Answer(cut=100)]
    core_place.prepare()
    root = core_place.work / "core"
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert there == set(SMALL)
    assert not list(core_place.root.rglob("evil*"))
    assert not list((core_place.work / "cache").rglob("*.zip*"))
    core_place.hub.plain.clear()
    assert core_place.prepare() is False


def test_an_archive_with_another_file_is_refused_with_both_digests(core_place: Place) -> None:
    name = "eval_data/world/a.jsonl"
    core_place.hub.plain["/published.zip"] = archive({**SMALL, name: SMALL[name] + b"{}" * 10**6})
    with pytest.raises(KitError, match="is not the file of the CORE bundle") as refused:
        core_place.prepare()
    assert refused.value.facts["expected"] == "sha256:" + hashlib.sha256(SMALL[name]).hexdigest()
    assert refused.value.facts["found"].startswith("sha256:")
    assert not (core_place.work / "core" / "core.yaml").exists()
    core_place.hub.plain["/published.zip"] = archive(SMALL)
    assert core_place.prepare() is True, "a refused archive is not kept"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "no readable archive"),
        (archive({"core.yaml": b"x"}), r"(lacks|not the file)"),
    ],
)
def test_a_broken_archive_is_named(core_place: Place, data: bytes, message: str) -> None:
    core_place.hub.plain["/published.zip"] = data
    with pytest.raises(KitError, match=message):
        core_place.prepare()


def test_a_changed_core_file_is_refused_and_a_missing_one_fetched(core_place: Place) -> None:
    core_place.hub.plain["/published.zip"] = archive(SMALL)
    core_place.prepare()
    path = core_place.work / "core" / "eval_data" / "world" / "a.jsonl"
    path.write_bytes(b"other")
    with pytest.raises(KitError, match="not the file of the CORE bundle"):
        core_place.prepare()
    path.unlink()
    assert core_place.prepare() is True
    assert path.read_bytes() == SMALL["eval_data/world/a.jsonl"]


@pytest.mark.parametrize("layout", ["core", "", "zip"])
def test_the_core_bundle_comes_from_a_folder(core_place: Place, layout: str) -> None:
    mirror = core_place.root / "mirror"
    mirror.mkdir()
    if layout == "zip":
        (mirror / "eval_bundle.zip").write_bytes(archive(SMALL, prefix=""))
    else:
        for name, data in SMALL.items():
            path = mirror / layout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    core_place.prepare(mirror=mirror)
    assert (core_place.work / "core" / "core.yaml").read_bytes() == SMALL["core.yaml"]
    assert not core_place.hub.requests
    if layout == "zip":
        assert (mirror / "eval_bundle.zip").is_file()
    with pytest.raises(PrerequisiteError, match="has no CORE bundle"):
        shutil.rmtree(core_place.work)
        core_place.prepare(mirror=core_place.root)


@pytest.mark.skipif(not (SHARED / "core").is_dir(), reason="no CORE bundle: set N4090_SHARED")
def test_the_real_bundle_from_a_folder_is_accepted(place: Place) -> None:
    place.recipe = recipe_of(recipe_text(core=True), place.root)
    place.prepare(mirror=SHARED, parts=["core"])
    assert open_bundle(place.work / "core").kind == "core"


# ---- the command


def run_command(place: Place, *options: str) -> Any:
    path = place.root / "tiny.toml"
    path.write_text(place.recipe.text)
    arguments = ["--recipe", str(path), "--work", str(place.work), *options]
    return CliRunner().invoke(command, arguments, catch_exceptions=True)


def test_the_command_says_what_it_takes_and_where_things_lie(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")  # restored afterwards: the command sets it
    first = run_command(place, "--mirror", place.hub.url, "--yes")
    assert first.exit_code == 0, first.output
    assert "To fetch: 3 files, 1" in first.stderr
    assert place.hub.url in first.stderr
    assert "Time: unknown yet" in first.stderr
    assert str(place.folder / "pretrain") in first.stdout
    assert "odc-by" in first.stdout
    second = run_command(place)
    assert "nothing was fetched" in second.stderr
    checked = run_command(place, "--check")
    assert checked.exit_code == 0
    shards = describe(Inputs(data=place.folder / "pretrain"), place.root / "digests.json")
    assert f'data.digest = "{shards["data"]["digest"]}"' in checked.stdout
    (place.folder / "pretrain" / "shard_00000.parquet").unlink()
    refused = run_command(place, "--check")
    assert isinstance(refused.exception, PrerequisiteError)
    assert refused.exception.exit_code == 3


def test_a_recipe_for_a_folder_says_that_data_is_needed(place: Place) -> None:
    text = recipe_text().replace('kind = "hub"', 'kind = "folder"')
    place.recipe = recipe_of(text, place.root)
    ended = run_command(place)
    assert isinstance(ended.exception, PrerequisiteError)
    assert "--data DIR" in (ended.exception.hint or "")


def environment(place: Place) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": place.hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(place.root / "hf"),
        "PYTHONWARNINGS": "error",
    }


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 90  # a machine that does other things starts Python slowly
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def test_killed_in_the_middle_of_a_file_it_goes_on_there(place: Place) -> None:
    path = place.root / "tiny.toml"
    path.write_text(place.recipe.text)
    line = [
        sys.executable,
        "-c",
        "from kit.cli.main import main; main()",
        "prepare",
        *("--recipe", str(path), "--work", str(place.work)),
    ]
    place.hub.faults["shard_00001.parquet"] = [Answer(hold=10_000)]

    def arrived() -> bool:
        parts = list(place.work.rglob("shard_00001.parquet.part"))
        return bool(parts) and parts[0].stat().st_size > 0

    with subprocess.Popen(line, env=environment(place), stderr=subprocess.PIPE) as process:
        wait_for(arrived, "the first bytes")
        process.send_signal(signal.SIGKILL)
        process.wait()
    place.hub.release.set()
    with pytest.raises(PrerequisiteError):
        locate(place.recipe, place.work, {})
    assert not list(place.work.rglob("shard_00001.parquet"))
    again = subprocess.run(
        line, env=environment(place), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    first, second = place.hub.fetched("shard_00001")
    # What was on the disk when the kill came: all that had arrived, but for a buffer's content.
    begin = re.fullmatch(r"bytes=(\d+)-", second or "")
    assert first is None
    assert begin is not None
    assert 0 < int(begin[1]) <= 10_000
    assert len(place.shards()) == 3
    assert "Warning" not in again.stderr


def test_one_part_alone_is_fetched_whatever_else_the_recipe_needs(
    place: Place, small_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "")
    text = recipe_text(core=True).replace('kind = "hub"', 'kind = "folder"')
    place.recipe = recipe_of(text, place.root)
    place.hub.plain["/eval_bundle.zip"] = archive(SMALL)
    done = run_command(place, "--mirror", place.hub.url, "--yes", "--only", "core")
    assert done.exit_code == 0, done.output
    assert (place.work / "core" / "core.yaml").is_file()
    assert not (place.folder / "pretrain").exists()
    ended = run_command(place, "--only", "sft")
    assert isinstance(ended.exception, PrerequisiteError)
    assert "reads no sft" in ended.exception.message
