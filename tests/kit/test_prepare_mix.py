"""`prepare` with several repositories: text by shares, and conversations by a mapping."""

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_place import CHATS, CORPUS, Place, parquet, recipe_of, recipe_text, said
from prepare_place import hub as hub
from prepare_place import place as place

from kit.conversations import SETS, Mapped, conversation_sources, multiple_choice
from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.prepare.fetch import check
from kit.prepare.text_files import text_bytes
from kit.recipe import load_recipe
from kit.text_mix import text_mix

STORIES, ESSAYS, NOTES = "other/stories", "third/essays", "fourth/notes"
MIX = f"""
licence = "cc-by-nc-4.0"
synthetic = "part"
anneal = 0.2
natural_repo = "{NOTES}"
[[data.text]]
repo = "{STORIES}"
files = "made/*.parquet"
shards = 2
share = 0.25
column = "story"
synthetic = "all"
[[data.text]]
repo = "{CORPUS}"
part = "anneal"
skip = 2
shards = 2
share = 0.8
synthetic = "part"
[[data.text]]
repo = "{ESSAYS}"
part = "anneal"
shards = 1
share = 0.2
synthetic = "none"
"""


def texts(seed: int, rows: int) -> list[str]:
    source = random.Random(seed)
    return [source.randbytes(source.randint(100, 300)).hex() for _ in range(rows)]


def mixed(place: Place, change: tuple[str, str] = ("", "")) -> Place:
    """The place with three repositories and a recipe that mixes them."""
    hub = place.hub
    corpus = {f"shard_{i:05d}.parquet": parquet(text=texts(i, 300)) for i in range(6)}
    hub.commit(CORPUS, corpus, licence="cc-by-nc-4.0")
    stories = {f"made/{i}.parquet": parquet(story=texts(50 + i, 300)) for i in range(3)}
    hub.commit(STORIES, stories, licence="odc-by")
    essays = {f"{i}.PARQUET": parquet(text=texts(90 + i, 300)) for i in range(4)}
    hub.commit(ESSAYS, essays)
    notes = {f"{i}.parquet": parquet(text=texts(70 + i, 300)) for i in range(3)}
    hub.commit(NOTES, notes, licence="cc0-1.0")
    text = recipe_text().replace("shards = 2\n", "shards = 2\n" + MIX, 1)
    place.recipe = recipe_of(text.replace(*change) if change[0] else text, place.root)
    return place


def size(place: Place, names: Sequence[str]) -> int:
    return sum(text_bytes(place.folder / "pretrain" / name, "text") for name in names)


def test_text_comes_from_every_repository_in_its_share(place: Place) -> None:
    assert mixed(place).prepare() is True
    train = ["shard_00000.parquet", "shard_00001.parquet"]
    more, first = "more-00-stories.parquet", "anneal-01-corpus.parquet"
    last = "anneal-02-essays.parquet"
    assert place.shards() == sorted([*train, more, first, last, "validation-shard_00005.parquet"])
    share = size(place, [more]) / size(place, [*train, more])
    assert share == pytest.approx(0.25, abs=0.01)
    assert size(place, [last]) / size(place, [first, last]) == pytest.approx(0.2, abs=0.01)
    # The anneal part reads other shards than training, and never the one for validation.
    lock = place.lock()["pretrain"]
    sources = {f["path"]: [s["path"] for s in f["sources"]] for f in lock["files"]}
    assert sources[f"pretrain/{first}"] == ["shard_00002.parquet", "shard_00003.parquet"]
    assert sources[f"pretrain/{more}"] == ["made/0.parquet", "made/1.parquet"]
    # Thinned evenly: from the beginning to the end of the files.
    kept = pq.read_table(place.folder / "pretrain" / more)["text"].to_pylist()
    every = texts(50, 300) + texts(51, 300)
    places = [every.index(text) for text in kept]
    assert places == sorted(places) and places[0] < 10 and places[-1] > 590
    note = {f["path"]: f["notes"] for f in lock["files"]}[f"pretrain/{more}"]
    assert note == {"rows left out to keep the share": 600 - len(kept)}


def test_each_repository_is_pinned_and_a_second_run_fetches_nothing(place: Place) -> None:
    mixed(place).prepare()
    lock = place.lock()["pretrain"]
    heads = {r["repository"]: r["commit"] for r in lock["repositories"]}
    assert heads == {name: place.hub.head[name] for name in (CORPUS, STORIES, ESSAYS)}
    assert {r["repository"]: r["licence"] for r in lock["repositories"]} == {
        CORPUS: "cc-by-nc-4.0", STORIES: "odc-by", ESSAYS: None,
    }  # fmt: skip
    assert place.prepare() is False
    before = {path.name: path.read_bytes() for path in (place.folder / "pretrain").iterdir()}
    # A branch that moved changes nothing: what is lost comes again from the pinned commit.
    place.hub.commit(STORIES, {"made/0.parquet": parquet(story=["other"])})
    (place.folder / "pretrain" / "more-00-stories.parquet").unlink()
    shutil.rmtree(place.work / "data" / "hub")
    assert place.prepare() is True
    assert before == {p.name: p.read_bytes() for p in (place.folder / "pretrain").iterdir()}
    check(place.recipe, place.work, ["pretrain"])


def test_the_trainer_reads_the_parts_as_they_are_meant(place: Place) -> None:
    documents = pytest.importorskip("reference.rows.documents")
    mixed(place).prepare()
    shards = documents.find_shards(place.folder / "pretrain", anneal=True)
    assert [path.name for path in shards.validation] == ["validation-shard_00005.parquet"]
    assert len(shards.anneal) == 2 and len(shards.train) == 3


def test_one_line_switches_the_anneal_part_off(place: Place) -> None:
    """The recipe goes on stating its sources; neither folder is mistaken for the other."""
    mixed(place).prepare()
    with_part = place.folder
    mixed(place, ("anneal = 0.2", "anneal = 0")).prepare()
    assert place.folder != with_part
    assert [name.partition("-")[0] for name in place.shards()] == [
        "more", "shard_00000.parquet", "shard_00001.parquet", "validation",
    ]  # fmt: skip
    assert {r["repository"] for r in place.lock()["pretrain"]["repositories"]} == {CORPUS, STORIES}


def test_natural_text_only_is_one_switch_away(place: Place) -> None:
    mixed(place, ("anneal = 0.2", "anneal = 0.2\nnatural_only = true")).prepare()
    repositories = {r["repository"] for r in place.lock()["pretrain"]["repositories"]}
    assert repositories == {NOTES, ESSAYS}
    assert place.folder.name.startswith("fourth--notes-2-")
    assert [name[:6] for name in place.shards()] == ["0.parq", "1.parq", "anneal", "valida"]


def test_a_source_too_small_for_its_share_is_named_with_what_would_do(place: Place) -> None:
    mixed(place, ("share = 0.25", "share = 0.9"))
    with pytest.raises(PrerequisiteError, match="other/stories: 2 files hold") as caught:
        place.prepare()
    assert "shards to about 18" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("share = 0.25", "share = 1.0"), "shares of part train are 1 together"),
        (("share = 0.8", "share = 0.7"), "shares of part anneal are 0.9 together"),
        (("skip = 2", "skip = 1"), "would be read twice"),
        (("natural_repo =", "natural_only = true #"), "not stated to be natural"),
        (('"third/essays"\npart', '"x"\npart'), "repo"),
        (("share = 0.25", 'share = 0.25\nsynthetik = "all"'), "synthetik"),
    ],
)
def test_a_mix_that_cannot_be_is_a_problem_of_the_recipe(
    place: Place, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(SchemaError, match="problem") as caught:
        mixed(place, change)
    assert said in caught.value.message


def test_a_column_that_is_not_there_is_named(place: Place) -> None:
    mixed(place, ('column = "story"', 'column = "tale"'))
    with pytest.raises(SchemaError, match="has not one column 'tale'; it has story"):
        place.prepare()


def test_an_old_recipe_keeps_its_folder(tmp_path: Path) -> None:
    from kit.prepare.inputs import prepared_folder

    recipe = recipe_of(recipe_text(everything=True), tmp_path)
    data = recipe.section("data")
    asked = {key: data[key] for key in ("repo", "revision", "shards", "sft", "chat_eval")}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert prepared_folder(tmp_path, recipe).name == f"maker--corpus-2-{digest[:8]}"


# ---- conversations


def turns(mapped: Mapped, **columns: Any) -> list[list[dict[str, str]] | str | None]:
    rows = pa.table(columns).to_pylist()
    return [found.messages or found.dropped for found in map(mapped.turns, rows)]


def test_nanochats_mix_is_fetched_and_rendered(place: Place) -> None:
    hub = place.hub
    hub.commit(
        "HuggingFaceTB/smol-smoltalk",
        {"data/train-0.parquet": parquet(messages=[[said("user", "Hi"), said("assistant", "Yo")]])},
    )
    mmlu = {"question": ["1 + 1?"], "choices": [["1", "2", "3", "4"]], "answer": [1]}
    hub.commit("cais/mmlu", {"all/auxiliary_train-0.parquet": parquet(**mmlu, subject=[""])})
    gsm8k = {"question": ["How many?"], "answer": ["Two. #### 2"]}
    hub.commit("openai/gsm8k", {"main/train-0.parquet": parquet(**gsm8k)})
    text = recipe_text(everything=True).replace(f'["{CHATS}:data/train-*.parquet"]', '["nanochat"]')
    place.recipe = recipe_of(text, place.root)
    place.prepare(parts=["sft"])
    found = {p.stem: json.loads(p.read_text("utf-8")) for p in (place.folder / "sft").iterdir()}
    assert found == {
        "smol-smoltalk": [said("user", "Hi"), said("assistant", "Yo")],
        "mmlu_auxiliary": [
            said("user", multiple_choice("1 + 1?", ["1", "2", "3", "4"])),
            said("assistant", "B"),
        ],
        "gsm8k_train": [said("user", "How many?"), said("assistant", "Two. #### 2")],
    }
    assert place.prepare(parts=["sft"]) is False


def test_a_choice_is_asked_word_for_word_as_chat_evaluation_asks_it() -> None:
    evaluation = pytest.importorskip("reference.chat.evaluation")
    row = {"question": "Which?", "choices": ["sand", "sea", "rain"], "answer": 2}
    asked = evaluation._choice_question(row)
    assert asked.prompt == multiple_choice(row["question"], row["choices"])  # type: ignore[arg-type]


CHOICE = {"question": "question", "choices": "choices", "answer": "answer"}


@pytest.mark.parametrize(
    ("mapped", "columns", "expected"),
    [
        (Mapped("a/b", "*", user="Q: {q}", assistant="{meta.a}"),
         {"q": ["{meta.a}?"], "meta": [{"a": 5}]}, ["Q: {meta.a}?", "5"]),
        (Mapped("a/b", "*", messages=("conversations", "from", "value")),
         {"conversations": [[{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]]},
         ["x", "y"]),
        (Mapped("a/b", "*", choice={**CHOICE, "answer": "answerKey"}),
         {"question": ["w?"], "answerKey": ["2"],
          "choices": [{"text": ["s", "t"], "label": ["1", "2"]}]},
         ["Multiple Choice question: w?\n- s=A\n- t=B\n\nRespond only with the letter of the "
          "correct answer.", "B"]),
        (Mapped("a/b", "*", choice={n: f"train.{n}" for n in CHOICE}),
         {"train": [{"question": "w?", "choices": ["s", "t"], "answer": 0}]},
         ["Multiple Choice question: w?\n- s=A\n- t=B\n\nRespond only with the letter of the "
          "correct answer.", "A"]),
    ],
)  # fmt: skip
def test_rows_of_many_forms_become_conversations(
    mapped: Mapped, columns: dict[str, Any], expected: list[str]
) -> None:
    [found] = turns(mapped, **columns)
    assert isinstance(found, list)
    assert [message["content"] for message in found] == expected
    assert [message["role"] for message in found] == ["user", "assistant"]
    assert set(mapped.columns) == set(columns)


def test_rows_without_a_conversation_are_counted_by_reason() -> None:
    mapped = Mapped("a/b", "*", user="{q}", assistant="{a}")
    assert turns(mapped, q=["x", None], a=[" ", "y"]) == ["an empty message"] * 2


def test_a_mapping_that_does_not_fit_names_file_row_and_entry(place: Place) -> None:
    place.hub.commit("a/b", {"x.parquet": parquet(question=["?"], choices=[["1"]], answer=[7])})
    entry = '[{repo = "a/b", files = "*.parquet", choice = {}}]'
    text = recipe_text(everything=True).replace(f'["{CHATS}:data/train-*.parquet"]', entry)
    place.recipe = recipe_of(text, place.root)
    with pytest.raises(SchemaError, match=r"x\.parquet, row 0: answer 7 is none of 1") as caught:
        place.prepare(parts=["sft"])
    assert "a/b" in (caught.value.hint or "")
    assert not (place.folder / "sft" / "b.jsonl").exists()


@pytest.mark.parametrize(
    "entries",
    [["nanochats"], [{"repo": "a/b", "files": "*", "user": "x"}],
     [{"repo": "a/b", "files": "*", "user": "x", "assistant": "y", "choice": {}}]],
)  # fmt: skip
def test_an_entry_that_says_nothing_clear_is_a_problem_of_the_recipe(
    entries: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(SchemaError, match=r"data\.sft"):
        conversation_sources(entries)
    text = recipe_text(everything=True).replace(
        f'["{CHATS}:data/train-*.parquet"]',
        json.dumps(entries).replace('": ', '" = '),
    )
    with pytest.raises(KitError, match=r"data\.sft"):
        recipe_of(text, tmp_path)


def test_every_set_and_shipped_recipe_can_be_spelled_out() -> None:
    for entries in SETS.values():
        assert len({entry.name for entry in entries}) == len(entries)
    for name in ("reference", "reference-1h", "nano"):
        data = load_recipe(name).section("data")
        assert conversation_sources(data["sft"]) and text_mix(data).main.share == 1
