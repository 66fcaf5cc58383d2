"""`export model`: which checkpoint it takes, what it leaves behind, and how it refuses."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import tamper
import torch
from board_hub import git
from board_hub import hub as hub
from click.testing import CliRunner, Result
from git_hub import GitHub

from kit.board.card import model_card
from kit.board.package import exported_items
from kit.cli.main import cli
from kit.errors import KitError
from kit.model_export import find_source, usage
from reference.model.gpt import GPT, ModelConfig
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import save_model

pytest.importorskip("safetensors", reason="safetensors is not installed (train)")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a base and a chat checkpoint, as the trainer writes them."""
    run = tmp_path_factory.mktemp("export") / "runs" / "a-run"
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 9], 300)
    tokenizer.save(run / "tokenizer")
    config = ModelConfig(
        tokenizer.vocab_size, n_layer=2, n_embd=32, n_head=2, n_kv_head=2, seq_len=32
    )
    for seed, stage in enumerate(("pretrain", "sft")):
        model = GPT(config)
        model.init_weights(seed)
        with torch.no_grad():
            model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        save_model(run / "checkpoints" / stage, model.place(), config, run / "tokenizer")
    return run


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", "model", *map(str, arguments)])


def test_the_chat_model_is_taken_and_the_base_when_asked(finished: Path, tmp_path: Path) -> None:
    for part, chat in (("auto", True), ("chat", True), ("base", False)):
        out = tmp_path / part
        done = export(finished, "--part", part, "--out", out)
        assert done.exit_code == 0, done.output
        assert (out / "chat_template.jinja").exists() == chat
        assert sorted(done.stdout.split()) == sorted(str(path) for path in out.iterdir())
    assert find_source(finished).folder == finished / "checkpoints" / "sft"
    assert not find_source(finished / "checkpoints" / "pretrain").chat


def test_the_lines_it_prints_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (eval)")
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    for part in ("chat", "base"):
        out = tmp_path / part
        done = export(finished, "--part", part, "--out", out)
        lines = done.stderr.strip()
        assert lines == usage(f'"{out}"', chat=part == "chat", remote_code=True).strip()
        said: list[str] = []
        exec(lines, {"print": said.append})
        assert len(said) == 1 and isinstance(said[0], str)


def test_weights_are_stored_in_the_type_asked_for(finished: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    for dtype, stored in (("auto", "F32"), ("bfloat16", "BF16")):
        export(finished, "--out", tmp_path / dtype, "--dtype", dtype)
        with safe_open(tmp_path / dtype / "model.safetensors", "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {stored}  # noqa: SIM118


def test_a_model_that_does_not_map_is_refused_and_leaves_nothing(
    finished: Path, tmp_path: Path
) -> None:
    done = export(finished, "--format", "gguf", "--out", tmp_path / "gguf")
    assert done.exit_code != 0
    assert isinstance(done.exception, KitError)
    assert "value embeddings" in done.exception.message
    assert "--set model.value_embeddings=false" in str(done.exception.hint)
    assert list(tmp_path.iterdir()) == []


def test_wrong_places_are_one_error(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"loader": "nobody"}))
    hf = tmp_path / "hf"
    assert export(finished, "--out", hf).exit_code == 0
    for arguments, message in (
        ((tmp_path / "nowhere",), "there is no folder"),
        ((tmp_path,), "has no checkpoints/sft or checkpoints/pretrain"),
        ((finished, "--out", tmp_path / "used"), "is not empty"),
        ((tmp_path / "other", "--out", tmp_path / "x"), "no exporter is installed"),
        ((hf, "--out", tmp_path / "x"), "a model of transformers already"),
    ):
        done = export(*arguments)
        assert isinstance(done.exception, KitError), (arguments, done.output)
        assert message in done.exception.message
        assert done.exception.hint
    assert (tmp_path / "used" / "mine.txt").read_text() == "keep"
    assert not list(tmp_path.glob(".*.partial"))


def test_a_submission_holds_the_model_for_transformers_and_the_card_says_how(
    finished: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    items, scratch = exported_items(finished, told.append)
    assert {"hf/config.json", "hf/model.safetensors", "hf/modeling_n4090.py"} <= {
        item.path for item in items
    }
    assert all(item.size_bytes > 0 for item in items)
    tamper.gpu_run().write(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    card = model_card(
        result, {"training loss": [], "validation bits per byte": []}, "me/model", "n4090/board",
        "0" * 16, exported=[item.path for item in items],
    )  # fmt: skip
    code = card.split("```python\n")[1].split("```")[0]
    ast.parse(code)
    assert code.count("\n") == 4 and 'snapshot_download("me/model"' in code
    assert "trust_remote_code=True" in code
    assert scratch is not None
    scratch.cleanup()
    assert "transformers" not in model_card(
        result, {"training loss": [], "validation bits per byte": []}, "me/model", "b", "0" * 16
    )


def test_a_submission_without_an_exporter_goes_on_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "sft"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"loader": "mine"}))
    told: list[str] = []
    assert exported_items(tmp_path, told.append) == ([], None)
    assert told == [
        "left out: the model for transformers (no exporter is installed for the trainer 'mine')"
    ]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_fills_the_repository_once_and_leaves_a_card_alone(
    finished: Path, hub: GitHub
) -> None:
    pushed = export(finished, "--push", "alice/model")
    assert pushed.exit_code == 0, pushed.output
    assert pushed.stdout.strip() == f"{hub.url}/alice/model"
    assert "trust_remote_code=True" in pushed.stderr and "alice/model" in pushed.stderr
    repository = hub.path("models", "alice/model")
    listed = git(repository, "ls-tree", "-r", "--name-only", "main").split()
    assert {"README.md", "config.json", "model.safetensors", "modeling_n4090.py"} <= set(listed)
    assert "trust_remote_code=True" in git(repository, "show", "main:README.md")
    assert not (finished / "hf").exists()
    first = hub.resolve(repository, "main")
    assert export(finished, "--push", "alice/model").exit_code == 0
    assert hub.resolve(repository, "main") == first
    hub.create("models", "alice/mine", {"README.md": b"my own page\n"})
    assert export(finished, "--push", "alice/mine").exit_code == 0
    assert git(hub.path("models", "alice/mine"), "show", "main:README.md") == "my own page\n"


def test_a_push_without_a_token_is_refused_before_anything_is_written(
    finished: Path, hub: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = export(finished, "--push", "alice/model", "--out", tmp_path / "hf")
    assert isinstance(done.exception, KitError)
    assert "no access token" in done.exception.message
    assert not (tmp_path / "hf").exists()
