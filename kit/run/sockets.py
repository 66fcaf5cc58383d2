"""Whether a stage's own processes talk to the network, apart from the rest of the machine.

The counters of the network interfaces cannot tell a trainer's traffic from a browser's. The sockets
that the stage's processes hold open can: they are looked at every few seconds. A connection that
lives between two looks is not seen, so this separates honest programs; it proves nothing against a
trainer that hides.
"""

from __future__ import annotations

import time
from pathlib import Path

from kit.run.descendants import children_by_parent

EVERY_S = 10.0
_FIRST_AFTER_S = 1.0
_TABLES = ("tcp", "tcp6", "udp", "udp6")
_LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


class SocketWatch:
    """Looks at the sockets of a process and its descendants from time to time.

    Attributes:
        looks: How often it could look.
        remote: Most sockets to another machine that were open at one look.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._due = time.monotonic() + _FIRST_AFTER_S
        self.looks = 0
        self.remote = 0

    def look(self) -> None:
        """Looks, if it is time again."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        found = remote_sockets(self._pid)
        if found is not None:
            self.looks += 1
            self.remote = max(self.remote, found)


def remote_sockets(pid: int) -> int | None:
    """Open sockets of `pid` and its descendants that reach beyond this machine; None if unknown."""
    children = children_by_parent()
    pids = [pid]
    for parent in pids:  # grows while it is read
        pids += [child.pid for child in children.get(parent, ())]
    try:
        remote = set().union(*(_remote_inodes(Path(f"/proc/{pid}/net/{name}")) for name in _TABLES))
        return len(remote & set().union(*map(_inodes, pids)))
    except OSError:
        return None


def _inodes(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds open; none if it has just ended."""
    found = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(entry.readlink())
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def _remote_inodes(path: Path) -> set[str]:
    """Inodes of a table's sockets that are not confined to the loopback."""
    try:
        rows = path.read_text().splitlines()[1:]
    except FileNotFoundError:
        return set()
    found = set()
    for row in rows:
        fields = row.split()
        local, peer = fields[1].rpartition(":")[0], fields[2].rpartition(":")[0]
        listening = path.name.startswith("tcp") and set(peer) == {"0"}
        if local not in _LOOPBACK and peer not in _LOOPBACK and not listening:
            found.add(fields[9])
    return found
