"""Stage `replay`: does stretches of a finished pretraining again, for whoever doubts them.

`paths.replay` is a JSON file: {"windows": [{"step": S, "progress": [...]}], "validate": bool}.
Each window begins at step S, from the seed's own weights (S = 0) or from the snapshot before it
under `paths.base`, and does one step for each progress value. Every step is reported with the loss
that it had here; `validate` adds the bits per byte of the final weights. Nothing is stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from reference.errors import TrainerError
from reference.events import Events
from reference.experiments.growth.growth import Trainee
from reference.experiments.growth.plan import GrowthPlan
from reference.kernels.autotune import apply, decide
from reference.model.cost import estimate
from reference.model.gpt import GPT, ModelConfig
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.request import Request
from reference.rows.documents import Documents, find_shards, token_folder
from reference.rows.packing import validation_batches
from reference.rows.training_rows import open_training_rows
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.tokenizer.stage import tokenize_corpus
from reference.train.checkpoint import load_model, weights_digest
from reference.train.curriculum import rows_at
from reference.train.device import memory_limit_bytes, set_up_device
from reference.train.divergence import Divergence
from reference.train.memory import fitting_micro_batch
from reference.train.metrics import evaluate_bpb
from reference.train.pretrain import report_model
from reference.train.snapshot import load_snapshot, snapshot_path
from reference.train.step import Stepper, maybe_compile


def run(request: Request, events: Events) -> None:
    """Reports the initial weights' digest, the windows' losses and, when asked, val_bpb."""
    asked = json.loads(request.path("replay").read_text())
    device = set_up_device(request)
    tokenizer = Tokenizer.load(request.path("tokenizer"))
    config = ModelConfig.from_recipe(request.recipe["model"], tokenizer.vocab_size)
    model = GPT.empty(GrowthPlan.from_recipe(config, request.recipe["pretrain"]).configs[0])
    model.init_weights(request.seed)
    report_model(events, config, device, weights_digest(model))
    del model
    if not asked["windows"] and not asked["validate"]:
        return
    cache = token_folder(request.path("cache"), request.run_id)
    _tokenize(request, cache, tokenizer, events, training=bool(asked["windows"]))
    for window in asked["windows"]:
        _window(request, events, cache, tokenizer, device, config, window)
    if asked["validate"]:
        _validate(request, events, cache, tokenizer, device)


def _tokenize(
    request: Request, cache: Path, tokenizer: Tokenizer, events: Events, *, training: bool
) -> None:
    shards = find_shards(request.path("data"))
    if not training:  # the validation shard stands for both
        shards = shards._replace(train=shards.validation)
    column = request.recipe["data"]["text_column"]
    tokenize_corpus(shards, cache, tokenizer, column, request.threads, events)


def _window(
    request: Request,
    events: Events,
    cache: Path,
    tokenizer: Tokenizer,
    device: torch.device,
    config: ModelConfig,
    window: dict[str, Any],
) -> None:
    """The same steps as in `reference.train.pretrain`, from a given start."""
    section = request.recipe["pretrain"]
    horizon = estimate(request.recipe)["tokens"]
    T = config.seq_len
    first: int = window["step"]
    state: dict[str, Any] = {"loader": None, "tokens": 0, "parts": 1}
    if first:
        state = {**state, **_snapshot(request, first)}
    trainee = Trainee(config, section, seed=request.seed, device=device, tokens=horizon)
    if first:
        try:
            trainee.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unfit(first, error) from error
    divergence = Divergence(section["divergence_nats"], section["rollbacks"])
    divergence.load_state_dict(state.get("divergence", {}))
    schedule = ScheduleConfig.from_recipe(section)
    micro_batch = fitting_micro_batch(config, section, memory_limit_bytes(device, 0))

    def prepare(known: dict[str, Any] | None = None) -> dict[str, Any]:
        maybe_compile(trainee.model, section["compile"], device, tokens=horizon)
        return decide(
            trainee.model,
            section,
            micro_batch=micro_batch,
            say=lambda text, **_: events.emit("note", text=text),
            known=known,
        )

    decisions = prepare(state.get("decisions"))
    phase = trainee.curriculum.at(window["progress"][0])
    loader = open_training_rows(
        request,
        tokenizer,
        cache,
        rows=rows_at(phase, micro_batch, T),
        seq_len=phase.seq_len,
        device=device,
        prefetch=1,
        state=state["loader"],
        say=lambda text: events.emit("note", text=text),
    )
    stepper = Stepper(trainee.model, trainee.optimizer, parts=state["parts"])
    tokens = state["tokens"]
    try:
        for step, progress in enumerate(window["progress"], start=first):
            if stop_requested():
                raise Stopped
            if trainee.reach(progress):
                decisions = prepare()
                stepper.model, stepper.optimizer = trainee.model, trainee.optimizer
            trainee.teach(progress, decisions["attention"])
            phase = trainee.curriculum.at(progress)
            apply(trainee.model, section, decisions, phase)
            loader.at(progress)
            loader.resize(rows_at(phase, micro_batch, T), phase.seq_len)
            micro_batches = phase.batch_tokens // (loader.batch_size * phase.seq_len)
            batches = (loader.next_batch() for _ in range(micro_batches))
            multipliers = schedule_at(progress, step, schedule)
            lr = multipliers.lr * trainee.curriculum.lr_scale(phase) * divergence.lr_factor
            multipliers = multipliers._replace(lr=lr)
            count = None if loader.uneven else phase.batch_tokens
            loss = stepper.step(batches, multipliers, count=count, by_row=loader.by_row)
            if loader.by_row:
                loader.learned(stepper.row_losses)
            tokens += phase.batch_tokens
            events.emit("step", step=step, tokens=tokens, loss=loss, window=first)
    finally:
        loader.close()


def _snapshot(request: Request, step: int) -> dict[str, Any]:
    try:
        stored, state = load_snapshot(snapshot_path(request.path("base"), step))
    except TrainerError as error:
        raise _unfit(step, error) from error
    if stored != step or not isinstance(state, dict):
        raise _unfit(step, ValueError(f"it says step {stored}"))
    return state


def _unfit(step: int, error: Exception) -> TrainerError:
    """The run's own fault, unlike everything else that can go wrong here."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return TrainerError("bad_snapshot", f"the snapshot of step {step} does not fit: {line}")


def _validate(
    request: Request, events: Events, cache: Path, tokenizer: Tokenizer, device: torch.device
) -> None:
    """Bits per byte of the final weights, as the run itself measured them."""
    section = request.recipe["pretrain"]
    dtype = request.recipe["model"]["dtype"]
    model, config = load_model(request.path("base"), device, dtype)
    batches = validation_batches(
        Documents.open(cache, "validation", tokenizer),
        max(1, section["device_batch_size"]),
        config.seq_len,
        max_tokens=section["eval_tokens"],
        device=device,
    )
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(device)
    value = evaluate_bpb(model, batches, token_bytes)
    events.emit("eval", name="val_bpb", value=value)
