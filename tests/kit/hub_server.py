"""A Hub on the loopback: the routes `prepare` uses, real ranges, and faults on request.

Small files are served by the resolve route itself, large (LFS) ones through a redirect, as the real
one does. A file counts as LFS when it is a parquet file.
"""

import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 4  # entries of a listing's page


@dataclass
class Answer:
    """A fault: another status, a connection that ends after `cut` bytes, or a wait after `hold`."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hold: int | None = None
    body: bytes | None = None


@dataclass
class Hub:
    """What the server has: repositories by commit, faults by file name, and what was asked."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    head: dict[str, str] = field(default_factory=dict)
    licence: dict[str, str] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def commit(self, repository: str, files: dict[str, bytes], licence: str | None = None) -> str:
        """A new commit on main with these files."""
        lines = "".join(f"{path}{hashlib.sha256(data).hexdigest()}" for path, data in files.items())
        commit = hashlib.sha1(f"{repository}{lines}".encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.head[repository] = commit
        if licence:
            self.licence[repository] = licence
        return commit

    def fetched(self, name: str) -> list[str | None]:
        """The ranges in which a file's content was asked for."""
        return [where for path, where in self.requests if path.startswith("/cdn/") and name in path]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._error(404, None, "no HEAD here")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((path, self.headers.get("Range")))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.append(token)
        waiting = self.hub.faults[path.rsplit("/", 1)[-1]]
        fault = Answer()
        if waiting and "/resolve/" not in path:
            fault = waiting.pop(0)
        if fault.status is not None:
            self._send(fault.status, b"", fault.headers)
            return
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(*match.groups())
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._tree(*match.groups(), start=int(parse_qs(url.query).get("cursor", ["0"])[0]))
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]+)/(.+)", path):
            repository, commit, name = match.groups()
            self._content(self.hub.commits[repository][commit][name], fault)
        elif path in self.hub.plain:
            self._content(self.hub.plain[path], fault)
        else:
            self._error(404, None, "no such page")

    def _info(self, repository: str, revision: str) -> None:
        if repository not in self.hub.head:
            self._error(404, "RepoNotFound", "Repository not found")
            return
        commit = self.hub.head[repository] if revision == "main" else revision
        if commit not in self.hub.commits[repository]:
            self._error(404, "RevisionNotFound", "Revision not found")
            return
        card = {"license": self.hub.licence[repository]} if repository in self.hub.licence else None
        self._json({"id": repository, "sha": commit, "cardData": card, "tags": [], "siblings": []})

    def _tree(self, repository: str, commit: str, start: int) -> None:
        files = sorted(self.hub.commits[repository][commit].items())
        entries: list[dict[str, Any]] = []
        for path, data in files[start : start + PAGE]:
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
            entry["oid"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            if path.endswith(".parquet"):
                oid = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        headers = {}
        if start + PAGE < len(files):
            following = (
                f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
            )
            headers["Link"] = f'<{following}>; rel="next"'
        self._json(entries, headers)

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        data = self.hub.commits.get(repository, {}).get(commit, {}).get(name)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
        elif name.endswith(".parquet"):
            self._send(302, b"", {"Location": f"/cdn/{repository}/{commit}/{name}"})
        else:
            self._content(data, Answer())

    def _content(self, data: bytes, fault: Answer) -> None:
        if fault.body is not None:
            data = fault.body
        begin, status = 0, 200
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin, status = int(match[1]), 206
            if begin >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(status, data[begin:], headers, fault)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), headers or {})

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, b"", headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], fault: Answer | None = None
    ) -> None:
        fault = fault or Answer()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            if fault.cut is not None:
                self.wfile.write(body[: fault.cut])
                self.close_connection = True
            elif fault.hold is not None:
                self.wfile.write(body[: fault.hold])
                self.wfile.flush()
                self.hub.release.wait(20)
                self.wfile.write(body[fault.hold :])
            elif self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True
