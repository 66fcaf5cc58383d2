"""The supervisor: owns the clock, the log, the telemetry and the result. It runs no trainer code.

The flow of one run, in order:

1. open the log: header (what runs, by digest) and inputs (what is read, by digest)
2. measure the machine
3. `run_start`; from here the clock never pauses
4. each stage in a fresh child process; its outputs are hashed when it ends
5. `run_stop`
6. measure the machine again, close the log
7. build the result from the log, sign it

However a run ends, steps 5 to 7 happen. After a kill none of them could: then `resume` goes on in
the same log where it stopped, and the time in between counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
from kit.contract import (
    CONTRACT,
    INPUTS,
    Redactor,
    StageReport,
    build_request,
    deadline_ns,
    machine_names,
    stage_command,
    stage_inputs,
    stage_outputs,
)
from kit.errors import KitError, PrerequisiteError
from kit.events import (
    Artifacts,
    Data,
    End,
    Environment,
    Event,
    Fingerprint,
    Header,
    Image,
    Inputs,
    KitVersion,
    ListedFile,
    RecipeName,
    RunStart,
    RunStop,
    Seed,
    SignerKey,
    Source,
    StageStart,
    StageStop,
    TelemetrySummary,
)
from kit.files import DISK_FULL, write_json
from kit.hardware import fingerprint
from kit.image import describe_image
from kit.prepare.inputs import describe
from kit.result import build_result
from kit.run.code import code_digest
from kit.run.environment import describe_environment
from kit.run.finished import keep_earlier_result, refuse_complete
from kit.run.log import EventLog
from kit.run.outputs import list_outputs
from kit.run.plan import RunPlan, compile_caches, save_plan, stage_environment
from kit.run.process import NotStarted, StageOutcome, StopFlag, run_stage
from kit.run.separation import trainer_user
from kit.run.telemetry import TelemetrySampler
from kit.run_log import LOG_KIND, RunLog, StageLog
from kit.trust.chain import read_chain
from kit.trust.digest import manifest_digest, tree_digest
from kit.trust.identities import claimed_identities
from kit.trust.keys import Signer
from kit.trust.sign import sign_document
from kit.typed import from_json

Observe = Callable[[Event[Data]], None]
# Space that a full disk cannot take, for the files of the end, when no stage runs; the log keeps
# its own.
_RESERVE = ".reserve"
_RESERVE_BYTES = 4 * 2**20
_AFTER_ERROR = "`n4090-kit run --resume` tries again; report it if the error stays."
_FULL_BYTES = 2**20  # a disk with less left than this is full


def supervise(plan: RunPlan, signer: Signer, *, observe: Observe, stop: StopFlag) -> Path:
    """Runs or continues a run to a signed result.

    Args:
        observe: Called with every event as it is stored.
        stop: Set from outside to end the run cleanly.

    Returns:
        The path of result.json, whatever the run's status.

    Raises:
        KitError: The run could not begin, its log could not be kept, or the run is complete.
    """
    run = plan.run
    refuse_complete(run)
    resuming = (run / "events.jsonl").exists()
    run.mkdir(parents=True, exist_ok=True)
    if not resuming:
        save_plan(plan)
    _reserve_space(run / _RESERVE)
    earlier = _read_log(run) if resuming else None
    if earlier and earlier.header.signer.public_key != signer.public_key:
        raise PrerequisiteError(
            "this run was begun with another signing key",
            hint="Resume with the same --key; a result has one submitter.",
            begun_with=earlier.header.signer.public_key,
            given=signer.public_key,
        )
    if plan.group and plan.group.registration["public_key"] != signer.public_key:
        raise PrerequisiteError(
            "the group was registered with another signing key",
            hint="Run with the --key that registered it.",
            registered_with=plan.group.registration["public_key"],
            given=signer.public_key,
        )
    complete = _complete_stop(earlier)
    if earlier and complete and isinstance(earlier.last.data, End):
        return _write_result(plan, signer)  # killed after the log's last line, before the result
    log = EventLog(run, observe)
    telemetry = TelemetrySampler(run / "telemetry.jsonl", clock=log.now_ns)
    try:
        if earlier is None:
            _open_log(log, plan, signer)
        else:
            keep_earlier_result(run)
            log.append(log.continue_after(earlier.last))
        telemetry.start()
        status = complete or _run_stages(log, plan, earlier, stop)
        (run / _RESERVE).unlink(missing_ok=True)
        if complete is None:
            log.append(status)
        # Before the machine is measured again: energy is the run's alone.
        log.append(from_json(TelemetrySummary, telemetry.stop()))
        # Asked to stop, a run has seconds before it is killed: `docker stop` waits ten.
        _measure(log, plan, "after", probes=status.status != "stopped")
        log.append(End(_environment()))
    finally:
        telemetry.stop()
        log.close()
    return _write_result(plan, signer)


def _read_log(run: Path) -> RunLog:
    chain = read_chain(run / "events.jsonl", LOG_KIND)
    if not chain.records:
        raise PrerequisiteError(f"{run.name}: the log holds no event", hint="Start a new run.")
    return RunLog.from_chain(chain)


def _complete_stop(earlier: RunLog | None) -> RunStop | None:
    """The `run_stop` of a run that was complete when its supervisor was killed."""
    stop = earlier.run_stop if earlier else None
    return stop.data if stop and stop.data.status == "complete" else None


def _environment() -> Environment:
    return from_json(Environment, describe_environment())


def _write_result(plan: RunPlan, signer: Signer) -> Path:
    """Builds RUN/result.json from the log and signs it; an earlier one is kept under its digest."""
    path = plan.run / "result.json"
    result = build_result(plan.run)
    keep_earlier_result(plan.run)
    write_json(path, sign_document(result.to_json(), signer))
    if result.claims.status == "complete":
        shutil.rmtree(plan.cache, ignore_errors=True)
        (plan.run / _RESERVE).unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def stop_on_signals(stop: StopFlag) -> Iterator[None]:
    """Lets Ctrl-C, SIGTERM and a closed terminal end the run cleanly while inside."""

    def hang_up(number: int, _frame: Any) -> None:
        if not stop:  # both shell and kernel send it; twice would not wait for a checkpoint
            stop.request(number)

    previous = {
        number: signal.signal(number, stop.request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else `nohup` wants the run to go on
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_log(log: EventLog, plan: RunPlan, signer: Signer) -> None:
    recipe = plan.recipe
    log.append(
        Header(
            log=LOG_KIND,
            contract=CONTRACT,
            run=plan.run.name,
            kit=KitVersion(kit.__version__, code_digest()),
            image=from_json(Image, describe_image()),
            recipe=RecipeName(recipe.name, recipe.track, recipe.digest),
            seed=Seed(plan.seed, plan.seed_source),
            signer=SignerKey(
                signer.public_key,
                signer.created,
                claimed_identities(plan.work / "keys", signer.public_key),
            ),
            group=plan.group,
            price=plan.price,
            software=software(),
            device=plan.device,
            threads=plan.threads,
            boot=log.origin.boot,
            environment=_environment(),
        )
    )
    listed = describe(plan.inputs, plan.work / "cache" / "digests.json")
    log.append(from_json(Inputs, listed))
    _measure(log, plan, "before")


def _run_stages(log: EventLog, plan: RunPlan, earlier: RunLog | None, stop: StopFlag) -> RunStop:
    """Steps 3 and 4; returns how the run ended."""
    start: Event[Any] | None = earlier.run_start if earlier else None
    if start is None:
        start = log.append(RunStart(tree_digest(compile_caches(plan.run))))
    start_ns = log.boottime_at(start.t_ns)
    for stage in plan.recipe.stages:
        before = earlier.stages.get(stage) if earlier else None
        if before and before.complete:
            continue
        if stop:
            return RunStop("stopped", "stopped", "stopped on request", stage)
        outcome = _run_one_stage(log, plan, before, stop, stage, start_ns)
        if outcome.status != "complete":
            return RunStop(
                outcome.status, outcome.reason, outcome.message, stage, outcome.hint or None
            )
    return RunStop("complete")


def _run_one_stage(
    log: EventLog,
    plan: RunPlan,
    before: StageLog | None,
    stop: StopFlag,
    stage: str,
    start_ns: int,
) -> StageOutcome:
    recipe, run = plan.recipe, plan.run
    before = before or StageLog(stage)
    attempt = len(before.starts)
    command = stage_command(stage, recipe, sys.executable)
    end_ns = deadline_ns(start_ns, recipe.budget_s)
    began = log.append(StageStart(stage, attempt, tuple(_public(command, plan))))
    stage_start_ns = log.boottime_at(before.starts[0].t_ns if before.starts else began.t_ns)
    stage_s = recipe.facts.stage_s.get(stage)
    if stage_s:
        end_ns = min(end_ns, deadline_ns(stage_start_ns, stage_s))
    request = build_request(
        stage,
        recipe=recipe,
        run_id=run.name,
        run=run,
        cache=plan.cache,
        inputs=stage_inputs(stage, plan.inputs.as_dict()),
        seed=plan.seed,
        attempt=attempt,
        resume_step=before.resume_step,
        device=plan.device,
        threads=plan.threads,
        clock={
            "start_ns": start_ns,
            "stage_start_ns": stage_start_ns,
            "deadline_ns": end_ns,
            "budget_s": recipe.budget_s,
        },
    )
    request_path = run / f"request-{stage}.json"
    user = trainer_user()
    redact = _redactor(plan)
    source: Source = "eval" if stage == "core" else "trainer"

    def store(report: StageReport) -> None:
        log.append(report.data, source, report.at)

    try:
        write_json(request_path, request)
        if user:
            user.give(run / stage_outputs(stage), plan.cache, compile_caches(run))
        outcome = run_stage(
            [*command, str(request_path)],
            environment=stage_environment(plan.threads, run),
            output=run / "logs" / f"{stage}.txt",
            deadline_ns=end_ns,
            grace_s=recipe.document["grace_s"],
            redact=redact,
            stop=stop,
            on_report=store,
            user=user,
        )
    except NotStarted as error:
        message = str(redact(error.message))
        outcome = StageOutcome("failed", 127, "no_trainer", message, error.hint)
    except Exception as error:
        # Whatever it is, the log is whole and the run has to end in a signed result.
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            outcome = _full(
                StageOutcome("failed", 127, "disk_full", f"stage {stage} did not start")
            )
        else:
            outcome = _unexpected(stage, error, redact)
    if outcome.reason == "crashed" and shutil.disk_usage(run).free < _FULL_BYTES:
        outcome = _full(outcome)
    if outcome.status == "complete":
        if user:
            user.take(run / stage_outputs(stage))
        outcome = _store_artifacts(log, plan, stage, outcome)
    looks = outcome.socket_looks or None
    log.append(
        StageStop(
            stage,
            attempt,
            outcome.status,
            outcome.reason,
            outcome.exit_code,
            outcome.accepted,
            outcome.dropped,
            print_left_out_bytes=outcome.print_left_out_bytes or None,
            socket_looks=looks,
            remote_sockets=outcome.remote_sockets if looks else None,
        )
    )
    return outcome


def _unexpected(stage: str, error: Exception, redact: Redactor) -> StageOutcome:
    told = error.message if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
    hint = (error.hint if isinstance(error, KitError) else None) or _AFTER_ERROR
    message = str(redact(f"the supervisor could not continue stage {stage}: {told}"))
    return StageOutcome("failed", 127, "supervisor_error", message, hint)


def _full(outcome: StageOutcome) -> StageOutcome:
    return replace(
        outcome,
        reason="disk_full",
        message=f"the work folder's disk is full: {outcome.message}",
        hint="Free some space, then `n4090-kit run --resume`; the last checkpoint is kept.",
    )


def _store_artifacts(
    log: EventLog, plan: RunPlan, stage: str, outcome: StageOutcome
) -> StageOutcome:
    """Hashes what the stage left; outputs that no result could state make it a failed stage."""
    folder = plan.run / stage_outputs(stage)
    try:
        files = list_outputs(stage, folder)
    except KitError as error:
        message = str(_redactor(plan)(f"outputs of {stage}: {error.message}"))
        return replace(
            outcome, status="failed", reason="bad_output", message=message, hint=error.hint
        )
    listing = tuple(ListedFile(file.path, file.bytes, file.digest) for file in files)
    log.append(Artifacts(stage, stage_outputs(stage), manifest_digest(files), listing))
    return outcome


def _reserve_space(path: Path) -> None:
    if path.exists():
        return
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in DISK_FULL:
            raise PrerequisiteError(
                "the work folder's disk is full",
                hint="Free some space, or name another with --work.",
            ) from error
        raise


def _measure(log: EventLog, plan: RunPlan, when: str, *, probes: bool = True) -> None:
    """Fingerprint of the machine: whole in a file, its digest in the log."""
    measured = fingerprint(probes=plan.probe and probes, device=plan.device)
    path = plan.run / "fingerprint.json"
    both = json.loads(path.read_text()) if path.is_file() else {}
    both[when] = measured
    write_json(path, both)
    log.append(Fingerprint(when, measured))


def software() -> dict[str, str | None]:
    """Versions of what a result depends on, read without importing any of it."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "safetensors", "tiktoken", "rustbpe", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _public(command: list[str], plan: RunPlan) -> list[str]:
    redact = _redactor(plan)
    shown = ["python" if part == sys.executable else part for part in command]
    redacted = redact(shown)
    assert isinstance(redacted, list)
    return redacted


def _redactor(plan: RunPlan) -> Redactor:
    inputs = plan.inputs.as_dict()
    return Redactor(
        {
            "run": plan.run.resolve(),
            "work": plan.work.resolve(),
            "recipe_dir": plan.recipe.folder,
            **{name: inputs[name] for name in INPUTS},
            "home": Path.home(),
            "python": Path(sys.prefix),
        },
        machine_names(),
    )
