"""The bundle: what is accepted, what is refused, and that the prompts are the published ones."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from kit.core_eval.bundle import core_facts, load_items, open_bundle
from kit.core_eval.prompts import draw_examples, render_prompts
from kit.errors import PrerequisiteError, SchemaError
from kit.trust.digest import FileDigest, manifest_digest

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("N4090_SHARED", ROOT.parent / "shared"))
CORE = SHARED / "core"
real_bundle = pytest.mark.skipif(
    not CORE.is_dir(), reason="no CORE bundle: set N4090_SHARED to the folder that holds core/"
)

# Label, sha256 of item 0's prompts, sha256 over those of items 0 to 49; first 16 digits of each.
VECTORS = """
hellaswag_zeroshot 60aa8a8141338b14 17ac371384225937
jeopardy e738fc265ad55004 52a0adc14334c889
bigbench_qa_wikidata a7fae6ed04e0b06d f7ea3ed73a9dc732
arc_easy 5aa8bd82f2f6b1b7 fff7251fcd7de904
arc_challenge caee13c147b0acdc 8e9310d89631dffa
copa 9673ea1ae175866e 1c35abd4ebe34ad0
commonsense_qa 6ad9115d7c3c162e ea3b699116ca7efa
piqa bbaebf5e76bbf63c d99f639a081159b6
openbook_qa 7edde4b79f3ec72f 234c208704d44f7a
lambada_openai a822fefcf6fdc180 6021a6baf619cb51
hellaswag 4870bc0558d0e5e7 bbc8d65f5e04085d
winograd bc9ddd95fc80a5af ffc5a46d5af92ab0
winogrande e7f29329519cc00e 0e11dba93084261f
bigbench_dyck_languages 6986a1372f268dff 33039a8d744050fa
agi_eval_lsat_ar 914106374fb92b1c 7367db4f42299b0a
bigbench_cs_algorithms 95f04d95bc63f786 ba3b2d86da45b19e
bigbench_operators 7bc0816ee3201934 0a28fc44c86e9d20
bigbench_repeat_copy_logic d1c0568c8f72faa7 06b12a013a433afc
squad a72f23f80fb8e740 31b112c687abff8f
coqa 9f20eb57eefde000 d94cf9441d921414
boolq 9d63e7911e9107aa 367b49e163ff3c6c
bigbench_language_identification c62d7e34e9838e18 bfba45e1eb327fb4
"""
CASES = [tuple(line.split()) for line in VECTORS.strip().splitlines()]
# Few-shot indices of item 0, and the tasks that have them.
EXAMPLES = {
    "1806 479 31 372 144 344 404 1453 970 72": (
        "jeopardy",
        "arc_easy",
    ),
    "14442 3829 246 2971 19079 1145 2751 3226 11621 7760": ("bigbench_qa_wikidata",),
    "903 240 16 186 72 172 202 727 485 36": ("arc_challenge",),
    "903 240 16 186 1193 72 172 202 727 485": (
        "commonsense_qa",
        "bigbench_cs_algorithms",
    ),
    "1594 903 240 16 186 1653 1193 72 1376 1420": ("piqa",),
    "7221 1915 123 1486 9540 573 1376 1613 5811 3880": (
        "hellaswag",
        "squad",
        "bigbench_language_identification",
    ),
    "990 797 452 120 8 93 933 966 962 827": ("bigbench_dyck_languages",),
    "200 113 30": ("agi_eval_lsat_ar",),
    "200 113 30 2 24 207 150 9 172 178": ("bigbench_operators",),
    "31 25 15 4 1 3 19 2 22 26": ("bigbench_repeat_copy_logic",),
    "3188 1806 479 31 372 2385 144 2751 2839 344": ("boolq",),
}


@real_bundle
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_prompts_of_every_task_are_the_published_ones(case: tuple[str, str, str]) -> None:
    label, first, fifty = case
    bundle = open_bundle(CORE, tasks=[label])
    [task] = bundle.selected
    items = load_items(bundle, task)
    [examples] = [drawn for drawn, labels in EXAMPLES.items() if label in labels] or [""]
    assert draw_examples(0, len(items), task.shots) == [int(e) for e in examples.split()]
    prompts = [
        "\0".join(render_prompts(task, items, index)).encode()
        for index in range(min(50, len(items)))
    ]
    assert hashlib.sha256(prompts[0]).hexdigest()[:16] == first
    assert hashlib.sha256(b"".join(p + b"\x01" for p in prompts)).hexdigest()[:16] == fifty


@pytest.mark.parametrize(("count", "shots"), [(2, 1), (11, 10), (32, 10), (230, 3), (10042, 10)])
def test_examples_are_drawn_like_sampling_all_other_indices(count: int, shots: int) -> None:
    for index in {0, 1, count // 2, count - 1}:
        others = [i for i in range(count) if i != index]
        expected = random.Random(1234 + index).sample(others, shots)
        assert draw_examples(index, count, shots) == expected


@real_bundle
def test_the_real_bundle_has_22_tasks_and_its_shipped_digest() -> None:
    bundle = open_bundle(CORE)
    assert bundle.kind == "core"
    assert [task.label for task in bundle.tasks] == [case[0] for case in CASES]
    facts = core_facts()
    files = [
        FileDigest(path, entry["bytes"], "sha256:" + entry["sha256"])
        for path, entry in facts["files"].items()
    ]
    assert bundle.digest == facts["digest"] == manifest_digest(files)


@real_bundle
@pytest.mark.parametrize(
    "file", ["core.yaml", "eval_meta_data.csv", "eval_data/commonsense_reasoning/copa.jsonl"]
)
def test_a_changed_byte_is_refused_with_both_digests(tmp_path: Path, file: str) -> None:
    root = tmp_path / "core"
    shutil.copytree(CORE, root, copy_function=os.link)
    data = (root / file).read_bytes()
    (root / file).unlink()
    (root / file).write_bytes(data + b"\n")
    with pytest.raises(SchemaError) as refused:
        open_bundle(root, allow_custom=True)
    assert refused.value.facts["expected"] == "sha256:" + core_facts()["files"][file]["sha256"]
    changed = hashlib.sha256(data + b"\n").hexdigest()
    assert refused.value.facts["found"] == "sha256:" + changed


@real_bundle
def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    root = tmp_path / "core"
    shutil.copytree(CORE, root, copy_function=os.link)
    (root / "eval_data/commonsense_reasoning/copa.jsonl").unlink()
    with pytest.raises(PrerequisiteError, match=r"copa\.jsonl"):
        open_bundle(root)
    assert open_bundle(root, tasks=["piqa"]).whole is False


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no CORE bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(PrerequisiteError, match=r"it has no core\.yaml"):
        open_bundle(tmp_path)
    (tmp_path / "core.yaml").write_text("icl_tasks: [")
    (tmp_path / "eval_meta_data.csv").write_text("")
    with pytest.raises(SchemaError, match="do not describe a bundle") as refused:
        open_bundle(tmp_path)
    assert "expected" in refused.value.facts and "found" in refused.value.facts


def write_bundle(root: Path, items: list[object], *, kind: str = "multiple_choice") -> Path:
    (root / "eval_data/own").mkdir(parents=True)
    (root / "core.yaml").write_text(
        "icl_tasks:\n- {label: own, dataset_uri: own/own.jsonl, num_fewshot: [1], "
        f"icl_task_type: {kind}}}\n"
    )
    (root / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nown,50\n")
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (root / "eval_data/own/own.jsonl").write_text(lines)
    return root


ITEM = {"query": "q", "choices": ["a", "b"], "gold": 1}


def test_a_bundle_with_other_tasks_is_custom_and_only_on_request(tmp_path: Path) -> None:
    root = write_bundle(tmp_path, [ITEM, ITEM])
    with pytest.raises(SchemaError, match="not part of CORE"):
        open_bundle(root)
    bundle = open_bundle(root, allow_custom=True)
    assert bundle.kind == "custom" and bundle.digest != core_facts()["digest"]
    (root / "eval_data/own/own.jsonl").write_text(json.dumps(ITEM) + "\n" * 2)
    assert open_bundle(root, allow_custom=True).digest != bundle.digest


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    root = write_bundle(tmp_path, [ITEM, ITEM])
    with pytest.raises(SchemaError, match="no task onw") as refused:
        open_bundle(root, tasks=["onw"], allow_custom=True)
    assert refused.value.hint == "Did you mean own?"


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ([], "no JSON object"),
        ({"query": "q", "choices": "ab", "gold": 0}, "'choices', a list of texts"),
        ({"query": 1, "choices": ["a"], "gold": 0}, "'query', a text"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "'gold' is 2"),
        ({"query": "q", "choices": ["a", "b"]}, "'gold' is None"),
    ],
)
def test_a_broken_item_is_refused_with_file_and_line(
    tmp_path: Path, item: object, problem: str
) -> None:
    bundle = open_bundle(write_bundle(tmp_path, [ITEM, item]), allow_custom=True)
    with pytest.raises(SchemaError, match=rf"own\.jsonl, line 2: .*{problem}"):
        load_items(bundle, bundle.tasks[0])


def test_too_few_items_for_the_examples_are_refused(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path, [ITEM]), allow_custom=True)
    with pytest.raises(SchemaError, match="1 items, too few for 1 examples"):
        load_items(bundle, bundle.tasks[0])


def test_a_task_file_outside_the_bundle_is_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path, [ITEM, ITEM])
    text = (root / "core.yaml").read_text().replace("own/own.jsonl", "../../secret.jsonl")
    (root / "core.yaml").write_text(text)
    with pytest.raises(SchemaError, match="outside the bundle"):
        open_bundle(root, allow_custom=True)
