"""A server in a thread, for tests that talk to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn

from reference.chat.batching import Batcher, Job
from reference.chat.engine import Sampling
from reference.chat.protocol import Limits
from reference.chat.server import Listener, make_app
from reference.model.gpt import GPT, ModelConfig
from reference.tokenizer.bpe import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog. Grüße, 日本 🦊! "


def tiny(seed: int = 0) -> tuple[GPT, Tokenizer]:
    tokenizer = Tokenizer.train([TEXT * 9], 320)
    config = ModelConfig(
        tokenizer.vocab_size, n_layer=3, n_embd=32, n_head=2, n_kv_head=1, seq_len=96,
        short_window=9,
    )  # fmt: skip
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator))
    return model.place().eval(), tokenizer


class Script:
    """Takes the place of a `Batcher`: the test itself gives the tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.jobs: list[Job] = []
        self.arrived = threading.Semaphore(0)

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.jobs.append(job)
            self.arrived.release()

    def next(self) -> Job:
        assert self.arrived.acquire(timeout=30)
        return self.jobs[-1]

    def say(self, job: Job, text: str) -> None:
        for token in self._tokenizer.encode([text])[0]:
            job.on_token(token, None)


@contextmanager
def serving(
    batcher: Any,
    tokenizer: Tokenizer,
    *,
    chat: bool = True,
    context: int = 96,
    key: str | None = None,
    everywhere: bool = False,
) -> Iterator[Listener]:
    """A running server; `everywhere` answers to every host name, as with --host 0.0.0.0."""
    listener = Listener(key=key)
    limits = Limits("a-run", chat, context, Sampling(12, 0.0))
    app = make_app(
        batcher, tokenizer, limits, hosts=None if everywhere else listener.hosts, key=listener.key
    )
    config = uvicorn.Config(
        app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener.socket]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield listener
    finally:
        server.should_exit = True
        thread.join()
        if isinstance(batcher, Batcher):
            batcher.close()


def call(
    listener: Listener, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of one request."""
    host, port = listener.socket.getsockname()[:2]
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def post(listener: Listener, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """(status, JSON) of one request to the API."""
    status, _, body = call(listener, "POST", path, json.dumps(fields).encode())
    return status, json.loads(body)
