"""What a run decides by measuring, once, before its first step: attention kernels and factors.

The decisions become part of the run's state: a resumed run takes them over instead of measuring
again. Each is reported with all that was tried. Nothing is measured on a CPU or in a deterministic
run, where the clock must have no say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from reference.errors import TrainerError
from reference.kernels.attention import FLEX, automatic, lacks, prepare_flex, takes
from reference.kernels.attention_trial import choose_backends, cuda_milliseconds
from reference.kernels.eight_bit import Kind
from reference.kernels.gradient_check import check_compiled_gradients
from reference.kernels.int8_trial import choose_int8
from reference.kernels.matmul_trial import choose_products, profiled_kernels
from reference.model.gpt import GPT
from reference.model.int8_maps import Passes, use_int8
from reference.model.linear import PASSES, PLAIN, Products, eligible, set_products
from reference.train.curriculum import Phase

Say = Callable[..., None]  # (text, **figures) into the log


def decide(
    model: GPT,
    section: Mapping[str, Any],
    *,
    micro_batch: int,
    say: Say,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The kernels and factors of a run, as plain values for its state.

    Args:
        section: The recipe's `[pretrain]`.
        micro_batch: Sequences of full length in a micro-batch.
        known: Decisions of an interrupted run, to be kept.

    Returns:
        `attention`: backends for whole windows and for narrower ones; `products`: by shape; `int8`:
        parts of the model whose maps take int8 factors.
    """
    if known is not None:
        return dict(known)
    products = _decide_products(model, section, micro_batch, say)
    return {
        "attention": _decide_attention(model, section, micro_batch, say),
        "products": {shape: tuple(kinds) for shape, kinds in products.items()},
        "int8": _decide_int8(model, section, micro_batch, say),
    }


def apply(
    model: GPT, section: Mapping[str, Any], decisions: Mapping[str, Any], phase: Phase
) -> None:
    """Puts a phase's windows, factors and tying in force, with the kernels decided on."""
    model.set_windows(phase.windows)
    model.set_backends(*decisions["attention"])
    if set(FLEX) & set(decisions["attention"]):
        for window in {*phase.windows, *model.config.windows}:  # evaluation has the full ones
            for length in (phase.seq_len, model.config.seq_len):
                prepare_flex(length, window, model.device)
    layers = section["matmul_layers"] if phase.eight_bit else ()
    set_products(model, ("attention", "mlp"), PLAIN)
    set_products(model, layers, decisions["products"])
    int8 = [name for name in decisions.get("int8", ()) if name in layers]
    use_int8(model, int8, int8_passes(section))
    kind = section["matmul"]
    model.head_kind = kind if "head" in layers and kind not in ("fastest", "int8") else "bf16"
    model.full_loss = not section["fused_loss"]
    if phase.tied:
        model.tie()
    elif model.tied:
        model.untie()


def decided(model: GPT, section: Mapping[str, Any], attention: tuple[str, str]) -> dict[str, Any]:
    """Decisions as of `decide` without measuring: the recipe's kind of factors for every product.

    Args:
        attention: Backends for whole windows and for narrower ones.

    Raises:
        ValueError: The recipe leaves the factors to the clock.
    """
    kind, layers, products = section["matmul"], section["matmul_layers"], {}
    if kind == "fastest":
        raise ValueError('matmul = "fastest" is decided by measuring')
    if kind not in ("bf16", "int8"):
        kinds = tuple(Products.of(kind, section["matmul_passes"]))
        shapes = {tuple(map_.weight.shape) for _, map_ in eligible(model, layers)}
        products = {f"{n}x{k}": kinds for n, k in shapes}
    int8 = list(layers) if kind == "int8" else []
    return {"attention": attention, "products": products, "int8": int8}


def _decide_attention(
    model: GPT, section: Mapping[str, Any], micro_batch: int, say: Say
) -> tuple[str, str]:
    config, T = model.config, model.config.seq_len
    wanted, documents = section["attention"], section["document_mask"]
    device, dtype = model.device, model.dtype
    if wanted != "auto":
        reason = lacks(wanted, device, dtype)
        if reason:
            raise TrainerError(
                "bad_input",
                f"attention = {wanted!r} cannot run here: {reason}",
                "Choose another in [pretrain], or auto.",
            )
        # What the wanted one cannot do (narrow windows, documents) follows the device.
        narrow = min(config.windows)
        pair = tuple(
            wanted if takes(wanted, T, window, documents) else "auto" for window in (T, narrow)
        )
    elif device.type == "cuda" and not section["deterministic"]:
        shape = (micro_batch, T, config.n_head, config.n_kv_head, config.head_dim)
        chosen, rows = choose_backends(
            shape,
            config.windows,
            device=device,
            dtype=dtype,
            documents=documents,
            timer=cuda_milliseconds,
        )
        narrow = min(chosen)
        pair = (chosen[T], chosen[narrow])
        say(
            f"attention, timed: {chosen[T]} for whole windows, {chosen[narrow]} for {narrow}",
            attention_trial=[row._asdict() for row in rows],
        )
    else:
        pair = ("auto", "auto")
    for backend, window in zip(pair, (T, min(config.windows)), strict=True):
        actual = automatic(device, dtype, T, window, documents) if backend == "auto" else backend
        if actual == "mask" or (actual == "blocks" and device.type == "cuda"):
            say(f"attention over {window} tokens runs with an explicit mask ({actual}): slow")
    return pair  # type: ignore[return-value]


def _decide_products(
    model: GPT, section: Mapping[str, Any], micro_batch: int, say: Say
) -> dict[str, Products]:
    kind, passes = section["matmul"], section["matmul_passes"]
    maps = (map_ for _, map_ in eligible(model, section["matmul_layers"]))
    shapes = {(map_.out_features, map_.in_features) for map_ in maps}
    if kind in ("bf16", "int8"):  # int8 has its own way (`_decide_int8`)
        return {}
    tokens = micro_batch * model.config.seq_len
    timed = model.device.type == "cuda" and not section["deterministic"]
    if not timed:
        if kind == "fastest":
            say("matmul = fastest needs a GPU's clock: all products stay in the activations' type")
            return {}
        return {f"{n}x{k}": Products.of(kind, passes) for n, k in shapes}
    kinds: tuple[Kind, ...] = (
        ("bf16", "fp8", "fp8_rowwise") if kind == "fastest" else ("bf16", kind)
    )
    chosen, rows = choose_products(
        shapes,
        tokens,
        device=model.device,
        timer=cuda_milliseconds,
        passes=passes,
        kinds=kinds,
        kernels=profiled_kernels,
    )
    if kind != "fastest":  # as asked for, except where no 8-bit kernel runs
        ran = {(row.shape, row.which) for row in rows if row.kind == kind and row.ms is not None}
        chosen = {
            shape: Products(
                *(kind if (shape, which) in ran else "bf16" for which in Products._fields)
            )
            for shape in chosen
        }
    text = "; ".join(f"{shape} {'/'.join(p)}" for shape, p in sorted(chosen.items()))
    refused = [f"{row.shape} {row.which} {row.kind}: {row.reason}" for row in rows if row.reason]
    say(
        f"factors of the products (output/input gradient/weight gradient): {text}"
        + (f"; refused: {'; '.join(refused)}"[:1000] if refused else ""),
        matmul_trial=[row._asdict() for row in rows],
    )
    return chosen


def _decide_int8(model: GPT, section: Mapping[str, Any], micro_batch: int, say: Say) -> list[str]:
    """The parts of the model that take int8 factors: as asked for, where they are faster."""
    layers = list(section["matmul_layers"])
    if section["matmul"] != "int8":
        return []
    if model.device.type != "cuda" or section["deterministic"]:
        return layers
    chosen, rows = choose_int8(
        model,
        layers,
        (micro_batch, model.config.seq_len),
        passes=int8_passes(section),
        timer=cuda_milliseconds,
    )
    told = [f"{row.part} {row.kind}: {row.reason or f'{row.ms:.2f} ms'}" for row in rows]
    say(
        f"maps in int8: {', '.join(chosen) or 'none'}; all others in bf16; forward and"
        f" backward pass: {'; '.join(told)}"[:1000],
        int8_trial=[row._asdict() for row in rows],
    )
    return chosen


def int8_passes(section: Mapping[str, Any]) -> Passes:
    """The products that take int8 factors in a recipe with `matmul = "int8"`."""
    return Passes(*(name in section["matmul_passes"] for name in PASSES))


def precompile(
    model: GPT,
    section: Mapping[str, Any],
    decisions: Mapping[str, Any],
    phases: list[tuple[Phase, int]],
    bos: int | None,
    *,
    evaluation_rows: int,
) -> None:
    """Compiles the blocks for every shape that the run will meet, evaluation's among them.

    One micro-batch of made-up tokens forward and backward for each; weights stay as they are. With
    8-bit factors the compiled gradients are compared with eager ones. Evaluation's code, which is
    another one without gradients, is compiled first.

    Args:
        phases: Every phase with the rows of its micro-batch, the one to start with last.
        bos: Where rows hold documents: their first token.
        evaluation_rows: Sequences of full length in a batch of an evaluation.

    Raises:
        TrainerError: Compiled blocks compute other gradients than eager ones.
    """
    from reference.kernels.attention import find_documents

    compile_evaluation(model, section, decisions, phases[-1][0], evaluation_rows)
    seen = set()
    for phase, rows in phases:
        apply_shape(model, section, decisions, phase)
        if (phase.shape, rows) in seen:
            continue
        seen.add((phase.shape, rows))
        # No BOS: with as few documents as text has, `offsets` has the size that steps will have.
        tokens, documents = torch.full((rows, phase.seq_len), int(bos == 0)), None
        if bos is not None:
            documents = find_documents(tokens.numpy(), bos).to(model.device)
        tokens = tokens.to(model.device)
        model.loss(tokens, tokens, documents=documents).backward()
        model.zero_grad(set_to_none=True)
        check_compiled_gradients(model, rows, phase.seq_len, documents)


def precompile_fixed(model: GPT, rows: int, seq_len: int) -> None:
    """Compiles the blocks as they are for one shape, with gradients and without; weights stay.

    Compares compiled gradients with eager ones if any product has 8-bit factors.

    Raises:
        TrainerError: Compiled blocks compute other gradients than eager ones.
    """
    tokens = torch.zeros((rows, seq_len), dtype=torch.int64, device=model.device)
    with torch.no_grad():
        model.loss(tokens, tokens, reduction="sum")
    model.loss(tokens, tokens).backward()
    model.zero_grad(set_to_none=True)
    check_compiled_gradients(model, rows, seq_len)


def compile_evaluation(
    model: GPT,
    section: Mapping[str, Any],
    decisions: Mapping[str, Any],
    phase: Phase,
    rows: int,
) -> None:
    """Compiles the blocks for evaluations: without gradients and documents, at full reach."""
    apply_shape(model, section, decisions, phase)
    model.set_windows(model.config.windows)
    tokens = torch.zeros((rows, model.config.seq_len), dtype=torch.int64, device=model.device)
    with torch.no_grad():
        model.loss(tokens, tokens, reduction="none")
    model.set_windows(phase.windows)


def apply_shape(
    model: GPT, section: Mapping[str, Any], decisions: Mapping[str, Any], phase: Phase
) -> None:
    """`apply` without tying or untying: weights stay as they are."""
    apply(model, section, decisions, phase._replace(tied=model.tied))
