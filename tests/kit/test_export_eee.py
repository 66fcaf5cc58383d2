"""`export eee` and model cards: what other people's tools read of a result."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tamper
from core_bundles import make_bundle

from kit.board.card import eval_results
from kit.board.eee import export_eee
from kit.board.model_index import CardFacts, model_index
from kit.core_eval.bundle import load_items, open_bundle
from kit.errors import KitError
from kit.schemas import load_schema

yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day on a card; its evaluation has every field that `eval core` writes."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    tamper.gpu_run().write(folder)
    path = folder / "eval" / "core.json"
    scored = json.loads(path.read_text())
    scored |= {"max_per_task": -1, "model": {"dtype": "float32"}}
    scored["interval"]["standard_error"] = 0.007
    for task in scored["tasks"]:
        n, right = len(task["outcomes"]), task["outcomes"].count("1")
        task |= {"n": n, "correct": right, "type": "multiple_choice", "shots": 0}
        task |= {"standard_error": 0.01, "centered": right / n}
    path.write_text(json.dumps(scored))
    return folder


@pytest.fixture
def result(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "result.json").read_text())
    return document


def front(result: dict[str, Any], **facts: Any) -> dict[str, Any]:
    card: dict[str, Any] = next(yaml.safe_load_all(model_index(result, CardFacts(**facts))))
    return card


def test_a_day_on_a_card_becomes_an_evaluation_file(
    run: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    [path] = export_eee(run, result, tmp_path, developer="me")
    document = json.loads(path.read_text())
    jsonschema.validate(document, load_schema("every_eval_ever/eval"))
    whole, *tasks = document["evaluation_results"]
    assert whole["evaluation_name"] == "CORE" and len(tasks) == 22
    assert whole["score_details"]["score"] == result["quality"]["core"]["value"]
    low, high = result["quality"]["core"]["interval"]
    interval = whole["score_details"]["uncertainty"]["confidence_interval"]
    assert (interval["lower"], interval["upper"]) == (low, high)


def scored_here(run: Path, result: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Path]:
    """The same run, scored on the test's own questions."""
    bundle = open_bundle(make_bundle(folder / "core"), allow_custom=True)
    scored = json.loads((run / "eval" / "core.json").read_text())
    tasks = []
    for task in bundle.selected:
        n = len(load_items(bundle, task))
        outcomes = ("10" * n)[:n]
        tasks.append(
            {
                **scored["tasks"][0],
                "label": task.label,
                "type": task.kind,
                "n": n,
                "correct": outcomes.count("1"),
                "outcomes": outcomes,
            }
        )
    scored |= {"bundle": {"kind": "custom", "digest": bundle.digest}, "tasks": tasks}
    (folder / "eval").mkdir()
    (folder / "eval" / "core.json").write_text(json.dumps(scored))
    other = copy.deepcopy(result)
    other["quality"]["core"] |= {"bundle": "custom", "bundle_digest": bundle.digest}
    return other, folder


def test_each_item_gets_a_line_with_its_question_and_answer(
    run: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    other, folder = scored_here(run, result, tmp_path / "run")
    samples, path = export_eee(
        folder, other, tmp_path / "out", developer="me", core=folder / "core"
    )
    document = json.loads(path.read_text())
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for line in lines:
        jsonschema.validate(line, load_schema("every_eval_ever/instance_level_eval"))
        assert line["evaluation_id"] == document["evaluation_id"]
        assert line["input"]["reference"][0]
        if line["input"]["choices"]:
            assert line["input"]["reference"][0] in line["input"]["choices"]
    names = {entry["evaluation_result_id"] for entry in document["evaluation_results"]}
    assert {line["evaluation_result_id"] for line in lines} <= names
    detail = document["detailed_evaluation_results"]
    assert detail["total_rows"] == len(lines)
    assert samples == tmp_path / "out" / detail["file_path"]
    assert document["evaluation_id"].split("/")[0] == "own_questions_score"


def test_other_questions_than_the_runs_are_refused(
    run: Path, result: dict[str, Any], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "core")
    with pytest.raises(KitError):
        export_eee(run, result, tmp_path / "out", developer="me", core=bundle)
    assert not (tmp_path / "out").exists()


def test_a_card_names_licence_language_datasets_and_co2(result: dict[str, Any]) -> None:
    result["energy"] |= {"kwh": 10.0}
    card = front(result, source_url="https://example.org/result.json")
    assert {"license", "model-index"} <= set(card)
    assert card["co2_eq_emissions"]["emissions"] == pytest.approx(4730)
    assert front(result, grid_g_per_kwh=50.0)["co2_eq_emissions"]["emissions"] == pytest.approx(500)
    entries = card["model-index"][0]["results"]
    assert {entry["source"]["url"] for entry in entries} == {"https://example.org/result.json"}
    result["energy"] |= {"kwh": None}
    assert "co2_eq_emissions" not in front(result)


def test_a_card_takes_the_corpus_from_the_recipe(result: dict[str, Any]) -> None:
    text = (
        '[data]\nkind = "hub"\nrepo = "karpathy/climbmix-400b-shuffle"\nsft = ["a/b:c/*.parquet"]'
    )
    result["recipe"]["text"] = text
    card = front(result)
    assert card["datasets"] == ["karpathy/climbmix-400b-shuffle", "a/b"]
    assert (card["license"], card["language"]) == ("cc-by-nc-4.0", "en")
    result["recipe"]["text"] = text.replace("karpathy/climbmix-400b-shuffle", "me/mine")
    assert front(result)["license"] == "unknown" and "language" not in front(result)
    assert front(result, license="mit", language="de")["language"] == "de"


def test_a_card_names_only_repositories_that_the_run_read(result: dict[str, Any]) -> None:
    entry = '[[data.text]]\nrepo = "{}"\npart = "{}"\nsynthetic = "{}"\n'
    mix = [("c/d", "train", "all"), ("e/f", "anneal", "none"), ("g/h", "anneal", "part")]
    text = '[data]\nkind = "hub"\nrepo = "a/b"\nnatural_repo = "n/n"\nanneal = 0.2\n' + "".join(
        entry.format(*values) for values in mix
    )
    for change, named in (
        ("anneal = 0.2", ["a/b", "c/d", "e/f", "g/h"]),
        ("anneal = 0", ["a/b", "c/d"]),
        ("anneal = 0.2\nnatural_only = true", ["n/n", "e/f"]),
    ):
        result["recipe"]["text"] = text.replace("anneal = 0.2", change, 1)
        assert front(result)["datasets"] == named


def test_the_hubs_own_file_holds_core_alone_with_its_source(result: dict[str, Any]) -> None:
    url = "https://example.org/me/model/blob/0123/result.json"
    text = eval_results(result, "me/board", revision="4567", source_url=url)
    assert text is not None
    [entry] = yaml.safe_load(text)
    assert entry["dataset"] == {"id": "me/board", "task_id": "core", "revision": "4567"}
    assert entry["value"] == result["quality"]["core"]["value"]
    assert entry["source"] == {"url": url, "name": "signed result"}
    assert str(entry["date"]).startswith("20")
    result["quality"]["core"]["partial"] = True
    assert eval_results(result, "me/board") is None


def test_a_boards_template_names_the_one_task() -> None:
    path = Path(__file__).parents[2] / "submissions" / "eval.yaml"
    assert [task["id"] for task in yaml.safe_load(path.read_text())["tasks"]] == ["core"]
