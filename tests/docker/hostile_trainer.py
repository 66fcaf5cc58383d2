"""Tries to read the key, edit the log, kill the supervisor, and more; tells how each went."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path


def daemon(action: Callable[[], None]) -> None:
    """Leaves a process behind in a session of its own that does `action` again and again."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    time.sleep(0.5)  # until the stage has ended
    while True:
        try:
            action()
        except OSError:
            time.sleep(0.01)


def connect() -> None:
    with socket.create_connection(("1.1.1.1", 53), timeout=3):
        pass


def attempts(run: Path, work: Path) -> dict[str, Callable[[], object]]:
    key = work / "keys" / "n4090_ed25519"
    supervisor = os.getppid()
    return {
        "read the key": key.read_bytes,
        "list the keys": lambda: list((work / "keys").iterdir()),
        "replace the key": lambda: key.unlink(),
        "edit the log": lambda: (run / "events.jsonl").open("a").write("{}\n"),
        "remove the log": lambda: (run / "events.jsonl").unlink(),
        "move the log": lambda: (run / "events.jsonl").rename(run / "tokenizer" / "events"),
        "edit the telemetry": lambda: (run / "telemetry.jsonl").open("a"),
        "write the result": lambda: (run / "result.json").write_text("{}"),
        "write beside the run": lambda: (work / "runs" / "x").write_text(""),
        "write into the work folder": lambda: (work / "x").write_text(""),
        "remember digests": lambda: (work / "cache" / "digests.json").write_text("{}"),
        "write into the image": lambda: Path("/opt/n4090/x").write_text(""),
        "write into /etc": lambda: Path("/etc/x").write_text(""),
        "write into the inputs": lambda: Path("/inputs/data/x").write_text(""),
        "kill the supervisor": lambda: os.kill(supervisor, signal.SIGKILL),
        "kill the init": lambda: os.kill(1, signal.SIGTERM),
        "stop everything": lambda: os.kill(supervisor, signal.SIGSTOP),
        "read the supervisor's memory": lambda: Path(f"/proc/{supervisor}/mem").open("rb"),
        "read its environment": lambda: Path(f"/proc/{supervisor}/environ").read_bytes(),
        "open its descriptors": lambda: list(Path(f"/proc/{supervisor}/fd").iterdir()),
        "become root": lambda: os.setuid(0),
        "open a socket outside": connect,
    }


def main(request_path: str) -> None:
    request = json.loads(Path(request_path).read_text())
    run, out = Path(request["paths"]["run"]), Path(request["paths"]["out"])
    out.mkdir(parents=True, exist_ok=True)
    with os.fdopen(int(os.environ["N4090_EVENTS_FD"]), "w", buffering=1) as events:

        def note(text: str) -> None:
            events.write(json.dumps({"ev": "note", "data": {"text": text}}) + "\n")

        if request["stage"] == "tokenizer":
            for name, attempt in attempts(run, run.parent.parent).items():
                try:
                    attempt()
                    note(f"did: {name}")
                except OSError as error:
                    note(f"refused: {name}: {error.strerror}")
            (out / "tokenizer.json").write_text("mine")
            daemon(lambda: (out / "tokenizer.json").write_text("changed after the stage"))
        else:
            before = run / "tokenizer" / "tokenizer.json"
            for name, attempt in {
                "change what was hashed": lambda: before.write_text("changed"),
                "remove what was hashed": before.unlink,
                "replace what was hashed": lambda: (out / "x").replace(before),
            }.items():
                (out / "x").write_text("")
                try:
                    attempt()
                    note(f"did: {name}")
                except OSError as error:
                    note(f"refused: {name}: {error.strerror}")
            (out / "model.bin").write_text("no model")
            (out / "x").unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1])
