"""Stage `sft`: the base model learns to answer in conversations.

All conversations of the sources are mixed, a small part is held out, and the rest is packed whole
into rows: never cropped to fit, the end of a row is padding that nothing learns from. Only what the
assistant writes counts (`reference.conversation`). A conversation longer than a row is cut at its
end; one whose first answer begins beyond the row is left out.

Learning rates are pretraining's, scaled to this batch and times `lr_frac`, with a short warm-up for
the optimizer's fresh averages, and no weight decay on the matrices.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reference.checkpoint import clear_states, is_complete, load_model, save_model, save_state
from reference.conversation import Rendered, find_sources, read_conversations, render
from reference.dataloader import Batch, ShuffledBuffer
from reference.device import peak_memory_bytes, set_up_device
from reference.errors import TrainerError
from reference.events import Events
from reference.model import GPT
from reference.optim import MuonAdamW, parameter_groups
from reference.pretrain import restore
from reference.request import Request
from reference.schedule import ScheduleConfig, schedule_at
from reference.stage import Stopped, stop_requested
from reference.tokenizer import Tokenizer
from reference.train_step import Stepper, maybe_compile

HELD_OUT_SHARE = 0.02
MAX_HELD_OUT = 512
WARMUP_SHARE = 0.05
BUFFER_CONVERSATIONS = 200


class Conversations(NamedTuple):
    """Rendered conversations, and what did not fit into a row."""

    rendered: list[Rendered]
    truncated: int
    dropped: int


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
    train, held_out = hold_out(conversations.rendered, request.seed)
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


def load_conversations(
    sources: Sequence[Path], tokenizer: Tokenizer, seq_len: int, threads: int
) -> Conversations:
    """The conversations of `sources`, in order, each at most seq_len + 1 tokens.

    Raises:
        TrainerError: A line is no conversation, or none is left to learn from.
    """
    rendered: list[Rendered] = []
    truncated = dropped = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for path in sources:
            for item in pool.map(lambda talk: render(tokenizer, talk), read_conversations(path)):
                kept = Rendered(item.ids[: seq_len + 1], item.mask[: seq_len + 1])
                truncated += len(item.ids) > len(kept.ids)
                if any(kept.mask):
                    rendered.append(kept)
                else:
                    dropped += 1
    if len(rendered) < 2:
        raise TrainerError(
            "bad_input",
            f"{len(rendered)} conversation(s) with an answer within {seq_len} tokens in "
            + ", ".join(str(path) for path in sources),
            "Add conversations to the sft folder, or raise model.seq_len.",
        )
    return Conversations(rendered, truncated, dropped)


def hold_out(conversations: Sequence[Rendered], seed: int) -> tuple[list[Rendered], list[Rendered]]:
    """(to learn from, held out): a function of the arguments alone."""
    count = min(MAX_HELD_OUT, max(1, int(HELD_OUT_SHARE * len(conversations))))
    chosen = set(random.Random(seed).sample(range(len(conversations)), count))
    train = [item for i, item in enumerate(conversations) if i not in chosen]
    return train, [conversations[i] for i in sorted(chosen)]


class ConversationLoader:
    """Endless batches of whole conversations, best-fit packed and padded.

    Args:
        pad_id: Input token of padding; its targets are -1.
        state: Continue from a `state_dict`.
    """

    def __init__(
        self,
        conversations: Sequence[Rendered],
        batch_size: int,
        seq_len: int,
        seed: int,
        pad_id: int,
        device: str | torch.device = "cpu",
        state: dict[str, Any] | None = None,
    ) -> None:
        self._conversations = conversations
        self._batch_size, self._seq_len, self._pad_id = batch_size, seq_len, pad_id
        self._device = torch.device(device)
        lengths = np.array([len(item.ids) for item in conversations])
        self._buffer = ShuffledBuffer(lengths, BUFFER_CONVERSATIONS, seed)
        if state is not None:
            self._buffer.load_state_dict(state)

    def next_batch(self) -> Batch:
        """(tokens, targets), each (B, T) int64."""
        rows = [self._next_row() for _ in range(self._batch_size)]
        return padded_batch(rows, self._batch_size, self._seq_len, self._pad_id, self._device)

    def state_dict(self) -> dict[str, Any]:
        return self._buffer.state_dict()

    def _next_row(self) -> Rendered:
        row = Rendered([], [])
        index: int | None = self._buffer.take_first()
        while index is not None:
            row.ids.extend(self._conversations[index].ids)
            row.mask.extend(self._conversations[index].mask)
            index = self._buffer.take(self._seq_len + 1 - len(row.ids), or_shortest=False)
        return row


def padded_batch(
    rows: Sequence[Rendered],
    batch_size: int,
    seq_len: int,
    pad_id: int,
    device: torch.device | str,
) -> Batch:
    """Rows of at most seq_len + 1 tokens -> (tokens, targets), each (B, T); -1 where not learnt."""
    ids = torch.full((batch_size, seq_len + 1), pad_id, dtype=torch.int64)
    mask = torch.zeros((batch_size, seq_len + 1), dtype=torch.bool)
    for row, item in enumerate(rows):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        mask[row, : len(item.ids)] = torch.tensor(item.mask, dtype=torch.bool)
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -1)
    return Batch(ids[:, :-1].contiguous().to(device), targets.to(device))


def held_out_batches(
    conversations: Sequence[Rendered],
    batch_size: int,
    seq_len: int,
    pad_id: int,
    device: torch.device | str,
) -> Iterator[Batch]:
    """The held-out conversations, one a row, in order."""
    for begin in range(0, len(conversations), batch_size):
        rows = conversations[begin : begin + batch_size]
        yield padded_batch(rows, batch_size, seq_len, pad_id, device)


@torch.no_grad()
def mean_loss(model: GPT, batches: Iterator[Batch]) -> float:
    """Nats per target over all of `batches`."""
    total, count = 0.0, 0
    for tokens, targets in batches:
        total += float(model.loss(tokens, targets, reduction="sum"))
        count += int((targets >= 0).sum())
    return total / count
