"""Bits per byte of right answers: what is measured, in the same pass, and what a result says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from core_bundles import make_bundle  # noqa: E402

from kit.core_eval.bundle import Bundle, load_items, open_bundle  # noqa: E402
from kit.core_eval.evaluate import Settings, evaluate_core  # noqa: E402
from kit.core_eval.likelihood import answer_bytes, task_likelihood, to_bits  # noqa: E402
from kit.core_eval.loaders import from_recipe  # noqa: E402
from kit.core_eval.model import Paths  # noqa: E402
from kit.core_eval.prompts import render_prompts  # noqa: E402
from kit.result import core_section  # noqa: E402

ASSETS = Path(__file__).parents[1] / "assets" / "core"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(make_bundle(tmp_path_factory.mktemp("core") / "b", 8), allow_custom=True)


def model() -> Any:
    return from_recipe("tiny_model.py:PrefixModel", ASSETS)(vocab_size=61)


def one_at_a_time(bundle: Bundle, label: str, index: int) -> float:
    """Nats of the right answer of an item, from all logits of its one sequence."""
    task = next(task for task in bundle.selected if task.label == label)
    items, own = load_items(bundle, task), model()
    prompts = render_prompts(task, items, index)
    rows = [[own.bos_id, *ids] for ids in own.encode(prompts)]
    if task.kind == "language_modeling":
        row, count = rows[1], len(rows[1]) - len(rows[0])
    else:
        row = rows[items[index]["gold"]]
        lists = rows if task.kind == "multiple_choice" else [list(reversed(r)) for r in rows]
        same = 0
        while all(other[same] == lists[0][same] for other in lists):
            same += 1
        count = len(row) - same if task.kind == "multiple_choice" else same
    losses = -torch.log_softmax(own.logits(torch.tensor([row]))[0].double(), dim=-1)
    return sum(losses[p - 1, row[p]].item() for p in range(len(row) - count, len(row)))


@pytest.mark.parametrize("paths", [Paths(False, False), Paths(True, True)])
def test_each_item_has_the_bits_of_its_right_answer(bundle: Bundle, paths: Paths) -> None:
    document = evaluate_core(model(), bundle, Settings(paths=paths))
    for task in document["tasks"]:
        assert len(task["answer_bits"]) == len(task["answer_bytes"]) == task["n"]
        for index in range(task["n"]):
            expected = one_at_a_time(bundle, task["label"], index) / math.log(2)
            assert task["answer_bits"][index] == pytest.approx(expected, rel=1e-4)
        total = sum(task["answer_bits"]) / sum(task["answer_bytes"])
        assert task["answer_bpb"] == pytest.approx(total)
    mean = sum(task["answer_bpb"] for task in document["tasks"]) / len(document["tasks"])
    whole = document["answer_bpb"]
    assert whole["value"] == pytest.approx(mean) and whole["low"] < mean < whole["high"]


def test_a_result_takes_the_figure_from_the_items(bundle: Bundle) -> None:
    document = evaluate_core(model(), bundle, Settings()) | {"digest": "sha256:" + "0" * 64}
    section = core_section(document)
    assert section is not None
    assert section["answer_bpb"] == pytest.approx(document["answer_bpb"]["value"])
    for task in document["tasks"]:
        del task["answer_bits"]
    earlier = core_section(document)
    assert earlier is not None and "answer_bpb" not in earlier


def test_the_answer_is_what_differs_between_options() -> None:
    options = ["Q: the cat sat on a mat", "Q: the cat sat on a rug"]
    assert answer_bytes("multiple_choice", options, 0) == len("mat")
    contexts = ["So it is done.", "As it was done."]
    assert answer_bytes("schema", contexts, 1) == len("s done.")
    assert answer_bytes("language_modeling", ["2 and 2 is", "2 and 2 is vïer"], 0) == 6
    assert answer_bytes("multiple_choice", ["same", "same"], 1) == 1


def test_answers_without_a_scored_token_are_left_out_and_impossible_ones_bounded() -> None:
    found = task_likelihood([8.0, None, 4.0], [2, 5, 1])
    assert found is not None and found.value == pytest.approx(4.0)
    assert task_likelihood([None], [3]) is None
    assert to_bits(math.inf) == 1e6 and to_bits(math.log(2)) == 1.0
