"""The loss with an int8 head: the kernels against the formulas, the formulas against fp64."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from reference.config.model import ModelConfig
from reference.config.problems import problems
from reference.config.resolve import resolve_recipe
from reference.kernels import int8_loss
from reference.kernels.int8_loss import chunks, loss_and_gradients, round_gradient, statistics
from reference.kernels.int8_rounding import BLOCK, round_both
from reference.kernels.int8_trial import choose_int8
from reference.model.gpt import GPT
from reference.model.int8_maps import Passes, use_int8

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from reference.kernels import int8_loss as plain, int8_loss_triton as k, triton_loss

for n, V, visible, softcap in ((130, 192, 150, 15.0), (5, 128, 128, 0.0)):
    g = torch.Generator().manual_seed(n)
    logits = (4 * torch.randn(n, V, generator=g)).bfloat16()
    targets = torch.randint(0, visible, (n,), generator=g)
    targets[1] = -1
    factor = torch.rand(n, generator=g) / 1000
    factor[1] = 0.0
    expected = plain.statistics(logits, targets, visible, softcap)
    found = triton_loss.statistics(logits, targets, vocab_size=visible, softcap=softcap)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    lift = plain.thresholds(logits.device)
    a = plain.round_gradient(logits, expected.log_sum, factor, visible, softcap)
    b = k.launch_round_gradient(logits, expected.log_sum, factor, lift, visible, softcap)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        if x.dtype == torch.int8:  # exponentials may differ in their last bit
            difference = (x.int() - y.int()).abs()
            assert difference.max() <= 1 and difference.float().mean() < 1e-3
        else:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-20)
    assert not b.rows[1].any() and not b.rows[:, visible:].any()

# A value that is not finite is seen in its row and its columns, and nowhere else.
logits[3, 7] = float("nan")
for result in (
    plain.round_gradient(logits, expected.log_sum, factor, visible, softcap),
    k.launch_round_gradient(logits, expected.log_sum, factor, lift, visible, softcap),
):
    assert result.row_scale.isnan().any(0).nonzero().flatten().tolist() == [3]
    assert result.column_scale.isnan().any(0).nonzero().flatten().tolist() == [7]
"""

COMPILED = """
import os, re, subprocess, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from reference.kernels import int8_loss_triton as k

tools = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin")
types = {
    "logits_ptr": "*bf16", "log_sum_ptr": "*fp32", "factor_ptr": "*fp32", "lift_ptr": "*fp32",
    "rows_ptr": "*i8", "row_scale_ptr": "*fp32", "columns_ptr": "*i8",
    "column_scale_ptr": "*fp32", "M": "i32", "V": "i32", "visible": "i32",
    "softcap": "fp32", "smallest": "fp32",
}
const = {"CAPPED": True, "BLOCK": 128}
source = ASTSource(
    fn=k.gradient_kernel,
    signature={**types, **{name: "constexpr" for name in const}},
    constexprs=const,
    attrs={(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t != "fp32"},
)
options = {"num_warps": k.WARPS, "enable_fp_fusion": False}
out = triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options)
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(out.asm["cubin"])
    file.flush()
    command = [f"{tools}/cuobjdump", "-res-usage", file.name]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
registers, stack = (int(re.search(rf"{n}:(\\d+)", usage)[1]) for n in ("REG", "STACK"))
print("kernel", k.WARPS, registers, stack, out.metadata.shared)
"""


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_interpreted_kernels_equal_the_formulas() -> None:
    _run(INTERPRETED, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_the_compiled_kernel_fits_an_ada_multiprocessor() -> None:
    found = re.findall(r"kernel (\d+) (\d+) (\d+) (\d+)", _run(COMPILED))
    warps, registers, stack, shared = map(int, found[0])
    assert stack == 0, "registers are spilled"
    assert warps * 32 * registers <= 65_536 and shared <= 101_376


def exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, visible: int, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    h, w = (t.double().requires_grad_() for t in (hidden, weight))
    logits = h @ w[:visible].T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
    (losses * scale).sum().backward()
    assert h.grad is not None and w.grad is not None
    return losses.detach(), h.grad, w.grad


@pytest.mark.parametrize("softcap", [15.0, 0.0])
@pytest.mark.parametrize(("tokens", "visible", "padded"), [(300, 500, 512), (37, 190, 192)])
def test_loss_and_gradients_are_the_exact_ones_up_to_the_rounding(
    softcap, tokens, visible, padded, monkeypatch
) -> None:
    monkeypatch.setitem(int8_loss.CHUNK_BYTES, "cpu", 128 * padded * 2)
    g = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 32, generator=g)
    hidden[3] = 0.0
    weight = 0.3 * torch.randn(padded, 32, generator=g)
    targets = torch.randint(0, visible, (tokens,), generator=g)
    targets[::7] = -1
    scale = (targets >= 0) * torch.linspace(0.5, 2, tokens) / tokens
    assert len(chunks(tokens, padded, hidden.device)) == -(-tokens // 128)
    found = loss_and_gradients(hidden, weight, round_both(weight), targets, scale, visible, softcap)
    for mine, theirs in zip(
        found, exact(hidden, weight, targets, scale, visible, softcap), strict=True
    ):
        error = float((mine.double() - theirs).norm() / theirs.norm())
        assert 1e-4 < error < 0.02
    assert not found[0][::7].any() and not found[1][::7].any() and not found[2][visible:].any()


def test_many_small_probabilities_beside_a_large_one_are_not_lost() -> None:
    """Rounded to nearest with a step of 1/254, all but the largest would be zeros."""
    V = 4096
    logits = torch.zeros(256, V)
    logits[:, 5] = 8.0  # a share of 0.42; each of the others 0.00014
    targets = torch.full((256,), 5)
    found = statistics(logits, targets, V, 0.0)
    gradient = round_gradient(logits, found.log_sum, torch.ones(256), V, 0.0)
    others = [t for t in range(V) if t != 5]
    true = float(torch.softmax(logits[0], 0)[others].sum())
    rows = gradient.rows.float() * gradient.row_scale.T.repeat_interleave(BLOCK, 1)
    assert float(rows[:, others].sum(1).mean()) == pytest.approx(true, rel=0.01)
    near = list(range(6, BLOCK))  # of the large one's own block, where a step is 0.0033
    assert float(rows[:, near].mean()) == pytest.approx(true / len(others), rel=0.1)
    columns = gradient.columns.float() * gradient.column_scale.T.repeat_interleave(BLOCK, 1)
    assert float(columns[others].sum(0).mean()) == pytest.approx(true, rel=0.01)


def test_a_model_takes_the_head_in_int8_and_only_in_training() -> None:
    config = ModelConfig(200, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)
    tokens = torch.randint(0, 200, (2, 17), generator=torch.Generator().manual_seed(3))
    losses, gradients = [], []
    for layers in ([], ["head"]):
        model = GPT(config)
        model.init_weights(0)
        with torch.no_grad():
            model.lm_head.weight.mul_(100.0)
        model.place()
        use_int8(model, layers)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        losses.append(loss.item())
        gradients.append(model.lm_head.weight.grad)
        with torch.no_grad():
            losses.append(model.loss(tokens[:, :-1], tokens[:, 1:]).item())
    assert losses[0] != losses[2] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] == losses[3]
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.02


def test_the_trial_times_the_head_too() -> None:
    config = ModelConfig(200, n_layer=1, n_embd=32, n_head=2, n_kv_head=2, seq_len=16)
    model = GPT(config)
    model.init_weights(0)
    model.place()
    times = iter((2.0, 1.0))
    chosen, rows = choose_int8(
        model, ["head"], (2, 16), passes=Passes(), timer=lambda f: (f(), next(times))[1]
    )
    assert chosen == ["head"], rows


def test_a_recipe_cannot_ask_for_half_an_int8_head() -> None:
    recipe = resolve_recipe("smoke")
    recipe["pretrain"].update(matmul="int8", matmul_layers=["head"], matmul_passes=["forward"])
    assert [p.path for p in problems(recipe)] == ["pretrain.matmul_passes"]
    recipe["pretrain"]["matmul_layers"] = ["mlp"]
    assert not list(problems(recipe))
