"""Stage `pretrain`: from random weights to a base model.

The horizon is either a number of steps (`num_steps`) or a stretch of time (`hours`). The schedule
follows the elapsed share of it. By steps a run is a function of recipe and seed alone, so an
interrupted one, resumed, has the same losses to the bit on a CPU. By time every card finishes when
the budget says so; each step's progress is logged, so that a replay can follow it.

How a step is made is `reference.train.loop`; what changes on the way (sequence length, windows,
batch, precision) is `reference.train.curriculum`; what is decided by measuring before the first
step, `reference.kernels.autotune`.

References:
    nanochat's training script is the starting point: https://github.com/karpathy/nanochat
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import torch

from reference.config.model import ModelConfig
from reference.errors import TrainerError
from reference.events import Events
from reference.model.cost import count_flops, count_parameters, peak_flops
from reference.model.step_time import card_of, predict_recipe
from reference.request import Request
from reference.rows.documents import Documents, token_folder
from reference.rows.mixing import MixedLoader
from reference.rows.nanochat_rows import nanochat_batches
from reference.rows.packing import validation_batches
from reference.rows.training_rows import Loader, open_training_rows
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import (
    BackgroundSaver,
    Saved,
    clear_states,
    is_complete,
    latest_state,
    load_latest_state,
    save_model,
)
from reference.train.collector import quiet_collector
from reference.train.curriculum import rows_at
from reference.train.device import peak_memory_bytes
from reference.train.horizon import Horizon
from reference.train.loop import StepReport, TrainState, micro_batch_note
from reference.train.snapshot import save_snapshot

NANOCHAT_BPB = "val_bpb_nanochat"
MEMORY_EVERY = 100  # steps between memory events


def run(request: Request, events: Events) -> None:
    """Leaves the base model in `paths.out`; resumes from the latest state if there is one."""
    out, section = request.path("out"), request.recipe["pretrain"]
    if request.attempt and is_complete(out):
        clear_states(out)
        return
    saved = latest_state(request)
    tokenizer = Tokenizer.load(request.path("tokenizer"))
    state = TrainState.open(request, tokenizer.vocab_size)
    report = PretrainReport(events, state)
    report.model()
    if saved["step"]:
        state.load_state_dict(saved)
    horizon, step = Horizon(request, planned_per_s=planned_speed(request)), saved["step"]
    rows = open_rows(
        request, state, tokenizer, horizon.progress(step), saved["loader"], report.note
    )
    validation, first_step = Validation(request, state, tokenizer), step

    with ExitStack() as stack:
        stack.enter_context(closing(rows))
        saver = BackgroundSaver(out, background=section["background_checkpoints"])
        stack.enter_context(closing(saver))
        collector = stack.enter_context(quiet_collector())
        while (progress := horizon.progress(step)) < 1.0:
            model = state.model
            report.changes(step, state.reach(progress))
            if state.model is not model:
                collector.forget_what_was_set_aside()
            if due(step, section["eval_every"], first=True):
                horizon.reserve(report.evaluation(step, validation, between=step > 0))
                collector.collect()
            if stop_requested():
                report.saved(saver.save(step, state.checkpoint_dict()) + saver.wait())
                raise Stopped
            if step > first_step and due(step, section["checkpoint_every"]):
                report.saved(saver.save(step, state.checkpoint_dict()))
            if due(step, section["snapshot_every"]):
                save_snapshot(out, step, state.state_dict())

            made = state.step(progress, step)
            if made.diverged:
                report.saved(saver.wait())
                go_back(state, made, request, report)
                continue  # the step is made again, with other data
            report.step(made, first=step == first_step)
            horizon.saw(made.tokens, made.dt_s)
            report.saved(saver.finished())
            collector.set_aside()
            step += 1
            if due(step, MEMORY_EVERY):
                report.memory(step)

        report.changes(step, state.reach(1.0))
        chosen = report.choice(step, validation) if state.average.exists else None
        report.nanochat_evaluation(step, validation)
        report.evaluation(step, validation, chosen)
        report.saved(saver.wait())

    finish(state, request, report, step, rows)


def planned_speed(request: Request) -> float:
    """Tokens a second that the recipe's plan expects of its card; 0 where nobody asks."""
    recipe = request.recipe
    if not recipe["pretrain"].get("fill_budget"):
        return 0.0
    return predict_recipe(recipe, card_of(recipe)).tokens_per_s


def due(step: int, every: int, *, first: bool = False) -> bool:
    """Whether something that is done every so many steps (0: never) is due before `step`."""
    return (step > 0 and every > 0 and step % every == 0) or (first and step == 0)


def open_rows(
    request: Request,
    state: TrainState,
    tokenizer: Tokenizer,
    progress: float,
    saved: dict[str, Any] | None,
    say: Callable[..., None],
) -> Loader:
    """Decides on kernels, compiles, and gives `state` its training rows.

    Args:
        progress: Of the first step that will be made.
        saved: The rows' state to resume from; None begins with the corpus.
    """
    section = state.section
    if note := micro_batch_note(state):
        say(note)
    state.prepare(say, bos=tokenizer.bos_id)
    phase = state.phase = state.curriculum.at(progress)
    rows = open_training_rows(
        request,
        tokenizer,
        token_folder(request.path("cache"), request.run_id),
        rows=rows_at(phase, state.micro_batch, state.config.seq_len),
        seq_len=phase.seq_len,
        device=state.device,
        prefetch=section["prefetch"],
        state=saved,
        say=say,
    )
    state.rows = rows
    return rows


def go_back(state: TrainState, made: StepReport, request: Request, report: PretrainReport) -> None:
    """Restores the weights of the last checkpoint after a step that diverged.

    Raises:
        TrainerError: The recipe allows no further rollback, or there is no checkpoint.
    """
    report.changes(made.step, made.notes)
    divergence = state.divergence
    latest = divergence.may_go_back() and load_latest_state(request.path("out"))
    if not latest:
        raise TrainerError(
            "nan_loss",
            f"the loss is {made.loss} at step {made.step}",
            "Lower the learning rates or warm up longer; the last checkpoint is kept.",
        )
    step, saved = latest
    state.load_weights(saved)
    divergence.went_back()
    report.note(
        f"step {made.step}: loss {made.loss}; the weights are those of step {step} again, the"
        f" learning rate is {divergence.lr_factor:g} of the schedule's",
        rolled_back_step=made.step,
    )


def finish(
    state: TrainState, request: Request, report: PretrainReport, step: int, rows: Loader
) -> None:
    """Reports how the rows were read and writes the model that others load."""
    model = state.model
    if model.tied and not model.config.tied:
        model.untie()
    report.memory(step)
    report.note(
        f"{rows.crop_rate:.1%} of the tokens read were cropped, {rows.epoch + 1} epoch(s) begun"
    )
    if isinstance(rows, MixedLoader):
        report.note(rows.summary)
    out = request.path("out")
    save_model(out, model, model.config, request.path("tokenizer"))
    clear_states(out)


class Validation:
    """The validation split, and how much of it an evaluation reads."""

    def __init__(self, request: Request, state: TrainState, tokenizer: Tokenizer) -> None:
        cache = token_folder(request.path("cache"), request.run_id)
        self._documents = Documents.open(cache, "validation", tokenizer)
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(state.device)
        self._state = state

    def bits_per_byte(self, max_tokens: int) -> float:
        """Of the state's weights, on the first `max_tokens` tokens at full length."""
        state = self._state
        batches = validation_batches(
            self._documents,
            state.micro_batch,
            state.config.seq_len,
            max_tokens=max_tokens,
            device=state.device,
        )
        return state.evaluate(batches, self._token_bytes)

    def nanochat_bits_per_byte(self, max_tokens: int) -> float | None:
        """By nanochat's definition; None where the split does not fill a row."""
        state = self._state
        batches = nanochat_batches(
            self._documents,
            state.micro_batch,
            state.config.seq_len,
            max_tokens=max_tokens,
            device=state.device,
        )
        first = next(batches, None)
        if first is None:
            return None
        return state.evaluate(itertools.chain([first], batches), self._token_bytes)


class PretrainReport:
    """What pretraining reports to the supervisor."""

    def __init__(self, events: Events, state: TrainState) -> None:
        self._events, self._state = events, state

    def note(self, text: str, **figures: Any) -> None:
        self._events.emit("note", text=text, **figures)

    def model(self) -> None:
        state = self._state
        report_model(self._events, state.config, state.device, state.initial_weights)

    def changes(self, step: int, changes: list[str] | tuple[str, ...]) -> None:
        for text in changes:
            self.note(f"step {step}: {text}")

    def step(self, made: StepReport, *, first: bool) -> None:
        """One step; graphs compiled in any but the first step of a process get a note."""
        state = self._state
        varies = state.cost is not None and state.cost.varies
        self.changes(made.step, made.notes)
        self._events.emit(
            "step",
            step=made.step,
            tokens=state.tokens,
            loss=made.loss,
            lr=made.lr,
            progress=made.progress,
            micro_batches=made.micro_batches,
            step_tokens=made.tokens,
            **({"flops": state.flops} if varies else {}),
            dt_s=round(made.dt_s, 6),
            wait_s=round(made.wait_s, 6),
            cuda_s=made.cuda_s,
            **made.figures,
        )
        if made.graphs and not first:
            self.note(f"step {made.step} compiled {made.graphs} graph(s) on the way")

    def evaluation(
        self,
        step: int,
        validation: Validation,
        measured: float | None = None,
        *,
        between: bool = False,
    ) -> float:
        """Evaluates and reports; returns the seconds that a whole evaluation takes.

        Args:
            measured: The bits per byte of these weights, where they are known already.
            between: Neither the first nor the last evaluation of the run: it may be a shorter one.
        """
        section, began = self._state.section, time.perf_counter()
        tokens = (between and section["eval_tokens_between"]) or section["eval_tokens"]
        value = validation.bits_per_byte(tokens) if measured is None else measured
        elapsed_s = time.perf_counter() - began
        self._events.emit("eval", name="val_bpb", step=step, value=value, elapsed_s=elapsed_s)
        return float(elapsed_s * section["eval_tokens"] / tokens)

    def choice(self, step: int, validation: Validation) -> float:
        """Ends in the last weights or in their average, by validation; reports both values.

        Returns:
            Bits per byte of the chosen ones.
        """
        section, values = self._state.section, dict[str, float]()

        def measure(which: str) -> float:
            began = time.perf_counter()
            values[which] = validation.bits_per_byte(section["eval_tokens"])
            self._events.emit(
                "eval",
                name=f"val_bpb_{which}",
                step=step,
                value=values[which],
                elapsed_s=time.perf_counter() - began,
            )
            return values[which]

        taken = self._state.average.choose(measure)
        self.note(
            f"the model is {'the average of the weights' if taken else 'the last weights'}, the "
            f"better of the two on the validation rows: bits per byte {values['average']:.4f} of "
            f"the average, {values['weights']:.4f} of the last weights"
        )
        return values["average" if taken else "weights"]

    def nanochat_evaluation(self, step: int, validation: Validation) -> None:
        """Reports the bits per byte that nanochat's figures and laws are in, if there are any."""
        began = time.perf_counter()
        value = validation.nanochat_bits_per_byte(self._state.section["eval_tokens"])
        if value is not None:
            elapsed_s = time.perf_counter() - began
            self._events.emit(
                "eval", name=NANOCHAT_BPB, step=step, value=value, elapsed_s=elapsed_s
            )

    def saved(self, finished: list[Saved]) -> None:
        """Which states are on the disk."""
        for saved in finished:
            self._events.emit("checkpoint", **saved._asdict())

    def memory(self, step: int) -> None:
        self._events.emit("memory", step=step, peak_bytes=peak_memory_bytes(self._state.device))


def report_model(
    events: Events, config: ModelConfig, device: torch.device, initial_weights: str | None = None
) -> None:
    """Reports what is trained, from which weights, and what a token of it costs.

    Where the model grows, `config` and all figures are the finished one's.
    """
    flops, parameters = count_flops(config), count_parameters(config)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    events.emit(
        "model",
        parameters=parameters.total,
        scaling_parameters=parameters.scaling,
        flops_per_token=flops.nanochat,
        flops_per_token_causal=flops.causal,
        peak_flops=peak,
        vocab_size=config.vocab_size,
        config=config.to_json(),
        device=str(device),
        initial_weights=initial_weights,
    )
