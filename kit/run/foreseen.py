"""What `verify` would hold against a run after its day, said before it begins."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from kit.contract import Redactor, machine_names
from kit.recipe import Recipe
from kit.run.environment import describe_environment

_WATCHED_S = 0.5
_BUSY_SHARE = 0.25  # of the cores: more disturbs the probes, which are compared before and after
_IDLE_BYTES = 50 * 2**20  # of network traffic in a whole run, as `verify` (V11) has it


def foreseen(
    recipe: Recipe,
    *,
    describe: Callable[[], Mapping[str, Any]] = describe_environment,
    load: float | None = None,
    cores: int | None = None,
) -> list[str]:
    """Sentences about this machine and recipe that a result would be asked about; often none.

    Args:
        describe: Reads the surroundings; called twice, half a second apart.
        load: Load average of the last minute; None: read here.
        cores: Logical cores; None: counted here.
    """
    first = describe()
    began = time.monotonic()
    time.sleep(_WATCHED_S)
    second = describe()
    elapsed_s = time.monotonic() - began
    told = [
        *_clocks(first),
        *_traffic(first, second, elapsed_s, recipe.budget_s),
        *_load(load, cores),
    ]
    if Redactor({}, machine_names())(recipe.text[:2000]) != recipe.text[:2000]:
        told.append(
            "the recipe's text names this host, user or a home folder; it goes into the signed "
            "result as it is"
        )
    return told


def _clocks(seen: Mapping[str, Any]) -> list[str]:
    told = []
    if seen.get("ld_preload"):
        told.append(
            "a library is preloaded (LD_PRELOAD): V06 will warn, and refuse the run if the library "
            "answers for the clocks"
        )
    if seen.get("time_namespace") not in (None, "none"):
        told.append(
            "this container has a time namespace of its own: V06 will warn, and refuse the run if "
            "its offsets change"
        )
    if (seen.get("clocks_from") or {}).get("/proc/uptime") == "fuse.lxcfs":
        told.append("/proc/uptime is lxcfs's, not the kernel's: V06 will warn")
    return told


def _traffic(
    first: Mapping[str, Any], second: Mapping[str, Any], elapsed_s: float, budget_s: float
) -> list[str]:
    rates = [
        (second[name] - first[name]) / elapsed_s
        for name in ("rx_bytes", "tx_bytes")
        if first[name] is not None and second[name] is not None
    ]
    rate = max(rates, default=0.0)
    if rate * budget_s <= _IDLE_BYTES:
        return []
    text = f"other programs move {rate / 1024:,.0f} KiB a second over the network: "
    if second.get("separate_trainer"):
        return [text + "V11 holds it against the run; give the container a network of its own"]
    return [text + "V11 shows it, and holds it against no run whose stages open no connection"]


def _load(load: float | None, cores: int | None) -> list[str]:
    load = os.getloadavg()[0] if load is None else load
    cores = cores or os.cpu_count() or 1
    if load <= _BUSY_SHARE * cores:
        return []
    return [
        f"other programs keep the CPU busy (load {load:.1f} on {cores} cores): the probes before "
        "and after the run may differ, which `verify` would warn of (V12)"
    ]
