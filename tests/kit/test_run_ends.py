"""However a run ends, it ends in a signed result with the reason, and nothing of it runs on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import run_ends
from run_ends import Ended, run_to_its_end

from kit import limits
from kit.prepare.inputs import Inputs
from kit.run import outputs, process, supervisor
from kit.run.process import StopFlag
from kit.schemas import problems
from kit.verify import verify_result

MODEL = "emit('model', parameters=10, flops_per_token=6); leave()\n"
STEP = "emit('step', step=0, tokens=8, loss=2.0, dt_s=0.5)\n"

# name: (stage, its code, status, reason, words of the message)
ENDS: dict[str, tuple[str, str, str, str | None, str]] = {
    "ends well": ("tokenizer", "leave()", "complete", None, ""),
    "exit code": ("tokenizer", "print('no such shard'); sys.exit(7)", "failed", "crashed", "shard"),
    "exit without a word": ("tokenizer", "os._exit(9)", "failed", "crashed", "printed nothing"),
    "uncaught error": ("tokenizer", "raise KeyError('x' * 500)", "failed", "crashed", "KeyError"),
    "last words in another script": (
        "tokenizer",
        "os.write(1, b'\\x1b[31m\\x00 \\xff\\xe2\\x80\\xae end'); sys.exit(1)",
        "failed",
        "crashed",
        "end",
    ),
    "error report": (
        "tokenizer",
        "emit('error', kind='nan_loss', message='loss is nan'); sys.exit(1)",
        "failed",
        "nan_loss",
        "loss is nan",
    ),
    "error report of another form": (
        "tokenizer",
        "emit('error', kind='k' * 5000, message=['x']); sys.exit(1)",
        "failed",
        "crashed",
        "",
    ),
    **{
        f"signal {number}": (
            "tokenizer",
            f"signal.signal({number}, signal.SIG_DFL) if {number} != 9 else None\n"
            f"os.kill(os.getpid(), {number}); time.sleep(30)",
            "failed",
            "killed",
            name,
        )
        for number, name in (
            (signal.SIGKILL, "SIGKILL"),
            (signal.SIGSEGV, "SIGSEGV"),
            (signal.SIGRTMIN, "SIGRTMIN"),
            (signal.SIGRTMIN + 6, "SIGRTMIN+6"),
            (signal.SIGRTMAX - 1, "SIGRTMIN+"),
        )
    },
    "stops by itself": ("tokenizer", "sys.exit(3)", "stopped", "stopped", ""),
    "no output": ("tokenizer", "pass", "failed", "bad_output", "no output"),
    "output folder removed": ("tokenizer", "out.rmdir()", "failed", "bad_output", "no output"),
    "output is a link": (
        "tokenizer",
        "(out / 'm').symlink_to('/etc/hosts')",
        "failed",
        "bad_output",
        "link",
    ),
    "output is a pipe": ("tokenizer", "os.mkfifo(out / 'm')", "failed", "bad_output", "regular"),
    "output with an odd name": (
        "tokenizer",
        "open(bytes(out) + b'/a\\xff\\nb', 'w').close()",
        "failed",
        "bad_output",
        "",
    ),
    "output with a long path": (
        "tokenizer",
        "p = out / ('d' * 200) / ('e' * 200); p.mkdir(parents=True); (p / 'f').write_text('x')",
        "failed",
        "bad_output",
        "400",
    ),
    "folders without end": (
        "tokenizer",
        "os.chdir(out)\nfor _ in range(300):\n os.mkdir('d' * 100); os.chdir('d' * 100)",
        "failed",
        "bad_output",
        "",
    ),
    "100,000 files": (
        "tokenizer",
        "for i in range(1200): (out / str(i)).touch()",  # the limit is 500
        "failed",
        "bad_output",
        "more than 500 files",
    ),
    "a sparse terabyte": (
        "tokenizer",
        "os.truncate(os.open(out / 'm', os.O_CREAT | os.O_WRONLY), 2**40)",
        "failed",
        "bad_output",
        "GiB",
    ),
    **{
        f"chat.json {name}": ("chat_eval", f"leave({text!r})", "failed", "bad_output", "chat.json")
        for name, text in {
            "empty": "",
            "no JSON": "{",
            "a list": "[]",
            "without tasks": "{}",
            "NaN": '{"tasks": {"a": {"outcomes": [NaN], "ended": [], "baseline": 0.5}}}',
            "baseline 1": '{"tasks": {"a": {"outcomes": [1], "ended": [], "baseline": 1}}}',
            "outcomes past 1": '{"tasks": {"a": {"outcomes": [9], "ended": [], "baseline": 0}}}',
            "text outcomes": '{"tasks": {"a": {"outcomes": "11", "ended": [], "baseline": 0}}}',
            "long task name": json.dumps(
                {"tasks": {"a" * 500: {"outcomes": [], "ended": [], "baseline": None}}}
            ),
            "nested deeply": "[" * 5000 + "]" * 5000,
        }.items()
    },
    "eval without a value": (
        "pretrain",
        f"{MODEL}{STEP}emit('eval', name='val_bpb')\nemit('eval', name='val_bpb', value=None)\n"
        "emit('eval', name='val_bpb', value='low')\nemit('eval', name='val_bpb', value=True)",
        "complete",
        None,
        "",
    ),
    "figures no result can state": (
        "pretrain",
        f"{MODEL}emit('model', parameters=-1)\nemit('model', parameters=1, mfu=-2)\n"
        "emit('model', parameters=1, flops_per_token=1e300)\n"
        "for bad in (-1, 0, 1e-320, 1e300): emit('step', step=0, tokens=8, loss=2.0, dt_s=bad)\n"
        "emit('step', step=1, tokens=8, loss=1e308)\nemit('memory', peak_bytes=-5)\n"
        'send(\'{"ev": "step", "data": {"step": 1, "tokens": 1, "loss": 1e999}}\\n\')',
        "complete",
        None,
        "",
    ),
    "12,000 notes": (
        "tokenizer",
        "for i in range(12000): emit('note', text=f'note {i}')\nleave()",
        "complete",
        None,
        "",
    ),
    "broken lines": (
        "tokenizer",
        "send(b'\\x00\\xff\\n' * 1000 + b'x' * 300_000 + b'\\n{}\\n[]\\nnull\\n'); leave()",
        "complete",
        None,
        "",
    ),
    "closes its pipes": (
        "tokenizer",
        "leave(); os.close(fd); os.close(1); os.close(2); time.sleep(0.2)",
        "complete",
        None,
        "",
    ),
}


def check_signed(ended: Ended) -> None:
    """A result of its form, signed, that a verifier reads and recomputes."""
    assert ended.result["signatures"]
    assert problems(ended.result, "result") == []
    report = verify_result(ended.run)
    for check in ("V01", "V02", "V04", "V07"):
        assert report.status(check) in ("pass", "warn"), [
            str(f) for f in report.findings if f.check == check
        ]


@pytest.mark.parametrize("name", ENDS)
def test_however_a_run_ends_there_is_a_signed_result_with_the_reason(
    name: str, tmp_path: Path
) -> None:
    stage, code, status, reason, words = ENDS[name]
    ended = run_to_its_end(tmp_path, {stage: code})
    assert (ended.claims["status"], ended.claims["reason"]) == (status, reason)
    if reason:
        assert words in ended.claims["message"]
        assert ended.claims["message"].isprintable()
        assert ended.claims["stage"] == stage
    check_signed(ended)


@pytest.mark.parametrize(
    "error",
    [OSError(24, "Too many open files"), ValueError("what?"), RecursionError(), MemoryError()],
    ids=repr,
)
def test_an_error_of_the_supervisor_itself_ends_in_a_signed_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(supervisor, "run_stage", fail)
    ended = run_to_its_end(tmp_path, {"tokenizer": "leave()"})
    assert (ended.claims["status"], ended.claims["reason"]) == ("failed", "supervisor_error")
    check_signed(ended)


def test_a_stop_request_ends_in_a_signed_result(tmp_path: Path) -> None:
    stop = StopFlag()

    def ask(event: dict[str, Any]) -> None:
        if event.ev == "note":
            stop.request(signal.SIGTERM)

    ended = run_to_its_end(
        tmp_path, {"tokenizer": "emit('note', text='x'); time.sleep(60)"}, stop=stop, observe=ask
    )
    assert ended.claims["status"] == "stopped"
    check_signed(ended)


def test_a_deadline_ends_in_a_signed_result(tmp_path: Path) -> None:
    ended = run_to_its_end(tmp_path, {"tokenizer": "time.sleep(60)"}, budget_s=1)
    assert ended.claims["reason"] == "deadline"
    check_signed(ended)


def test_too_many_steps_end_the_stage_and_the_log_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_EVENT_BYTES_PER_STAGE", 20_000)
    flood = "step = 0\nwhile True:\n emit('step', step=step, tokens=step, loss=1.0); step += 1"
    ended = run_to_its_end(tmp_path, {"pretrain": flood})
    assert (ended.claims["status"], ended.claims["reason"]) == ("failed", "too_many_reports")
    assert (ended.run / "events.jsonl").stat().st_size < 400_000
    check_signed(ended)


def test_printing_without_end_fills_no_disk_and_its_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print_a_lot = "for _ in range(4): os.write(1, b'first ' * 10**6)\nprint('\\nthe last words')"
    ended = run_to_its_end(tmp_path, {"tokenizer": print_a_lot + "\nsys.exit(1)"})
    printed = ended.run / "logs" / "tokenizer.txt"
    most = limits.MAX_PRINTED_BYTES_PER_STAGE + limits.PRINTED_TAIL_BYTES
    assert printed.stat().st_size < most + 100
    assert printed.read_bytes().startswith(b"first ")
    assert "the last words" in ended.claims["message"]
    [stop] = ended.events("stage_stop")
    assert stop["print_left_out_bytes"] > 0
    check_signed(ended)


def test_notes_past_their_limit_are_dropped_and_the_steps_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_REMARKS_PER_STAGE", 50)
    code = MODEL + "for i in range(300): emit('note', text='x')\n" + STEP
    ended = run_to_its_end(tmp_path, {"pretrain": code})
    assert ended.claims["status"] == "complete"
    stop = ended.events("stage_stop")[-1]
    assert (stop["accepted"], stop["dropped"]) == (52, 250)
    assert ended.result["training"]["steps"] == 1


def test_a_result_repeats_so_many_notes_and_counts_the_others(tmp_path: Path) -> None:
    code = "for i in range(1500): emit('note', text=f'note {i}')\nleave()"
    ended = run_to_its_end(tmp_path, {"tokenizer": code})
    notes = ended.result["notes"]
    assert len(notes) == limits.MAX_RESULT_NOTES
    assert notes[-1] == "501 more notes are in the log"
    check_signed(ended)


def test_an_evaluation_file_is_not_read_past_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "MAX_EVALUATION_BYTES", 2**20)
    code = "os.truncate(os.open(out / 'chat.json', os.O_CREAT | os.O_WRONLY), 2**40)"
    ended = run_to_its_end(tmp_path, {"chat_eval": code})
    assert ended.claims["reason"] == "bad_output"
    check_signed(ended)


@pytest.mark.parametrize(
    "detach",
    [
        "subprocess.Popen(['sleep', '300'], start_new_session=True)",
        "subprocess.Popen(['setsid', '-f', 'sleep', '300'])",
        "os.fork() or (os.setsid(), os.fork() and os._exit(0), time.sleep(300))",
        "os.fork() or [os.fork() or time.sleep(300) for _ in range(5)]",
        "signal.signal(15, signal.SIG_IGN); os.fork() or (os.setsid(), time.sleep(300))",
    ],
)
@pytest.mark.parametrize("end", ["leave()", "sys.exit(1)", "os.kill(os.getpid(), 9)"])
def test_no_process_of_a_stage_outlives_it(tmp_path: Path, detach: str, end: str) -> None:
    before = _children()
    code = f"parent = os.getpid()\n{detach}\nif os.getpid() == parent:\n time.sleep(0.1); {end}"
    ended = run_to_its_end(tmp_path, {"tokenizer": code})
    assert _children() == before
    check_signed(ended)


def test_children_that_were_there_before_a_stage_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"]) as mine:
        run_to_its_end(tmp_path, {"tokenizer": "leave()"})
        assert mine.poll() is None
        mine.kill()


def _children() -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(entry.parent.name))
    return found


# --- what a stage learns, and what of the machine leaves it ---------------------------------------


def test_a_stage_gets_an_allowlisted_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "MY_SETTING", "SSH_AGENT"):
        monkeypatch.setenv(name, "leak-me")
    for name in ("CUDA_AUTH_TOKEN", "TORCH_API_KEY"):
        monkeypatch.setenv(name, "leak-me")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HOME", "/home/some-body")
    monkeypatch.setenv("USER", "some-body")
    ended = run_to_its_end(tmp_path, {"tokenizer": "leave(json.dumps(dict(os.environ)))"})
    text = (ended.run / "tokenizer" / "model.json").read_text()
    assert "leak-me" not in text and "some-body" not in text
    given = json.loads(text)
    assert given["CUDA_VISIBLE_DEVICES"] == "0" and given["PATH"] == os.environ["PATH"]


def test_only_the_stage_that_asks_them_is_told_where_the_questions_are(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("data", "sft", "chat_eval", "core")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "x.jsonl").write_text("{}\n")
    tell = "emit('note', text=json.dumps({k: bool(v) for k, v in request['paths'].items()}))\n"
    answer = json.dumps({"tasks": {}})
    stages = {stage: tell + "leave()" for stage in ("tokenizer", "pretrain", "sft")}
    ended = run_to_its_end(
        tmp_path / "run",
        {**stages, "chat_eval": tell + f"leave({answer!r})"},
        inputs=Inputs(**folders),
    )
    told = [json.loads(event["text"]) for event in ended.events("note")]
    assert [one["chat_eval"] for one in told] == [False, False, False, True]
    assert [one["core"] for one in told] == [False] * 4
    assert all(one["data"] and one["sft"] for one in told)


LEAK = """
import platform
names = NAMES + [str(out), str(Path.home())]
said = " ".join(names) + f" {names[0]}@{names[1]}:/home/{names[0]}/x {names[1].upper()}_{names[0]}"
emit('note', text=said, **{names[0]: names[1]})
emit('eval', name=said, value=1)
emit('checkpoint', step=1, path=said)
emit('model', parameters=1, config={said: [said]})
leave()
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "print(said); sys.exit(1)",
        "emit('error', kind='bad', message=said, hint=said); sys.exit(1)",
        "(out / names[0]).symlink_to('x')",
    ],
)
def test_names_and_places_of_the_machine_are_in_no_signed_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    user, host = "zebulon-quist", "krakenbox-7"
    monkeypatch.setattr("kit.contract.getpass.getuser", lambda: user)
    monkeypatch.setattr("kit.contract.socket.gethostname", lambda: f"{host}.lan.example")
    monkeypatch.setenv("HOME", f"/home/{user}")
    code = LEAK.replace("NAMES", repr([user, host])) + end
    ended = run_to_its_end(tmp_path / user / host, {"tokenizer": code})
    signed = [
        path
        for pattern in ("result.json", "events.jsonl", "telemetry.jsonl", "fingerprint.json")
        for path in ended.run.glob(pattern)
    ]
    assert len(signed) == 4
    for path in signed:
        data = path.read_bytes().lower()
        for secret in (user, host, str(tmp_path), "lan.example"):
            assert secret.encode() not in data, (path.name, secret)
    check_signed(ended)


def test_a_program_that_is_not_there_is_named_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "no-such-trainer"
    text = run_ends.RECIPE.replace('"python", "{recipe_dir}/ends_trainer.py"', f'"{missing}"')
    monkeypatch.setattr(run_ends, "RECIPE", text)
    ended = run_to_its_end(tmp_path, {"tokenizer": ""})
    assert ended.claims["reason"] == "no_trainer"
    assert str(tmp_path) not in json.dumps(ended.claims)
