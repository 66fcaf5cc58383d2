"""A disk that is found full between two stages ends a run in a signed result, and it goes on."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import tamper

from kit.run import supervisor
from kit.run.process import StopFlag
from kit.trust.keys import load_or_create_signer


def test_a_full_disk_between_stages_is_signed_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    plan = tamper.pretraining_plan(tmp_path)()
    signer = load_or_create_signer(tmp_path / "keys")
    write = supervisor.write_json

    def full(path: Path, value: Any) -> None:
        if path.name == "request-pretrain.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    def run() -> dict[str, Any]:
        path = supervisor.supervise(plan, signer, observe=lambda event: None, stop=StopFlag())
        document: dict[str, Any] = json.loads(path.read_text())
        return document

    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "write_json", full)
        result = run()
    assert result["signatures"]
    assert (result["claims"]["status"], result["claims"]["reason"]) == ("failed", "disk_full")
    assert "disk is full" in result["claims"]["message"]
    assert run()["claims"]["status"] == "complete"
