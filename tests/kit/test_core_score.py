"""The evaluator against a slow, obviously right one: every task type, every item, every path."""

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kit.core_eval.bundle import Bundle, Task, open_bundle
from kit.core_eval.encode import EncodedItem, common_prefix, crop, encode_task, scored_regions
from kit.core_eval.evaluate import Settings, Watch, evaluate_core, is_correct, score_tasks
from kit.core_eval.grouping import Slot, group_slots
from kit.core_eval.loaders import from_recipe
from kit.core_eval.model import Paths
from kit.core_eval.score import Budget, Stopped, score_items
from kit.errors import KitError, PrerequisiteError, SchemaError

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests/assets/core"
CORE = Path(os.environ.get("N4090_SHARED", ROOT.parent / "shared")) / "core"
real_bundle = pytest.mark.skipif(
    not CORE.is_dir(), reason="no CORE bundle: set N4090_SHARED to the folder that holds core/"
)
PLAIN, HIDDEN, PREFIX = Paths(False, False), Paths(True, False), Paths(True, True)


def tiny(name: str = "PrefixModel", **options: Any) -> Any:
    return from_recipe(f"tiny_model.py:{name}", ASSETS)(**options)


# The oracle: written from the specification, one item and one sequence at a time, nothing shared
# with the kit but the model's `encode` and `logits`.


def oracle_items(root: Path, task: Task, max_per_task: int = -1) -> list[dict[str, Any]]:
    lines = (root / task.file).read_text(encoding="utf-8").split("\n")
    items = [json.loads(line.strip()) for line in lines if line.strip()]
    random.Random(1337).shuffle(items)
    return items[:max_per_task] if max_per_task > 0 else items


def oracle_prompts(task: Task, items: list[dict[str, Any]], index: int) -> list[str]:
    shown = []
    if task.shots:
        others = [i for i in range(len(items)) if i != index]
        shown = [items[i] for i in random.Random(1234 + index).sample(others, task.shots)]
    item, text, D = items[index], "", task.delimiter
    if task.kind == "multiple_choice":
        for e in shown:
            text += e["query"] + D + e["choices"][e["gold"]] + "\n\n"
        return [text + item["query"] + D + choice for choice in item["choices"]]
    if task.kind == "schema":
        for e in shown:
            text += e["context_options"][e["gold"]] + D + e["continuation"] + "\n\n"
        return [text + option + D + item["continuation"] for option in item["context_options"]]
    for e in shown:
        text += e["context"].strip() + D + e["continuation"] + "\n\n"
    text += item["context"].strip() + D
    return [text.strip(), text + item["continuation"]]


def oracle_item(
    model: Any, task: Task, items: list[dict[str, Any]], index: int
) -> tuple[list[float], bool]:
    """Scores of the options and whether the item counts as right."""
    rows = [[model.bos_id, *t] for t in model.encode(oracle_prompts(task, items, index))]
    if task.kind == "language_modeling":
        without, whole = rows
        assert whole[: len(without)] == without and len(without) < len(whole)
        rows, starts = [whole], [len(without)]
    elif task.kind == "multiple_choice":
        start = 0
        while all(len(row) > start and row[start] == rows[0][start] for row in rows):
            start += 1
        starts = [start] * len(rows)
    else:
        same = 0
        while all(len(row) > same and row[-1 - same] == rows[0][-1 - same] for row in rows):
            same += 1
        starts = [len(row) - same for row in rows]
    limit = getattr(model, "max_seq_len", None)
    if limit is not None:
        starts = [s - max(0, len(row) - limit) for row, s in zip(rows, starts, strict=True)]
        rows = [row[-limit:] for row in rows]
    scores = []
    for row, start in zip(rows, starts, strict=True):
        with torch.inference_mode():
            logits = model.logits(torch.tensor([row]))[0].float()
        losses = F.cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="none")
        losses = torch.cat([losses, torch.tensor([math.nan])])
        if task.kind == "language_modeling":
            guesses = logits[start - 1 : len(row) - 1].argmax(dim=-1).tolist()
            scores.append(float(guesses == row[start:]))
        else:
            scores.append(losses[start - 1 : len(row) - 1].mean().item())
    if task.kind == "language_modeling":
        return scores, scores[0] == 1.0
    return scores, scores.index(min(scores)) == items[index]["gold"]


def labels() -> list[str]:
    return [task.label for task in open_bundle(CORE).tasks] if CORE.is_dir() else ["none"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(CORE)


@real_bundle
@pytest.mark.parametrize("label", labels())
def test_every_path_agrees_with_the_oracle_on_real_items(bundle: Bundle, label: str) -> None:
    [task] = [t for t in bundle.tasks if t.label == label]
    model = tiny()
    items = oracle_items(CORE, task)
    indices = [0, 1, len(items) // 2, len(items) - 1]
    expected = [oracle_item(model, task, items, index) for index in indices]
    encoded = encode_task(model, bundle, task, indices=indices)
    for paths, batch_tokens in ((PLAIN, 6000), (HIDDEN, 100), (PREFIX, 100), (PREFIX, 20_000)):
        found = score_items(model, task.kind, encoded, budget=Budget(batch_tokens), paths=paths)
        for (scores, correct), ours, item in zip(expected, found, encoded, strict=True):
            np.testing.assert_allclose(ours, scores, rtol=2e-5, atol=2e-6)
            assert is_correct(task.kind, ours, item.gold) is correct


@real_bundle
def test_a_cut_to_the_last_tokens_agrees_with_the_oracle(bundle: Bundle) -> None:
    for label in ("hellaswag", "winogrande", "squad"):
        [task] = [t for t in bundle.tasks if t.label == label]
        model = tiny()
        model.max_seq_len = 60
        items = oracle_items(CORE, task)
        encoded = encode_task(model, bundle, task, indices=[0, 5, 9])
        found = score_items(model, task.kind, encoded, budget=Budget(500), paths=PREFIX)
        for index, ours in zip([0, 5, 9], found, strict=True):
            scores, _ = oracle_item(model, task, items, index)
            np.testing.assert_allclose(ours, scores, rtol=2e-5, atol=2e-6)


@real_bundle
def test_a_capped_evaluation_agrees_with_the_oracle_item_by_item(bundle: Bundle) -> None:
    chosen = open_bundle(CORE, tasks=["copa", "winograd", "bigbench_repeat_copy_logic", "coqa"])
    model = tiny()
    document = evaluate_core(model, chosen, Settings(max_per_task=30))
    assert document["partial"] is True and document["max_per_task"] == 30
    centered = []
    for task, entry in zip(chosen.selected, document["tasks"], strict=True):
        items = oracle_items(CORE, task, 30)
        right = [oracle_item(model, task, items, index)[1] for index in range(len(items))]
        assert entry["outcomes"] == "".join("01"[value] for value in right)
        assert entry["n"] == 30 and entry["accuracy"] == sum(right) / 30
        b = task.baseline / 100
        assert entry["centered"] == pytest.approx((sum(right) / 30 - b) / (1 - b))
        centered.append(entry["centered"])
    assert document["core_metric"] == pytest.approx(sum(centered) / 4)


@real_bundle
@pytest.mark.parametrize("label", ["hellaswag", "bigbench_language_identification", "winogrande"])
def test_bf16_paths_differ_from_each_other_only_in_near_ties(bundle: Bundle, label: str) -> None:
    [task] = [t for t in bundle.tasks if t.label == label]
    model = tiny(dtype="bfloat16")
    items = oracle_items(CORE, task)
    encoded = encode_task(model, bundle, task, indices=range(12))
    found = score_items(model, task.kind, encoded, budget=Budget(4000), paths=PREFIX)
    for index, ours in enumerate(found):
        scores, right = oracle_item(model, task, items, index)
        first, second = sorted(scores)[:2]
        if is_correct(task.kind, ours, encoded[index].gold) is not right:
            assert second - first < 0.05 * first, "the outcomes differ, and it was no near tie"


# Rules one by one


def arrays(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_a_choice_is_scored_from_the_first_token_that_differs() -> None:
    _, starts = scored_regions("multiple_choice", arrays([0, 5, 6, 7], [0, 5, 6, 8, 9]))
    assert starts == [3, 3]


def test_a_schema_is_scored_on_the_common_end() -> None:
    _, starts = scored_regions("schema", arrays([0, 5, 7, 8], [0, 5, 6, 7, 8]))
    assert starts == [2, 3]


def test_equal_schema_options_have_nothing_to_score() -> None:
    _, starts = scored_regions("schema", arrays([0, 5, 7], [0, 5, 7]))
    assert starts == [3, 3]


def test_language_modeling_needs_the_stem_as_a_prefix() -> None:
    kept, starts = scored_regions("language_modeling", arrays([0, 5], [0, 5, 6]))
    assert [row.tolist() for row in kept] == [[0, 5, 6]] and starts == [2]
    for stem in ([0, 4], [0, 5, 6]):
        with pytest.raises(ValueError, match="joins across the border"):
            scored_regions("language_modeling", arrays(stem, [0, 5, 6]))


def test_cropping_keeps_the_end_and_moves_the_region() -> None:
    rows, starts = crop(arrays([0, 1, 2, 3], [0, 1]), [3, 1], 3)
    assert [row.tolist() for row in rows] == [[1, 2, 3], [0, 1]] and starts == [2, 1]
    with pytest.raises(ValueError, match="does not fit the model's limit of 2"):
        crop(arrays([0, 1, 2, 3]), [2], 2)


@pytest.mark.parametrize(
    ("scores", "prediction"),
    [
        ([2.0, 1.0, 1.0], 1),
        ([math.nan, 1.0], 0),
        ([1.0, math.nan], 0),
        ([2.0, math.nan, 1.0], 2),
        ([math.nan, math.nan], 0),
    ],
)
def test_ties_and_nan_follow_pythons_min(scores: list[float], prediction: int) -> None:
    assert is_correct("multiple_choice", scores, prediction)


def encoded(*rows: list[int], start: int, gold: int = 0) -> EncodedItem:
    sequences = arrays(*rows)
    common = common_prefix(sequences) if len(rows) > 1 else len(rows[0])
    return EncodedItem(
        sequences[0][:common], tuple(s[common:] for s in sequences), (start,) * len(rows), gold
    )


def test_an_option_that_is_a_prefix_of_the_others_scores_nan() -> None:
    item = encoded([0, 1, 2], [0, 1, 2, 3], start=3)
    for paths in (PLAIN, PREFIX):
        [scores] = score_items(tiny(), "multiple_choice", [item], budget=Budget(99), paths=paths)
        assert math.isnan(scores[0]) and scores[1] > 0


def test_equal_options_are_scored_once_and_tie_exactly() -> None:
    item = encoded([0, 1, 2], [0, 1, 3], [0, 1, 2], start=2)
    groups, same = group_slots("multiple_choice", [item], PREFIX)
    assert same == {Slot(0, 2): Slot(0, 0)} and len(groups[0].slots) == 2
    [scores] = score_items(tiny(), "multiple_choice", [item], budget=Budget(99), paths=PREFIX)
    assert scores[0] == scores[2]


def test_one_token_choices_cost_one_pass_over_their_question() -> None:
    model = tiny()
    item = encoded([0, *[1] * 50, 2], [0, *[1] * 50, 3], start=51)
    score_items(model, "multiple_choice", [item], budget=Budget(999), paths=PREFIX)
    assert model.calls == [("hidden", 51), ("head", 1)]


def test_a_shared_question_is_read_once_and_the_head_only_meets_scored_positions() -> None:
    model = tiny()
    item = encoded([0, *[1] * 80, 2, 4], [0, *[1] * 80, 3, 4, 4], start=81)
    score_items(model, "multiple_choice", [item], budget=Budget(999), paths=PREFIX)
    assert model.calls == [("prefill", 81), ("extend", 4), ("head", 4)]


def test_language_modeling_items_about_one_passage_read_it_once() -> None:
    model = tiny()
    passage = [0, *[1, 2, 3] * 30]
    items = [encoded([*passage, 5, 6, 7, n], start=len(passage) + 3) for n in range(4, 8)]
    alone = score_items(model, "language_modeling", items, budget=Budget(9999), paths=HIDDEN)
    model.calls.clear()
    found = score_items(model, "language_modeling", items, budget=Budget(9999), paths=PREFIX)
    assert found == alone
    assert sum(tokens for call, tokens in model.calls if call in ("hidden", "prefill")) == 94


@pytest.mark.parametrize("limit", [400, 130, 60])
def test_out_of_memory_makes_batches_smaller_and_loses_nothing(limit: int) -> None:
    """A model that fails above `limit` padded tokens still gives every score, each once."""
    model = tiny()
    draw = random.Random(5)
    items = [
        encoded(
            *([0, *stem, *draw.choices(range(1, 13), k=draw.randint(2, 9))] for _ in range(3)),
            start=len(stem) + 1,
        )
        for stem in ([*draw.choices(range(1, 13), k=40)] for _ in range(12))
    ]
    items = [i for i in items if len(i.prefix) == i.starts[0]]
    assert len(items) > 5
    expected = score_items(model, "multiple_choice", items, budget=Budget(10_000), paths=PREFIX)
    for name in ("hidden", "prefill", "extend"):
        original = getattr(model, name)

        def limited(*arguments: Any, original: Any = original) -> Any:
            if arguments[-1 if original.__name__ != "prefill" else 0].numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(*arguments)

        setattr(model, name, limited)
    seen: list[Slot] = []
    budget = Budget(10_000)
    found = score_items(
        model,
        "multiple_choice",
        items,
        budget=budget,
        paths=PREFIX,
        report=lambda scores: seen.extend(entry.slot for entry in scores),
    )
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), rtol=2e-5)
    assert budget.halvings > 0 and len(seen) == len(set(seen))


def test_a_prompt_that_never_fits_is_a_clear_error() -> None:
    model = tiny("HiddenModel")

    def hidden(tokens: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.hidden = hidden
    item = encoded([0, 1, 2, 3], start=3)
    with pytest.raises(PrerequisiteError, match="a single prompt of 3 tokens"):
        score_items(model, "language_modeling", [item], budget=Budget(9), paths=HIDDEN)


def test_other_errors_of_a_model_are_not_taken_for_lack_of_memory() -> None:
    model = tiny("HiddenModel")

    def hidden(tokens: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    model.hidden = hidden
    with pytest.raises(RuntimeError, match="shapes"):
        score_items(
            model,
            "language_modeling",
            [encoded([0, 1, 2], start=2)],
            budget=Budget(9),
            paths=HIDDEN,
        )


def test_nan_logits_are_an_error_not_an_answer() -> None:
    model = tiny()
    model.unembed = model.unembed * math.nan
    item = encoded([0, 1, 2], [0, 1, 3], start=2)
    with pytest.raises(KitError, match="logits are NaN"):
        score_items(model, "multiple_choice", [item], budget=Budget(9), paths=PREFIX)


def test_a_batch_holds_no_more_padded_tokens_than_its_budget() -> None:
    model = tiny()
    draw = random.Random(7)
    items = [encoded([0, *[1] * draw.randint(3, 90), 2], start=3) for _ in range(60)]
    score_items(model, "language_modeling", items, budget=Budget(200), paths=HIDDEN)
    sizes = [tokens for call, tokens in model.calls if call == "hidden"]
    assert max(sizes) <= 200 and len(sizes) < 30


def test_choices_never_copy_more_of_the_cache_than_a_few_budgets() -> None:
    model = tiny()
    question = [0, *[1] * 149]
    item = encoded(*([*question, 1 + n, 5] for n in range(12)), start=150)
    score_items(model, "multiple_choice", [item], budget=Budget(150), paths=PREFIX)
    copies = [tokens for call, tokens in model.calls if call == "extend"]
    # A copy of the question's 150 tokens and one more for each choice, 600 at most at a time.
    assert copies == [3, 3, 3, 3]


@real_bundle
def test_a_cut_that_loses_the_answer_is_refused_by_item(bundle: Bundle) -> None:
    model = tiny()
    model.max_seq_len = 3
    with pytest.raises(SchemaError, match=r"task squad, item 0: a prompt of \d+ tokens"):
        encode_task(model, bundle, next(t for t in bundle.tasks if t.label == "squad"))


# The cache of encoded tasks, the journal


@real_bundle
def test_encoded_tasks_come_back_from_the_cache_unchanged(tmp_path: Path, bundle: Bundle) -> None:
    model = tiny()
    model.tokenizer_digest = "words"
    [task] = [t for t in bundle.tasks if t.label == "winograd"]
    fresh = encode_task(model, bundle, task, cache=tmp_path)
    [file] = tmp_path.iterdir()
    model.encode = None  # a second look must not encode
    again = encode_task(model, bundle, task, cache=tmp_path)
    for a, b in zip(fresh, again, strict=True):
        assert a.prefix.tolist() == b.prefix.tolist()
        assert [s.tolist() for s in a.suffixes] == [s.tolist() for s in b.suffixes]
        assert (a.starts, a.gold) == (b.starts, b.gold)
    file.write_bytes(file.read_bytes()[:500])
    model = tiny()
    model.tokenizer_digest = "words"
    assert len(encode_task(model, bundle, task, cache=tmp_path)) == 273


class StopAfter:
    """Asks to stop before batch `count`."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@real_bundle
@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path: Path, after: int) -> None:
    chosen = open_bundle(CORE, tasks=["copa", "winograd", "bigbench_operators"])
    settings = Settings(max_per_task=40, batch_tokens=1000, identity="a model")
    whole = tiny()
    expected = evaluate_core(whole, chosen, settings)
    settings.journal = tmp_path / "journal"
    with pytest.raises(Stopped):
        evaluate_core(tiny(), chosen, settings, Watch(should_stop=StopAfter(after)))
    with settings.journal.open("a") as file:
        file.write('{"task": "copa", "sco')  # torn by the kill
    with pytest.raises(Stopped):  # and once more, one batch later
        evaluate_core(tiny(), chosen, settings, Watch(should_stop=StopAfter(1)))
    model = tiny()
    assert evaluate_core(model, chosen, settings) == expected
    runs = [sum(call in ("hidden", "prefill") for call, _ in m.calls) for m in (whole, model)]
    assert runs[0] - runs[1] == after + 1
    assert not settings.journal.exists()


@real_bundle
def test_a_journal_of_another_model_is_not_continued(tmp_path: Path) -> None:
    chosen = open_bundle(CORE, tasks=["copa"])
    settings = Settings(
        max_per_task=20, identity="a", journal=tmp_path / "journal", batch_tokens=200
    )
    with pytest.raises(Stopped):
        score_tasks(tiny(seed=0), chosen, settings, Watch(should_stop=StopAfter(2)))
    settings.identity = "b"
    found = evaluate_core(tiny(seed=1), chosen, settings)
    assert found == evaluate_core(tiny(seed=1), chosen, Settings(max_per_task=20, batch_tokens=200))
