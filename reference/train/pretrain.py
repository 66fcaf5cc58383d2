"""Stage `pretrain`: from random weights to a base model.

The horizon is either a number of steps (`num_steps`) or a stretch of time (`hours`). The schedule
follows the elapsed share of it. By steps a run is a function of recipe and seed alone, so an
interrupted one, resumed, has the same losses to the bit on a CPU. By time every card finishes when
the budget says so; each step's progress is logged, so that a replay can follow it.

What changes on the way (sequence length, windows, batch, precision) is
`reference.train.curriculum`; the model itself where it grows,
`reference.experiments.growth.growth`; what is decided by measuring before the first step,
`reference.kernels.autotune`.

References:
    nanochat's training script is the starting point: https://github.com/karpathy/nanochat
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from reference.errors import TrainerError
from reference.events import Events
from reference.experiments.growth.growth import Trainee
from reference.kernels.autotune import apply, decide, precompile
from reference.model.cost import RunCost, count_flops, count_parameters, estimate, peak_flops
from reference.model.gpt import GPT, ModelConfig
from reference.optim.optimizer import MuonAdamW
from reference.optim.schedule import ScheduleConfig, schedule_at
from reference.request import Request
from reference.rows.documents import Documents, token_folder
from reference.rows.mixing import MixedLoader
from reference.rows.packing import validation_batches
from reference.rows.training_rows import open_training_rows
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import (
    BackgroundSaver,
    Saved,
    clear_states,
    drop_states_after,
    is_complete,
    load_latest_state,
    save_model,
)
from reference.train.curriculum import Phase, rows_at
from reference.train.device import (
    DeviceTimer,
    make_deterministic,
    memory_limit_bytes,
    peak_memory_bytes,
    set_up_device,
)
from reference.train.divergence import Divergence
from reference.train.memory import fitting_micro_batch, plan_vram
from reference.train.metrics import evaluate_bpb
from reference.train.snapshot import save_snapshot
from reference.train.step import Stepper, compiled_graphs, maybe_compile

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
    if section["deterministic"]:
        make_deterministic()
    device = set_up_device(request)
    tokenizer = Tokenizer.load(request.path("tokenizer"))
    cache = token_folder(request.path("cache"), request.run_id)
    validation = Documents.open(cache, "validation", tokenizer)

    config = ModelConfig.from_recipe(recipe["model"], tokenizer.vocab_size)
    T = config.seq_len
    horizon = Horizon(request)
    trainee = Trainee(
        config,
        section,
        seed=request.seed,
        device=device,
        tokens=horizon.tokens,
        compiled=section["compile_optimizer"] and device.type == "cuda",
    )
    divergence = Divergence(section["divergence_nats"], section["rollbacks"])
    schedule = ScheduleConfig.from_recipe(section)
    cost = RunCost.from_recipe(config, section)
    report_model(events, config, device, trainee.initial_weights)

    def say(text: str, **figures: Any) -> None:
        events.emit("note", text=text, **figures)

    state = latest_state(request)
    if state["step"]:
        trainee.load_state_dict(state)
    divergence.load_state_dict(state.get("divergence", {}))
    first_step, tokens_seen, flops = state["step"], state["tokens"], state.get("flops", 0.0)
    micro_batch = choose_micro_batch(config, section, device, say)
    bos = tokenizer.bos_id if section["document_mask"] else None

    def prepare(known: dict[str, Any] | None = None) -> dict[str, Any]:
        """The decisions for the model in training, which is compiled where that is wanted."""
        maybe_compile(trainee.model, section["compile"], device, tokens=horizon.tokens)
        decisions = decide(trainee.model, section, micro_batch=micro_batch, say=say, known=known)
        if device.type == "cuda" and section["compile"] != "off":
            began, phases = time.perf_counter(), trainee.curriculum.phases
            shapes = [(phase, rows_at(phase, micro_batch, T)) for phase in phases]
            precompile(trainee.model, section, decisions, shapes[::-1], bos)
            say(
                f"{compiled_graphs()} graphs compiled beforehand for {len(shapes)} phase(s) of the "
                "run",
                compile_s=round(time.perf_counter() - began, 3),
            )
        return decisions

    decisions = prepare(state.get("decisions"))
    phase = trainee.curriculum.at(horizon.progress(first_step))
    loader = open_training_rows(
        request,
        tokenizer,
        cache,
        rows=rows_at(phase, micro_batch, T),
        seq_len=phase.seq_len,
        device=device,
        prefetch=section["prefetch"],
        state=state["loader"],
        say=say,
    )
    stepper = Stepper(trainee.model, trainee.optimizer, parts=state["parts"])
    saver = BackgroundSaver(out, background=section["background_checkpoints"])
    token_bytes = torch.from_numpy(tokenizer.token_bytes()).to(device)

    def evaluate(step: int, name: str = "val_bpb", *, between: bool = False) -> None:
        began = time.perf_counter()
        # Always the finished model's reach: what a checkpoint of this moment would compute.
        model = trainee.model
        model.set_windows(model.config.windows)
        tokens = (between and section["eval_tokens_between"]) or section["eval_tokens"]
        batches = validation_batches(validation, micro_batch, T, max_tokens=tokens, device=device)
        value = evaluate_bpb(model, batches, token_bytes)
        model.set_windows(phase.windows)
        elapsed_s = time.perf_counter() - began
        horizon.reserve(elapsed_s * section["eval_tokens"] / tokens)
        events.emit("eval", name=name, step=step, value=value, elapsed_s=elapsed_s)

    def whole_state(step: int) -> dict[str, Any]:
        return {
            **trainee.state_dict(),
            "loader": loader.state_dict() if step else None,
            "tokens": tokens_seen,
            "flops": flops,
            "parts": stepper.parts,
            "decisions": decisions,
            "divergence": divergence.state_dict(),
        }

    def checkpoint(step: int, *, wait: bool = False) -> None:
        whole = {**whole_state(step), "average": trainee.average.state_dict()}
        finished = saver.save(step, whole)
        report_saved(events, finished + (saver.wait() if wait else []))

    step, begun, graphs = first_step, False, compiled_graphs()
    try:
        while True:
            progress = horizon.progress(step)
            done = progress >= 1.0
            grew = trainee.reach(1.0 if done else progress)
            if grew:
                say(f"step {step}: the model grows: {', '.join(grew)}")
                decisions = prepare()
                stepper.model, stepper.optimizer = trainee.model, trainee.optimizer
                phase = trainee.curriculum.at(progress)
                apply(trainee.model, section, decisions, phase)
                loader.resize(rows_at(phase, micro_batch, T), phase.seq_len)
                divergence.forget()  # the loss of a deeper model jumps and comes back
                if begun:
                    gc.unfreeze()  # the smaller model is among what was set aside
                    gc.collect()
                    gc.freeze()
            if not done and trainee.teach(progress, decisions["attention"]):
                say(f"step {step}: the weights of this moment are the teacher from here on")
            if done or step == 0 or (section["eval_every"] and step % section["eval_every"] == 0):
                if done and trainee.average.exists:  # the model of this run is the average
                    evaluate(step, "val_bpb_weights")
                    trainee.average.put()
                evaluate(step, between=step > 0 and not done)
                if begun:
                    gc.collect()
                graphs = compiled_graphs()
            if done:
                break
            if stop_requested():
                checkpoint(step, wait=True)
                raise Stopped
            if (
                step > first_step
                and section["checkpoint_every"]
                and step % section["checkpoint_every"] == 0
            ):
                checkpoint(step)
            if step and section["snapshot_every"] and step % section["snapshot_every"] == 0:
                save_snapshot(out, step, whole_state(step))

            before, phase = phase, trainee.curriculum.at(progress)
            if phase != before or not begun:
                if begun:
                    say(f"step {step}: {difference(before, phase)}")
                apply(trainee.model, section, decisions, phase)
                loader.resize(rows_at(phase, micro_batch, T), phase.seq_len)
            loader.at(progress)
            step_tokens = phase.batch_tokens
            micro_batches = step_tokens // (loader.batch_size * phase.seq_len)
            multipliers = schedule_at(progress, step, schedule)
            lr = multipliers.lr * trainee.curriculum.lr_scale(phase) * divergence.lr_factor
            multipliers = multipliers._replace(lr=lr)
            timer = DeviceTimer(device)
            began, waited_s = time.perf_counter(), loader.waited_s
            batches = (loader.next_batch() for _ in range(micro_batches))
            counted = None if loader.uneven else step_tokens
            loss = stepper.step(batches, multipliers, count=counted, by_row=loader.by_row)
            cuda_s = timer.elapsed_s()
            elapsed_s = time.perf_counter() - began
            if divergence.seen(loss):
                report_saved(events, saver.wait())
                begins_again = divergence.may_go_back() and load_latest_state(out)
                if not begins_again:
                    raise TrainerError(
                        "nan_loss",
                        f"the loss is {loss} at step {step}",
                        "Lower the learning rates or warm up longer; the last checkpoint is kept.",
                    )
                trainee.load_state_dict(begins_again[1])
                stepper.model, stepper.optimizer = trainee.model, trainee.optimizer
                divergence.went_back()
                say(
                    f"step {step}: loss {loss}; the weights are those of step {begins_again[0]} "
                    f"again, the learning rate is {divergence.lr_factor:g} of the schedule's",
                    rolled_back_step=step,
                )
                continue  # the step is done anew, with other data
            of_rows = loader.learned(stepper.row_losses) if loader.by_row else {}
            trainee.average.update(step, progress)
            tokens_seen += step_tokens
            flops += step_tokens * cost.at(progress).nanochat
            events.emit(
                "step",
                step=step,
                tokens=tokens_seen,
                loss=loss,
                lr=multipliers.lr,
                progress=progress,
                micro_batches=micro_batches * stepper.parts,
                step_tokens=step_tokens,
                **({"flops": flops} if cost.varies else {}),
                dt_s=round(elapsed_s, 6),
                wait_s=round(loader.waited_s - waited_s, 6),
                cuda_s=cuda_s,
                **of_rows,
            )
            if begun and compiled_graphs() > graphs:
                say(f"step {step} compiled {compiled_graphs() - graphs} graph(s) on the way")
            graphs = compiled_graphs()
            report_saved(events, saver.finished())
            for text in stepper.notes:
                say(f"step {step}: {text}")
            stepper.notes.clear()
            if not begun:
                # From here on garbage is collected at evaluations, not in the middle of a step.
                gc.collect()
                gc.freeze()
                gc.disable()
                begun = True
            step += 1
            if step % MEMORY_EVERY == 0:
                events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))
        report_saved(events, saver.wait())
    finally:
        gc.enable()
        gc.unfreeze()
        loader.close()
        saver.close()

    model = trainee.model
    if model.tied and not config.tied:
        model.untie()
    events.emit("memory", step=step, peak_bytes=peak_memory_bytes(device))
    say(
        f"{loader.crop_rate:.1%} of the tokens read were cropped, {loader.epoch + 1} epoch(s) begun"
    )
    if isinstance(loader, MixedLoader):
        say(loader.summary)
    save_model(out, model, config, request.path("tokenizer"))
    clear_states(out)


def choose_micro_batch(
    config: ModelConfig, section: dict[str, Any], device: torch.device, say: Callable[[str], None]
) -> int:
    """Sequences of a micro-batch, by the memory plan; says where that is not the recipe's."""
    limit = memory_limit_bytes(device, section["vram_cap_gib"])
    micro_batch = fitting_micro_batch(config, section, limit)
    wanted = section["device_batch_size"]
    if limit is not None and micro_batch != wanted:
        planned = sum(plan_vram(config, micro_batch, section).values())
        say(
            f"micro-batches of {micro_batch} sequences instead of {wanted or 'a stated number'}:"
            f" planned {planned / 2**30:.1f} of {limit / 2**30:.1f} GiB"
        )
    return micro_batch


def difference(before: Phase, after: Phase) -> str:
    """What changes from one phase to the next, for the log."""
    return ", ".join(
        f"{name} {old} -> {new}"
        for name, old, new in zip(Phase._fields, before, after, strict=True)
        if old != new
    )


def report_saved(events: Events, finished: list[Saved]) -> None:
    """Tells the supervisor which states are on the disk."""
    for saved in finished:
        events.emit(
            "checkpoint",
            step=saved.step,
            bytes=saved.bytes,
            elapsed_s=saved.elapsed_s,
            stalled_s=saved.stalled_s,
        )


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
    events: Events, config: ModelConfig, device: torch.device, initial_weights: str | None = None
) -> None:
    """Tells the supervisor what is trained, from which weights, and what a token of it costs.

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


def restore(
    request: Request,
    model: GPT,
    optimizer: MuonAdamW,
) -> dict[str, Any]:
    """Puts the latest state in place; returns the rest of it: step, loader, tokens, parts, …"""
    state = latest_state(request)
    if state["step"]:
        model.load_state_dict(state["model"])
        model.tied = state.get("tied", model.tied)
        optimizer.load_state_dict(state["optimizer"])
    return state


def latest_state(request: Request) -> dict[str, Any]:
    """Where the interrupted attempt can be gone on from, or the state before the first step."""
    out = request.path("out")
    latest = load_latest_state(out, request.resume_step) if request.attempt else None
    step, state = latest or (0, {"loader": None, "tokens": 0})
    drop_states_after(out, step)
    return {"parts": 1, **state, "step": step}
