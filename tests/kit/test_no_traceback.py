"""Every command with inputs that are none: one message, no traceback, no hang."""

import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.cli import crash
from kit.cli import main as main_module
from kit.cli.main import cli, main

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
    "model.safetensors.index.json",
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
    "doctor --work X", "generate X hi",
)  # fmt: skip
# Seconds of work, no input of their own, or a measurement of the machine.
NOT_DRIVEN = {
    "recipes list", "recipes schema", "bench data", "bench kernels", "bench levers", "bench train",
    "bench supervisor", "bench verify", "bench board", "fingerprint", "completion", "data spec",
    "board dispute", "board withdraw", "board correct", "board rescore", "board resolve",
    "board vouch", "keys identify", "serve",
}  # fmt: skip
PLACES = ("file", "folder", "missing", "null", "long", "loop", "dangling", "odd", "filled")
EXAMPLES = int(os.environ.get("N4090_MALFORMED", "4"))


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


def malformed(folder: Path, place: str, content: str, ending: str, inside: str) -> str:
    """A path of the kind `place` in a fresh folder."""
    path = folder / f"input{ending}"
    if place == "file":
        path.write_bytes(CONTENTS[content])
    elif place == "folder":
        path.mkdir()
    elif place == "null":
        return os.devnull
    elif place == "long":
        return str(folder / ("n" * 300))
    elif place == "loop":
        path.symlink_to(path)
    elif place == "dangling":
        path.symlink_to(folder / "nowhere")
    elif place == "odd":
        path = folder / f"a b,c:d'\"\n{ending}"
        path.write_bytes(CONTENTS[content])
    elif place == "filled":
        path.mkdir()
        (path / inside).write_bytes(CONTENTS[content])
    return str(path)


def drive(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str, list[str]]:
    """Exit code, what was printed, and the faults that the last net caught."""
    faults: list[str] = []
    monkeypatch.setattr(crash, "_write", lambda text: faults.append(text))
    monkeypatch.setattr(sys, "argv", ["n4090-kit", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    printed, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="replace"), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        signal.alarm(60)  # ten seconds on a machine that does nothing else
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        except Hang:
            pytest.fail(f"hangs: {arguments}")
        finally:
            signal.alarm(0)
    printed.flush()
    return code, printed.buffer.getvalue().decode(), faults  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None,
    derandomize=True,
)  # fmt: skip
@given(
    place=st.sampled_from(PLACES), content=st.sampled_from(sorted(CONTENTS)),
    ending=st.sampled_from(ENDINGS), inside=st.sampled_from(FILES_IN_FOLDERS),
)  # fmt: skip
def test_malformed_input_is_one_message(
    command: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    content: str,
    ending: str,
    inside: str,
) -> None:
    folder = tmp_path_factory.mktemp("case")
    path = malformed(folder, place, content, ending, inside)
    words = {"X": path, "OUT": str(folder / "out")}
    arguments = [words.get(word, word) for word in command.split()]
    code, printed, faults = drive(arguments, monkeypatch)
    assert not faults, f"{arguments}\n{faults[0][-1500:]}"
    assert "Traceback (most recent call last)" not in printed
    assert code in (0, 1, 2, 3, None), (arguments, printed)


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
