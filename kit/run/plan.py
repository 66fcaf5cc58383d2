"""What a run will do on this machine: recipe, inputs, seed, device. Made off the clock.

The plan is kept in the run folder, so that `resume` does what was begun. It names places of this
machine and is never submitted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kit.contract import Redactor, build_request, trainer_command
from kit.errors import PrerequisiteError, SchemaError
from kit.events import GroupRun, Price
from kit.files import write_bytes, write_json
from kit.prepare.fetch import Fetch, inputs_for_run
from kit.prepare.inputs import Inputs, hold_to_lock, prepared_folder, refuse_given
from kit.recipe import Recipe, parse_recipe, read_recipe_text
from kit.run.group import Group
from kit.run.process import StopFlag, run_stage
from kit.run.separation import trainer_user
from kit.timing import boottime_ns
from kit.typed import to_json

_PLAN = "plan.json"
_PREPARE_S = 900
# The variables of this process that a stage gets. The others (tokens, agents, proxies, names of
# host and user) stays here.
_PASSED = {
    *("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_CONF", "CC", "CXX"),
    *("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"),
}
_PASSED_PREFIXES = (
    *("LC_", "CUDA_", "NVIDIA_", "PYTORCH_", "TORCH", "TRITON_", "CUBLAS", "CUDNN_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "MALLOC_"),
)


@dataclass(frozen=True)
class RunPlan:
    """Everything a run needs besides its recipe; all of it local to this machine."""

    recipe: Recipe
    work: Path
    run: Path
    inputs: Inputs
    seed: int
    seed_source: str
    device: str
    threads: int
    probe: bool = True
    group: GroupRun | None = None
    price: Price | None = None

    @property
    def cache(self) -> Path:
        """Where stages keep what they can make again, tokens above all.

        A folder of the run's own: what an earlier run has worked out must not save time on this
        clock.
        """
        return self.work / "cache" / self.run.name


def plan_run(
    recipe: Recipe,
    work: Path,
    given: Mapping[str, Path | None],
    *,
    device: str | None = None,
    seed: int | None = None,
    probe: bool = True,
    fetch: Fetch | None = None,
    group: Group | None = None,
    price: Price | None = None,
) -> RunPlan:
    """Decides what a new run will do; prepares made data. Nothing is on the clock yet.

    Args:
        fetch: Brings inputs that are missing; None: they are an error.
        group: Makes this the group's next run, with the seed that its challenge gives.

    Raises:
        PrerequisiteError: Something the run needs is missing.
    """
    refuse_given(recipe, given)
    threads = recipe.document["threads"] or len(os.sched_getaffinity(0))
    if recipe.section("data")["kind"] == "stories" and given.get("data") is None:
        make_stories(recipe, work, threads)
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = work / "runs" / f"{recipe.name}-{started}-{secrets.token_hex(2)}"
    inputs = inputs_for_run(recipe, work, given, fetch)
    _check_trainer_may_enter(inputs)
    hold_to_lock(recipe, inputs, work / "cache" / "digests.json")
    member = None
    if group is not None:
        member = GroupRun(group.document, _claim(group, recipe, run.name, seed))
        value, source = group.seed(member.index), "challenge"
    elif seed is not None:
        value, source = seed, "command line"
    elif recipe.section("seed")["policy"] == "random":
        value, source = secrets.randbits(31), "random"
    else:
        value, source = recipe.section("seed")["value"], "recipe"
    return RunPlan(
        recipe=recipe,
        work=work,
        run=run,
        inputs=inputs,
        seed=value,
        seed_source=source,
        device=device or recipe.document["device"],
        threads=threads,
        probe=probe,
        group=member,
        price=price,
    )


def _check_trainer_may_enter(inputs: Inputs) -> None:
    user = trainer_user()
    folders = [path for path in inputs.as_dict().values() if path]
    barred = {str(path) for folder in folders if user and (path := user.barred_from(folder))}
    if user and barred:
        raise PrerequisiteError(
            f"the trainer, who is user `{user.name}`, may not enter {', '.join(sorted(barred))}",
            hint="`chmod o+x` what is mounted there.",
        )


def _claim(group: Group, recipe: Recipe, run: str, seed: int | None) -> int:
    if group.document["recipe"]["digest"] != recipe.digest:
        raise PrerequisiteError(
            f"group {group.id} was registered for a different recipe",
            hint="Run the recipe file that was registered, or register a new group.",
            registered=group.document["recipe"]["digest"],
            given=recipe.digest,
        )
    if seed is not None:
        raise PrerequisiteError(
            "a registered run takes its seed from its group", hint="Leave --seed out."
        )
    return group.claim(run)


def load_plan(run: Path) -> RunPlan:
    """The plan of a run that was started here before.

    Raises:
        PrerequisiteError: This folder holds no run of this machine.
        SchemaError: Its plan or recipe is damaged.
    """
    try:
        return _plan_of(run, json.loads((run / _PLAN).read_bytes()))
    except OSError as error:
        raise PrerequisiteError(
            f"{run} holds no run that can be resumed ({error.strerror})",
            hint="`--resume` takes a folder under WORK/runs, on the machine that began it.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SchemaError(
            f"{run / _PLAN} is damaged ({type(error).__name__}: {error})",
            hint="The run cannot be resumed without it; start a new one.",
        ) from error


def _plan_of(run: Path, plan: dict[str, Any]) -> RunPlan:
    text = read_recipe_text(run / "recipe.toml")
    return RunPlan(
        recipe=parse_recipe(
            text, folder=Path(plan["recipe_dir"]), label="recipe.toml", run_code=True
        ),
        work=Path(plan["work"]),
        run=run,
        inputs=Inputs(
            **{key: Path(path) if path else None for key, path in plan["inputs"].items()}
        ),
        seed=plan["seed"],
        seed_source=plan["seed_source"],
        device=plan["device"],
        threads=plan["threads"],
        probe=plan["probe"],
        group=GroupRun(**plan["group"]) if plan.get("group") else None,
        price=Price(**plan["price"]) if plan.get("price") else None,
    )


def make_stories(recipe: Recipe, work: Path, threads: int) -> None:
    """Has the trainer make the recipe's own corpus, off the clock, unless it is there.

    Raises:
        PrerequisiteError: The trainer could not make it.
    """
    out = prepared_folder(work, recipe)
    if (out / "pretrain").is_dir():
        return
    scratch = work / "cache" / "prepare"
    scratch.mkdir(parents=True, exist_ok=True)
    made = scratch / "stories"
    user = trainer_user()
    if user:
        user.give(scratch, compile_caches(scratch))
    now = boottime_ns()
    end = now + _PREPARE_S * 10**9
    request = build_request(
        "prepare",
        recipe=recipe,
        run_id="prepare",
        run=scratch,
        cache=work / "cache",
        inputs={},
        seed=recipe.section("data")["stories_seed"],
        attempt=0,
        device="cpu",
        threads=threads,
        clock={"start_ns": now, "stage_start_ns": now, "deadline_ns": end, "budget_s": _PREPARE_S},
        out=made,
    )
    path = scratch / "request-prepare.json"
    write_json(path, request)
    outcome = run_stage(
        [*trainer_command(recipe, sys.executable), str(path)],
        environment=stage_environment(threads, scratch),
        output=scratch / "prepare.txt",
        deadline_ns=end,
        grace_s=10,
        redact=Redactor({}),
        stop=StopFlag(),
        on_report=lambda report: None,
        user=user,
    )
    if outcome.status != "complete":
        raise PrerequisiteError(
            f"the corpus of recipe `{recipe.name}` could not be made: {outcome.message}",
            hint=outcome.hint,
        )
    if user:
        user.take(made)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    made.replace(out)


def save_plan(plan: RunPlan) -> None:
    """Makes the run folder and keeps the plan in it."""
    write_bytes(plan.run / "recipe.toml", plan.recipe.text.encode())
    write_json(
        plan.run / _PLAN,
        {
            "work": str(plan.work),
            "recipe_dir": str(plan.recipe.folder),
            "inputs": {
                key: str(path) if path else None for key, path in plan.inputs.as_dict().items()
            },
            "seed": plan.seed,
            "seed_source": plan.seed_source,
            "device": plan.device,
            "threads": plan.threads,
            "probe": plan.probe,
            "group": plan.group and to_json(plan.group),
            "price": plan.price and to_json(plan.price),
        },
    )
    (plan.run / _PLAN).chmod(0o600)  # a trainer of another user's need not read it


def _may_pass(name: str) -> bool:
    secret = name.endswith(("TOKEN", "KEY", "SECRET", "PASSWORD"))
    return name in _PASSED or (name.startswith(_PASSED_PREFIXES) and not secret)


def compile_caches(run: Path) -> Path:
    folder = run / "compile-caches"
    folder.mkdir(exist_ok=True)
    return folder


def stage_environment(threads: int, run: Path) -> dict[str, str]:
    """A stage's environment: what it needs of this process's, and what must not vary pinned.

    Its home is the run's own folder of compile caches: what an earlier run left in a home folder
    must not save time on this clock.
    """
    caches = compile_caches(run)
    return {
        **{name: value for name, value in os.environ.items() if _may_pass(name)},
        "HOME": str(caches),
        "USER": "trainer",
        "LOGNAME": "trainer",
        **({"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {}),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # libgomp's threads spin for milliseconds at each barrier. On a machine that also does
        # something else the wait is for a thread that has no core: six times slower, measured.
        "GOMP_SPINCOUNT": "10000",
        # glibc would give memory back and ask for it anew within a step, each page zeroed again.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "TOKENIZERS_PARALLELISM": "true",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
