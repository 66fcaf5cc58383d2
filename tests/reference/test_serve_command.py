"""The commands `serve` and `generate`, from a run folder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("uvicorn", reason="uvicorn is not installed (serve)")
pytest.importorskip("starlette", reason="starlette is not installed (serve)")

from serving import tiny

from reference.chat.commands import generate, serve
from reference.chat.engine import Sampling
from reference.chat.engine import generate as run_model
from reference.train.checkpoint import save_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("serve") / "my-run"
    for seed, stage in enumerate(("pretrain", "sft")):
        model, tokenizer = tiny(seed)
        tokenizer.save(run / "tokenizer")
        save_model(run / "checkpoints" / stage, model, model.config, run / "tokenizer")
    return run


def test_generate_continues_with_the_base_model(run: Path) -> None:
    model, tokenizer = tiny(0)
    done = CliRunner().invoke(
        generate, [str(run), "-", "--temperature", "0", "--max-new-tokens", "9"], input="the fox"
    )
    assert done.exit_code == 0, done.output
    ids = [tokenizer.bos_id, *tokenizer.encode(["the fox"])[0]]
    answer = run_model(model, [ids], Sampling(9), {tokenizer.bos_id})[0]
    assert done.stdout == f"the fox{tokenizer.decode(answer.ids)}\n"
    three = CliRunner().invoke(generate, [str(run), "a", "-n", "3", "--max-new-tokens", "4"])
    assert three.exit_code == 0 and three.stdout.count("a") >= 3


def test_serve_answers_and_ends_at_ctrl_c(run: Path) -> None:
    command = [
        sys.executable, "-m", "kit.cli.main", "serve", str(run), "--port", "0", "--device", "cpu",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            page, api = process.stdout.readline(), process.stdout.readline()
            assert page.startswith("page: http://127.0.0.1:") and "key" not in page
            url = re.search(r"http://\S+", api)
            assert url is not None and "model my-run" in api
            with urllib.request.urlopen(f"{url[0]}/models", timeout=30) as response:
                entry = json.load(response)["data"][0]
            assert entry["id"] == "my-run" and entry["chat"]
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert errors.splitlines() == ["Ctrl-C ends it"]


def test_no_run_is_one_error(tmp_path: Path) -> None:
    for command, arguments in ((serve, []), (generate, ["a"])):
        done = CliRunner().invoke(command, [str(tmp_path / "nowhere"), *arguments])
        assert done.exit_code == 2
        assert "there is no folder" in done.stderr and "Traceback" not in done.output
