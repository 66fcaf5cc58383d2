"""Sockets of a stage's own processes, apart from those of other programs."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_ends import run_to_its_end

from kit.run import sockets

# Connects a datagram socket to a documentation address (RFC 5737): no packet is sent by that.
TALK = "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))\n"


def routed() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return False
        return not probe.getsockname()[0].startswith("127.")


@pytest.mark.skipif(not routed(), reason="this machine has no route to elsewhere")
def test_sockets_to_elsewhere_are_counted_for_the_process_and_its_children() -> None:
    code = f"import socket, sys\n{TALK}print(flush=True); sys.stdin.read()"
    shell = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert sockets.remote_sockets(child.pid) == 1
        child.communicate(b"")


def test_listening_and_loopback_sockets_are_no_traffic() -> None:
    here = Path("/proc/self").readlink().name
    before = sockets.remote_sockets(int(here))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        assert sockets.remote_sockets(int(here)) == before


def test_a_stage_that_uses_the_network_is_told_from_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(sockets, "EVERY_S", 0.05)
    quiet = run_to_its_end(tmp_path / "quiet", {"tokenizer": "time.sleep(1); leave()"})
    [stop] = quiet.events("stage_stop")
    assert stop["socket_looks"] > 0 and stop["remote_sockets"] == 0
    if routed():
        talk = run_to_its_end(tmp_path / "talk", {"tokenizer": f"{TALK}time.sleep(1); leave()"})
        [stop] = talk.events("stage_stop")
        assert stop["remote_sockets"] == 1
