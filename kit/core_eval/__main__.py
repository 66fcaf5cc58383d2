"""The `core` stage: `python -m kit.core_eval REQUEST.json`, started by the supervisor.

Evaluates the pretrained checkpoint as the recipe's `[core]` section says and leaves `core.json`.
Killed and started again it goes on after the last scored batch. Exit 0 whole, 3 stopped, 1 failed
(after an `error` event).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from kit.contract import CONTRACT, EVENTS_FD_VARIABLE, STOPPED_EXIT, remaining_s
from kit.errors import KitError
from kit.files import write_bytes

JOURNAL = "core.journal.jsonl"
_GRACE_S = 3.0  # a batch that takes longer is given up after a stop signal; the journal is whole


def main(arguments: list[str] | None = None) -> int:
    """Does the stage of the request file; returns the exit code."""
    [path] = sys.argv[1:] if arguments is None else arguments
    fd = os.environ.get(EVENTS_FD_VARIABLE)
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()
        timer = threading.Timer(_GRACE_S, os._exit, [STOPPED_EXIT])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, on_signal)
    pipe = contextlib.nullcontext() if fd is None else os.fdopen(int(fd), "w", buffering=1)
    with pipe as stream:
        return _report_errors(Path(path), Events(stream), stop)


def _report_errors(path: Path, events: Events, stop: threading.Event) -> int:
    """The stage, with what goes wrong as its last event."""
    try:
        return run_stage(json.loads(path.read_text("utf-8")), events, stop)
    except KitError as error:
        facts = "".join(f"; {name}: {value}" for name, value in error.facts.items())
        kind = "out_of_memory" if "cause" in error.facts else "bad_input"
        events.emit("error", kind=kind, message=error.message + facts, hint=error.hint or "")
    except MemoryError as error:
        hint = "Set core.batch_tokens in the recipe to a smaller number."
        events.emit("error", kind="out_of_memory", message=str(error) or "no memory", hint=hint)
    except OSError as error:
        kind = "disk_full" if error.errno == errno.ENOSPC else "bad_input"
        events.emit("error", kind=kind, message=str(error), hint="Check the disk and the paths.")
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        events.emit(
            "error",
            kind="internal",
            message=message,
            hint="This is a fault of the kit: report it as an issue of the project.",
        )
        raise
    return 1


class Events:
    """Reports to the supervisor; silent without one."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def emit(self, ev: str, **data: Any) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(json.dumps({"ev": ev, "data": data}) + "\n")
        except BrokenPipeError:
            self._stream = None


def run_stage(request: dict[str, Any], events: Events, stop: threading.Event) -> int:
    """Evaluates as the request says. Raises `KitError` for what it can explain."""
    from kit.core_eval.bundle import open_bundle
    from kit.core_eval.evaluate import Settings, Stopped, TaskResult, Watch, evaluate_core
    from kit.core_eval.loaders import load_model
    from kit.core_eval.naming import score_key
    from kit.core_eval.score import threads
    from kit.trust.digest import tree_digest

    if request.get("contract") != CONTRACT:
        raise KitError(f"the request has contract {request.get('contract')!r}, not {CONTRACT}")
    recipe, paths = request["recipe"], request["paths"]
    deadline = request["clock"]["deadline_ns"]
    if paths.get("core") is None:
        raise KitError(
            "the request names no CORE bundle", hint="Give its folder with --core, or `prepare` it."
        )
    base, out = Path(paths["base"]), Path(paths["out"])
    core = recipe.get("core", {})
    # Only the smoke material brings tasks of its own; a ranked run cannot.
    custom = recipe.get("data", {}).get("kind") == "stories"
    bundle = open_bundle(Path(paths["core"]), tasks=core.get("tasks", []), allow_custom=custom)
    recipe_dir = paths.get("recipe_dir")
    began = time.perf_counter()
    with threads(int(request.get("threads", 0))):
        model = load_model(
            base,
            loader=recipe.get("trainer", {}).get("loader"),
            recipe_dir=None if recipe_dir is None else Path(recipe_dir),
            device=request.get("device", "auto"),
            dtype=request.get("dtype", "auto"),
        )
        events.emit("note", text=f"model loaded in {time.perf_counter() - began:.1f} s")

        def on_task(result: TaskResult) -> None:
            values = result.to_json()
            for name in ("outcomes", "file", "answer_bits", "answer_bytes"):
                del values[name]
            task = values.pop("label")
            events.emit("eval", name="core_task", task=task, value=result.accuracy, **values)

        cache = paths.get("cache")
        settings = Settings(
            max_per_task=int(core.get("max_per_task", -1)),
            batch_tokens=int(core.get("batch_tokens", 0)),
            cache=None if cache is None else Path(cache) / "core_tokens",
            journal=out / JOURNAL,
            identity=tree_digest(base, ("*.safetensors", "config.json", "tokenizer*")),
        )
        watch = Watch(
            task=on_task,
            progress=lambda done, total: events.emit(
                "progress", done=done, total=total, unit="tasks"
            ),
            note=lambda text: events.emit("note", text=text),
            should_stop=lambda: stop.is_set() or remaining_s(deadline) < 0.0,
        )
        try:
            document = evaluate_core(model, bundle, settings, watch)
        except Stopped:
            if not stop.is_set():
                events.emit(
                    "error",
                    kind="deadline",
                    message="the run's time was over before CORE was evaluated",
                    hint="Leave the core stage more of the budget.",
                )
                return 1
            return STOPPED_EXIT
    data = (json.dumps(document, ensure_ascii=False) + "\n").encode()
    write_bytes(out / "core.json", data)
    events.emit(
        "eval",
        name=score_key(document),
        value=document["core_metric"],
        answer_bpb=document["answer_bpb"] and document["answer_bpb"]["value"],
        low=document["interval"]["low"],
        high=document["interval"]["high"],
        partial=document["partial"],
        metric=document["metric"],
        bundle=document["bundle"]["digest"],
        path=str((out / "core.json").relative_to(paths["run"])),
        sha256="sha256:" + hashlib.sha256(data).hexdigest(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
