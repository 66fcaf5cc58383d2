"""Stage `sft`: the base model learns to answer in conversations.

All conversations of the sources are mixed, a small part is held out, and the rest is packed whole
into rows: never cropped to fit, the end of a row is padding that nothing learns from. Only what the
assistant writes counts (`reference.chat.conversation`). A conversation longer than a row is cut at
its end; one whose first answer begins beyond the row is left out.

The horizon is a number of steps, or a stretch of time (`sft.hours`): then a slow card trains on
fewer conversations instead of taking the time of the chat evaluation.

Learning rates are pretraining's, scaled to this batch and times `lr_frac`, with a short warm-up for
the optimizer's fresh averages, and no weight decay on the matrices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from reference.chat.conversation import find_sources
from reference.errors import TrainerError
from reference.events import Events
from reference.kernels.autotune import precompile_fixed
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import sft_schedule
from reference.request import Request
from reference.rows.conversations import (
    ConversationLoader,
    held_out_batches,
    hold_out,
    hold_out_seed,
    load_conversations,
)
from reference.rows.packing import Batch
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import (
    clear_states,
    is_complete,
    latest_state,
    load_model,
    save_model,
    save_state,
)
from reference.train.curriculum import sft_batch_tokens
from reference.train.device import peak_memory_bytes, set_up_device
from reference.train.horizon import Horizon
from reference.train.loop import StepReport, TrainState
from reference.train.pretrain import due
from reference.train.step import compiled_graphs, maybe_compile


def run(request: Request, events: Events) -> None:
    """Leaves the chat model in `paths.out`; goes on from the latest state when there is one."""
    out, section = request.path("out"), request.recipe["sft"]
    if request.attempt and is_complete(out):
        clear_states(out)
        return
    device = set_up_device(request)
    base = request.path("base")
    tokenizer = Tokenizer.load(base)
    model, config = load_model(base, device, request.recipe["model"]["dtype"])
    model.train()

    sources = find_sources(request.path("sft"), section["sources"])
    conversations = load_conversations(
        sources, tokenizer, config.seq_len, request.threads, section["sources"]
    )
    train, held_out = hold_out(
        conversations.rendered, hold_out_seed(request.recipe, request.seed), conversations.times
    )
    batch_size, T = section["device_batch_size"], config.seq_len
    step_tokens = sft_batch_tokens(section, T)
    events.emit(
        "note",
        text=f"{len(train)} conversations from {len(sources)} file(s) to learn from, "
        f"{len(held_out)} held out, {conversations.truncated} cut at {T + 1} tokens, "
        f"{conversations.dropped} left out (no answer within a row)",
    )

    saved = latest_state(request)
    loader = ConversationLoader(
        train, batch_size, T, request.seed, tokenizer.bos_id, device, saved["loader"]
    )
    state = TrainState.constant(
        model,
        MuonAdamW(sft_groups(model, request.recipe["pretrain"], section)),
        sft_schedule(section),
        loader,
        batch_tokens=step_tokens,
    )
    if saved["step"]:
        state.load_state_dict(saved)
    setting, tokens = request.recipe["pretrain"]["compile"], section["num_steps"] * step_tokens
    if maybe_compile(model, setting, device, tokens=tokens):
        began = time.perf_counter()
        precompile_fixed(model, batch_size, T)
        events.emit(
            "note",
            text=f"{compiled_graphs()} graphs compiled in advance",
            compile_s=round(time.perf_counter() - began, 3),
        )

    def evaluate(step: int) -> float:
        """Measures the loss of the held-out conversations; returns how many seconds it took."""
        began = time.perf_counter()
        batches = held_out_batches(held_out, batch_size, T, tokenizer.bos_id, device)
        value = mean_loss(model, batches)
        elapsed_s = time.perf_counter() - began
        events.emit("eval", name="sft_val_loss", step=step, value=value, elapsed_s=elapsed_s)
        return elapsed_s

    def checkpoint(step: int) -> None:
        size = save_state(out, step, state.state_dict())
        events.emit("checkpoint", step=step, bytes=size)

    horizon = Horizon(request, "sft")
    first_step = step = saved["step"]
    while (progress := horizon.progress(step)) < 1.0:
        if due(step, section["eval_every"], first=True):
            horizon.reserve(evaluate(step))
        if stop_requested():
            checkpoint(step)
            raise Stopped
        if step > first_step and due(step, section["checkpoint_every"]):
            checkpoint(step)
        made = state.step(progress, step)
        if made.diverged:
            raise TrainerError(
                "nan_loss",
                f"the loss is {made.loss} at step {step} of fine-tuning",
                "Lower sft.lr_frac in the recipe; the last checkpoint is kept.",
            )
        report_step(events, state, made)
        step += 1
    evaluate(step)

    if step < horizon.num_steps:
        text = f"the deadline ended fine-tuning after {step} of {horizon.num_steps} steps"
        events.emit("note", text=text)
    events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))
    save_model(out, model, config, request.path("tokenizer"))
    clear_states(out)


def report_step(events: Events, state: TrainState, made: StepReport) -> None:
    """One step, and what a reader of the log should know of it."""
    events.emit(
        "step",
        step=made.step,
        tokens=state.tokens,
        loss=made.loss,
        lr=made.lr,
        progress=made.progress,
        micro_batches=made.micro_batches,
        step_tokens=made.tokens,
        dt_s=round(made.dt_s, 6),
    )
    if made.graphs:
        events.emit("note", text=f"step {made.step} compiled {made.graphs} graph(s) on the way")
    for text in made.notes:
        events.emit("note", text=f"step {made.step}: {text}")


def sft_groups(
    model: GPT, pretrain: dict[str, Any], section: dict[str, Any]
) -> list[dict[str, Any]]:
    """Pretraining's optimizer groups with fine-tuning's batch and `lr_frac`."""
    settings = {**pretrain, "total_batch_size": section["total_batch_size"], "weight_decay": 0.0}
    groups = parameter_groups(model, settings)
    for group in groups:
        group["lr"] *= section["lr_frac"]
    return groups


@torch.no_grad()
def mean_loss(model: GPT, batches: Iterator[Batch]) -> float:
    """Nats per target over all of `batches`."""
    total, count = 0.0, 0
    for tokens, targets in batches:
        total += float(model.loss(tokens, targets, reduction="sum"))
        count += int((targets >= 0).sum())
    return total / count
