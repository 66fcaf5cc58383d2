"""Counterfactual controls: what is swapped, and what a model that reads or does not read scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from kit.core_eval.bundle import Task, open_bundle
from kit.core_eval.controls import has_control, partners, swapped
from kit.core_eval.evaluate import Settings, Watch, evaluate_controls, evaluate_core
from tests.assets.core.tiny_model import PlainModel

WORDS = [f"w{i}" for i in range(40)]


class Unigram(PlainModel):
    """Reads nothing: the same scores after any text."""

    def logits(self, tokens: Tensor) -> Tensor:
        fixed = torch.linspace(0, 3, self.vocab_size)
        return fixed.expand(*tokens.shape, -1)


class Copying(PlainModel):
    """Prefers what it has read: finds an answer that the question names."""

    def logits(self, tokens: Tensor) -> Tensor:
        seen = torch.nn.functional.one_hot(tokens, self.vocab_size).cumsum(1).clamp_max(1)
        return 9.0 * seen.float()


@pytest.fixture
def bundle(tmp_path: Path):
    data = tmp_path / "eval_data"
    data.mkdir()
    rows = [
        {
            "query": f"Passage: the key is {word}.\nQuestion: which is it?",
            "choices": [word, WORDS[(i + 7) % 40]][:: 1 - 2 * (i % 2)],
            "gold": i % 2,
        }
        for i, word in enumerate(WORDS)
    ]
    (data / "read.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [{**row, "query": row["query"].replace("Passage: ", "")} for row in rows]
    (data / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    (tmp_path / "core.yaml").write_text(
        "icl_tasks:\n"
        + "".join(
            f"- {{label: {n}, dataset_uri: {n}.jsonl, num_fewshot: [0], "
            "icl_task_type: multiple_choice}\n"
            for n in ("read", "plain")
        )
    )
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nread,50\nplain,50\n")
    return open_bundle(tmp_path, allow_custom=True)


def test_a_model_that_reads_falls_and_one_that_does_not_stays(bundle) -> None:
    for model, reads in ((Copying(vocab_size=4001), True), (Unigram(vocab_size=4001), False)):
        asked = evaluate_core(model, bundle)
        left = evaluate_controls(model, bundle, Settings(), Watch())
        assert list(left) == ["question", "passage"]
        assert list(left["question"]) == ["read", "plain"]
        assert list(left["passage"]) == ["read"], "only items with a passage"
        for task in asked["tasks"]:
            for found in left.values():
                if task["label"] not in found:
                    continue
                now = found[task["label"]]
                assert now["n"] == task["n"] == 40
                if reads:
                    assert task["accuracy"] > 0.95
                    assert now["accuracy"] < 0.95
                else:
                    assert now["accuracy"] == task["accuracy"]


TASK = Task("t", "t.jsonl", "language_modeling", 0, " ", 0.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (
            "Context: A one.\nQuestion: q1?\nAnswer:",
            "Context: B two.\nQuestion: q2?\nAnswer:",
            "Context: B two.\nQuestion: q1?\nAnswer:",
        ),
        (
            "Below.\nStory: A\n\nPreceding questions:\nQuestion: p\n\nFinal question:\nQuestion: f",
            "Below.\nStory: B\n\nFinal question:\nQuestion: g",
            "Below.\nStory: B\n\nPreceding questions:\nQuestion: p\n\nFinal question:\nQuestion: f",
        ),
        ("Passage: A\nQ: x\nChoices", "Passage: B\nC\nQ: y", "Passage: B\nC\nQ: x\nChoices"),
    ],
)
def test_the_question_stays_with_another_passage(mine: str, theirs: str, expected: str) -> None:
    item, other = ({"context": text, "continuation": "c"} for text in (mine, theirs))
    assert swapped(TASK, item, other, "passage") == {"context": expected, "continuation": "c"}
    assert swapped(TASK, item, other, "question")["context"] == theirs


def test_no_item_gets_a_text_like_its_own() -> None:
    texts = ["a"] * 5 + ["b"] * 5 + ["c"]
    items = [{"context": text, "continuation": "x"} for text in texts]
    others = partners(TASK, items, "question")
    assert all(texts[i] != texts[other] for i, other in enumerate(others))
    assert partners(TASK, items[:5], "question") == [0, 1, 2, 3, 4], "no other text: unchanged"
    assert not has_control(TASK, items, "passage")


def test_every_task_of_the_real_bundle_has_a_control() -> None:
    from prepare_place import SHARED

    if not (SHARED / "core").is_dir():
        pytest.skip("the CORE bundle is not on this machine (../shared/core)")
    from kit.core_eval.bundle import load_items

    real = open_bundle(SHARED / "core")
    with_passage = [
        task.label for task in real.tasks if has_control(task, load_items(real, task), "passage")
    ]
    assert with_passage == ["agi_eval_lsat_ar", "squad", "coqa", "boolq"]


def test_the_command_shows_what_is_left(bundle, tmp_path: Path, monkeypatch) -> None:
    from kit.cli.main import cli

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    monkeypatch.setattr("kit.cli.eval._load", lambda *_, **__: Copying(vocab_size=4001))
    arguments = ["eval", "core", str(model), "--core", str(bundle.root), "--allow-custom"]
    arguments += ["--controls"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "other question" in shown.output and "other passage" in shown.output
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert set(document["controls"]) == {"question", "passage"}
