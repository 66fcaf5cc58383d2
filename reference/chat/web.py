"""`n4090-kit chat RUN --web`: a page in the browser, answered as the model generates.

One server, one conversation, for the person at this machine: it listens on the loopback unless told
otherwise, answers only requests that name its own address (a page elsewhere cannot reach it by
pointing a host name here), and the page loads nothing from anywhere else.

    GET  /          the page
    GET  /messages  {"messages": [...], "title": ...}
    POST /ask       {"text": ...} -> lines of {"piece": ...}, then {"ended": ..., "stopped": ...}
    POST /stop      ends the answer that is being generated
    POST /new       starts the conversation over
"""

from __future__ import annotations

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from reference.chat.session import Session
from reference.errors import TrainerError

PAGE = Path(__file__).with_name("page.html")
MAX_REQUEST_BYTES = 1 << 16


class ChatServer(ThreadingHTTPServer):
    """Serves one session; `stop` ends the answer in progress.

    Args:
        host: An address of this machine; port 0 takes a free one (`url` says which).

    Raises:
        TrainerError: The address cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, session: Session, title: str, host: str = "127.0.0.1", port: int = 0):
        self.session, self.title = session, title
        self.answering = threading.Lock()
        self.stop = threading.Event()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise TrainerError(
                "bad_input",
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "Take another --port; 0 finds a free one.",
            ) from error

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    @property
    def names(self) -> set[str]:
        """What a request may call this server. Listening on all addresses it cannot know."""
        host, port = self.server_address[:2]
        return {f"{name}:{port}" for name in (host, "localhost", "127.0.0.1")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    server_version = "n4090-kit"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_meant():
            return
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = PAGE.read_text("utf-8").replace("NONCE", nonce)
            policy = (
                f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
                "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            self._answer(200, "text/html; charset=utf-8", page.encode(), policy)
        elif self.path == "/messages":
            self._json(200, {"title": self.server.title, "messages": self.server.session.messages})
        else:
            self._json(404, {"error": f"there is no {self.path} here"})

    def do_POST(self) -> None:
        if not self._is_meant():
            return
        body = self._body()
        if body is None:
            return
        if self.path == "/ask":
            self._ask(body)
        elif self.path == "/stop":
            self.server.stop.set()
            self._json(200, {})
        elif self.path == "/new":
            self.server.stop.set()
            with self.server.answering:
                self.server.session.restart()
            self._json(200, {})
        else:
            self._json(404, {"error": f"there is no {self.path} here"})

    def _ask(self, body: dict[str, Any]) -> None:
        text = body.get("text")
        if not isinstance(text, str) or not text.strip():
            self._json(400, {"error": "there is nothing to answer"})
            return
        if not self.server.answering.acquire(blocking=False):
            self._json(409, {"error": "an answer is being generated already; stop it first"})
            return
        try:
            self.server.stop.clear()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Cache-Control", "no-store")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            pieces = self.server.session.ask(text)
            stopped = False
            try:
                for piece in pieces:
                    self._line({"piece": piece})
                    if self.server.stop.is_set():
                        stopped = True
                        break
            except OSError:  # the page is gone: nobody waits for the rest
                self.close_connection = True
                return
            finally:
                pieces.close()
            self._line({"ended": self.server.session.ended, "stopped": stopped})
            self.wfile.write(b"0\r\n\r\n")
        finally:
            self.server.answering.release()

    def _line(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _is_meant(self) -> bool:
        """Whether the request names this server and does not come from another site's page."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        everywhere = self.server.server_address[0] in ("0.0.0.0", "::")
        if (everywhere or host in self.server.names) and origin in (None, f"http://{host}"):
            return True
        self.close_connection = True
        self._json(403, {"error": "this server answers its own page only"})
        return False

    def _body(self) -> dict[str, Any] | None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_REQUEST_BYTES:
            self.close_connection = True
            self._json(413, {"error": f"a message is at most {MAX_REQUEST_BYTES} bytes"})
            return None
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            self._json(400, {"error": "the request is no JSON object"})
            return None
        return body

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(value).encode())

    def _answer(
        self, status: int, kind: str, data: bytes, policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """What is said here stays here."""
