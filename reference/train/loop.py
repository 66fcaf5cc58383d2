"""A model in training, and the only place where a training step is made.

Pretraining, fine-tuning, replay, benches and studies all call `TrainState.step`, so that a switch
cannot mean one thing in a run and another where its steps are made again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from reference.config.experiment import asked_for, load
from reference.config.model import ModelConfig
from reference.kernels.autotune import Say, apply, decide, precompile
from reference.model.cost import RunCost, estimate
from reference.model.gpt import GPT
from reference.optim.optimizer import MuonAdamW, parameter_groups
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.request import Request
from reference.train.averaging import WeightAverage
from reference.train.checkpoint import weights_digest
from reference.train.curriculum import Curriculum, Phase, rows_at
from reference.train.device import (
    DeviceTimer,
    make_deterministic,
    memory_limit_bytes,
    plannable_bytes,
    set_up_device,
)
from reference.train.divergence import Divergence
from reference.train.memory import fitting_micro_batch, plan_vram
from reference.train.metrics import evaluate_bpb
from reference.train.step import Stepper, compiled_graphs, is_out_of_memory, maybe_compile

NO_AVERAGE: Mapping[str, Any] = {"count": 0, "average": {}}


class Rows(Protocol):
    """Where the micro-batches of a step come from."""

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for packed rows so far."""

    @property
    def uneven(self) -> bool:
        """Whether micro-batches may hold targets that do not count."""

    @property
    def by_row(self) -> bool:
        """Whether `JudgedRows.learned` needs the losses of this step's rows."""

    def at(self, progress: float) -> None:
        """Called before the batches of each step are read."""

    def resize(self, batch_size: int, seq_len: int) -> None: ...

    def next_batch(self) -> tuple[Any, ...]: ...

    def state_dict(self) -> dict[str, Any]: ...


class JudgedRows(Rows, Protocol):
    """Rows whose losses decide which are read again; `by_row` says when."""

    def learned(self, losses: Tensor) -> dict[str, Any]:
        """Takes the mean losses of the step's rows; returns figures for the log."""


class Lever(Protocol):
    """An experiment that takes part in training (see `reference.config.experiment`)."""

    def __init__(self, config: ModelConfig, section: Mapping[str, Any]) -> None: ...

    def first_config(self, config: ModelConfig) -> ModelConfig:
        """The model to begin with, given the one that is due without this lever."""

    def reach(self, state: TrainState, progress: float) -> list[str]:
        """Acts before the step at `progress`; returns what changed, in words."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; the keys of all levers share one dict."""

    def load_state_dict(self, state: TrainState, saved: Mapping[str, Any]) -> None:
        """Called before `state` takes the saved weights, which have the saved model's shapes."""


class StepReport(NamedTuple):
    """What one step did.

    loss: mean nats a target. tokens: trained on in this step. micro_batches: forward and backward
    passes. dt_s, wait_s, cuda_s: seconds in all, waiting for rows, and by the device's own clock.
    graphs: graphs that had to be compiled during the step. figures: of rows from other sources.
    notes: what a reader of the log should know. diverged: the weights are not to be trusted, and
    nothing else of the state has moved on.
    """

    step: int
    progress: float
    loss: float
    lr: float
    tokens: int
    micro_batches: int
    dt_s: float
    wait_s: float
    cuda_s: float | None
    graphs: int
    figures: dict[str, Any]
    notes: tuple[str, ...]
    diverged: bool


@dataclass(eq=False)
class TrainState:
    """Model, optimizer, rows, schedule and phase of a training, and how far it is.

    Attributes:
        config: The finished model's; `model` may still be a smaller one.
        section: The recipe's `[pretrain]`.
        micro_batch: Sequences of full length in a micro-batch.
        decisions: The kernels that were decided on; None leaves the model's own in place.
        parts: Pieces that each micro-batch is run in, doubled whenever memory runs out.
        tokens, flops: Done so far.
    """

    config: ModelConfig
    model: GPT
    optimizer: MuonAdamW
    schedule: ScheduleConfig
    curriculum: Curriculum
    section: Mapping[str, Any]
    micro_batch: int
    divergence: Divergence
    average: WeightAverage
    rows: Rows | None = None
    decisions: dict[str, Any] | None = None
    levers: Sequence[Lever] = ()
    cost: RunCost | None = None
    horizon_tokens: float | None = None
    seed: int = 0
    parts: int = 1
    tokens: int = 0
    flops: float = 0.0
    initial_weights: str | None = None
    phase: Phase = field(init=False)
    _in_force: Phase | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.phase = self.curriculum.at(0.0)
        self._stepper = Stepper(self.model, self.optimizer, parts=self.parts)

    @classmethod
    def open(cls, request: Request, vocab_size: int) -> TrainState:
        """A pretraining before its first step, without rows and kernels (see `prepare`).

        Args:
            vocab_size: Of the run's tokenizer.
        """
        recipe, section = request.recipe, request.recipe["pretrain"]
        if section["deterministic"]:
            make_deterministic()
        device = set_up_device(request)
        return cls.of_recipe(
            ModelConfig.from_recipe(recipe["model"], vocab_size),
            section,
            device=device,
            seed=request.seed,
            horizon_tokens=estimate(recipe)["tokens"],
        )

    @classmethod
    def of_recipe(
        cls,
        config: ModelConfig,
        section: Mapping[str, Any],
        *,
        device: torch.device,
        seed: int,
        horizon_tokens: float | None,
        on_device: bool = False,
    ) -> TrainState:
        """The state that `[pretrain]` and the finished model's `config` describe.

        Args:
            horizon_tokens: Tokens of the whole run: whether compiling pays on a CPU follows from
                them. None: unknown.
            on_device: Draw the weights on the device (see `GPT.init_weights`).
        """
        limit = plannable_bytes(
            device,
            section["vram_cap_gib"],
            measure=not (section["device_batch_size"] or section["deterministic"]),
        )
        levers = [
            load(experiment.lever)(config, section)
            for experiment in asked_for(section)
            if experiment.lever
        ]
        first = config
        for lever in levers:
            first = lever.first_config(first)
        model = GPT.empty(first, device if on_device else "cpu")
        model.init_weights(seed, on_device=on_device)
        digest = None if on_device else weights_digest(model)
        model.place(device)
        return cls(
            config,
            model,
            new_optimizer(model, section, config),
            ScheduleConfig.from_recipe(section),
            Curriculum.from_recipe(first, section),
            section,
            fitting_micro_batch(config, section, limit),
            Divergence(section["divergence_nats"], section["rollbacks"]),
            WeightAverage(model, section["average"], section["average_share"]),
            levers=levers,
            cost=RunCost.from_recipe(config, section),
            horizon_tokens=horizon_tokens,
            seed=seed,
            initial_weights=digest,
        )

    @classmethod
    def constant(
        cls,
        model: GPT,
        optimizer: MuonAdamW,
        schedule: ScheduleConfig,
        rows: Rows,
        *,
        batch_tokens: int,
        seq_len: int | None = None,
    ) -> TrainState:
        """A training that changes nothing on the way but the learning rate.

        Args:
            batch_tokens: Of a step.
            seq_len: Of a row; None: the model's.
        """
        config = model.config
        phase = Phase(
            seq_len or config.seq_len,
            config.windows,
            batch_tokens,
            eight_bit=False,
            tied=model.tied,
        )
        return cls(
            config,
            model,
            optimizer,
            schedule,
            Curriculum((0.0,), (phase,), batch_tokens),
            section={},
            micro_batch=rows.batch_size,
            divergence=Divergence(math.inf, 0),
            average=WeightAverage(model, "none", 0.0),
            rows=rows,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prepare(self, say: Say, *, compile_setting: str | None = None, bos: int | None) -> bool:
        """Compiles the model and decides on kernels; returns whether the model is compiled.

        Args:
            compile_setting: Instead of the recipe's `compile`.
            bos: The token that rows' documents begin with, if documents are kept apart.
        """
        self._say, self._bos = say, bos if self.section["document_mask"] else None
        self._compile_setting = compile_setting or self.section["compile"]
        return self._prepare_model(self.decisions)

    def _prepare_model(self, known: Mapping[str, Any] | None) -> bool:
        section, T = self.section, self.config.seq_len
        tokens = self.horizon_tokens or 0.0
        compiled = maybe_compile(self.model, self._compile_setting, self.device, tokens=tokens)
        self.decisions = decide(
            self.model, section, micro_batch=self.micro_batch, say=self._say, known=known
        )
        if compiled:
            began, phases = time.perf_counter(), self.curriculum.phases
            shapes = [(phase, rows_at(phase, self.micro_batch, T)) for phase in phases]
            self._precompile(shapes[::-1])
            self._say(
                f"{compiled_graphs()} graphs compiled in advance for {len(shapes)} phase(s)",
                compile_s=round(time.perf_counter() - began, 3),
            )
        return compiled

    def _precompile(self, shapes: Sequence[tuple[Phase, int]]) -> None:
        """`precompile`, with smaller micro-batches as long as memory runs out, as in a step.

        A card that another program has partly filled shows it here, before the first step.

        Args:
            shapes: Each phase with the rows of its micro-batch.
        """
        assert self.decisions is not None
        while True:
            pieces = [(phase, -(-rows // min(rows, self.parts))) for phase, rows in shapes]
            try:
                precompile(
                    self.model,
                    self.section,
                    self.decisions,
                    pieces,
                    self._bos,
                    evaluation_rows=self.micro_batch,
                )
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                text = str(error).splitlines()[0]
            # Outside the handler, whose traceback keeps the failed pass's tensors alive.
            self._stepper.halve(max(rows for _, rows in shapes), text)
            self.parts = self._stepper.parts
            for note in self._stepper.notes:
                self._say(note)
            self._stepper.notes.clear()

    def run_in_parts(self, parts: int) -> None:
        """Runs each micro-batch in `parts` pieces from here on, until memory runs out again."""
        self.parts = self._stepper.parts = parts

    def take(self, model: GPT) -> None:
        """Continues with another model, not yet placed, and an optimizer without moments."""
        self.model = model.place(self.device)
        self.optimizer = new_optimizer(model, self.section, self.config)
        self.average = WeightAverage(model, self.average.kind, self.average.share)
        self.curriculum = Curriculum.from_recipe(model.config, self.section)
        self._stepper.model, self._stepper.optimizer = model, self.optimizer

    def reach(self, progress: float) -> list[str]:
        """Lets the experiments act that are due at `progress`; returns what changed, in words.

        `step` does this itself. It is called earlier where an evaluation or a checkpoint before
        the step needs the model that the step trains.
        """
        changes = []
        for lever in self.levers:
            before = self.model
            changes += lever.reach(self, progress)
            if self.model is not before:
                self._prepare_model(None)
                self._enter(self.curriculum.at(progress))
                self.divergence.forget()  # the loss of a deeper model jumps and recovers
        return changes

    def _enter(self, phase: Phase) -> None:
        """Puts a phase in force: windows, factors, tying, and the shape of the rows."""
        assert self.rows is not None
        self.phase = self._in_force = phase
        if self.decisions is not None:
            apply(self.model, self.section, self.decisions, phase)
        self.rows.resize(rows_at(phase, self.micro_batch, self.config.seq_len), phase.seq_len)

    def step(self, progress: float, step: int) -> StepReport:
        """Makes step `step` at `progress` (0 to 1) of the training: the only place that does.

        Raises:
            TrainerError: Memory runs out even with one sequence at a time.
        """
        notes = self.reach(progress)
        phase = self.curriculum.at(progress)
        if phase != self._in_force:
            if self._in_force is not None:
                notes.append(difference(self._in_force, phase))
            self._enter(phase)
        rows = self.rows
        assert rows is not None
        rows.at(progress)
        micro_batches = phase.batch_tokens // (rows.batch_size * phase.seq_len)
        multipliers = schedule_at(progress, step, self.schedule)
        lr = multipliers.lr * self.curriculum.lr_scale(phase) * self.divergence.lr_factor
        multipliers = multipliers._replace(lr=lr)

        timer, graphs = DeviceTimer(self.device), compiled_graphs()
        began, waited_s = time.perf_counter(), rows.waited_s
        batches = (rows.next_batch() for _ in range(micro_batches))
        count = None if rows.uneven else phase.batch_tokens
        loss = self._stepper.step(batches, multipliers, count=count, by_row=rows.by_row)
        cuda_s, dt_s = timer.elapsed_s(), time.perf_counter() - began

        diverged, figures = self.divergence.seen(loss), {}
        if not diverged:
            if rows.by_row:
                figures = cast("JudgedRows", rows).learned(self._stepper.row_losses)
            self.average.update(step, progress)
            self.tokens += phase.batch_tokens
            if self.cost is not None:
                self.flops += phase.batch_tokens * self.cost.at(progress).nanochat
        self.parts = self._stepper.parts
        notes += self._stepper.notes
        self._stepper.notes.clear()
        return StepReport(
            step=step,
            progress=progress,
            loss=loss,
            lr=lr,
            tokens=phase.batch_tokens,
            micro_batches=micro_batches * self.parts,
            dt_s=dt_s,
            wait_s=rows.waited_s - waited_s,
            cuda_s=cuda_s,
            graphs=compiled_graphs() - graphs,
            figures=figures,
            notes=tuple(notes),
            diverged=diverged,
        )

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Tensor) -> float:
        """Bits per byte of the weights of this moment, at the finished model's windows."""
        self.model.set_windows(self.model.config.windows)
        value = evaluate_bpb(self.model, batches, token_bytes)
        self.model.set_windows(self.phase.windows)
        return value

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on, except the average (see `checkpoint_dict`)."""
        levers: dict[str, Any] = {}
        for lever in self.levers:
            levers.update(lever.state_dict())
        return {
            **levers,
            "model": self.model.state_dict(),
            "tied": self.model.tied,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.rows.state_dict() if self.rows is not None and self.tokens else None,
            "tokens": self.tokens,
            "flops": self.flops,
            "parts": self.parts,
            "decisions": self.decisions,
            "divergence": self.divergence.state_dict(),
        }

    def checkpoint_dict(self) -> dict[str, Any]:
        """`state_dict` with the average of the weights, which a snapshot leaves out."""
        return {**self.state_dict(), "average": self.average.state_dict()}

    def load_weights(self, saved: Mapping[str, Any]) -> None:
        """Goes back to the model and optimizer of a saved state; rows and counts stay."""
        for lever in self.levers:
            lever.load_state_dict(self, saved)
        self.model.load_state_dict(saved["model"])
        self.model.tied = saved.get("tied", self.model.tied)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.load_state_dict(saved.get("average", NO_AVERAGE))
        self._in_force = None  # the saved model may be of another phase

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resumes from a saved state; the rows are opened with `saved["loader"]`.

        Raises:
            ValueError, KeyError, RuntimeError, TypeError, AttributeError: It does not fit.
        """
        self.load_weights(saved)
        self.divergence.load_state_dict(saved.get("divergence", {}))
        self.tokens, self.flops = saved["tokens"], saved.get("flops", 0.0)
        self.run_in_parts(saved.get("parts", 1))
        self.decisions = saved.get("decisions")


def new_optimizer(model: GPT, section: Mapping[str, Any], finished: ModelConfig) -> MuonAdamW:
    """The optimizer that `[pretrain]` asks for; its update is compiled on a GPU if asked.

    Args:
        finished: The model that training ends with; `model` may still be a smaller one.
    """
    return MuonAdamW(
        parameter_groups(model, section, finished=finished),
        compiled=section["compile_optimizer"] and model.device.type == "cuda",
    )


def micro_batch_note(state: TrainState) -> str | None:
    """Why the micro-batch is not the recipe's, for the log; None if it is or there is no GPU."""
    section, wanted = state.section, state.section["device_batch_size"]
    limit = memory_limit_bytes(state.device, section["vram_cap_gib"])
    if limit is None or state.micro_batch == wanted:
        return None
    planned = sum(plan_vram(state.config, state.micro_batch, section).values())
    return (
        f"micro-batches of {state.micro_batch} sequences instead of {wanted or 'a stated number'}:"
        f" planned {planned / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    )


def difference(before: Phase, after: Phase) -> str:
    """What changes from one phase to the next, for the log."""
    return ", ".join(
        f"{name} {old} -> {new}"
        for name, old, new in zip(Phase._fields, before, after, strict=True)
        if old != new
    )
