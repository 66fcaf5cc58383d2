"""Counts against the real model, nanochat's published table and a count pair by pair."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from reference.config.model import ModelConfig
from reference.model.cost import count_flops, count_parameters, estimate, peak_flops, plan_vram
from reference.model.gpt import GPT
from reference.model.step_time import predict_recipe
from reference.optim.optimizer import MuonAdamW, parameter_groups

SHAPES = [
    ModelConfig(1000, n_layer=3, n_embd=64, n_head=4, n_kv_head=2, seq_len=256),
    ModelConfig(
        50, n_layer=2, n_embd=48, n_head=2, n_kv_head=1, seq_len=40, value_embeddings=False
    ),
    ModelConfig(
        129, n_layer=5, n_embd=64, n_head=2, n_kv_head=2, seq_len=64, smear=False, backout=False
    ),
]
PRETRAIN = {
    "num_steps": 100,
    "hours": 0,
    "device_batch_size": 8,
    "total_batch_size": 4096,
    "matrix_lr": 0.02,
    "embedding_lr": 0.3,
    "unembedding_lr": 0.008,
    "value_embedding_lr": 0.15,
    "resid_lr": 0.005,
    "x0_lr": 0.5,
    "gate_lr": 0.2,
    "weight_decay": 0.28,
    "scale_lr": True,
}


@pytest.mark.parametrize("config", SHAPES)
def test_parameters_equal_those_of_the_real_model(config):
    model, counted = GPT(config), count_parameters(config)
    groups = {
        name: sum(p.numel() for _, p in members)
        for name, members in model.named_parameter_groups().items()
    }
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.matrix == groups["matrix"]
    assert counted.scaling == groups["matrix"] + model.lm_head.weight.numel()
    assert counted.embedding == groups["embedding"]
    assert counted.value_embedding == groups["value_embedding"]
    assert counted.scalar == groups["resid"] + groups["x0"] + groups["gate"]


@pytest.mark.parametrize("config", SHAPES)
def test_flops_equal_a_count_of_products_and_pairs(config):
    """Each matrix entry is used once a token forward and twice backward, at 2 FLOPs a use."""
    model = GPT(config)
    T, linear = config.seq_len, 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            linear += 3 * 2 * module.weight.numel()
    full = causal = 0
    for window in config.windows:
        for i in range(T):
            pairs = sum(i - window < j <= i for j in range(T))
            # Two products (scores, values), each over C channels, forward and twice backward.
            causal += 2 * 3 * 2 * config.n_embd * pairs
        full += 2 * 3 * 2 * config.n_embd * min(window, T)
    flops = count_flops(config)
    assert flops.nanochat == linear + full
    assert flops.causal == pytest.approx(linear + causal / T)


@pytest.mark.parametrize(
    ("depth", "scaling_m", "total_m", "gflops"),
    [
        (12, 110.1, 286, 0.760),
        (14, 164.2, 399, 1.129),
        (16, 234.9, 537, 1.585),
        (18, 324.4, 702, 2.180),
        (20, 435.2, 897, 2.886),
        (22, 569.5, 1123, 3.763),
        (24, 729.8, 1384, 4.775),
        (26, 918.4, 1682, 5.991),
    ],
)
def test_nanochats_depths_reproduce_its_figures(depth, scaling_m, total_m, gflops):
    width = -(-64 * depth // 128) * 128
    heads = width // 128
    config = ModelConfig(32768, n_layer=depth, n_embd=width, n_head=heads, n_kv_head=heads)
    parameters = count_parameters(config)
    assert round(parameters.scaling / 1e6, 1) == scaling_m
    assert round(parameters.total / 1e6) == total_m
    assert round(count_flops(config).nanochat / 1e9, 3) == gflops


def test_planned_weights_and_states_equal_the_bytes_of_real_ones():
    config = SHAPES[0]
    model = GPT(config)
    model.init_weights(0)
    model.place("cpu", "bfloat16")
    plan = plan_vram(config, 8)
    assert plan["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = MuonAdamW(parameter_groups(model, PRETRAIN))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert plan["gradients"] == sum(
        p.grad.numel() * p.grad.element_size() for p in model.parameters()
    )
    optimizer.step()
    states = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name not in ("step", "second_moment")  # a few kilobytes
    )
    assert plan["optimizer"] == states


def test_an_estimate_by_steps_and_one_by_hours():
    recipe = {
        "model": {"n_layer": 20, "n_embd": 1280, "n_head": 10, "n_kv_head": 10, "seq_len": 2048},
        "tokenizer": {"vocab_size": 32768},
        "pretrain": {**PRETRAIN, "device_batch_size": 4},
    }
    by_steps = estimate(recipe)
    assert by_steps["tokens"] == 409_600
    assert by_steps["flops"]["nanochat"] == pytest.approx(409_600 * 2.886e9, rel=1e-3)
    recipe["pretrain"].update(num_steps=0, hours=20.75, total_batch_size=524_288)
    by_time = estimate(recipe)
    speed = by_time["rtx4090"]["tokens_per_s"]
    assert speed == predict_recipe(recipe).tokens_per_s  # of the time model
    assert speed == pytest.approx(38_300, rel=0.05)
    # Compiling and three last evaluations' worth of reserve are not trained in.
    assert by_time["tokens"] == pytest.approx(speed * (20.75 * 3600 - 300), abs=1)
    assert by_time["rtx4090"]["pretrain_hours"] == pytest.approx(20.75)
    assert by_time["vram_bytes"]["fits_24gb"]
    parts = {k: v for k, v in by_time["vram_bytes"].items() if k not in ("total", "fits_24gb")}
    assert by_time["vram_bytes"]["total"] == sum(parts.values())
    recipe["pretrain"]["device_batch_size"] = 64  # cut to what a 4090 holds
    cut = estimate(recipe)
    assert cut["vram_bytes"]["fits_24gb"] and cut["micro_batch"]["sequences"] < 64
    recipe["model"].update(n_layer=64, n_embd=4096, n_head=32, n_kv_head=32)
    assert not estimate(recipe)["vram_bytes"]["fits_24gb"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H200", 989),
    ],
)
def test_the_peak_is_that_of_exactly_the_named_device(name, tflops):
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


def test_estimating_imports_neither_torch_nor_numpy():
    code = "import reference.model.cost, sys; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
