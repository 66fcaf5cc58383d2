"""The reference model as the evaluator sees it: every fast path gives the plain logits."""

from pathlib import Path

import pytest
import torch

from kit.core_eval.loaders import load_model
from kit.core_eval.model import Paths, PrefixModel
from kit.core_eval.probes import check_fast_path, probe_model
from kit.errors import SchemaError
from reference.model.gpt import GPT, ModelConfig
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import save_model
from reference.train.step import has_cpp_compiler

TEXTS = ["Once upon a time there was a fox.", "The fox met an owl near the river.", "1 2 3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.train(TEXTS * 20, 300)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        n_layer=4,
        n_embd=48,
        n_head=4,
        n_kv_head=2,
        seq_len=24,
        short_window=6,
    )
    model = GPT(config)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the initial zeros, so that every part matters
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_model(root / "model", model, config, root / "tokenizer")
    return root / "model"


def test_the_checkpoint_names_its_loader_and_offers_the_whole_fast_path(checkpoint: Path) -> None:
    model = load_model(checkpoint, device="cpu")
    assert isinstance(model, PrefixModel)
    assert check_fast_path(model) == (Paths(True, True), "")
    assert model.encode(["The fox", "<|bos|>"])[1] != [model.bos_id]
    assert model.max_seq_len is None and model.context_len == 24


def test_rows_continue_a_cache_as_if_read_whole(checkpoint: Path) -> None:
    """Windows of 6 and 24, uneven rows, rows taken twice: beyond the training length, too."""
    model = load_model(checkpoint, device="cpu", dtype="float32")
    tokens = torch.randint(0, model.vocab_size, (3, 60), generator=torch.Generator().manual_seed(3))
    plain = model.logits(tokens)
    lengths = [40, 9, 31]
    prefix = tokens[:, :40].clone()
    for row, length in enumerate(lengths):
        prefix[row, length:] = model.bos_id
    with torch.inference_mode():
        states, cache = model.prefill(prefix, torch.tensor(lengths))
        rows = [1, 2, 0, 1]
        more = torch.stack([tokens[row, lengths[row] : lengths[row] + 15] for row in rows])
        for _ in range(2):
            extended = model.extend(cache, torch.tensor(rows), more)
            for r, row in enumerate(rows):
                expected = plain[row, lengths[row] : lengths[row] + 15]
                torch.testing.assert_close(model.head(extended[r]), expected, rtol=1e-4, atol=1e-4)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            model.head(states[row, :length]), plain[row, :length], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_passes_the_probes(checkpoint: Path, dtype: str) -> None:
    model = load_model(checkpoint, device="cpu", dtype=dtype)
    assert model.dtype == dtype
    assert [probe.name for probe in probe_model(model) if not probe.passed] == []


def test_a_damaged_checkpoint_is_the_kits_error(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SchemaError, match="not a safetensors file"):
        load_model(tmp_path, device="cpu")


def test_compiled_blocks_give_the_plain_logits_for_any_shape(checkpoint: Path) -> None:
    """One graph serves all shapes: the compiler's own front end, without the code it generates."""
    model = load_model(checkpoint, device="cpu", dtype="float32")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile(backend="aot_eager")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert check_fast_path(model) == (Paths(True, True), "")
    generator = torch.Generator().manual_seed(5)
    for shape in ((1, 7), (5, 33), (2, 64)):
        tokens = torch.randint(0, model.vocab_size, shape, generator=generator)
        with torch.inference_mode():
            found = model.head(model.hidden(tokens))
            torch.testing.assert_close(found, model.logits(tokens), rtol=1e-4, atol=1e-4)
    # A batch of one is a shape of its own to the compiler; nothing else is.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * graphs
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiler_that_fails_leaves_the_model_as_it_was(checkpoint: Path) -> None:
    model = load_model(checkpoint, device="cpu", dtype="float32")
    torch._dynamo.reset()

    def broken(graph, inputs):
        raise RuntimeError("no such compiler")

    with pytest.warns(UserWarning, match="evaluating without compiled blocks"):
        model.compile(backend=broken)
    tokens = torch.zeros((2, 9), dtype=torch.int64)
    assert torch.equal(model.head(model.hidden(tokens)), model.logits(tokens))


def test_only_a_long_evaluation_on_a_gpu_compiles(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint, device="cpu")
    calls = []
    monkeypatch.setattr(model, "compile", lambda: calls.append(1))
    model.expect(91_037)
    assert not calls
    monkeypatch.setattr(type(model._model), "device", torch.device("cuda"))
    model.expect(440)
    assert not calls
    model.expect(91_037)
    assert calls


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_generated_code_gives_the_plain_logits(checkpoint: Path) -> None:
    model = load_model(checkpoint, device="cpu", dtype="float32")
    torch._dynamo.reset()
    model.compile()
    assert check_fast_path(model) == (Paths(True, True), "")
    assert all(probe.passed for probe in probe_model(model))
