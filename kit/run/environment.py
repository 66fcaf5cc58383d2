"""What around a run could bend its result: network traffic, preloaded libraries, namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kit.run.separation import trainer_user

_LOOPBACK = "lo"


def describe_environment() -> dict[str, Any]:
    """What can be read of this process's surroundings; None where it cannot be read.

    Returns:
        rx_bytes, tx_bytes: Traffic so far on all interfaces but the loopback.
        ld_preload: Whether a preloaded library could have changed what libc answers.
        time_namespace: Offsets of this time namespace, "none" when all are zero.
        container: The kind of container around this process, as far as it shows.
        separate_trainer: Whether stages run as a user who cannot write log, result and keys.
    """
    received, sent = _traffic()
    return {
        "rx_bytes": received,
        "tx_bytes": sent,
        "ld_preload": bool(os.environ.get("LD_PRELOAD")) or _faketime_mapped(),
        "time_namespace": _time_namespace(),
        "container": _container(),
        "separate_trainer": trainer_user() is not None,
    }


def _traffic() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    except OSError:
        return None, None
    received = sent = 0
    for line in lines:
        name, _, numbers = line.partition(":")
        columns = numbers.split()
        if name.strip() != _LOOPBACK and len(columns) >= 9:
            received += int(columns[0])
            sent += int(columns[8])
    return received, sent


def _faketime_mapped() -> bool:
    try:
        return "faketime" in Path("/proc/self/maps").read_text()
    except OSError:
        return False


def _time_namespace() -> str | None:
    try:
        rows = Path("/proc/self/timens_offsets").read_text().splitlines()
    except OSError:
        return None
    shifted = [row for row in rows if any(value != "0" for value in row.split()[1:])]
    return "; ".join(" ".join(row.split()) for row in shifted) or "none"


def _container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    # With --read-only, Podman hides its file behind a tmpfs; it always sets the variable.
    named = os.environ.get("container")  # noqa: SIM112
    if Path("/run/.containerenv").exists() or named == "podman":
        return "podman"
    return None
