"""How fast the trainer trains: steps of a recipe's model, timed beside its plain twin.

Both train on the same made tokens in one process, step by step in turn, so that whatever else the
machine does falls on both. The twin (`reference.bench.plain`) has the same weights and loss and
`torch.optim.AdamW`; the ratio of the two step times therefore says what this trainer's kernels are
worth, its costlier optimizer included.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.bench.plain import plain_loss
from reference.bench.trial_run import trial_run
from reference.kernels.autotune import apply
from reference.kernels.cpu import cpu_library
from reference.model.cost import count_flops, peak_flops
from reference.model.gpt import GPT, ModelConfig
from reference.optim.schedule import ScheduleConfig
from reference.train.curriculum import Curriculum
from reference.train.device import memory_limit_bytes, peak_memory_bytes
from reference.train.loop import TrainState, new_optimizer
from reference.train.metrics import mfu
from reference.train.step import maybe_compile

Batches = list[tuple[Tensor, Tensor]]
ALONE_STEPS = 5
TWIN_BYTES = 12  # of each weight of the twin between its steps: itself and two moments, all fp32
NO_ROOM = "the same model in plain PyTorch does not fit the GPU's memory beside this trainer"
WARMUP_STEPS = 2  # untimed: allocations, autotuning, and where asked for compiling


class GivenRows:
    """Rows for a step that somebody else has drawn: set `batches` before each step."""

    uneven, by_row, waited_s = True, False, 0.0

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def at(self, progress: float) -> None:
        """The rows do not depend on it."""

    def resize(self, batch_size: int, seq_len: int) -> None:
        """The rows are what they are."""

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return next(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}


class Timing(NamedTuple):
    """One trainer's steps; the first `WARMUP_STEPS` of them are not timed."""

    all_s: list[float]
    losses: list[float]

    @property
    def step_s(self) -> list[float]:
        return self.all_s[WARMUP_STEPS:]

    def summary(self, tokens_per_step: int) -> dict[str, Any]:
        median = statistics.median(self.step_s)
        return {
            "tokens_per_s": tokens_per_step / median,
            "step_ms_median": 1e3 * median,
            "step_ms_p99": 1e3 * nearest_rank(self.step_s, 0.99),
            "first_step_s": self.all_s[0],
        }


def nearest_rank(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of `values` do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def bench_training(
    recipe: Mapping[str, Any],
    *,
    steps: int,
    device: str = "cpu",
    compile_setting: str | None = None,
    compare: bool = True,
    vram_cap_gib: float = 0.0,
) -> dict[str, Any]:
    """Speed of the pretraining steps of a resolved recipe.

    Args:
        steps: Timed steps, after two untimed ones.
        compile_setting: "auto", "on" or "off"; None takes the recipe's.
        compare: Also time the plain twin and report `ratio_vs_plain`.
        vram_cap_gib: Hold a larger GPU to this memory; 0: the recipe's own cap.

    Returns:
        The figures as plain JSON; those that do not apply are None, with the reason beside them.
    """
    section = {**recipe["pretrain"]}
    section["vram_cap_gib"] = vram_cap_gib or section["vram_cap_gib"]
    recipe = {**recipe, "pretrain": section}
    where = torch.device(device)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    setting = compile_setting or section["compile"]
    # First alone, as the stage does it: its memory and its waiting are then its own.
    alone = trial_run(recipe, device=device, steps=min(steps, ALONE_STEPS), compile_setting=setting)
    micro_batch = alone.micro_batch
    micro_batches = max(1, section["total_batch_size"] // (micro_batch * config.seq_len))
    tokens_per_step = micro_batches * micro_batch * config.seq_len

    model = GPT(config)
    model.init_weights(0)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.place(device)
    compiled = maybe_compile(model, setting, device, tokens=section["num_steps"] * tokens_per_step)
    apply(model, section, alone.decisions, Curriculum.from_recipe(config, section).at(1.0))
    rows = GivenRows(micro_batch)
    state = TrainState.constant(
        model,
        new_optimizer(model, section, config),
        ScheduleConfig.from_recipe(section),
        rows,
        batch_tokens=tokens_per_step,
    )

    def ours(step: int, batches: Batches) -> float:
        rows.batches = iter(batches)
        return state.step(0.0, step).loss

    trainers: dict[str, Callable[[int, Batches], float]] = {"ours": ours}
    plain_reason = None if compare else "not asked for"
    if compare and not twin_fits(weights, alone.peak_bytes, where, section["vram_cap_gib"]):
        plain_reason = NO_ROOM
    if plain_reason is None:
        trainers["plain"] = plain_trainer(weights, config, device)
    draw = _drawer(config, micro_batch, micro_batches, device)
    began = time.perf_counter()
    timings = _time_in_turn(trainers, draw, steps, device)
    if state.parts > alone.parts:
        # The twin took memory that this trainer's step needs: its pieces were not the recipe's.
        trainers.pop("plain", None)
        state.run_in_parts(alone.parts)
        timings = _time_in_turn(trainers, draw, steps, device)
    if plain_reason is None and "plain" not in timings:
        plain_reason = NO_ROOM
    elapsed_s = time.perf_counter() - began

    mine, plain = timings["ours"], timings.get("plain")
    inside_s = sum(sum(t.all_s) for t in timings.values())
    result = mine.summary(tokens_per_step)
    peak, peak_reason = None, "a GPU figure"
    if where.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak, peak_reason = peak_flops(name), f"no peak known for {name}"
    flops = count_flops(config)
    speed = result["tokens_per_s"]
    return {
        "device": str(device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu_matmul": cpu_library(),
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "micro_batches": micro_batches,
        **result,
        "mfu_nanochat": mfu(flops.nanochat, speed, peak),
        "mfu_causal": mfu(flops.causal, speed, peak),
        "mfu_reason": None if peak else peak_reason,
        "flops_per_s": flops.causal * speed,
        "micro_batch": micro_batch,
        "micro_batch_parts": state.parts,
        "peak_memory_bytes": alone.peak_bytes or peak_memory_bytes(where),
        "planned_memory_bytes": alone.planned_bytes if where.type == "cuda" else None,
        "wait_share": sum(alone.wait_s) / sum(alone.step_s),
        "graphs_compiled": alone.graphs[0],
        "graphs_compiled_in_steps": alone.graphs[1],
        "decisions": alone.decisions,
        "notes": alone.notes,
        "step_ms": {name: [1e3 * s for s in t.step_s] for name, t in timings.items()},
        "outside_steps_s": elapsed_s - inside_s,
        "compiled": compiled,
        # Without a GPU's trials what comes before the first step is compiling.
        "compile_s": alone.prepare_s if compiled else 0.0,
        "loss_first": mine.losses[0],
        "plain": plain.summary(tokens_per_step) if plain else None,
        "plain_reason": plain_reason,
        "plain_loss_first": plain.losses[0] if plain else None,
        "ratio_vs_plain": statistics.median(plain.step_s) / statistics.median(mine.step_s)
        if plain
        else None,
    }


def twin_fits(
    weights: Mapping[str, Tensor], peak_bytes: int | None, device: torch.device, cap_gib: float
) -> bool:
    """Whether the twin's weights and moments fit a GPU beside this trainer's step; always on a CPU.

    Args:
        peak_bytes: Of this trainer alone.
        cap_gib: Of the recipe; 0: all of the card.
    """
    limit = memory_limit_bytes(device, cap_gib)
    if limit is None or peak_bytes is None:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    twin = TWIN_BYTES * sum(weight.numel() for weight in weights.values())
    return peak_bytes + twin <= min(limit, free + torch.cuda.memory_reserved(device))


def plain_trainer(
    weights: Mapping[str, Tensor], config: ModelConfig, device: str
) -> Callable[[int, Batches], float]:
    """A step function of the plain twin with weights of its own; bf16 on a GPU by autocast."""
    mine = {name: w.clone().to(device).requires_grad_() for name, w in weights.items()}
    optimizer = torch.optim.AdamW(mine.values(), lr=1e-4)
    kind = torch.device(device).type

    def step(_: int, batches: Batches) -> float:
        total = torch.zeros((), device=device)
        for tokens, targets in batches:
            with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
                loss = plain_loss(mine, config, tokens, targets) / len(batches)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step


def _drawer(
    config: ModelConfig, batch_size: int, micro_batches: int, device: str
) -> Callable[[], Batches]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> Batches:
        shape = (micro_batches, batch_size, config.seq_len + 1)
        rows = torch.randint(0, config.vocab_size, shape, generator=generator).to(device)
        return [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]

    return draw


def _time_in_turn(
    trainers: dict[str, Callable[[int, Batches], float]],
    draw: Callable[[], Batches],
    steps: int,
    device: str,
) -> dict[str, Timing]:
    """Each trainer's timings; a twin that runs out of memory is taken out of `trainers`."""
    timings = {name: Timing([], []) for name in trainers}
    for step in range(WARMUP_STEPS + steps):
        batches = draw()
        for name in list(timings):
            _synchronize(device)
            began = time.perf_counter_ns()
            try:
                loss = trainers[name](step, batches)
            except torch.OutOfMemoryError:
                if name != "plain":
                    raise
                del timings[name], trainers[name]
                continue
            _synchronize(device)
            timings[name].all_s.append((time.perf_counter_ns() - began) / 1e9)
            timings[name].losses.append(loss)
    return timings


def _synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
