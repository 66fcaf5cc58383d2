"""Bits per byte of right answers: what is measured, in the same pass, and what a result says."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from core_bundles import make_bundle  # noqa: E402

from kit.cli.main import cli  # noqa: E402
from kit.core_eval.bundle import Bundle, load_items, open_bundle  # noqa: E402
from kit.core_eval.evaluate import Settings, evaluate_core  # noqa: E402
from kit.core_eval.likelihood import (  # noqa: E402
    answer_bytes,
    compare_likelihoods,
    task_likelihood,
    to_bits,
)
from kit.core_eval.loaders import from_recipe  # noqa: E402
from kit.core_eval.model import Paths  # noqa: E402
from kit.core_eval.prompts import render_prompts  # noqa: E402
from kit.result import core_section  # noqa: E402
from kit.typed import to_json  # noqa: E402

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
    assert section.answer_bpb == pytest.approx(document["answer_bpb"]["value"])
    for task in document["tasks"]:
        del task["answer_bits"]
    assert "answer_bpb" not in to_json(core_section(document))


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


def task(bits: list[float | None], sizes: list[int], file: str = "t.jsonl") -> dict[str, Any]:
    return {"file": file, "answer_bits": bits, "answer_bytes": sizes}


def test_the_paired_interval_is_that_of_resampled_items_and_not_of_two_models_apart() -> None:
    np = pytest.importorskip("numpy")
    draw = random.Random(3)
    sizes = [draw.randint(1, 9) for _ in range(200)]
    a = [size * draw.uniform(1, 6) for size in sizes]
    b = [bits - size * draw.uniform(0, 0.2) for bits, size in zip(a, sizes, strict=True)]
    found = compare_likelihoods([task([*a], sizes)], [task([*b], sizes)])
    assert found is not None
    assert found.difference == pytest.approx((sum(b) - sum(a)) / sum(sizes))
    picked = np.random.default_rng(0).integers(0, 200, (20_000, 200))
    gaps, weights = np.array(b) - np.array(a), np.array(sizes)
    means = gaps[picked].sum(axis=1) / weights[picked].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.05)
    alone = task_likelihood(a, sizes)
    assert alone is not None and found.high - found.low < alone.standard_error


def test_items_of_one_file_are_one_draw_and_unscored_answers_are_left_out() -> None:
    a, b, sizes = [4.0, 9.0, 5.0, None], [3.0, 4.0, 5.0, 1.0], [1, 2, 1, 1]
    once = compare_likelihoods([task([*a], sizes)], [task([*b], sizes)])
    twice = compare_likelihoods([task([*a], sizes)] * 2, [task([*b], sizes)] * 2)
    other = compare_likelihoods(
        [task([*a], sizes), task([*a], sizes, "u.jsonl")],
        [task([*b], sizes), task([*b], sizes, "u.jsonl")],
    )
    assert once is not None and other is not None
    assert once.difference == pytest.approx((12 - 18) / 4)
    assert twice == pytest.approx(once)
    assert other.high - other.low == pytest.approx((once.high - once.low) / math.sqrt(2))
    assert compare_likelihoods([task([None], [1])], [task([1.0], [1])]) is None
    with pytest.raises(ValueError, match="same answers"):
        compare_likelihoods([task([1.0], [1])], [task([1.0], [2])])


def test_compare_shows_the_answers_where_both_evaluations_have_them(
    bundle: Bundle, tmp_path: Path
) -> None:
    first = evaluate_core(model(), bundle, Settings())
    second = copy.deepcopy(first)
    for one in second["tasks"]:
        one["answer_bits"] = [bits and bits / 2 for bits in one["answer_bits"]]
    third = copy.deepcopy(first)
    third["tasks"][0]["answer_bits"].pop()
    paths = [tmp_path / f"{name}.json" for name in "abc"]
    for path, document in zip(paths, (first, second, third), strict=True):
        path.write_text(json.dumps(document))

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["eval", "compare", *arguments])

    a, b, c = map(str, paths)
    shown = json.loads(call(a, b, "--json").output)["answer_bpb"]
    assert shown["value_b"] == pytest.approx(shown["value_a"] / 2) and shown["high"] < 0
    assert f"B - A {shown['difference']:+.4f}" in call(a, b).output
    refused = call(a, c)
    assert refused.exit_code and "answer likelihoods cannot be compared" in str(refused.exception)
    for one in second["tasks"]:
        del one["answer_bits"]
    paths[1].write_text(json.dumps(second))
    assert json.loads(call(a, b, "--json").output)["answer_bpb"] is None
    assert "likelihood" not in call(a, b).output
