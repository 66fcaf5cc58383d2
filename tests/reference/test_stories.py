from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reference.chat.conversation import find_sources, read_conversations
from reference.chat.evaluation import find_tasks
from reference.rows.documents import find_shards, read_shard
from reference.stories import write_stories
from reference.stories.exams import core_tasks
from reference.stories.texts import document
from reference.stories.world import MEN, WOMEN, World

SEED, DOCUMENTS = 11, 3000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "stories"
    write_stories(folder, seed=SEED, documents=DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    """Everything a model may learn from: pretraining text and conversations."""
    shards = find_shards(root / "pretrain")
    found = [t for path in shards.train for group in read_shard(path) for t in group.texts]
    for path in find_sources(root / "sft"):
        found += ["\n".join(m["content"] for m in talk) for talk in read_conversations(path)]
    return found


@pytest.fixture(scope="module")
def tasks() -> dict[str, dict]:
    return {task["label"]: task for task in core_tasks(World(SEED), SEED)}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_arguments_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_stories(tmp_path / "again", seed=SEED, documents=DOCUMENTS)
    assert files(tmp_path / "again") == files(root)


def test_other_seeds_give_other_worlds(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_stories(tmp_path / str(seed), seed=seed, documents=100)
    assert World(1).held_out != World(2).held_out
    first, second = files(tmp_path / "1"), files(tmp_path / "2")
    same = {name for name in first if first[name] == second[name]}
    assert same == {"core/core.yaml", "core/eval_meta_data.csv"}


def test_finished_folder_is_kept_and_a_torn_one_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_stories(folder, seed=1, documents=100)
    before = (folder / "stories.json").stat().st_mtime_ns
    write_stories(folder, seed=1, documents=100)
    assert (folder / "stories.json").stat().st_mtime_ns == before
    whole = files(folder)
    (folder / "stories.json").unlink()  # as a kill before the last rename would leave it
    (tmp_path / "s.tmp").mkdir()
    (tmp_path / "s.tmp" / "rest").touch()
    write_stories(folder, seed=1, documents=100)
    assert files(folder) == whole
    write_stories(folder, seed=2, documents=100)
    assert files(folder) != whole


def test_shards_hold_the_documents_asked_for_and_the_last_is_validation(root: Path) -> None:
    shards = find_shards(root / "pretrain")
    counts = [pq.read_metadata(path).num_rows for path in (*shards.train, *shards.validation)]
    assert sum(counts) == DOCUMENTS and counts[-1] == 60
    table = pq.read_table(shards.validation[0])
    assert table.column_names == ["text", "source"]
    assert set(table["source"].to_pylist()) == {"articles", "quizzes", "readings", "scenes"}
    assert table["text"][0].as_py() == document(World(SEED), SEED, DOCUMENTS - 60)[0]


def test_bundle_has_the_shape_of_core(root: Path, tasks: dict[str, dict]) -> None:
    text = (root / "core" / "core.yaml").read_text()
    with (root / "core" / "eval_meta_data.csv").open() as file:
        baselines = {
            row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)
        }
    assert set(baselines) == set(tasks)
    assert text.startswith("icl_tasks:\n")
    kinds = set()
    for label, task in tasks.items():
        block = text.split(f"label: {label}\n")[1].split("\n-\n")[0]
        uri = block.split("dataset_uri: ")[1].split("\n")[0]
        kind = block.split("icl_task_type: ")[1].split("\n")[0]
        kinds.add(kind)
        lines = (root / "core" / "eval_data" / uri).read_text().splitlines()
        assert [json.loads(line) for line in lines] == task["rows"]
        fields = {
            "multiple_choice": {"query", "choices", "gold"},
            "schema": {"context_options", "continuation", "gold"},
            "language_modeling": {"context", "continuation"},
        }[kind]
        assert all(set(row) == fields for row in task["rows"])
    assert kinds == {"multiple_choice", "schema", "language_modeling"}


def test_bundle_is_valid_yaml(root: Path) -> None:
    yaml = pytest.importorskip("yaml")
    entries = yaml.safe_load((root / "core" / "core.yaml").read_text())["icl_tasks"]
    assert [entry["continuation_delimiter"] for entry in entries[:3]] == ["\nAnswer: "] * 2 + [" "]
    assert all(isinstance(entry["num_fewshot"], list) for entry in entries)


def test_no_question_of_an_examination_stands_in_the_text(
    root: Path, texts: list[str], tasks: dict[str, dict]
) -> None:
    everything = "\n".join(texts)
    for label in ("animal_facts", "town_facts"):
        for row in tasks[label]["rows"]:
            assert row["query"].removeprefix("Question: ") not in everything
    for row in tasks["fact_answers"]["rows"]:
        assert row["context"].removeprefix("Question: ") not in everything
    for label in ("agreement", "pronouns"):
        for row in tasks[label]["rows"]:
            option = row["context_options"][row["gold"]]
            assert f"{option} {row['continuation']}" not in everything
    for row in tasks["agreement"]["rows"]:
        assert not any(f"{option} " in everything for option in row["context_options"])
    for row in tasks["reading"]["rows"]:
        assert row["context"] not in everything
    for task in find_tasks(root / "chat_eval")[0]:
        assert not any(question.prompt in everything for question in task.questions)


def test_every_examined_fact_is_told_in_the_text_in_other_words(texts: list[str]) -> None:
    world = World(SEED)
    everything = "\n".join(texts)
    for fact in world.facts([*world.animals, *world.towns], held_out=True):
        tellings = [fact.fill(template) for template in fact.attribute.told]
        assert sum(everything.count(telling) for telling in tellings) >= 5, fact.question


def test_text_never_contradicts_the_world(texts: list[str]) -> None:
    world = World(SEED)
    everything = " ".join(texts).replace("\n", " ")
    for fact in [fact for facts in (*world.animals, *world.towns) for fact in facts]:
        for value in fact.attribute.values:
            if value != fact.value:
                wrong = fact.fill(fact.attribute.told[0].replace("{v}", value))
                assert wrong not in everything


def test_right_choices_are_evenly_placed_and_wrong_ones_are_of_their_kind(
    tasks: dict[str, dict],
) -> None:
    for task in tasks.values():
        if task["type"] == "language_modeling":
            continue
        golds = Counter(row["gold"] for row in task["rows"])
        choices = len(task["rows"][0].get("choices", (0, 0)))
        expected = len(task["rows"]) / choices
        assert set(golds) == set(range(choices))
        assert all(abs(n - expected) < 4 * expected**0.5 for n in golds.values())
    for row in tasks["animal_facts"]["rows"]:
        assert len(set(row["choices"])) == 4


def test_values_are_equally_frequent_in_the_world_and_among_examined_facts() -> None:
    world = World(SEED)
    for facts in (world.animals, world.towns):
        for number in range(len(facts[0])):
            column = [of_subject[number] for of_subject in facts]
            assert set(Counter(fact.value for fact in column).values()) == {4}
            held_out = [fact for fact in column if fact.question in world.held_out]
            assert set(Counter(fact.value for fact in held_out).values()) == {1}


def test_the_nearest_noun_never_gives_the_verb_away(tasks: dict[str, dict]) -> None:
    for row in tasks["agreement"]["rows"]:
        many = row["continuation"].split()[0] in ("are", "were")
        for place, option in enumerate(row["context_options"]):
            _, first, _, _, second = option.split()
            assert first.endswith("s") != second.endswith("s")
            assert (first.endswith("s") == many) == (place == row["gold"])


def test_pronouns_fit_only_the_right_name(tasks: dict[str, dict]) -> None:
    for row in tasks["pronouns"]["rows"]:
        names = [option.split()[0] for option in row["context_options"]]
        woman = row["continuation"].startswith("she ")
        assert [name in WOMEN for name in names].count(True) == 1
        assert names[row["gold"]] in (WOMEN if woman else MEN)
        ends = {option.split(" ", 1)[1] for option in row["context_options"]}
        assert len(ends) == 1


def test_reading_is_answered_by_the_story_and_by_one_sentence_of_it(
    tasks: dict[str, dict],
) -> None:
    for row in tasks["reading"]["rows"]:
        story, opening = row["context"].split("\n")
        assert story.count(f"{opening} {row['continuation']}.") == 1
        assert story.count(f"{opening} ") == 1


def test_chat_questions_are_scored_by_exact_answers(root: Path) -> None:
    tasks, left_out = find_tasks(root / "chat_eval")
    assert {task.name: task.kind for task in tasks} == {
        "story_facts": "exact",
        "story_reading": "exact",
    }
    assert left_out == []
    baselines = {task.name: {q.baseline for q in task.questions} for task in tasks}
    assert baselines == {"story_facts": {1 / 8}, "story_reading": {1 / 3}}


def test_texts_differ_from_each_other(texts: list[str]) -> None:
    assert len(set(texts[:2900])) > 0.98 * 2900
    assert random.Random(0).sample(texts, 1)[0].strip()


def test_prepare_stage_fills_the_folder(tmp_path: Path) -> None:
    from time import CLOCK_BOOTTIME, clock_gettime_ns

    from reference.events import Events
    from reference.request import Request
    from reference.stories import prepare

    now = clock_gettime_ns(CLOCK_BOOTTIME)
    document = {
        "contract": 1, "stage": "prepare", "run_id": "r", "seed": 1, "attempt": 0,
        "device": "cpu", "threads": 1,
        "recipe": {"data": {"stories": 100, "stories_seed": 5}},
        "paths": {"out": str(tmp_path / "stories-5-100")},
        "clock": {
            "start_ns": now, "stage_start_ns": now, "deadline_ns": now, "budget_s": 1.0,
        },
    }  # fmt: skip
    (tmp_path / "request.json").write_text(json.dumps(document))
    prepare.run(Request.load(tmp_path / "request.json"), Events())
    assert {path.name for path in (tmp_path / "stories-5-100").iterdir()} == {
        "pretrain", "core", "sft", "chat_eval", "stories.json",
    }  # fmt: skip
