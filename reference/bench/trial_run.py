"""A short training run without files: what `bench` times and what the levers are compared by.

The same state and the same steps as in stage `pretrain` (`reference.train.loop`). Only the text is
made up, from a chain of tokens that a model can learn: so losses mean something, if only beside
each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from reference.config.model import ModelConfig
from reference.kernels.autotune import decided
from reference.model.gpt import GPT
from reference.rows.packing import PackedLoader
from reference.train.curriculum import rows_at
from reference.train.device import peak_memory_bytes
from reference.train.loop import TrainState
from reference.train.memory import plan_vram
from reference.train.metrics import evaluate_bpb
from reference.train.step import compiled_graphs

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
    attention: tuple[str, str] | None = None,
) -> TrialRun:
    """Makes `steps` steps of a resolved recipe after `warmup` untimed ones.

    The phases of the recipe's ramps are passed through in these few steps. Losses are those of all
    steps; times leave the untimed ones out.

    Args:
        attention: Kernels for whole windows and for narrower ones, known from an earlier trial:
            these and the recipe's factors are taken as by a resumed run. None: by the run's trials.
    """
    section, where = recipe["pretrain"], torch.device(device)
    config = ModelConfig.from_recipe(recipe["model"], recipe["tokenizer"]["vocab_size"])
    total = warmup + steps
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)
    notes: list[str] = []
    began, before = time.perf_counter(), compiled_graphs()
    state = TrainState.of_recipe(
        config, section, device=where, seed=0, horizon_tokens=None, on_device=True
    )

    def say(text: str, **_: Any) -> None:
        notes.append(text)

    if attention is not None:
        state.decisions = decided(state.model, section, attention)
    state.prepare(say, compile_setting=compile_setting, bos=BOS)
    text = MadeText(config.vocab_size, min(1 << 20, total * section["total_batch_size"]))
    rows = rows_at(state.phase, state.micro_batch, config.seq_len)
    loader = PackedLoader(
        text,
        rows,
        state.phase.seq_len,
        0,
        device=device,
        prefetch=section["prefetch"],
        bos=BOS if section["document_mask"] else None,
    )
    state.rows = loader
    _synchronize(where)
    prepared = time.perf_counter()
    ready = compiled_graphs()

    losses, step_s, wait_s, tokens = [], [], [], []
    for step in range(total):
        start = time.perf_counter()
        made = state.step(max(0, step - warmup) / steps, step)
        _synchronize(where)
        losses.append(made.loss)
        notes += made.notes
        if step >= warmup:
            step_s.append(time.perf_counter() - start)
            wait_s.append(made.wait_s)
            tokens.append(made.tokens)
    loader.close()
    peak = peak_memory_bytes(where) if where.type == "cuda" else None
    state.model.set_windows(config.windows)
    return TrialRun(
        losses=losses,
        step_s=step_s,
        wait_s=wait_s,
        tokens=tokens,
        micro_batch=state.micro_batch,
        parts=state.parts,
        prepare_s=prepared - began,
        graphs=(ready - before, compiled_graphs() - ready),
        peak_bytes=peak,
        planned_bytes=sum(plan_vram(config, state.micro_batch, section).values()),
        val_bpb=_made_bpb(state.model, config, state.micro_batch, where),
        notes=notes,
        decisions=state.decisions or {},
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
