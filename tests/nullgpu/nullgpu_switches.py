"""A case for each switch of a recipe and for each pair of switches that share code.

The list follows the dataclasses of `reference.config`: a field of `[model]` or `[pretrain]` without
a case, and not named in `OF_THE_HOST`, fails a test. A boolean and a field with choices make their
cases themselves; other fields have values below.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from reference.config.experiment import experiments
from reference.config.trainer import section_classes

Changes = dict[str, dict[str, Any]]

# Two blocks: one with a short window, one with a whole window and a value embedding.
BASE: Changes = {
    "model": {
        "n_layer": 2, "n_embd": 256, "n_head": 2, "n_kv_head": 2, "seq_len": 256,
        "short_window": 128,
    },
    "pretrain": {
        "num_steps": 6, "device_batch_size": 2, "total_batch_size": 1024, "warmup_steps": 0,
        "eval_every": 3, "eval_tokens": 1024, "checkpoint_every": 4, "attention": "varlen",
        "matmul_until": 1.0,
    },
}  # fmt: skip

# These change numbers that kernels get, or what the host does between steps; no kernel and no
# buffer of a step follows from them.
OF_THE_HOST = {
    "model": {"vocab_size", "softcap", "rope_base"},
    "pretrain": {
        "num_steps", "hours", "fill_budget", "warmup_steps", "warmdown_ratio", "final_lr_frac",
        "decay", "decay_exponent", "momentum", "momentum_steps", "weight_decay_schedule",
        "average_share", "rollbacks", "divergence_nats", "matrix_lr", "embedding_lr",
        "unembedding_lr", "value_embedding_lr", "resid_lr", "x0_lr", "gate_lr", "norm_scale_lr",
        "weight_decay",
        "scale_lr", "eval_every", "eval_tokens", "eval_tokens_between", "checkpoint_every",
        "sft_from", "replay_from", "replay_keep", "distill_weight", "distill_temperature",
        "maxwell_fast", "maxwell_slow", "maxwell_age",
    },
}  # fmt: skip

GROWN_LAYERS: Changes = {
    "model": {"n_layer": 4}, "pretrain": {"growth_layers": [[0, 2], [0.5, 4]]}
}  # fmt: skip
GROWN_WIDTH: Changes = {"pretrain": {"growth_width": [[0, 128], [0.5, 256]]}}
# Fields that are neither boolean nor a choice, and those that need others beside them.
VALUES: dict[str, list[Changes]] = {
    "model.n_layer": [{"model": {"n_layer": 3}}],
    "model.n_embd": [{"model": {"n_embd": 384, "n_head": 3, "n_kv_head": 3}}],
    "model.n_head": [{"model": {"n_head": 4, "n_kv_head": 4}}],
    "model.n_kv_head": [{"model": {"n_kv_head": 1}}],
    "model.seq_len": [{"model": {"seq_len": 512}}],
    "model.window_pattern": [{"model": {"window_pattern": "L"}}],
    "model.short_window": [{"model": {"short_window": 64}}],
    "model.ffn_width": [{"model": {"ffn_width": 768}}],
    "model.value_embedding_every": [{"model": {"value_embedding_every": 1}}],
    "model.tied_until": [{"model": {"tied_until": 0.5}}, {"model": {"tied_until": 1}}],
    "model.dtype": [
        {"model": {"dtype": "bfloat16"}},
        {"model": {"dtype": "float32"}, "pretrain": {"attention": "auto"}},
    ],
    "pretrain.device_batch_size": [{"pretrain": {"device_batch_size": n}} for n in (0, 1)],
    "pretrain.total_batch_size": [{"pretrain": {"total_batch_size": 512}}],
    "pretrain.matmul_passes": [
        {"pretrain": {"matmul": kind, "matmul_passes": ["forward"]}} for kind in ("fp8", "int8")
    ],
    "pretrain.matmul_layers": [
        {"pretrain": {"matmul": kind, "matmul_layers": layers}}
        for kind in ("fp8", "int8")
        for layers in (["mlp"], ["attention", "mlp", "head"])
    ],
    "pretrain.matmul_until": [
        {"pretrain": {"matmul": kind, "matmul_until": 0.5}} for kind in ("fp8", "int8")
    ],
    "pretrain.seq_len_ramp": [{"pretrain": {"seq_len_ramp": [[0, 128], [0.5, 256]]}}],
    "pretrain.window_ramp": [{"pretrain": {"window_ramp": [[0, 0.5], [0.5, 1]]}}],
    "pretrain.batch_ramp": [{"pretrain": {"batch_ramp": [[0, 512], [0.5, 1024]]}}],
    "pretrain.snapshot_every": [{"pretrain": {"snapshot_every": 3}}],
    "pretrain.sft_share": [{"pretrain": {"sft_share": 0.25, "sft_from": 0.3}}],
    "pretrain.sft_targets": [
        {"pretrain": {"sft_share": 0.25, "sft_from": 0.3, "sft_targets": "answers"}}
    ],
    "pretrain.vram_cap_gib": [{"pretrain": {"vram_cap_gib": 8}}],
    "pretrain.prefetch": [{"pretrain": {"prefetch": 0}}],
    "pretrain.replay_share": [{"pretrain": {"replay_share": 0.25, "replay_from": 0.25}}],
    "pretrain.growth_layers": [GROWN_LAYERS],
    "pretrain.growth_width": [GROWN_WIDTH],
    "pretrain.distill_from": [{"pretrain": {"distill_from": 0.3}}],
    "pretrain.distill_refresh": [{"pretrain": {"distill_from": 0.3, "distill_refresh": 0.4}}],
    "pretrain.soap_refresh_steps": [
        {"pretrain": {"matrix_optimizer": "soap", "soap_refresh_steps": 2}}
    ],
    "pretrain.maxwell_from": [{"pretrain": {"matrix_optimizer": "bi_maxwell", "maxwell_from": 2}}],
    "pretrain.soap_max_dim": [{"pretrain": {"matrix_optimizer": "soap", "soap_max_dim": 128}}],
}

# What the null device, or an environment of the lock alone, does not have; the text of the error.
REFUSED = {
    "pretrain.attention=cudnn": "no cuDNN",
    "pretrain.attention=fa2": "flash_attn is not installed",
    "pretrain.attention=fa3": "flash_attn_interface is not installed",
    "pretrain.matrix_optimizer=soap": "cusolver",
    "pretrain.matrix_optimizer=soap_muon": "cusolver",
    "pretrain.soap_refresh_steps=2": "cusolver",
    "pretrain.soap_max_dim=128": "cusolver",
}

# Switches whose code meets: each of the left with each of the right.
TOUCHING: list[tuple[list[str], list[str]]] = [
    (
        ["pretrain.matmul=fp8", "pretrain.matmul=int8"],
        [
            "model.n_kv_head", "model.ffn=swiglu", "model.tied_until", "model.norm_scales",
            "model.value_embeddings=False", "pretrain.document_mask=True",
            "pretrain.fused_loss=False", "pretrain.seq_len_ramp", "pretrain.window_ramp",
            "pretrain.batch_ramp", "pretrain.growth_layers", "pretrain.growth_width",
            "pretrain.distill_from", "pretrain.deterministic=True", "pretrain.compile=off",
            "pretrain.compile_optimizer=True", "pretrain.average=ema", "pretrain.attention=flex",
        ],
    ),
    (
        ["pretrain.matmul_layers=int8 attention,mlp,head"],
        ["model.tied_until", "pretrain.distill_from", "pretrain.growth_width",
         "pretrain.replay_share", "pretrain.document_mask=True"],
    ),
    (
        ["pretrain.attention=flex", "pretrain.attention=mask", "pretrain.attention=sdpa"],
        ["model.n_kv_head", "pretrain.document_mask=True", "pretrain.seq_len_ramp",
         "pretrain.window_ramp", "pretrain.growth_width"],
    ),
    (
        ["pretrain.matrix_optimizer=muon2", "pretrain.maxwell_from=2"],
        ["pretrain.momentum_dtype=bfloat16", "pretrain.compile_optimizer=True",
         "pretrain.growth_width"],
    ),
    (
        ["pretrain.factored_second_moment=True"],
        ["model.tied_until", "pretrain.growth_width", "pretrain.matrix_optimizer=adamw"],
    ),
    (
        ["pretrain.document_mask=True"],
        ["pretrain.seq_len_ramp", "pretrain.distill_from", "pretrain.replay_share",
         "pretrain.device_batch_size"],
    ),
]  # fmt: skip


def fields() -> dict[str, dataclasses.Field[Any]]:
    """Every field of `[model]` and `[pretrain]` as "section.name"."""
    return {
        f"{section}.{field.name}": field
        for section in ("model", "pretrain")
        for made in section_classes()[section][1]
        for field in dataclasses.fields(made)
    }


def alone() -> dict[str, Changes]:
    """A case's name, "section.field=value", to the recipe's changes."""
    cases: dict[str, Changes] = {"none": {}}
    for name, field in fields().items():
        for changes in changes_of(name, field):
            cases[f"{name}={described(name, changes)}"] = changes
    return cases


def changes_of(name: str, field: dataclasses.Field[Any]) -> list[Changes]:
    """The cases of a field; none for a field of the host, or one that was forgotten."""
    section, key = name.split(".")
    if name in VALUES:
        return VALUES[name]
    if key in OF_THE_HOST[section]:
        return []
    values: list[Any] = []
    if isinstance(field.default, bool):
        values = [not field.default]
    elif isinstance(field.default, str):
        values = list(field.metadata["choices"])
        if key == "matrix_optimizer":
            values += [rule for experiment in experiments() for rule in experiment.rules()]
    base = BASE[section].get(key, field.default)
    return [{section: {key: value}} for value in values if value != base]


def described(name: str, changes: Changes) -> str:
    section, key = name.split(".")
    value = changes[section][key]
    words = isinstance(value, list) and isinstance(value[0], str)
    text = ",".join(value) if words else str(value)
    kind = changes.get("pretrain", {}).get("matmul")
    return f"{kind} {text}" if kind and key != "matmul" else text


def together() -> dict[str, Changes]:
    """Pairs of switches, named "one + other"; each in the first case of a field named in short."""
    known, cases = alone(), {}
    for left, right in TOUCHING:
        for one, other in itertools.product(left, right):
            for second in [case for case in known if case == other or case.startswith(f"{other}=")]:
                cases[f"{one} + {second}"] = merged(known[one], known[second])
    return cases


def merged(*changes: Changes) -> Changes:
    """Later changes over earlier ones, by section."""
    sections = ("model", "pretrain")
    return {
        section: {key: value for part in changes for key, value in part.get(section, {}).items()}
        for section in sections
    }


def cases() -> dict[str, Changes]:
    """All cases: the changes to a recipe of default values, the base among them."""
    return {name: merged(BASE, changes) for name, changes in (alone() | together()).items()}
