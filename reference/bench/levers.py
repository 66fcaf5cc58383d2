"""Every lever alone against one configuration: speed, memory and short-run loss side by side.

A lever is a few recipe fields. Each is trained for the same few steps from the same weights on the
same made text as the recipe without it. Losses of so short runs order nothing finer than a mistake:
they show that a lever learns, and roughly what it costs.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from reference.bench.trial_run import trial_run
from reference.config.model import ModelConfig
from reference.kernels.attention_trial import short_reason
from reference.kernels.compiling import forget_compiled
from reference.model.cost import count_flops
from reference.train.device import forget_determinism, make_deterministic

LAST_SHARE = 0.25  # of the steps, whose mean loss stands for the run's end

# name -> the recipe fields that it changes, by section. `{…}` are worked out from the recipe.
LEVERS: dict[str, dict[str, dict[str, Any]]] = {
    "fp8": {"pretrain": {"matmul": "fp8"}},
    "fp8, rows": {"pretrain": {"matmul": "fp8_rowwise"}},
    "int8": {"pretrain": {"matmul": "int8"}},
    "fastest factors": {"pretrain": {"matmul": "fastest"}},
    "fp8, forward only": {"pretrain": {"matmul": "fp8", "matmul_passes": ["forward"]}},
    "attention flex": {"pretrain": {"attention": "flex"}},
    "attention flex, small tiles": {"pretrain": {"attention": "flex_small"}},
    "attention varlen": {"pretrain": {"attention": "varlen"}},
    "attention fa2": {"pretrain": {"attention": "fa2"}},
    "attention fa3": {"pretrain": {"attention": "fa3"}},
    "attention mask": {"pretrain": {"attention": "mask"}},
    "documents apart": {"pretrain": {"document_mask": True}},
    "all logits at once": {"pretrain": {"fused_loss": False}},
    "bf16 momentum": {"pretrain": {"momentum_dtype": "bfloat16"}},
    "muon squared": {"pretrain": {"matrix_optimizer": "muon2"}},
    "two momenta": {"pretrain": {"matrix_optimizer": "bi_maxwell"}},
    "soap": {"pretrain": {"matrix_optimizer": "soap"}},
    "soap muon": {"pretrain": {"matrix_optimizer": "soap_muon"}},
    "factored second moment": {"pretrain": {"factored_second_moment": True}},
    "compiled optimizer": {"pretrain": {"compile_optimizer": True}},
    "no compiling": {"pretrain": {"compile": "off"}},
    "no read-ahead": {"pretrain": {"prefetch": 0}},
    "deterministic": {"pretrain": {"deterministic": True}},
    "half the key heads": {"model": {"n_kv_head": "{half}"}},
    "one key head": {"model": {"n_kv_head": 1}},
    "tied": {"model": {"tied_until": 1.0}},
    "tied for two thirds": {"model": {"tied_until": 0.66}},
    "swiglu": {"model": {"ffn": "swiglu"}},
    "narrower MLP": {"model": {"ffn_width": "{narrow}"}},
    "fewer value embeddings": {"model": {"value_embedding_every": 4}},
    "length ramp": {"pretrain": {"seq_len_ramp": "{lengths}"}},
    "window ramp": {"pretrain": {"window_ramp": [[0.0, 0.5], [0.5, 1.0]]}},
    "batch ramp": {"pretrain": {"batch_ramp": "{batches}"}},
}


def with_lever(recipe: Mapping[str, Any], name: str) -> dict[str, Any] | str:
    """The recipe with a lever pulled, or why that makes no sense for it."""
    changed = copy.deepcopy(dict(recipe))
    model, pretrain = changed["model"], changed["pretrain"]
    micro = max(1, pretrain["device_batch_size"]) * model["seq_len"]
    half = pretrain["total_batch_size"] // 2 // micro * micro
    values = {
        "{half}": model["n_head"] // 2 if model["n_head"] % 2 == 0 else None,
        "{narrow}": 3 * model["n_embd"] // 16 * 16,
        "{lengths}": [[0.0, model["seq_len"] // 2], [1 / 3, model["seq_len"]]],
        "{batches}": [[0.0, half], [0.5, pretrain["total_batch_size"]]] if half else None,
    }
    for section, fields in LEVERS[name].items():
        for field, value in fields.items():
            value = values[value] if isinstance(value, str) and value in values else value
            if value is None:
                return "does not divide this recipe's sizes"
            if changed[section].get(field) == value:
                return "the recipe has it already"
            changed[section][field] = value
    return changed


def bench_levers(
    recipe: Mapping[str, Any],
    *,
    device: str,
    steps: int,
    names: Sequence[str] = (),
    compile_setting: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """One row a lever, the recipe itself first: figures, or the reason why there are none.

    Args:
        names: Levers to pull; empty: all.
        progress: Told the name of each before it runs.
    """
    rows: list[dict[str, Any]] = []
    for name in ("recipe", *(names or LEVERS)):
        progress(name)
        changed = recipe if name == "recipe" else with_lever(recipe, name)
        if isinstance(changed, str):
            rows.append({"lever": name, "reason": changed})
            continue
        row = measure(changed, device=device, steps=steps, compile_setting=compile_setting)
        rows.append({"lever": name, **row})
    base = rows[0]
    for row in rows:
        fastest, mine = base.get("tokens_per_s"), row.get("tokens_per_s")
        row["speed"] = mine / fastest if fastest and mine else None
    return rows


def measure(
    recipe: Mapping[str, Any],
    *,
    device: str,
    steps: int,
    compile_setting: str | None = None,
    attention: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The figures of one configuration as plain JSON, or the reason why it does not run.

    Args:
        attention: As of `trial_run`.
    """
    if recipe["pretrain"]["deterministic"]:
        make_deterministic()
    try:
        run = trial_run(
            recipe,
            device=device,
            steps=steps,
            compile_setting=compile_setting,
            attention=attention,
        )
    except Exception as error:  # whatever a lever does, the table goes on with the next one
        return {"reason": short_reason(error)}
    finally:
        forget_compiled()
        gc.collect()  # the failed run's tensors, which its traceback keeps in cycles
        if recipe["pretrain"]["deterministic"]:
            forget_determinism()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    last = max(1, int(LAST_SHARE * len(run.losses)))
    return {
        "reason": None,
        "tokens_per_s": sum(run.tokens) / sum(run.step_s),
        "step_ms_median": 1e3 * statistics.median(run.step_s),
        "wait_share": sum(run.wait_s) / sum(run.step_s),
        "flops_per_token": count_flops(config).nanochat,
        "peak_bytes": run.peak_bytes,
        "planned_bytes": run.planned_bytes,
        "micro_batch": run.micro_batch,
        "parts": run.parts,
        "prepare_s": run.prepare_s,
        "graphs_before": run.graphs[0],
        "graphs_in_steps": run.graphs[1],
        "loss_first": run.losses[0],
        "loss_last": statistics.fmean(run.losses[-last:]),
        "made_bpb": run.val_bpb,
        "decisions": run.decisions,
        "notes": run.notes,
    }
