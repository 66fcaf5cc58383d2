"""A short training run without files: what `bench` times and what the levers are compared by.

The same parts in the same order as stage `pretrain`: decisions, phases, rows packed ahead, and
steps that survive a lack of memory. Only the text is made up, from a chain of tokens that a model
can learn: so losses mean something, if only beside each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from reference.config.model import ModelConfig
from reference.kernels.autotune import apply, decide, precompile
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.rows.packing import PackedLoader
from reference.train.curriculum import Curriculum, rows_at
from reference.train.device import memory_limit_bytes, peak_memory_bytes
from reference.train.memory import fitting_micro_batch, plan_vram
from reference.train.metrics import evaluate_bpb
from reference.train.step import Stepper, compiled_graphs, maybe_compile

BOS = 0
FOLLOWERS = 8  # tokens that may come after each token of the made text


class MadeText:
    """Documents of a made language: each token is followed by one of a few, some likelier."""

    def __init__(self, vocab_size: int, tokens: int, seed: int = 0) -> None:
        followers = np.random.default_rng(4090).integers(1, vocab_size, (vocab_size, FOLLOWERS))
        draw = np.random.default_rng(seed)
        lengths = np.clip(draw.lognormal(6.0, 1.0, 1 + tokens // 500), 16, 2048).astype(np.int64)
        self.lengths = lengths + 1
        self.digest = f"made {vocab_size} {tokens} {seed}"
        # All documents grow side by side, a token a round.
        chosen = np.minimum(draw.geometric(0.4, (len(lengths), int(lengths.max()))) - 1, 7)
        text = np.empty((len(lengths), int(lengths.max()) + 1), dtype=np.int32)
        text[:, 0], text[:, 1] = BOS, draw.integers(1, vocab_size, len(lengths))
        for place in range(2, text.shape[1]):
            text[:, place] = followers[text[:, place - 1], chosen[:, place - 2]]
        self._documents = [row[:n] for row, n in zip(text, self.lengths, strict=True)]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._documents[index]


class TrialRun(NamedTuple):
    """What a short run showed.

    step_s and wait_s: seconds of each step, and those spent waiting for packed rows. tokens: of
    each step. graphs: graphs compiled before, and while, steps were made. peak_bytes: None on a
    CPU, where the process's memory is not the run's.
    """

    losses: list[float]
    step_s: list[float]
    wait_s: list[float]
    tokens: list[int]
    micro_batch: int
    parts: int
    prepare_s: float
    graphs: tuple[int, int]
    peak_bytes: int | None
    planned_bytes: int
    val_bpb: float
    notes: list[str]
    decisions: dict[str, Any]


def trial_run(
    recipe: Mapping[str, Any],
    *,
    device: str,
    steps: int,
    warmup: int = 2,
    compile_setting: str | None = None,
) -> TrialRun:
    """Makes `steps` steps of a resolved recipe after `warmup` untimed ones.

    The phases of the recipe's ramps are passed through in these few steps. Losses are those of all
    steps; times leave the untimed ones out.
    """
    section = recipe["pretrain"]
    where = torch.device(device)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    T, total = config.seq_len, warmup + steps
    limit = memory_limit_bytes(where, section["vram_cap_gib"])
    micro_batch = fitting_micro_batch(config, section, limit)
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    notes: list[str] = []
    began, before = time.perf_counter(), compiled_graphs()

    model = GPT.empty(config, device)
    model.init_weights(0, on_device=True)
    model.place(device)
    compiled = section["compile_optimizer"] and where.type == "cuda"
    optimizer = MuonAdamW(parameter_groups(model, section), compiled=compiled)
    curriculum, schedule = (
        Curriculum.from_recipe(config, section),
        ScheduleConfig.from_recipe(section),
    )
    compiling = maybe_compile(model, compile_setting or section["compile"], device)
    decisions = decide(
        model, section, micro_batch=micro_batch, say=lambda text, **_: notes.append(text)
    )
    bos = BOS if section["document_mask"] else None
    if compiling:
        shapes = [(phase, rows_at(phase, micro_batch, T)) for phase in curriculum.phases]
        precompile(model, section, decisions, shapes[::-1], bos)
    text = MadeText(config.vocab_size, min(1 << 20, total * section["total_batch_size"]))
    phase = curriculum.at(0.0)
    rows = rows_at(phase, micro_batch, T)
    loader = PackedLoader(
        text, rows, phase.seq_len, 0, device=device, prefetch=section["prefetch"], bos=bos
    )
    stepper = Stepper(model, optimizer)
    _synchronize(where)
    prepared = time.perf_counter()
    ready = compiled_graphs()

    losses, step_s, wait_s, tokens = [], [], [], []
    for step in range(total):
        progress = max(0, step - warmup) / steps
        phase = curriculum.at(progress)
        apply(model, section, decisions, phase)
        loader.resize(rows_at(phase, micro_batch, T), phase.seq_len)
        count = phase.batch_tokens // (loader.batch_size * phase.seq_len)
        multipliers = schedule_at(progress, step, schedule)
        multipliers = multipliers._replace(lr=multipliers.lr * curriculum.lr_scale(phase))
        start, waited_s = time.perf_counter(), loader.waited_s
        batches = (loader.next_batch() for _ in range(count))
        losses.append(stepper.step(batches, multipliers, count=phase.batch_tokens))
        _synchronize(where)
        if step >= warmup:
            step_s.append(time.perf_counter() - start)
            wait_s.append(loader.waited_s - waited_s)
            tokens.append(phase.batch_tokens)
    loader.close()
    peak = peak_memory_bytes(where) if where.type == "cuda" else None
    model.set_windows(config.windows)
    return TrialRun(
        losses=losses,
        step_s=step_s,
        wait_s=wait_s,
        tokens=tokens,
        micro_batch=micro_batch,
        parts=stepper.parts,
        prepare_s=prepared - began,
        graphs=(ready - before, compiled_graphs() - ready),
        peak_bytes=peak,
        planned_bytes=sum(plan_vram(config, micro_batch, section).values()),
        val_bpb=_made_bpb(model, config, micro_batch, where),
        notes=notes + stepper.notes,
        decisions=decisions,
    )


def _made_bpb(model: GPT, config: ModelConfig, rows: int, device: torch.device) -> float:
    """Bits a token, as if each stood for a byte, of text of the same chain that is new."""
    text = MadeText(config.vocab_size, 4 * rows * config.seq_len, seed=1)
    fresh = np.concatenate([text[i] for i in range(len(text))])
    needed = rows * config.seq_len + 1
    window = torch.from_numpy(np.resize(fresh, needed).astype(np.int64)).to(device)
    shape = (rows, config.seq_len)
    batch = (window[:-1].view(shape), window[1:].view(shape))
    return evaluate_bpb(
        model, [batch], torch.ones(config.vocab_size, dtype=torch.int64, device=device)
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
