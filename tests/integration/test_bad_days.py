"""The reference trainer on bad input: one message, a signed result, nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TINY = Path(__file__).parent.parent / "assets" / "tiny.toml"
Run = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's corpus, made once."""
    from reference.stories import write_stories

    root = tmp_path_factory.mktemp("stories") / "corpus"
    write_stories(root, seed=4090, documents=600)
    return root


@pytest.fixture
def failed_run(stories: Path, tmp_path: Path, n4090: Any) -> Run:
    """Runs the tiny recipe on a copy of the corpus; expects a signed failure."""

    def run(
        change: Callable[[Path], None] = lambda data: None, recipe: tuple[str, str] = ("", "")
    ) -> tuple[dict[str, Any], Path]:
        shutil.copytree(stories, tmp_path / "corpus")
        change(tmp_path / "corpus")
        assert recipe[0] in TINY.read_text()
        path = tmp_path / "tiny.toml"
        path.write_text(TINY.read_text().replace(*recipe) if recipe[0] else TINY.read_text())
        data = ("--data", tmp_path / "corpus" / "pretrain")
        done = n4090("run", "-r", path, "--work", tmp_path, "--no-probe", *data, check=1)
        [folder] = (tmp_path / "runs").iterdir()
        result = json.loads((folder / "result.json").read_text())
        assert result["signatures"]
        claims = result["claims"]
        assert claims["message"] in " ".join(done.stdout.split())
        return claims, folder

    return run


def corrupt_one_shard(corpus: Path) -> None:
    path = sorted((corpus / "pretrain").glob("*.parquet"))[0]
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def rename_the_column(corpus: Path) -> None:
    path = sorted((corpus / "pretrain").glob("*.parquet"))[0]
    pq.write_table(pa.table({"body": ["a", "b"]}), path)


def empty_a_shard(corpus: Path) -> None:
    sorted((corpus / "pretrain").glob("*.parquet"))[0].write_bytes(b"")


def break_a_conversation(corpus: Path) -> None:
    path = next((corpus / "sft").glob("*.jsonl"))
    path.write_text(path.read_text() + '[{"role": "user"}]\n')


@pytest.mark.parametrize(
    ("change", "stage", "words"),
    [
        (corrupt_one_shard, "tokenizer", [".parquet"]),
        (rename_the_column, "tokenizer", [".parquet", "'text'", "'body'"]),
        (empty_a_shard, "tokenizer", [".parquet"]),
        (break_a_conversation, "sft", [".jsonl", "line"]),
    ],
)
def test_unusable_input_names_the_file(
    failed_run: Run, change: Any, stage: str, words: list[str]
) -> None:
    claims, folder = failed_run(change)
    assert (claims["status"], claims["reason"], claims["stage"]) == ("failed", "bad_input", stage)
    for word in words:
        assert word in claims["message"]
    if stage == "sft":  # what was done stays
        assert (folder / "checkpoints" / "pretrain" / "model.safetensors").is_file()


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(failed_run: Run) -> None:
    claims, _ = failed_run(recipe=("scale_lr = false", "scale_lr = false\nmatrix_lr = 1e30"))
    assert claims["reason"] == "nan_loss"
    assert "step" in claims["message"]


def test_too_little_memory_is_said_as_such(failed_run: Run) -> None:
    huge = 2**34
    claims, _ = failed_run(
        recipe=(
            "device_batch_size = 4\ntotal_batch_size = 512",
            f"device_batch_size = {huge}\ntotal_batch_size = {huge * 64}",
        )
    )
    assert claims["reason"] == "out_of_memory"
