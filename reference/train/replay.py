"""Stage `replay`: does stretches of a finished pretraining again, for whoever doubts them.

`paths.replay` is a JSON file: {"windows": [{"step": S, "progress": [...]}], "validate": bool}.
Each window begins at step S, from the seed's own weights (S = 0) or from the snapshot before it
under `paths.base`, and does one step for each progress value. Every step is reported with the loss
that it had here; `validate` adds the bits per byte of the final weights. Nothing is stored.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from reference.errors import TrainerError
from reference.events import Events
from reference.request import Request
from reference.rows.documents import Documents, find_shards, token_folder
from reference.rows.packing import validation_batches
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.tokenizer.stage import tokenize_corpus
from reference.train.checkpoint import load_model
from reference.train.loop import TrainState
from reference.train.metrics import evaluate_bpb
from reference.train.pretrain import open_rows, report_model
from reference.train.snapshot import load_snapshot, snapshot_path


def run(request: Request, events: Events) -> None:
    """Reports the initial weights' digest, the windows' losses and, when asked, val_bpb."""
    asked = json.loads(request.path("replay").read_text())
    tokenizer = Tokenizer.load(request.path("tokenizer"))
    state = TrainState.open(request, tokenizer.vocab_size)
    device = state.device
    report_model(events, state.config, device, state.initial_weights)
    del state
    if not asked["windows"] and not asked["validate"]:
        return
    cache = token_folder(request.path("cache"), request.run_id)
    _tokenize(request, cache, tokenizer, events, training=bool(asked["windows"]))
    for window in asked["windows"]:
        _window(request, events, tokenizer, window)
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


def _window(request: Request, events: Events, tokenizer: Tokenizer, window: dict[str, Any]) -> None:
    """The steps of one window, made as pretraining makes them."""
    first: int = window["step"]
    state, position = TrainState.open(request, tokenizer.vocab_size), None
    if first:
        saved = _snapshot(request, first)
        try:
            state.load_state_dict(saved)
            position = saved["loader"]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unfit(first, error) from error

    def say(text: str, **_: Any) -> None:
        events.emit("note", text=text)

    with closing(open_rows(request, state, tokenizer, window["progress"][0], position, say)):
        for step, progress in enumerate(window["progress"], start=first):
            if stop_requested():
                raise Stopped
            made = state.step(progress, step)
            events.emit("step", step=step, tokens=state.tokens, loss=made.loss, window=first)


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
