"""V26, V18 and V22 on a small real run: steps done again tell what was only typed in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tamper
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from kit.trust.digest import sha256_bytes
from kit.verify import Options, Report, verify_result

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
TINY = Path(__file__).parents[1] / "assets/tiny.toml"
SNAPSHOT = "checkpoints/pretrain/snapshots/step-00000008.safetensors"
# Rows of every source come before the second snapshot and after it.
MIXED = "replay_share = 0.25\nreplay_from = 0.25\nreplay_keep = 8\nsft_share = 0.25\nsft_from = 0.4"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen steps with a snapshot in the middle, through the supervisor."""
    work = tmp_path_factory.mktemp("replay")
    text = TINY.read_text()
    for old, new in (
        ('["tokenizer", "pretrain", "sft"]', '["tokenizer", "pretrain"]'),
        ("num_steps = 40", "num_steps = 16\nsnapshot_every = 8\nrollbacks = 1\n" + MIXED),
        ("stories = 600", "stories = 200"),
    ):
        assert old in text
        text = text.replace(old, new)
    (work / "tiny.toml").write_text(text)
    command = [sys.executable, "-m", "kit.cli.main", "run", "-q", "--no-probe"]
    command += ["-r", str(work / "tiny.toml"), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((work / "runs").iterdir())


@pytest.fixture
def check(run: Path, tmp_path: Path) -> Callable[..., Report]:
    work = run.parents[1]
    key = load_ssh_private_key((work / "keys/n4090_ed25519").read_bytes(), password=None)
    data = next((work / "data").iterdir()) / "pretrain"
    everything = Options(
        replay=2, replay_steps=3, re_evaluate=True, data=data, sft=data.parent / "sft"
    )

    def look(change: Callable[[tamper.Draft], None], **options: object) -> Report:
        draft = tamper.load_draft(run, key)
        change(draft)
        path = draft.write(tmp_path / "run")
        return verify_result(path, replace(everything, **options))  # type: ignore[arg-type]

    return look


def test_an_honest_run_is_done_again_to_the_bit(check: Callable[..., Report]) -> None:
    report = check(lambda draft: None)
    assert report.verdict == "consistent", report.to_json()
    messages = {check: report.of(check)[0].message for check in ("V18", "V22", "V26")}
    assert "6 steps done again, from 0, 8: losses within 0" in messages["V26"]
    assert messages["V18"].endswith("as the seed gives it")
    assert messages["V22"].startswith("val_bpb")


@pytest.mark.parametrize(
    ("claimed", "done_again"),
    [
        ([9], 4),  # 0, 1, 2 and 8: step 9 was done twice and cannot be done again from 8
        ([8], 6),  # the snapshot at 8 is what it was done from
        ([1, 9], 6),  # the recipe allows one: claims beyond that shorten nothing
    ],
)
def test_a_step_done_twice_ends_its_stretch_as_often_as_the_recipe_allows(
    check: Callable[..., Report], claimed: list[int], done_again: int
) -> None:
    def claim(draft: tamper.Draft) -> None:
        for event in draft.of("step", "pretrain"):
            if event["data"]["step"] in claimed:
                data = {"text": "went back", "rolled_back_step": event["data"]["step"]}
                note = {**event, "ev": "note", "data": data}
                draft.events.insert(draft.events.index(event), note)

    report = check(claim, re_evaluate=False)
    assert f"{done_again} steps done again" in report.of("V26")[0].message


def test_conversations_that_pretraining_read_are_in_the_log_and_asked_for(
    check: Callable[..., Report], run: Path
) -> None:
    inputs = json.loads((run / "result.json").read_text())["data"]
    read = {name: part["digest"] for name, part in inputs.items() if part}
    assert set(read) == {"data", "sft"} and read["sft"].startswith("sha256:")
    without = check(lambda draft: None, sft=None, re_evaluate=False).of("V26")[0]
    assert without.missing and "--sft DIR" in without.message


def test_other_conversations_than_the_runs_are_no_evidence(
    check: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/stories.jsonl").write_text("[]\n")
    other = check(lambda draft: None, sft=tmp_path / "talks", re_evaluate=False).of("V26")[0]
    assert other.missing and "not the run's" in other.message


def test_losses_that_nobody_trained_are_refused_by_v26(check: Callable[..., Report]) -> None:
    def smooth(draft: tamper.Draft) -> None:
        for event in draft.of("step", "pretrain")[8:]:
            event["data"]["loss"] -= 0.05

    assert check(smooth).refused_by == ["V26"]


def test_a_snapshot_of_another_training_is_refused_by_v26(check: Callable[..., Report]) -> None:
    def swap(draft: tamper.Draft) -> None:
        content = bytearray(draft.files[SNAPSHOT])
        begin = content.index(b"model.lm_head.weight")
        offsets = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert begin
        first, last = offsets[".model.lm_head.weight"]["data_offsets"]
        body = 8 + int.from_bytes(content[:8], "little")
        content[body + first : body + last] = b"\0" * (last - first)
        draft.files[SNAPSHOT] = bytes(content)
        event = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "pretrain")
        del event["data"]["files"]

    assert check(swap, re_evaluate=False).refused_by == ["V26"]


def test_a_snapshot_that_is_none_is_refused_by_v26(check: Callable[..., Report]) -> None:
    def empty(draft: tamper.Draft) -> None:
        draft.files[SNAPSHOT] = tamper.safetensors(1)
        event = next(e for e in draft.of("artifacts") if e["data"]["stage"] == "pretrain")
        del event["data"]["files"]

    report = check(empty, re_evaluate=False)
    assert "V26" in report.refused_by and set(report.refused_by) <= {"V18", "V26"}


def test_a_typed_val_bpb_is_refused_by_v22(check: Callable[..., Report]) -> None:
    def typed(draft: tamper.Draft) -> None:
        draft.of("eval", "pretrain")[-1]["data"]["value"] -= 0.01

    assert check(typed, replay=0).refused_by == ["V22"]


def test_weights_that_the_seed_does_not_give_are_refused_by_v18(
    check: Callable[..., Report],
) -> None:
    def warm(draft: tamper.Draft) -> None:
        for event in draft.of("model"):
            event["data"]["initial_weights"] = sha256_bytes(b"warm")

    assert check(warm, replay=0, data=None).refused_by == ["V18"]


def test_other_data_and_code_of_ones_own_are_no_evidence(
    check: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shard.parquet").write_bytes(b"")
    report = check(lambda draft: None, data=tmp_path / "data", re_evaluate=False)
    assert report.refused_by == [] and report.of("V26")[0].missing


def test_a_recipe_with_a_trainer_of_its_own_is_not_run(tmp_path: Path) -> None:
    draft = tamper.gpu_run()
    draft.recipe += '[trainer]\ncommand = ["python", "{recipe_dir}/evil.py"]\n'
    draft.header()["recipe"]["digest"] = sha256_bytes(draft.recipe.encode())
    report = verify_result(draft.write(tmp_path / "run"), Options(replay=1, data=tmp_path))
    assert report.status("V26") == "skip" and "runs none" in report.of("V26")[0].message
