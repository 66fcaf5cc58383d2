"""Where trials run: threads that watch processes here, or the GPUs of a Ray cluster."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any, Protocol

from reference.errors import TrainerError
from reference.lab.trial import FAILED, Outcome, Report, Trial, run_trial
from reference.ray_cluster import connect

LOST = "the worker that ran it was lost"
Run = Callable[[Trial, Report | None, Event | None], Outcome]


class Executor(Protocol):
    """Runs trials, several at a time."""

    def free(self) -> bool:
        """Whether another trial can be started."""

    def submit(self, trial: Trial) -> None: ...

    def wait(self, timeout_s: float) -> list[tuple[Trial, Outcome]]:
        """Those that ended since; empty after `timeout_s` seconds without one."""

    def close(self) -> None:
        """Ends what is running."""


class LocalExecutor:
    """`jobs` trials at a time on this machine, each a process of its own.

    Args:
        gpus: GPUs to deal out, one a trial; 0 leaves visible what is.
        report: Called with (trial id, event, data) from other threads.
    """

    def __init__(
        self,
        jobs: int,
        *,
        gpus: int = 0,
        report: Callable[[str, str, Any], None] | None = None,
        run: Run = run_trial,
    ) -> None:
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="trial")
        self._slots = list(range(jobs))
        self._gpus, self._report, self._run = gpus, report, run
        self._done: queue.SimpleQueue[tuple[Trial, int, Future[Outcome]]] = queue.SimpleQueue()
        self._stop = Event()

    def free(self) -> bool:
        return bool(self._slots)

    def submit(self, trial: Trial) -> None:
        slot = self._slots.pop()
        placed = replace(trial, gpu=slot % self._gpus) if self._gpus else trial
        report = self._report

        def tell(ev: str, data: Any) -> None:
            if report:
                report(trial.id, ev, data)

        future = self._pool.submit(self._run, placed, tell, self._stop)
        future.add_done_callback(lambda done: self._done.put((trial, slot, done)))

    def wait(self, timeout_s: float) -> list[tuple[Trial, Outcome]]:
        ended: list[tuple[Trial, Outcome]] = []
        try:
            item = self._done.get(timeout=timeout_s)
            while True:
                trial, slot, future = item
                self._slots.append(slot)
                error = future.exception()
                # What a trial cannot explain must not end the others.
                ended.append(
                    (trial, Outcome(FAILED, f"{type(error).__name__}: {error}"))
                    if error
                    else (trial, future.result())
                )
                item = self._done.get_nowait()
        except queue.Empty:
            return ended

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


class RayExecutor:
    """One trial a GPU on a Ray cluster; the study's folder and data are shared by its machines.

    Args:
        address: Of the cluster; "auto" for the one of this machine, "local" starts one here.
    """

    def __init__(self, address: str, *, device: str, threads: int, run: Run = run_trial) -> None:
        self._ray = ray = connect(address)
        total = ray.cluster_resources()
        on_gpu = device == "cuda" or (device == "auto" and total.get("GPU", 0) > 0)
        need: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": threads}
        have = total.get("GPU", 0) if on_gpu else total.get("CPU", 0) / threads
        if have < 1:
            raise TrainerError(
                "bad_input",
                f"the Ray cluster at {address} has no room for a trial ({need})",
                "Add a machine with `ray start --address=…`.",
            )
        self._jobs = int(have)
        self._remote = ray.remote(max_retries=0, **need)(run)
        self._running: dict[Any, Trial] = {}

    def free(self) -> bool:
        return len(self._running) < self._jobs

    def submit(self, trial: Trial) -> None:
        self._running[self._remote.remote(trial, None, None)] = trial

    def wait(self, timeout_s: float) -> list[tuple[Trial, Outcome]]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=timeout_s)
        ended = []
        for reference in ready:
            trial = self._running.pop(reference)
            try:
                ended.append((trial, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                ended.append((trial, Outcome(FAILED, f"{LOST} ({type(error).__name__})")))
        return ended

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
