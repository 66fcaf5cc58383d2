"""Generation for many requests at once: whoever waits joins the batch between two tokens.

One thread owns the model. Each pass of it gives every running request one token; new requests are
read (their prompts in one batch) and then run with the others, finished ones leave. A request draws
from a random stream of its own: its text does not depend on who shares the batch, up to rounding.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from reference.chat.engine import Sampling, choose, pad_right, row_generator
from reference.model.gpt import GPT
from reference.model.kv_cache import KVCache

# A token of the answer, or why there are no more: "stop" (a stop token), "length", "error".
OnToken = Callable[[int | None, str | None], None]


class QueueFull(Exception):
    """More requests wait than the batcher keeps."""


@dataclass(eq=False)
class Job:
    """One prompt to continue.

    Args:
        prompt: At least one token.
        stop: Tokens that end the answer; they are not reported.
        on_token: Called in the model's thread: (token, None) for each token, then (None, reason)
            once. It must return at once.
        row: Sets answers to equal prompts and seeds apart.
    """

    prompt: Sequence[int]
    sampling: Sampling
    stop: Collection[int]
    on_token: OnToken
    row: int = 0
    made: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.draw = row_generator(self.sampling.seed, self.row)

    @property
    def positions(self) -> int:
        """Positions of the cache that it may come to need."""
        return len(self.prompt) + self.sampling.max_new_tokens

    def cancel(self) -> None:
        """Ends it before its next token; `on_token` is not called any more."""
        self.cancelled.set()


class Batcher:
    """Runs jobs in a thread of its own until `close`.

    Args:
        max_batch: Requests that run together; the cache grows with it.
        max_waiting: Requests that wait; further ones are refused.
    """

    def __init__(self, model: GPT, *, max_batch: int = 16, max_waiting: int = 64) -> None:
        self._model, self._max_batch, self._max_waiting = model, max_batch, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._tokens: list[int] = []  # the last token of each running job
        self._cache: KVCache | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs.

        Raises:
            QueueFull: Nothing was queued.
        """
        if not all(job.prompt for job in jobs):
            raise ValueError("a prompt has no token; begin with BOS")
        with self._wake:
            if len(self._waiting) + len(jobs) > self._max_waiting:
                raise QueueFull
            self._waiting.extend(jobs)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread; jobs that are left get no more tokens."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._closing):
                    self._wake.wait()
                if self._closing:
                    return
                room = self._max_batch - len(self._running)
                joining = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            try:
                with torch.no_grad():
                    self._pass(joining)
            except Exception as error:  # told to whoever waits; the server goes on
                for job in (*self._running, *joining):
                    if not job.cancelled.is_set():
                        job.on_token(None, f"error: {type(error).__name__}: {error}")
                self._running, self._tokens, self._cache = [], [], None

    def _pass(self, joining: list[Job]) -> None:
        """One token for each running job; then the jobs that join read their prompts."""
        if self._running:
            assert self._cache is not None
            columns = torch.tensor(self._tokens, device=self._model.device)[:, None]
            kept, tokens, self._cache = self._advance(
                self._running, self._cache, columns, [1] * len(self._running)
            )
            self._running, self._tokens = kept, tokens
        joining = [job for job in joining if not job.cancelled.is_set()]
        if not joining:
            return
        model = self._model
        columns, counts = pad_right([job.prompt for job in joining], model.device)
        length = max(max(job.positions for job in joining), columns.size(1))
        cache = KVCache(model.config, len(joining), length, model.device, model.dtype)
        kept, tokens, fresh = self._advance(joining, cache, columns, counts)
        if not kept:
            return
        self._cache = (
            joined(self._cache, fresh) if self._cache is not None and self._running else fresh
        )
        self._running, self._tokens = [*self._running, *kept], [*self._tokens, *tokens]

    def _advance(
        self, jobs: list[Job], cache: KVCache, columns: torch.Tensor, counts: list[int]
    ) -> tuple[list[Job], list[int], KVCache]:
        """Reads `counts` of the columns, reports a token a job; what goes on, and its cache."""
        model = self._model
        cache.append_counts(counts)
        hidden = model.hidden(columns, cache)  # (B, T, C)
        last = torch.tensor(counts, device=model.device) - 1
        logits = model.logits(hidden[torch.arange(len(jobs), device=model.device), last])  # (B, V)
        going, tokens = [], []
        for row, job in enumerate(jobs):
            if job.cancelled.is_set():
                continue
            [token] = choose(logits[row : row + 1], job.sampling, [job.draw])
            if token in job.stop:
                job.on_token(None, "stop")
                continue
            job.made += 1
            job.on_token(token, None)
            if job.made >= job.sampling.max_new_tokens:
                job.on_token(None, "length")
            else:
                going.append(row)
                tokens.append(token)
        if len(going) < len(jobs):
            cache = cache.select(going)
        return [jobs[row] for row in going], tokens, cache


def joined(first: KVCache, second: KVCache) -> KVCache:
    """One cache with the rows of both, in order."""
    length = max(first.max_len, second.max_len)
    both = KVCache(first.config, first.batch + second.batch, length, first.device, first.dtype)
    begin = 0
    for cache in (first, second):
        rows, filled = slice(begin, begin + cache.batch), max(cache.lengths)
        both.keys[:, rows, :filled] = cache.keys[:, :, :filled]
        both.values[:, rows, :filled] = cache.values[:, :, :filled]
        both.previous[rows] = cache.previous
        begin += cache.batch
    both.lengths = [*first.lengths, *second.lengths]
    return both
