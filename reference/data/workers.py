"""Runs independent jobs: in this process, on all cores, or on a Ray cluster.

A job is a function of its arguments that leaves its result in files, so it can be run again: a
worker that dies costs the jobs it had in hand, nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from reference.errors import TrainerError
from reference.ray_cluster import connect

Job = tuple[Any, ...]
RETRIES = 2
WORKER_BYTES = 250 << 20  # of one worker's code and models, the shard it writes aside
_LOST_HINT = (
    "Usually the machine ran out of memory: lower --workers or --memory. The same command resumes "
    "after the last finished part."
)


class Workers(Protocol):
    count: int

    def run(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """(index of the job, its result) as they finish."""
        ...

    def close(self) -> None: ...


class Inline:
    """One worker: this process."""

    count = 1

    def run(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            yield index, function(*job)

    def close(self) -> None:
        pass


class Processes:
    """`count` processes on this machine."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        left = set(range(len(jobs)))
        for attempt in range(RETRIES + 1):
            try:
                for index, result in self._once(function, jobs, sorted(left)):
                    left.discard(index)
                    yield index, result
                return
            except BrokenProcessPool as error:
                self.close()
                # Whatever killed a worker is likelier with all of them at it.
                self.count = max(1, self.count // 2)
                if attempt == RETRIES:
                    raise TrainerError(
                        "out_of_memory",
                        f"a worker was killed {RETRIES + 1} times; {len(left)} of {len(jobs)} "
                        f"jobs are left, the first: {_named(jobs[min(left)])}",
                        _LOST_HINT,
                    ) from error

    def _once(
        self, function: Callable[..., Any], jobs: Sequence[Job], order: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, initializer=_quiet_threads)
        waiting = list(order)[::-1]
        running: dict[Future[Any], int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * self.count:
                    index = waiting.pop()
                    running[self._pool.submit(function, *jobs[index])] = index
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


class RayCluster:
    """Workers of a Ray cluster that share the build's folder with this machine.

    Args:
        address: As for `ray.init`: "auto", "local" (started here) or "ray://host:port".
    """

    def __init__(self, address: str, count: int) -> None:
        self._ray = connect(address, count)
        self.count = int(self._ray.cluster_resources().get("CPU", 1))

    def run(self, function: Callable[..., Any], jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        ray = self._ray
        remote = ray.remote(function).options(max_retries=RETRIES, num_cpus=1)
        waiting = list(range(len(jobs)))[::-1]
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < 2 * self.count:
                index = waiting.pop()
                running[remote.remote(*jobs[index])] = index
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                index = running.pop(reference)
                try:
                    yield index, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause or error) from error
                except ray.exceptions.RayError as error:
                    raise TrainerError(
                        "out_of_memory",
                        f"a Ray worker was lost with {_named(jobs[index])}: {error}",
                        _LOST_HINT,
                    ) from error

    def close(self) -> None:
        self._ray.shutdown()


def _named(job: Job) -> str:
    return " ".join(str(item) for item in job if isinstance(item, int | str))[:120]


def _quiet_threads() -> None:
    """One thread a worker: numpy and arrow would otherwise start as many as there are cores."""
    import pyarrow as pa

    os.environ["OMP_NUM_THREADS"] = "1"
    pa.set_cpu_count(1)


def open_workers(
    count: int, memory_bytes: int, shard_bytes: int, document_bytes: int, ray: str = ""
) -> Workers:
    """As many workers as cores and memory allow; at most `count` unless that is 0.

    Raises:
        TrainerError: The memory is too little for one.
    """
    cores = count or len(os.sched_getaffinity(0))
    # A shard is held about three times while it is written, a document's hashes take 40 times it.
    need = WORKER_BYTES + max(3 * shard_bytes, 40 * document_bytes)
    if memory_bytes < need:
        raise TrainerError(
            "bad_input",
            f"--memory is {memory_bytes / 1e6:.0f} MB, but one worker needs {need / 1e6:.0f} MB "
            f"with shards of {shard_bytes / 1e6:g} MB and documents of up to "
            f"{document_bytes / 1e6:g} MB",
            "Give more, or lower shards.text_mb and normalize.max_document_mb in the spec.",
        )
    # A single worker is this process; several have it beside them.
    count = max(1, min(cores, (memory_bytes - WORKER_BYTES) // need))
    if ray:
        return RayCluster(ray, count)
    return Inline() if count == 1 else Processes(count)
