"""Every command with inputs that are none: one message, no traceback, no hang."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from kit.cli import crash
from kit.cli import main as main_module
from kit.cli.main import cli, main
from kit.errors import KitError

ENDINGS = ("", ".json", ".jsonl", ".toml", ".txt", ".parquet", ".safetensors", ".gguf", ".pem")
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "object": b"{}",
    "list": b"[]",
    "null": b"null",
    "text": "Füchse\n".encode(),
    "latin1": b"name = '\xfc'\n",
    "utf16": '{"a": 1}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbfname = 'x'\n",
    "nul": bytes(2000),
    "binary": bytes(range(256)) * 4,
    "page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "deep": b"[" * 100_000,
    "deep_toml": b"a = " + b"[" * 50_000,
    "number": b'{"a": ' + b"9" * 5000 + b"}",
    "infinite": b'{"schema_version": 1e999, "tasks": NaN}',
    "surrogate": b'{"name": "\\ud800", "format": 1}',
    "wrong_types": json.dumps(
        {"format": "1", "schema_version": [], "tasks": 3, "log": None, "run": {}, "shards": 1,
         "signatures": {}, "training": "x", "model_type": 7, "loader": 4, "source": 3}
    ).encode(),
    "gguf": b"GGUF" + bytes(40),
    "gzip": gzip.compress(b"{}"),
    "parquet": b"PAR1" + bytes(30) + b"PAR1",
    "toml": b"[model]\nd_model = 'x'\n[data]\n[[source]]\nname = 3\n",
}  # fmt: skip
FILES_IN_FOLDERS = (
    "config.json", "result.json", "events.jsonl", "corpus.json", "tokenizer.json", "core.yaml",
    "recipe.toml", "a.parquet", "a.jsonl", "model.safetensors", "manifest.json", "telemetry.jsonl",
    "model.safetensors.index.json", "plan.json", "dataset.lock.json", "fingerprint.json",
)  # fmt: skip
# A command line; X is the malformed input, OUT a place to write.
COMMANDS = (
    "run --recipe X --no-probe", "run --resume X", "register --recipe X --runs 3",
    "launch run --recipe X", "prepare --recipe X --check", "watch X", "track X --out OUT",
    "verify X", "verify X --json", "verify X --against X --group X", "verify --revoked X X",
    "verify --identities X X", "verify --allowed-signers X X", "verify --core X --data X X",
    "recipes check X", "recipes show X", "recipes diff X X", "recipes new OUT --from X",
    "eval core X --core X", "eval bpb X X", "eval chart X", "eval chat X", "eval compare X X",
    "bench core X --core X", "submit X --board OUT", "reproduce X --board X",
    "board rebuild --board X", "board site --board X --out OUT", "board publish --board X",
    "keys show --key X", "keys sign X --key X", "keys make --out X", "keys revoke --key X",
    "export dsse X", "export eee X --out OUT", "export mllog X", "export model X --out OUT",
    "export model-index X", "canon X", "explain X", "ablate X --out OUT", "chat X --prompt hi",
    "data build X --out OUT --workers 1", "data diff X X", "data report X --out OUT",
    "data study --texts X --out OUT", "plan --bench X", "plan --run X", "report X",
    "tokenizer compare X --texts X", "tokenizer reuse X --out OUT",
    "tokenizer train --data X --out OUT", "tokenizer train --data X --lock X --out OUT",
    "doctor --work X", "generate X hi", "serve X --port 0", "keys identify --work X --out OUT",
    "board dispute X --reason r --board X --as me --key X --work OUT -y",
    "board withdraw X --reason r --board X --as me --key X --work OUT -y",
    "board correct X --core 0.1 --reason r --board X --as me --key X --work OUT -y",
    "board resolve X --dispute X --uphold --reason r --board X --as me --key X --work OUT -y",
    "board rescore X --board X --core X --work OUT -y", "board vouch --board X --work X",
    "bench train --recipe X --steps 1", "bench levers --recipe X --steps 2",
    "bench data --texts X --core X", "recipes schema --trainer X", "completion X",
)  # fmt: skip
# They read no input: what they print does not depend on any file.
NOT_DRIVEN = {"recipes list", "data spec", "fingerprint", "bench kernels"}
EMPTY_PLACES = ("folder", "missing", "null", "long", "loop", "dangling")
# Inputs of each command, drawn anew each time; a failure names the seed to draw them again.
CASES = int(os.environ.get("N4090_MALFORMED", "200"))
SEED = int(os.environ.get("N4090_MALFORMED_SEED") or random.SystemRandom().randrange(10**9))
LONGEST_S = 10.0


class Case(NamedTuple):
    """One malformed input: what kind of thing lies where the command looks."""

    place: str
    content: str = "empty"
    ending: str = ""
    inside: str = ""


# Every input there is; what lies nowhere has no content.
EVERY = (
    *(Case(place, ending=ending) for place in EMPTY_PLACES for ending in ENDINGS),
    *(Case(place, c, ending) for place in ("file", "odd") for c in CONTENTS for ending in ENDINGS),
    *(
        Case("filled", c, ending, name)
        for c in CONTENTS
        for name in FILES_IN_FOLDERS
        for ending in ("", ".gguf")
    ),
)


class Hang(BaseException):
    """A command that took longer than it may."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")

    def ring(*_: object) -> None:
        raise Hang

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    old = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    for number, handler in before.items():
        signal.signal(number, handler)


def malformed(folder: Path, case: Case) -> str:
    """The path of an input in a fresh folder."""
    path = folder / f"input{case.ending}"
    match case.place:
        case "file":
            path.write_bytes(CONTENTS[case.content])
        case "folder":
            path.mkdir()
        case "null":
            return os.devnull
        case "long":
            return str(folder / ("n" * 300))
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(folder / "nowhere")
        case "odd":
            path = folder / f"a b,c:d'\"\n{case.ending}"
            path.write_bytes(CONTENTS[case.content])
        case "filled":
            path.mkdir()
            (path / case.inside).write_bytes(CONTENTS[case.content])
    return str(path)


def drive(arguments: list[str]) -> tuple[object, str, float]:
    """Exit code, what was printed, and seconds of processor time."""
    sys.argv = ["n4090-kit", *arguments]
    sys.stdin = io.StringIO("")
    printed, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace"), None
    began_s = time.process_time()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        # Wall time is for a command that waits; other programs may share this machine.
        signal.alarm(60)
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        finally:
            signal.alarm(0)
    spent_s = time.process_time() - began_s
    printed.flush()
    return code, printed.buffer.getvalue().decode(), spent_s  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_malformed_input_is_one_message(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []
    monkeypatch.setattr(crash, "_write", faults.append)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "stdin", None)
    cases = random.Random(f"{SEED} {command}").sample(EVERY, min(CASES, len(EVERY)))
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = {"X": malformed(folder, case), "OUT": str(folder / "out")}
        arguments = [words.get(word, word) for word in command.split()]
        again = f"{case}, {arguments}: N4090_MALFORMED_SEED={SEED}"
        try:
            code, printed, spent_s = drive(arguments)
        except Hang:
            pytest.fail(f"hangs: {again}")
        assert not faults, f"{again}\n{faults[0][-1500:]}"
        assert "Traceback (most recent call last)" not in printed, again
        assert code in (0, 1, 2, 3, None), f"{again}\n{printed}"
        assert spent_s < LONGEST_S, f"{spent_s:.0f} s: {again}"
        shutil.rmtree(folder, ignore_errors=True)


def test_every_command_is_driven_or_says_why_not() -> None:
    def names(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
        context = click.Context(command)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from names(inner, (*path, name))
        else:
            yield " ".join(path)

    driven = [f"{line} " for line in COMMANDS]
    left = {n for n in names(cli) if not any(line.startswith(f"{n} ") for line in driven)}
    assert left <= NOT_DRIVEN


def test_a_fault_ends_in_one_sentence_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: Any) -> None:
        raise ZeroDivisionError("a division\nby zero")

    monkeypatch.setattr(main_module, "cli", broken)
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["n4090-kit", "submit", "--token", "hf_secret", "--x=1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    [file] = tmp_path.glob("n4090-kit-fault-*.txt")
    assert "n4090-kit has a fault: ZeroDivisionError: a division" in said
    assert str(file) in said.replace("\n", "") and "Traceback" not in said
    text = file.read_text()
    assert "ZeroDivisionError" in text and "hf_secret" not in text
    assert file.stat().st_mode & 0o077 == 0


def test_a_place_that_takes_no_file_still_gives_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: Any) -> None:
        raise RecursionError

    monkeypatch.setattr(main_module, "cli", broken)
    monkeypatch.setattr(crash, "_write", lambda text: None)
    with pytest.raises(SystemExit):
        main()
    assert "has a fault: RecursionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_a_terminal_of_any_encoding_gets_an_answer(variables: dict[str, str]) -> None:
    """What the terminal cannot show is replaced; here a sign of the recipe's name."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-m", "kit.cli.main", "recipes", "show", "\u5b57\u2026.toml"],
        capture_output=True,
        env=environment,
    )
    assert done.returncode in (2, 3), done.stderr
    assert b"has a fault" not in done.stderr and b"Traceback" not in done.stderr


def test_a_damaged_recipe_or_plan_in_a_run_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(gzip.compress(b"x"))
    runner = CliRunner()
    for arguments in (["watch", str(tmp_path)], ["run", "--resume", str(tmp_path)]):
        for plan in (b"{", b"[]", b"{}", b"\xff"):
            (tmp_path / "plan.json").write_bytes(plan)
            found = runner.invoke(cli, arguments)
            assert isinstance(found.exception, SystemExit | KitError), found.exception
