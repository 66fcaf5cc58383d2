"""V22 and V23 on a small real model: its own score passes, another model's weights do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tamper

from kit.trust.digest import sha256_bytes
from kit.verify import Options, Report, verify_result

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
MAX_PER_TASK = 25
# What refuses every run here whatever its weights: a small checkpoint, a few questions and another
# trainer in the place of those that the recipe describes.
FOREIGN = ["V21", "V27", "V29"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made questions, a tokenizer, and two untrained models."""
    from reference.config.model import ModelConfig
    from reference.model.gpt import GPT
    from reference.stories import write_stories
    from reference.tokenizer.bpe import Tokenizer
    from reference.train.checkpoint import save_model

    root = tmp_path_factory.mktemp("material")
    write_stories(root / "stories", seed=1, documents=60)
    questions = (root / "stories/core/eval_data").rglob("*.jsonl")
    tokenizer = Tokenizer.train([path.read_text() for path in questions], 400)
    tokenizer.save(root / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, n_layer=2, n_embd=64, n_head=2, n_kv_head=2, seq_len=256
    )
    for seed in (1, 2):
        model = GPT(config)
        model.init_weights(seed)
        with torch.no_grad():  # a fresh head gives every token the same score
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        save_model(root / f"model{seed}", model, config, root / "tokenizer")
    return root


def draft_of(material: Path, seed: int, scored: int) -> tamper.Draft:
    """A run whose checkpoint is model `seed` and whose CORE file was made with model `scored`."""
    from kit.core_eval.bundle import open_bundle
    from kit.core_eval.evaluate import Settings, evaluate_core
    from kit.core_eval.loaders import load_model

    draft = tamper.gpu_run()
    # What needs the reference trainer has tests of its own: test_verify_replay.py.
    draft.recipe += '\n[trainer]\ncommand = ["python", "other.py"]\n'
    draft.header()["recipe"]["digest"] = sha256_bytes(draft.recipe.encode())
    for event in draft.of("eval", "pretrain"):
        draft.events.remove(event)
    for path in (material / f"model{seed}").iterdir():
        draft.files[f"checkpoints/pretrain/{path.name}"] = path.read_bytes()
    model = load_model(material / f"model{scored}", device="cpu", dtype="float32")
    bundle = open_bundle(material / "stories/core", allow_custom=True)
    document = evaluate_core(model, bundle, Settings(max_per_task=MAX_PER_TASK))
    draft.files["eval/core.json"] = json.dumps(document).encode()
    return draft


def check(material: Path, folder: Path, draft: tamper.Draft) -> Report:
    options = Options(re_evaluate=True, core=material / "stories/core")
    return verify_result(draft.write(folder), options)


def test_a_checkpoint_that_scores_as_stated_passes(material: Path, tmp_path: Path) -> None:
    report = check(material, tmp_path / "run", draft_of(material, 1, 1))
    assert report.refused_by == FOREIGN
    assert (report.status("V22"), report.status("V23")) == ("pass", "pass")


def test_another_models_score_is_refused_by_v22(material: Path, tmp_path: Path) -> None:
    """Every digest and signature is right; only the weights cannot do it."""
    report = check(material, tmp_path / "run", draft_of(material, 1, 2))
    assert report.refused_by == sorted([*FOREIGN, "V22"])


def test_an_invented_likelihood_of_the_answers_is_refused_by_v22(
    material: Path, tmp_path: Path
) -> None:
    """The answers are the model's own; only how sure it was of the right ones is not."""
    draft = draft_of(material, 1, 1)
    document = json.loads(draft.files["eval/core.json"])
    for task in document["tasks"]:
        task["answer_bits"] = [bits and bits * 0.99 for bits in task["answer_bits"]]
    draft.files["eval/core.json"] = json.dumps(document).encode()
    report = check(material, tmp_path / "run", draft)
    assert "V22" in report.refused_by
    assert any("another likelihood" in finding.message for finding in report.of("V22"))


def test_another_bundle_is_refused_and_none_is_missing(material: Path, tmp_path: Path) -> None:
    from reference.stories import write_stories

    write_stories(tmp_path / "other", seed=2, documents=60)
    path = draft_of(material, 1, 1).write(tmp_path / "run")
    other = verify_result(path, Options(re_evaluate=True, core=tmp_path / "other/core"))
    assert other.refused_by == sorted([*FOREIGN, "V22"])
    without = verify_result(path, Options(re_evaluate=True))
    assert without.of("V22")[0].missing


def test_swapped_weights_are_v21s_and_not_loaded(material: Path, tmp_path: Path) -> None:
    path = draft_of(material, 1, 1).write(tmp_path / "run")
    weights = path.parent / "checkpoints/pretrain/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    report = verify_result(path, Options(re_evaluate=True, core=material / "stories/core"))
    assert "V21" in report.refused_by and report.status("V23") == "skip"
