"""Stage `sft`: the base model learns to answer in conversations.

All conversations of the sources are mixed, a small part is held out, and the rest is packed whole
into rows: never cropped to fit, the end of a row is padding that nothing learns from. Only what the
assistant writes counts (`reference.chat.conversation`). A conversation longer than a row is cut at
its end; one whose first answer begins beyond the row is left out.

Learning rates are pretraining's, scaled to this batch and times `lr_frac`, with a short warm-up for
the optimizer's fresh averages, and no weight decay on the matrices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from reference.chat.conversation import find_sources
from reference.errors import TrainerError
from reference.events import Events
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
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
from reference.train.checkpoint import clear_states, is_complete, load_model, save_model, save_state
from reference.train.device import peak_memory_bytes, set_up_device
from reference.train.pretrain import restore
from reference.train.step import Stepper, maybe_compile

WARMUP_SHARE = 0.05


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
    conversations = load_conversations(sources, tokenizer, config.seq_len, request.threads)
    train, held_out = hold_out(conversations.rendered, hold_out_seed(request.recipe, request.seed))
    batch_size, T = section["device_batch_size"], config.seq_len
    micro_batches = max(1, section["total_batch_size"] // (batch_size * T))
    step_tokens = micro_batches * batch_size * T
    events.emit(
        "note",
        text=f"{len(train)} conversations from {len(sources)} file(s) to learn from, "
        f"{len(held_out)} held out, {conversations.truncated} cut at {T + 1} tokens, "
        f"{conversations.dropped} left out (no answer within a row)",
    )

    optimizer = MuonAdamW(sft_groups(model, request.recipe["pretrain"], section))
    schedule = ScheduleConfig(
        warmup_steps=math.ceil(WARMUP_SHARE * section["num_steps"]),
        warmdown_ratio=section["warmdown_ratio"],
        final_lr_frac=section["final_lr_frac"],
    )
    state = restore(request, model, optimizer)
    first_step, loader_state = state["step"], state["loader"]
    loader = ConversationLoader(
        train, batch_size, T, request.seed, tokenizer.bos_id, device, loader_state
    )
    maybe_compile(
        model,
        request.recipe["pretrain"]["compile"],
        device,
        tokens=section["num_steps"] * step_tokens,
    )

    def evaluate(step: int) -> None:
        began = time.perf_counter()
        batches = held_out_batches(held_out, batch_size, T, tokenizer.bos_id, device)
        value = mean_loss(model, batches)
        elapsed_s = time.perf_counter() - began
        events.emit("eval", name="sft_val_loss", step=step, value=value, elapsed_s=elapsed_s)

    stepper = Stepper(model, optimizer, parts=state["parts"])

    def checkpoint(step: int) -> None:
        state = {
            "parts": stepper.parts,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        size = save_state(out, step, {**state, "loader": loader.state_dict()})
        events.emit("checkpoint", step=step, bytes=size)

    step, last = first_step, section["num_steps"]
    while True:
        out_of_time = request.remaining_s() <= 0
        done = step >= last or out_of_time
        if done or step == 0 or (section["eval_every"] and step % section["eval_every"] == 0):
            evaluate(step)
        if done:
            break
        if stop_requested():
            checkpoint(step)
            raise Stopped
        every = section["checkpoint_every"]
        if step > first_step and every and step % every == 0:
            checkpoint(step)

        began = time.perf_counter()
        batches = [loader.next_batch() for _ in range(micro_batches)]
        multipliers = schedule_at(step / last, step, schedule)
        loss = stepper.step(batches, multipliers)
        if not math.isfinite(loss):
            raise TrainerError(
                "nan_loss",
                f"the loss is {loss} at step {step} of fine-tuning",
                "Lower sft.lr_frac in the recipe; the last checkpoint is kept.",
            )
        events.emit(
            "step",
            step=step,
            tokens=(step + 1) * step_tokens,
            loss=loss,
            lr=multipliers.lr,
            progress=step / last,
            micro_batches=micro_batches * stepper.parts,
            step_tokens=step_tokens,
            dt_s=round(time.perf_counter() - began, 6),
        )
        for text in stepper.notes:
            events.emit("note", text=f"step {step}: {text}")
        stepper.notes.clear()
        step += 1

    if out_of_time and step < last:
        events.emit("note", text=f"the deadline ended fine-tuning after {step} of {last} steps")
    events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))
    save_model(out, model, config, request.path("tokenizer"))
    clear_states(out)


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
