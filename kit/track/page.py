"""The live page of a run: one HTML file and its state as JSON, served to this machine alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

_PAGE = files("kit.track").joinpath("watch.html")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
}


class WatchServer(ThreadingHTTPServer):
    """Serves the page at `/` and the run's state at `/state.json`.

    Args:
        state: Returns the state; called for each request, from any thread.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, state: Callable[[], dict[str, Any]]) -> None:
        super().__init__((host, port), _Handler)
        self.state = state

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer("text/html; charset=utf-8", _PAGE.read_bytes())
        elif self.path == "/state.json":
            state = json.dumps(self.server.state()).encode()
            self._answer("application/json", state)
        else:
            self.send_error(404)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return
