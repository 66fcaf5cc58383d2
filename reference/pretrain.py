"""Stage `pretrain`: from random weights to a base model.

The horizon is either a number of steps (`num_steps`) or a stretch of time (`hours`). The schedule
follows the elapsed share of it. By steps a run is a function of recipe and seed alone, so an
interrupted one, resumed, has the same losses to the bit on a CPU. By time every card finishes when
the budget says so; each step's progress is logged, so that a replay can follow it.

References:
    nanochat's training script is the starting point: https://github.com/karpathy/nanochat
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from reference.anneal import AnnealedLoader, open_loader
from reference.checkpoint import (
    clear_states,
    is_complete,
    load_latest_state,
    save_model,
    save_state,
    weights_digest,
)
from reference.dataloader import PackedLoader, validation_batches
from reference.dataset import Documents, token_folder
from reference.device import DeviceTimer, peak_memory_bytes, set_up_device
from reference.errors import TrainerError
from reference.estimate import count_flops, count_parameters, estimate, peak_flops
from reference.events import Events
from reference.metrics import evaluate_bpb
from reference.model import GPT, ModelConfig
from reference.optim import MuonAdamW, parameter_groups
from reference.request import Request
from reference.schedule import ScheduleConfig, schedule_at
from reference.snapshot import save_snapshot
from reference.stage import Stopped, stop_requested
from reference.tokenizer import Tokenizer
from reference.train_step import maybe_compile, train_step

# Of a horizon in time, kept back for the last evaluation and checkpoint.
RESERVE_SHARE = 0.01
RESERVE_EVALS = 3.0
RESERVE_S = 10.0
MEMORY_EVERY = 100  # steps between memory events


def run(request: Request, events: Events) -> None:
    """Leaves the base model in `paths.out`; goes on from the latest state when there is one."""
    out, recipe = request.path("out"), request.recipe
    section = recipe["pretrain"]
    if request.attempt and is_complete(out):
        clear_states(out)
        return
    device = set_up_device(request)
    tokenizer = Tokenizer.load(request.path("tokenizer"))
    cache = token_folder(request.path("cache"), request.run_id)
    train = Documents.open(cache, "train", tokenizer)
    validation = Documents.open(cache, "validation", tokenizer)

    config = ModelConfig.from_recipe(recipe["model"], tokenizer.vocab_size)
    model = GPT(config)
    model.init_weights(request.seed)
    initial_weights = weights_digest(model)
    model.place(device)
    horizon = Horizon(request)
    optimizer = MuonAdamW(parameter_groups(model, section, tokens=horizon.tokens))
    schedule = ScheduleConfig.from_recipe(section)
    report_model(events, model, device, initial_weights)

    first_step, loader_state = restore(request, model, optimizer, device)
    batch_size, T = section["device_batch_size"], config.seq_len
    micro_batches = section["total_batch_size"] // (batch_size * T)
    loader = open_loader(
        lambda documents, position: PackedLoader(
            documents, batch_size, T, request.seed, device=device, state=position
        ),
        train,
        cache,
        tokenizer,
        recipe["data"]["anneal"],
        loader_state,
    )
    maybe_compile(model, section["compile"], device, tokens=horizon.tokens)
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(device)

    def evaluate(step: int) -> None:
        began = time.perf_counter()
        batches = validation_batches(
            validation, batch_size, T, max_tokens=section["eval_tokens"], device=device
        )
        value = evaluate_bpb(model, batches, token_bytes)
        elapsed_s = time.perf_counter() - began
        horizon.reserve(elapsed_s)
        events.emit("eval", name="val_bpb", step=step, value=value, elapsed_s=elapsed_s)

    def state(step: int) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader.state_dict() if step else None,
        }

    def checkpoint(step: int) -> None:
        began = time.perf_counter()
        size = save_state(out, step, state(step))
        elapsed_s = time.perf_counter() - began
        events.emit("checkpoint", step=step, bytes=size, elapsed_s=elapsed_s)

    step = first_step
    while True:
        progress = horizon.progress(step)
        done = progress >= 1.0
        if done or step == 0 or (section["eval_every"] and step % section["eval_every"] == 0):
            evaluate(step)
        if done:
            break
        if stop_requested():
            checkpoint(step)
            raise Stopped
        if (
            step > first_step
            and section["checkpoint_every"]
            and step % section["checkpoint_every"] == 0
        ):
            checkpoint(step)
        if step and section["snapshot_every"] and step % section["snapshot_every"] == 0:
            save_snapshot(out, step, state(step))

        timer = DeviceTimer(device)
        began = time.perf_counter()
        if isinstance(loader, AnnealedLoader):
            loader.at(progress)
        batches = [loader.next_batch() for _ in range(micro_batches)]
        waited_s = time.perf_counter() - began
        multipliers = schedule_at(progress, step, schedule)
        loss = train_step(model, optimizer, batches, multipliers)
        cuda_s = timer.elapsed_s()
        elapsed_s = time.perf_counter() - began
        if not math.isfinite(loss):
            raise TrainerError(
                "nan_loss",
                f"the loss is {loss} at step {step}",
                "Lower the learning rates or lengthen the warm-up; the last checkpoint is kept.",
            )
        events.emit(
            "step",
            step=step,
            tokens=(step + 1) * section["total_batch_size"],
            loss=loss,
            lr=multipliers.lr,
            progress=progress,
            micro_batches=micro_batches,
            step_tokens=section["total_batch_size"],
            dt_s=round(elapsed_s, 6),
            wait_s=round(waited_s, 6),
            cuda_s=cuda_s,
        )
        step += 1
        if step % MEMORY_EVERY == 0:
            events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))

    events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))
    text = (
        f"{loader.crop_rate:.1%} of the tokens read were cropped, {loader.epoch + 1} epoch(s) begun"
    )
    events.emit("note", text=text)
    loader.close()
    save_model(out, model, config, request.path("tokenizer"))
    clear_states(out)


class Horizon:
    """How far a run is: by steps, or by the stage's clock."""

    def __init__(self, request: Request) -> None:
        section = request.recipe["pretrain"]
        self._request = request
        self._num_steps: int = section["num_steps"]
        self._seconds: float = section["hours"] * 3600
        self._reserve_s = RESERVE_SHARE * self._seconds + RESERVE_S
        # The weight decay's rule wants the horizon in tokens. By time that is the plan's guess:
        # a figure of the recipe alone, so that it does not vary from card to card.
        self.tokens: int = estimate(request.recipe)["tokens"]

    def reserve(self, eval_s: float) -> None:
        """Keeps back enough time for another evaluation that takes `eval_s` seconds."""
        wanted = RESERVE_EVALS * eval_s + RESERVE_S
        self._reserve_s = min(0.5 * self._seconds, max(self._reserve_s, wanted))

    def progress(self, step: int) -> float:
        """The elapsed share of the horizon, 0 to 1, before step `step`."""
        if self._num_steps:
            share = step / self._num_steps
            return 1.0 if self._request.remaining_s() <= 0 else share
        usable_s = self._seconds - self._reserve_s
        return min(1.0, self._request.stage_elapsed_s() / usable_s)


def report_model(
    events: Events, model: GPT, device: torch.device, initial_weights: str | None = None
) -> None:
    """Tells the supervisor what is trained, from which weights, and what a token of it costs."""
    config = model.config
    flops = count_flops(config)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    events.emit(
        "model",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        scaling_parameters=count_parameters(config).scaling,
        flops_per_token=flops.nanochat,
        flops_per_token_causal=flops.causal,
        peak_flops=peak,
        vocab_size=config.vocab_size,
        config=config.to_json(),
        device=str(device),
        initial_weights=initial_weights,
    )


def restore(
    request: Request, model: GPT, optimizer: MuonAdamW, device: torch.device
) -> tuple[int, dict[str, Any] | None]:
    """Puts the latest state in place; the step to go on with, and the loader's position."""
    latest = load_latest_state(request.path("out")) if request.attempt else None
    if latest is None:
        return 0, None
    step, state = latest
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return step, state["loader"]
