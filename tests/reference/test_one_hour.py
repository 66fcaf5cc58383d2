"""What a newcomer adds in an hour: an optimizer in one file and one recipe line, attention weights
in `model/` alone. FLOPs, memory, schema and checkpoints follow without another edit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIMIZER = '''
"""The sign of the momentum, at Muon's size of a step."""

from reference.config.experiment import Experiment, NoFields
from reference.optim.rules import MatrixRule


class Signed(MatrixRule):
    def new_state(self, like, device):
        return {"momentum": like.new_zeros(like.shape, device=device)}

    def direction(self, gradients, state, group):
        state["momentum"].lerp_(gradients, 1.0 - group["momentum"])
        m, n = gradients.shape[-2:]
        return state["momentum"].sign() * max(m, n) ** -0.5

    def state_bytes(self, shape):
        return 4 * shape[0] * shape[1]


EXPERIMENT = Experiment(
    name="signed",
    fields=NoFields,
    asked=lambda section: section.get("matrix_optimizer") == "signed",
    rules=lambda: {"signed": Signed},
)
'''
# Attention whose output is gated by the input, one weight more a layer: file -> (old, new).
GATED = {
    "model/structure.py": [
        ("OUTPUT: (C, C)}", 'OUTPUT: (C, C), "c_gate": (C, C)}'),
    ],
    "model/gpt.py": [
        ("    c_v: Linear\n", "    c_v: Linear\n    c_gate: Linear\n"),
        (
            "        x = x + self.attn.output(y)\n",
            "        gate = torch.sigmoid(self.attn.c_gate(norm(x)))\n"
            "        x = x + self.attn.output(gate * y)\n",
        ),
    ],
}
# Trains a few steps, resumes from the state, and holds every count against the real tensors.
CHECK = """
import sys, torch
from reference.bench.train import GivenRows
from reference.config.model import ModelConfig
from reference.config.trainer import TRAINER, section_defaults
from reference.model.cost import count_flops, count_parameters, plan_vram
from reference.model.linear import Linear
from reference.train.loop import TrainState

optimizer, weights = sys.argv[1], int(sys.argv[2])
choices = TRAINER.sections()["pretrain"]["properties"]["matrix_optimizer"]["enum"]
assert optimizer in choices, choices
config = ModelConfig(90, n_layer=2, n_embd=32, n_head=2, n_kv_head=1, seq_len=16, short_window=8)
section = {**section_defaults("pretrain"), "matrix_optimizer": optimizer, "matrix_lr": 0.01,
           "total_batch_size": 64, "device_batch_size": 4, "scale_lr": False, "warmup_steps": 0}

def opened():
    state = TrainState.of_recipe(
        config, section, device=torch.device("cpu"), seed=1, horizon_tokens=640
    )
    state.prepare(lambda text, **_: None, bos=0)
    state.rows = GivenRows(4)
    return state

def train(state, first, last):
    tokens = (7 * torch.arange(68) % 89).view(4, 17)
    losses = []
    for step in range(first, last):
        state.rows.batches = iter([(tokens[:, :-1], tokens[:, 1:])])
        losses.append(state.step(step / 10, step).loss)
    return losses

state, again = opened(), opened()
losses = train(state, 0, 6)
assert losses[-1] < losses[0] - 0.5, losses
saved = state.state_dict()
again.load_state_dict(saved)
assert train(again, 6, 8) == train(state, 6, 8)

model = state.model
assert len(model.blocks[-1].attn._modules) == weights
assert count_parameters(config).total == sum(p.numel() for p in model.parameters())
maps = sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
assert count_flops(config).matmul == 6 * maps
[rule] = {type(rule) for rule in state.optimizer.rules if rule is not None}
of_matrices = sum(
    state.optimizer.rules[i].state_bytes(tuple(p.shape))
    for i, group in enumerate(state.optimizer.param_groups)
    if group["kind"] == optimizer
    for p in group["params"]
)
held = sum(
    v.numel() * v.element_size()
    for group in state.optimizer.param_groups if group["kind"] == optimizer
    for k, v in state.optimizer.state[group["params"][0]].items() if k != "second_moment"
)
assert held == of_matrices > 0, (held, of_matrices)
plain = plan_vram(config, 4, {**section, "matrix_optimizer": "muon"})
plan = plan_vram(config, 4, section)
assert plan["weights"] == plain["weights"] and plan["activations"] == plain["activations"]
print("activations", plan["activations"])
"""


def copy_with(folder: Path, edits: dict[str, list[tuple[str, str]]]) -> Path:
    """A copy of the trainer under `folder`, with edits to its files; each text occurs once."""
    copy = folder / "reference"
    shutil.copytree(ROOT / "reference", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in edits.items():
        text = (copy / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (copy / name).write_text(text)
    return folder


def check(folder: Path, optimizer: str, weights: int) -> int:
    """Runs `CHECK` on the trainer in `folder`; returns the planned bytes of activations."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, optimizer, str(weights)],
        capture_output=True, text=True, cwd=folder, check=False,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_a_new_optimizer_is_one_file_and_one_recipe_line(tmp_path: Path) -> None:
    folder = copy_with(tmp_path, {})
    (folder / "reference/experiments/signed.py").write_text(OPTIMIZER)
    check(folder, "signed", weights=5)


def test_a_new_attention_is_an_edit_in_the_model_alone(tmp_path: Path) -> None:
    plain = check(copy_with(tmp_path / "plain", {}), "muon", weights=5)
    assert all(name.startswith("model/") for name in GATED)
    gated = check(copy_with(tmp_path / "gated", GATED), "muon", weights=6)
    # The gate's result is kept for the backward pass: 2 bytes a channel, token and layer.
    assert gated == plain + 2 * 2 * 32 * 4 * 16
