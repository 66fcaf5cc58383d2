"""An OpenAI-compatible server of one model, and the chat page that uses it.

    GET  /                       the page; it keeps its conversation itself, one a tab
    GET  /v1/models              the model
    POST /v1/completions         text to continue
    POST /v1/chat/completions    a conversation to answer (chat models)

Without a key it listens on the loopback only, and answers only requests that name its own address:
a page elsewhere cannot reach it by pointing a host name here. With a key, requests to /v1 need
`Authorization: Bearer KEY`. Requests that run at the same time share the model's passes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from reference.chat.batching import Batcher, Job, QueueFull
from reference.chat.protocol import (
    Asked,
    BadRequest,
    Limits,
    TextStream,
    read_chat,
    read_completion,
)
from reference.errors import TrainerError
from reference.tokenizer.bpe import Tokenizer

PAGE = Path(__file__).with_name("page.html")
MAX_REQUEST_BYTES = 1 << 20
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(
    batcher: Batcher,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    hosts: frozenset[str] | None,
    key: str | None,
) -> ASGIApp:
    """The ASGI application.

    Args:
        hosts: The `Host` headers to answer; None: all, which needs a key.
        key: What `Authorization: Bearer` must hold; None: nothing.
    """
    if hosts is None and key is None:
        raise ValueError("a server that answers to every host name needs a key")
    api = _Api(batcher, tokenizer, limits)
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        exception_handlers={
            BadRequest: _refused,
            ClientDisconnect: _left,
            404: _not_found,
            405: _not_found,
        },
    )
    return _Guard(app, hosts, key)


class _Guard:
    """Lets through requests that name this server, come from no other site, and hold the key."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, key: str | None) -> None:
        self._app, self._hosts, self._key = app, hosts, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        problem = self._problem(Request(scope))
        await (problem or self._app)(scope, receive, send)

    def _problem(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if (self._hosts is not None and host not in self._hosts) or origin not in (
            None,
            f"http://{host}",
        ):
            return _error(BadRequest("this server answers its own page only", status=403))
        if self._key is not None and request.url.path != "/":
            given = request.headers.get("authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
                return _error(
                    BadRequest("a key is needed: Authorization: Bearer KEY",
                               code="invalid_api_key", status=401)
                )  # fmt: skip
        return None


class _Api:
    def __init__(self, batcher: Batcher, tokenizer: Tokenizer, limits: Limits) -> None:
        self._batcher, self._tokenizer, self._limits = batcher, tokenizer, limits
        self._started = int(time.time())  # noqa: TID251 - a date for the client, no interval
        special = tokenizer.special
        self._stop = {special["<|bos|>"], *([special["<|assistant_end|>"]] if limits.chat else [])}

    def _entry(self) -> dict[str, Any]:
        return {
            "id": self._limits.name,
            "object": "model",
            "created": self._started,
            "owned_by": "n4090-kit",
            "context_length": self._limits.context,
            "chat": self._limits.chat,
            "max_tokens": self._limits.defaults.max_new_tokens,
        }

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._entry()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._limits.name:
            raise BadRequest("there is no such model", code="model_not_found", status=404)
        return _json(self._entry())

    async def completions(self, request: Request) -> Response:
        asked = read_completion(await _body(request), self._limits, self._tokenizer)
        return await self._answer(request, asked, _Shape("cmpl", "text_completion", chat=False))

    async def chat(self, request: Request) -> Response:
        asked = read_chat(await _body(request), self._limits, self._tokenizer)
        return await self._answer(request, asked, _Shape("chatcmpl", "chat.completion", chat=True))

    async def _answer(self, request: Request, asked: Asked, shape: _Shape) -> Response:
        head = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),  # noqa: TID251 - a date for the client, no interval
            "model": self._limits.name,
        }
        answers = _Answers(self._batcher, self._tokenizer, asked, self._stop)
        if asked.stream:
            return StreamingResponse(
                _events(answers, asked, shape, head),
                media_type="text/event-stream",
                headers=_HEADERS,
            )
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            async for _ in answers.pieces(gone):
                pass
        finally:
            gone.cancel()
            answers.cancel()
        choices = [shape.choice(i, text, why) for i, (text, why) in enumerate(answers.finished())]
        return _json({**head, "object": shape.name, "choices": choices, "usage": answers.usage()})


class _Shape:
    """How an answer looks in one of the two protocols."""

    def __init__(self, prefix: str, name: str, *, chat: bool) -> None:
        self.prefix, self.name, self.chat = prefix, name, chat

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **said, "finish_reason": reason, "logprobs": None}

    def delta(self, index: int, text: str, reason: str | None, first: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            said = {"delta": {**role, **({"content": text} if text or first else {})}}
        return {"index": index, **said, "finish_reason": reason, "logprobs": None}


class _Answers:
    """The jobs of one request, and their text as it comes."""

    def __init__(
        self, batcher: Batcher, tokenizer: Tokenizer, asked: Asked, stop: set[int]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, int | None, str | None]] = asyncio.Queue()
        self._asked = asked
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
        self._texts = [TextStream(tokenizer, asked.stop) for _ in prompts]
        self._written = [""] * len(prompts)
        self._reasons: list[str | None] = [None] * len(prompts)
        self._tokens = 0
        self._jobs = [
            Job(prompt, asked.sampling, stop, self._reporter(i), row=i % asked.n)
            for i, prompt in enumerate(prompts)
        ]
        try:
            batcher.submit(self._jobs)
        except QueueFull:
            raise BadRequest(
                "too many requests wait already; try again later", code="queue_full", status=429
            ) from None

    def _reporter(self, index: int) -> Callable[[int | None, str | None], None]:
        def report(token: int | None, reason: str | None) -> None:
            entry = (index, token, reason)
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, entry)
            except RuntimeError:  # the server has ended
                self._jobs[index].cancel()

        return report

    async def pieces(
        self, gone: asyncio.Future[None] | None = None
    ) -> AsyncIterator[tuple[int, str, str | None]]:
        """(answer, new text, reason of its end) until all have ended.

        Raises:
            ClientDisconnect: `gone` is done first.
        """
        while None in self._reasons:
            index, token, reason = await _first(self._queue.get(), gone)
            if self._reasons[index] is not None:
                continue
            stream = self._texts[index]
            if token is not None:
                self._tokens += 1
                text = stream.feed(token)
            else:
                text = stream.finish()
            if stream.stopped:
                reason = "stop"
                self._jobs[index].cancel()
            if reason is not None and reason.startswith("error"):
                raise BadRequest(f"the model failed: {reason.removeprefix('error: ')}", status=500)
            self._written[index] += text
            self._reasons[index] = reason
            if text or reason:
                yield index, text, reason

    def cancel(self) -> None:
        for job in self._jobs:
            job.cancel()

    def finished(self) -> list[tuple[str, str | None]]:
        return list(zip(self._written, self._reasons, strict=True))

    def usage(self) -> dict[str, int]:
        read = sum(map(len, self._asked.prompts))
        return {
            "prompt_tokens": read,
            "completion_tokens": self._tokens,
            "total_tokens": read + self._tokens,
        }


async def _first(work: Awaitable[Any], gone: asyncio.Future[None] | None) -> Any:
    """What `work` gives, unless the client leaves first."""
    if gone is None:
        return await work
    task = asyncio.ensure_future(work)
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        raise ClientDisconnect
    return task.result()


async def _events(
    answers: _Answers, asked: Asked, shape: _Shape, head: dict[str, Any]
) -> AsyncIterator[str]:
    """Server-sent events; the jobs end when nobody reads them any more."""
    name = f"{shape.name}.chunk" if shape.chat else shape.name
    begun: set[int] = set()

    def line(value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value)}\n\n"

    try:
        async for index, text, reason in answers.pieces():
            choice = shape.delta(index, text, reason, index not in begun)
            begun.add(index)
            yield line({**head, "object": name, "choices": [choice]})
        if asked.usage:
            yield line({**head, "object": name, "choices": [], "usage": answers.usage()})
    except BadRequest as error:
        yield line(error.to_json())
    finally:
        answers.cancel()
    yield "data: [DONE]\n\n"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> Any:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_REQUEST_BYTES:
            raise BadRequest(f"a request is at most {MAX_REQUEST_BYTES} bytes", status=413)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the request is not a JSON object")
    return body


async def _page(request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = PAGE.read_text("utf-8").replace("NONCE", nonce)
    return HTMLResponse(page, headers={**_HEADERS, "Content-Security-Policy": policy})


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(
        value, status, {**_HEADERS, "Content-Security-Policy": "default-src 'none'"}
    )


def _error(error: BadRequest) -> Response:
    response = _json(error.to_json(), error.status)
    if error.status == 429:
        response.headers["Retry-After"] = "1"
    if error.status == 413:
        response.headers["Connection"] = "close"
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return _error(error)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _error(BadRequest(f"{request.method} {request.url.path} is not served", status=status))


class Listener:
    """A socket that listens, and what to tell people about it.

    Args:
        host: An address or name of this machine; anything but the loopback needs a key, which is
            made where none is given.
        port: 0 takes a free one.

    Raises:
        TrainerError: The address cannot be listened on.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, key: str | None = None) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.create_server(address[:2], family=family)
        except OSError as error:
            raise TrainerError(
                "bad_input",
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "Take another --port; 0 finds a free one.",
            ) from error
        bound = self.socket.getsockname()
        self.loopback = ipaddress.ip_address(bound[0]).is_loopback
        self.key = key or (None if self.loopback else secrets.token_urlsafe(24))
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        if ipaddress.ip_address(bound[0]).is_unspecified:
            name = socket.gethostname()
        self.url = f"http://{name}:{bound[1]}"
        names = {name, host, "localhost", "127.0.0.1", "[::1]"}
        self.hosts = frozenset(f"{n}:{bound[1]}" for n in names) if self.loopback else None

    @property
    def page_url(self) -> str:
        """The page's address; the part behind # stays in the browser."""
        return f"{self.url}/" + (f"#key={self.key}" if self.key else "")


def run(app: ASGIApp, listener: Listener) -> None:
    """Serves until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    with suppress(KeyboardInterrupt):  # raised once more by uvicorn when all requests have ended
        uvicorn.Server(config).run(sockets=[listener.socket])
