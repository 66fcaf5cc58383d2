"""A small Hub on the loopback, and a folder that `prepare` fills from it."""

import hashlib
import io
import json
import os
import random
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kit.prepare import core_files
from kit.prepare.fetch import prepare
from kit.prepare.inputs import prepared_folder
from kit.prepare.job import Settings
from kit.prepare.transfer import Retry
from kit.recipe import Recipe, parse_recipe
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
