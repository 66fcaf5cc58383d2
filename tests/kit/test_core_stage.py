"""The `core` stage as the supervisor starts it: a process, its events, its file, its ends."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from core_bundles import make_bundle

from kit.contract import Redactor, parse_report
from kit.core_eval.__main__ import main
from kit.timing import ClockSample, boottime_ns

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests/assets/core"


class Stage(NamedTuple):
    code: int
    events: list[dict[str, Any]]
    stderr: str

    def named(self, ev: str, name: str | None = None) -> list[dict[str, Any]]:
        found = [event["data"] for event in self.events if event["ev"] == ev]
        return [data for data in found if name is None or data.get("name") == name]


def write_request(tmp_path: Path, **changes: Any) -> Path:
    run = tmp_path / "run"
    base = run / "checkpoints/pretrain"
    base.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text('{"seed": 3}')
    bundle = tmp_path / "bundle"
    if not bundle.exists():
        make_bundle(bundle)
    request = {
        "contract": 1,
        "stage": "core",
        "run_id": "r",
        "seed": 1,
        "attempt": 0,
        "device": "cpu",
        "threads": 1,
        "recipe": {
            "track": "smoke",
            "trainer": {"loader": "tiny_model.py:load"},
            "data": {"kind": "stories"},
            "model": {"dtype": "auto"},
            "core": {"max_per_task": -1, "tasks": [], "batch_tokens": 0},
        },
        "paths": {
            "run": str(run),
            "out": str(run / "eval"),
            "cache": str(tmp_path / "cache"),
            "core": str(bundle),
            "base": str(base),
            "recipe_dir": str(ASSETS),
        },
        "clock": {"start_ns": 0, "deadline_ns": boottime_ns() + 10**12, "budget_s": 1000.0},
    }
    for key, value in changes.items():
        section: Any = request
        *path, last = key.split("__")
        for part in path:
            section = section[part]
        section[last] = value
    path = tmp_path / "request-core.json"
    path.write_text(json.dumps(request))
    return path


def start(request: Path) -> tuple[subprocess.Popen[str], int]:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "kit.core_eval", str(request)],
        env={**os.environ, "N4090_EVENTS_FD": str(write), "OMP_NUM_THREADS": "1"},
        pass_fds=[write],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    return process, read


def run_process(request: Path) -> Stage:
    process, read = start(request)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    _, stderr = process.communicate(timeout=60)
    return checked(process.returncode, lines, stderr)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], Stage]]:
    """The stage in this process: the same entry, without seconds of imports."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(request: Path) -> Stage:
        with (tmp_path / "events").open("w+") as file:
            monkeypatch.setenv("N4090_EVENTS_FD", str(os.dup(file.fileno())))
            code = main([str(request)])
            file.seek(0)
            return checked(code, file.read().splitlines(), "")

    yield run
    signal.signal(signal.SIGTERM, handler)


def checked(code: int, lines: list[str], stderr: str) -> Stage:
    # Each line has to be one that the supervisor accepts.
    accepted = [parse_report(line.encode(), Redactor({}), ClockSample.now()) for line in lines]
    assert None not in accepted
    return Stage(code, [json.loads(line) for line in lines], stderr)


def test_the_stage_leaves_a_document_and_reports_its_digest(
    tmp_path: Path, run_here: Callable[[Path], Stage]
) -> None:
    stage = run_process(write_request(tmp_path))
    assert (stage.code, stage.stderr) == (0, "")
    data = (tmp_path / "run/eval/core.json").read_bytes()
    document = json.loads(data)
    [report] = stage.named("eval", "own_questions_score")
    assert report["sha256"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert report["value"] == document["core_metric"] and report["path"] == "eval/core.json"
    assert document["bundle"]["kind"] == "custom" and document["partial"] is False
    assert [t["task"] for t in stage.named("eval", "core_task")] == ["choose", "refer", "say"]
    assert stage.named("progress")[-1] == {"done": 3, "total": 3, "unit": "tasks"}
    for task in document["tasks"]:
        assert len(task["outcomes"]) == task["n"] == 40
        assert task["outcomes"].count("1") == task["correct"]
    assert [path.name for path in (tmp_path / "run/eval").iterdir()] == ["core.json"]
    again = run_here(write_request(tmp_path, attempt=1))
    assert again.code == 0 and (tmp_path / "run/eval/core.json").read_bytes() == data


def test_a_capped_stage_is_partial(tmp_path: Path, run_here: Callable[[Path], Stage]) -> None:
    stage = run_here(write_request(tmp_path, recipe__core__max_per_task=5))
    assert stage.named("eval", "own_questions_score")[0]["partial"] is True
    stage = run_here(write_request(tmp_path, recipe__core__tasks=["say"]))
    assert stage.named("eval", "own_questions_score")[0]["partial"] is True


def slow_recipe(tmp_path: Path, seconds: float) -> Path:
    """A recipe folder whose loader gives the tiny model, slowed down."""
    folder = tmp_path / "recipe"
    folder.mkdir(exist_ok=True)
    source = (ASSETS / "tiny_model.py").read_text()
    (folder / "tiny_model.py").write_text(
        source.replace("import json\n", "import json\nimport time\n").replace(
            "T = tokens.shape[1]\n", f"T = tokens.shape[1]\n        time.sleep({seconds})\n"
        )
    )
    return folder


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_stopped_stage_goes_on_and_leaves_the_same_bytes(
    tmp_path: Path, sig: signal.Signals, run_here: Callable[[Path], Stage]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run_here(write_request(whole, recipe__core__batch_tokens=100)).code == 0
    expected = (whole / "run/eval/core.json").read_bytes()

    recipe = slow_recipe(tmp_path, 0.05)
    request = write_request(tmp_path, recipe__core__batch_tokens=100, paths__recipe_dir=str(recipe))
    process, read = start(request)
    journal = tmp_path / "run/eval/core.journal.jsonl"
    while process.poll() is None and (not journal.is_file() or journal.stat().st_size < 1500):
        time.sleep(0.01)
    process.send_signal(sig)
    process.communicate(timeout=20)
    os.close(read)
    assert process.returncode == (3 if sig is signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "run/eval/core.json").exists()
    kept = journal.read_bytes()

    resumed = run_here(
        write_request(tmp_path, recipe__core__batch_tokens=100, paths__recipe_dir=str(ASSETS))
    )
    assert resumed.code == 0 and len(kept) >= 1500
    assert (tmp_path / "run/eval/core.json").read_bytes() == expected


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"recipe__data__kind": "folder"}, "bad_input", "not part of CORE"),
        ({"recipe__core__tasks": ["sya"]}, "bad_input", "no task sya"),
        ({"paths__core": None}, "bad_input", "names no CORE bundle"),
        ({"paths__base": "/nowhere"}, "bad_input", "no model at"),
        ({"recipe__trainer__loader": "nobody"}, "bad_input", "'nobody', which is not installed"),
        (
            {"recipe__trainer__loader": "../x.py:load"},
            "bad_input",
            "is not a Python file in",
        ),
        ({"recipe__trainer__loader": "tiny_model.py:lod"}, "bad_input", "has no 'lod'"),
        ({"clock__deadline_ns": 1}, "deadline", "time was over"),
        ({"contract": 2}, "bad_input", "contract 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_one_error_event_with_a_remedy(
    tmp_path: Path,
    changes: dict[str, Any],
    kind: str,
    message: str,
    run_here: Callable[[Path], Stage],
) -> None:
    stage = run_here(write_request(tmp_path, **changes))
    [error] = stage.named("error")
    assert stage.code == 1 and error["kind"] == kind and message in error["message"]
    assert not (tmp_path / "run/eval/core.json").exists()


def test_a_task_with_fewer_items_than_its_examples_need_is_one_error_event(
    tmp_path: Path, run_here: Callable[[Path], Stage]
) -> None:
    few = make_bundle(tmp_path / "few", items=2)
    stage = run_here(write_request(tmp_path, paths__core=str(few)))
    [error] = stage.named("error")
    assert stage.code == 1 and error["kind"] == "bad_input"
    assert "2 items, too few for 2 examples" in error["message"]
    assert "at least 3 items" in error["hint"]
    assert not (tmp_path / "run/eval/core.json").exists()


def test_a_loader_that_breaks_is_an_internal_error(
    tmp_path: Path, run_here: Callable[[Path], Stage]
) -> None:
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "broken.py").write_text("def load(path, *, device, dtype):\n    return 1 / 0\n")
    request = write_request(
        tmp_path, recipe__trainer__loader="broken.py:load", paths__recipe_dir=str(recipe)
    )
    with pytest.raises(ZeroDivisionError):
        run_here(request)
    lines = (tmp_path / "events").read_text().splitlines()
    assert [json.loads(line)["data"]["kind"] for line in lines] == ["internal"]
