"""A board on a loopback Hub, and its people: for tests to import their fixture from."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import git_hub
import pytest
from git_hub import GitHub

BOARD = "n4090/leaderboard"
TOKENS = {"alice": "hf_secretOfAlice", "bob": "hf_secretOfBob", "n4090": "hf_ofTheMaintainer"}
SETTINGS = {"schema_version": 1, "name": "test board", "repository": BOARD, "maintainers": []}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """A Hub with an empty board; the token in use is alice's."""
    from huggingface_hub import constants

    from kit.prepare.transfer import Retry

    hub = GitHub(tmp_path / "hub", {token: name for name, token in TOKENS.items()})
    hub.create("datasets", BOARD, {"submissions/board.json": json.dumps(SETTINGS).encode()})
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(Retry, "delay_s", lambda self, failures: 0.0)
    monkeypatch.setenv("HF_TOKEN", TOKENS["alice"])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with git_hub.serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def git(repo: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout
