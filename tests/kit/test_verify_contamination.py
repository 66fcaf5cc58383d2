"""V24: a planted test set is found, honest text is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tamper

from kit.core_eval.bundle import open_bundle
from kit.trust.digest import tree_manifest
from kit.verify import Options, Report, verify_result
from kit.verify.checks.contamination import conversation_texts, find_overlaps
from kit.verify.evidence import Refused

pytest.importorskip("numpy")
YAML = """icl_tasks:
-
  label: places
  dataset_uri: world/places.jsonl
  num_fewshot: [0]
  icl_task_type: multiple_choice
-
  label: endings
  dataset_uri: world/endings.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
"""
BASELINES = """Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline
places,world,multiple choice,0,40,50
endings,world,language modeling,0,40,0
"""
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "sen", "tor") for b in ("da", "ne", "vis")]


def sentence(index: int, length: int = 18) -> str:
    return " ".join(
        WORDS[(index * 7 + i * i + i * index) % len(WORDS)] + str(i) for i in range(length)
    )


@pytest.fixture
def core(tmp_path: Path) -> Path:
    root = tmp_path / "core"
    (root / "eval_data/world").mkdir(parents=True)
    (root / "core.yaml").write_text(YAML)
    (root / "eval_meta_data.csv").write_text(BASELINES)
    places = [
        {"query": f"Question: {sentence(i)} {i}?", "choices": ["north", f"by the {i}"], "gold": 1}
        for i in range(40)
    ]
    endings = [{"context": f"{sentence(i + 50)} {i}", "continuation": "end"} for i in range(40)]
    for name, rows in (("places", places), ("endings", endings)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"eval_data/world/{name}.jsonl").write_text(text)
    return root


def test_only_whole_items_count(core: Path) -> None:
    bundle = open_bundle(core, allow_custom=True)
    planted = [f"noise before. QUESTION {sentence(i)}, {i}: By the {i}! after" for i in range(10)]
    passages = [" ".join(sentence(i + 50).split()[:14]) for i in range(40)]
    places, endings = find_overlaps(bundle, [*planted, *passages])
    assert (places.checked, len(places.found), endings.checked) == (40, 10, 40)
    assert not endings.found
    assert all(not overlap.found for overlap in find_overlaps(bundle, ["nothing of it"]))
    assert all(not overlap.found for overlap in find_overlaps(bundle, []))


@pytest.fixture
def check(core: Path, tmp_path: Path) -> Callable[[list[str]], Report]:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def look(train: list[str]) -> Report:
        data = tmp_path / "data"
        data.mkdir()
        held_out = [f"Question: {sentence(i)} {i}? by the {i}" for i in range(40)]
        for name, texts in (("a", train), ("validation", held_out)):
            parquet.write_table(pyarrow.table({"text": texts}), data / f"{name}.parquet")
        files = tree_manifest(data)
        draft = tamper.gpu_run(steps=24)
        part = draft.of("inputs")[0]["data"]["data"]
        part["files"] = [{"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in files]
        from kit.trust.digest import manifest_digest

        part["digest"], part["bytes"] = manifest_digest(files), sum(f.bytes for f in files)
        path = draft.write(tmp_path / "run")
        return verify_result(path, Options(contamination=True, core=core, data=data))

    return look


def test_a_planted_task_is_refused_by_v24(check: Callable[[list[str]], Report]) -> None:
    report = check([f"Question: {sentence(i)} {i}? by the {i}" for i in range(30)])
    assert set(report.refused_by) == {"V24", "V29"}, "V29: too little text for the run's tokens"
    assert "30 of 40 items of places" in report.of("V24")[0].message


def test_a_few_items_are_a_warning(check: Callable[[list[str]], Report]) -> None:
    report = check([f"Question: {sentence(i)} {i}? by the {i}" for i in range(3)])
    assert report.refused_by == ["V29"] and report.status("V24") == "warn"


def test_other_text_passes_though_the_validation_shard_has_all(
    check: Callable[[list[str]], Report],
) -> None:
    report = check(["the cat sat on the mat and looked at the moon for a long while " * 3])
    assert report.status("V24") == "pass", report.to_json()


def test_other_shards_than_the_runs_are_no_evidence(core: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = tamper.gpu_run(steps=24).write(tmp_path / "run")
    options = Options(contamination=True, core=core, data=tmp_path / "other")
    report = verify_result(path, options)
    assert report.exit_code == 3 and report.of("V24")[0].missing


def test_conversations_count_with_what_both_sides_say(core: Path, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    talks = [
        [
            {"role": "user", "content": f"Question: {sentence(i)} {i}?"},
            {"role": "assistant", "content": f"by the {i}"},
        ]
        for i in range(4)
    ]
    file.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    bundle = open_bundle(core, allow_custom=True)
    places, _ = find_overlaps(bundle, conversation_texts([file]))
    assert len(places.found) == 4
    file.write_text('{"role": "user"}\n')
    with pytest.raises(Refused, match="line 1"):
        list(conversation_texts([file]))
