"""Accounts' keys, looked up on a loopback server and held against a result."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tamper
from click.testing import CliRunner, Result

from kit.cli.main import cli
from kit.errors import KitError, PrerequisiteError
from kit.trust import sshsig
from kit.trust.identities import Account, claimed_identities, fetch_snapshot, read_snapshot
from kit.verify import Options, verify_result

MINE = sshsig.public_key(tamper.KEY).line
THEIRS = sshsig.public_key(tamper.OTHER_KEY).line
ANSWERS = {
    "/alice.keys": f"{THEIRS}\nssh-dss AAAAB3NzaC1kc3M=\n",
    "/users/alice/ssh_signing_keys": json.dumps([{"id": 1, "key": f"{MINE} alice@home"}]),
    "/datasets/alice/n4090-keys/resolve/main/keys.pub": f"# mine\n{MINE} alice\n",
    "/mallory.keys": "",
    "/users/mallory/ssh_signing_keys": "<html>",
    "/huge.keys": "x" * 2**21,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = ANSWERS.get(self.path)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, *_: object) -> None: ...

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{found.server_address[1]}"
    for name in ("N4090_GITHUB", "N4090_GITHUB_API", "HF_ENDPOINT"):
        monkeypatch.setenv(name, url)
    yield url
    found.shutdown()
    thread.join()
    found.server_close()


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_keys_are_found_where_accounts_show_them(server: str) -> None:
    github, hf = fetch_snapshot([Account("github", "alice"), Account("hf", "alice")])["accounts"]
    assert github["keys"] == sorted([MINE, THEIRS]) and hf["keys"] == [MINE]
    assert github["fetched_at"].endswith("Z")


def test_a_run_names_the_accounts_that_showed_its_key(server: str, tmp_path: Path) -> None:
    done = call("keys", "identify", "--github", "alice", "--work", tmp_path)
    assert done.exit_code == 0, done.output
    claim = claimed_identities(tmp_path / "keys", MINE)
    assert claim["github"]["user"] == "alice"
    assert claimed_identities(tmp_path / "keys", "ssh-ed25519 AAAA") == {}
    draft = tamper.gpu_run(steps=24)
    draft.header()["signer"]["identities"] = claim
    path = draft.write(tmp_path / "run")
    unchecked = verify_result(path)
    assert unchecked.status("V03") == "warn" and unchecked.exit_code == 0
    mine = tmp_path / "seen.json"
    assert call("keys", "identify", "--github", "alice", "--out", mine).exit_code == 0
    checked = verify_result(path, Options(identities=mine))
    assert checked.verdict == "consistent"
    assert "github:alice on 20" in checked.of("V03")[0].message
    assert call("keys", "identify", "--hf", "alice", "--out", mine).exit_code == 0
    assert len(read_snapshot(mine)["accounts"]) == 2
    (tmp_path / "none.json").write_text('{"schema_version": 1, "accounts": []}')
    assert verify_result(path, Options(identities=tmp_path / "none.json")).exit_code == 3


@pytest.mark.parametrize("user", ["nobody", "mallory", "huge", "../etc", "a b", ""])
def test_what_is_no_list_of_keys_is_one_clear_error(server: str, user: str) -> None:
    with pytest.raises(KitError):
        fetch_snapshot([Account("github", user)])


def test_without_a_network_only_this_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PrerequisiteError, match="no answer"):
        fetch_snapshot([Account("hf", "alice")])
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(PrerequisiteError, match="https"):
        fetch_snapshot([Account("hf", "alice")])
