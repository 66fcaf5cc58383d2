"""A Hub on the loopback that keeps what it gets: bare git repositories, LFS objects, pull requests.

It serves the routes that `submit` and `board publish` use, as huggingface_hub 2.4 calls them. What
it stores is plain git (`refs/heads/main`, `refs/pr/N`), so git itself can judge it. Faults come on
request: statuses, connections cut while reading or before answering, slow bodies, lost bytes.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet")
LFS_BYTES = 512 * 1024
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "hub"),
        ("EMAIL", "hub@localhost"),
        ("DATE", "2026-01-01T00:00:00Z"),
    )
}


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD path` matches."""

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_request: int | None = None  # close after reading so many bytes of the body
    lose_reply: bool = False  # do it, then close without a word
    slow_s: float = 0.0  # between two halves of the answer
    lose_bytes: int = 0  # of an uploaded body


@dataclass
class GitHub:
    """Repositories below `root`; accounts by token."""

    root: Path
    accounts: dict[str, str]
    url: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    discussions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)  # owners whom nobody else may write to
    lock: threading.RLock = field(default_factory=threading.RLock)

    def path(self, kind: str, name: str) -> Path:
        return self.root / kind / f"{name}.git"

    def git(self, repo: Path, *args: str, data: bytes | None = None, **env: str) -> bytes:
        done = subprocess.run(
            ["git", "-C", str(repo), *args],
            input=data,
            capture_output=True,
            env={**os.environ, **IDENTITY, **env},
            check=False,
        )
        if done.returncode:
            raise LookupError(done.stderr.decode())
        return done.stdout

    def create(self, kind: str, name: str, files: dict[str, bytes] | None = None) -> Path:
        repo = self.path(kind, name)
        repo.mkdir(parents=True)
        self.git(repo, "init", "--quiet", "--bare", "--initial-branch=main")
        first = files if files is not None else {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.write(repo, "refs/heads/main", None, first, "initial commit")
        return repo

    def write(
        self,
        repo: Path,
        ref: str,
        parent: str | None,
        files: dict[str, bytes | None],
        message: str,
    ) -> str:
        """A commit on `ref` on top of `parent`; None deletes a file."""
        index = str(repo / f"index-{threading.get_ident()}")
        if parent:
            self.git(repo, "read-tree", parent, GIT_INDEX_FILE=index)
        lines = []
        for path, data in files.items():
            if data is None:
                lines.append(f"0 {'0' * 40}\t{path}")
                continue
            blob = self.git(repo, "hash-object", "-w", "--stdin", data=data).decode().strip()
            lines.append(f"100644 {blob}\t{path}")
        text = "\n".join(lines).encode() + b"\n"
        self.git(repo, "update-index", "--index-info", data=text, GIT_INDEX_FILE=index)
        tree = self.git(repo, "write-tree", GIT_INDEX_FILE=index).decode().strip()
        Path(index).unlink()
        parents = ["-p", parent] if parent else []
        made = self.git(repo, "commit-tree", tree, *parents, "-m", message).decode().strip()
        self.git(repo, "update-ref", ref, made)
        return made

    def resolve(self, repo: Path, revision: str) -> str:
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            try:
                told = self.git(repo, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
                return told.decode().strip()
            except LookupError:
                continue
        raise LookupError(revision)

    def listing(self, repo: Path, commit: str, under: str = "") -> list[dict[str, Any]]:
        entries = []
        where = ["--", under] if under else []
        for line in self.git(repo, "ls-tree", "-r", "-l", "-z", commit, *where).split(b"\0"):
            if not line:
                continue
            meta, path = line.decode().split("\t")
            _, _, blob, size = meta.split()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": int(size), "oid": blob}
            data = self.git(repo, "cat-file", "blob", blob) if int(size) < 200 else b""
            if pointer := re.match(
                rb"version https://git-lfs.*\noid sha256:(\w+)\nsize (\d+)", data
            ):
                size_ = int(pointer[2])
                entry["lfs"] = {
                    "oid": pointer[1].decode(),
                    "sha256": pointer[1].decode(),
                    "size": size_,
                    "pointerSize": len(data),
                }
                entry["size"] = size_
            entries.append(entry)
        return entries

    def content(self, kind: str, name: str, revision: str, path: str) -> bytes:
        """A file's bytes, whether git or LFS keeps them."""
        repo = self.path(kind, name)
        data = self.git(repo, "cat-file", "blob", f"{self.resolve(repo, revision)}:{path}")
        if pointer := re.match(rb"version https://git-lfs.*\noid sha256:(\w+)\n", data):
            return (self.root / "lfs" / pointer[1].decode()).read_bytes()
        return data


@contextmanager
def serving(hub: GitHub) -> Iterator[GitHub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    (hub.root / "lfs").mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Drop(Exception):
    """The connection ends here."""


class _Refuse(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: GitHub
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.url_path = unquote(url.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        asked = f"{self.command} {self.path}"
        self.hub.requests.append(asked)
        fault = next((f for f in self.hub.faults if f.times and re.search(f.match, asked)), None)
        self.fault = fault or Fault("")
        if fault:
            fault.times -= 1
        try:
            self.body = self._read()
            if self.fault.status is not None:
                self._send(self.fault.status, b"", self.fault.headers)
                return
            with self.hub.lock:
                status, value, headers = self._route()
            if self.fault.lose_reply:
                raise _Drop
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self._send(status, data, headers)
        except _Drop:
            self.close_connection = True
        except _Refuse as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._send(refused.status, b"{}", headers)
        except (LookupError, FileNotFoundError):
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no entry"})

    def _read(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if self.fault.cut_request is not None:
            self.rfile.read(min(size, self.fault.cut_request))
            raise _Drop
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while count := int(self.rfile.readline().strip() or b"0", 16):
                data += self.rfile.read(count)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(size)
        return data[: len(data) - self.fault.lose_bytes]

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(data) // 2
        if self.fault.slow_s:
            self.wfile.write(data[:half])
            self.wfile.flush()
            time.sleep(self.fault.slow_s)
            data = data[half:]
        self.wfile.write(data)

    # --- routes -------------------------------------------------------------------------------

    def _account(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.accounts:
            raise _Refuse(401, "Invalid credentials")
        return self.hub.accounts[token]

    def _route(self) -> tuple[int, Any, dict[str, str]]:
        path, method = self.url_path, self.command
        if path == "/api/whoami-v2":
            name = self._account()
            role = self.hub.roles.get(name, "write")
            return 200, {"name": name, "auth": {"accessToken": {"role": role}}}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})(/verify)?", path):
            return self._lfs(match[1], bool(match[2]))
        pattern = r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch"
        if match := re.fullmatch(pattern, path):
            return self._batch(json.loads(self.body))
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/(.+)", path):
            kind = "datasets" if match[1] else "models"
            revision, _, name = self._revision(match[3])
            data = self.hub.content(kind, match[2], revision, name)
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            commit = self.hub.resolve(self._repo(kind, match[2]), revision)
            return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        if match := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(.+))?", path):
            return self._api(method, match[1], match[2], match[3] or "")
        raise _Refuse(404, f"no such page: {path}")

    def _revision(self, rest: str) -> tuple[str, str, str]:
        match = re.match(r"(refs/pr/\d+|[^/]+)(/?)(.*)", rest, re.DOTALL)
        assert match
        return match[1], match[2], match[3]

    def _repo(self, kind: str, name: str) -> Path:
        repo = self.hub.path(kind, name)
        if not repo.is_dir():
            raise _Refuse(404, "Repository not found", "RepoNotFound")
        return repo

    def _api(self, method: str, kind: str, name: str, rest: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(kind, name)
        verb, _, tail = rest.partition("/")
        if verb in ("", "revision"):
            commit = self._known(repo, tail or "main")
            return 200, {"id": name, "sha": commit, "tags": [], "siblings": []}, {}
        if verb == "tree":
            revision, _, under = self._revision(tail)
            return 200, self.hub.listing(repo, self._known(repo, revision), under), {}
        if verb == "paths-info":
            wanted = set(parse_qs(self.body.decode())["paths"])
            entries = self.hub.listing(repo, self._known(repo, tail))
            return 200, [entry for entry in entries if entry["path"] in wanted], {}
        if verb == "preupload":
            return self._preupload(repo, tail)
        if verb == "commit":
            return self._commit(kind, name, repo, tail)
        if verb == "tag":
            return self._tag(repo, tail)
        if verb == "discussions":
            return self._discussions(method, name, repo, tail)
        raise _Refuse(404, f"no such call: {verb}")

    def _known(self, repo: Path, revision: str) -> str:
        try:
            return self.hub.resolve(repo, revision)
        except LookupError:
            raise _Refuse(404, "Revision not found", "RevisionNotFound") from None

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        account = self._account()
        owner = asked.get("organization") or account
        name = f"{owner}/{asked['name'].split('/')[-1]}"
        if owner != account:
            raise _Refuse(403, "You don't have the rights to create a repository there")
        url = f"{self.hub.url}/{name}"
        if self.hub.path("models", name).is_dir():
            return 409, {"url": url, "error": "You already created this model repo"}, {}
        self.hub.create("models", name)
        return 200, {"url": url, "name": name}, {}

    def _preupload(self, repo: Path, revision: str) -> tuple[int, Any, dict[str, str]]:
        self._account()
        known = {e["path"]: e for e in self.hub.listing(repo, self._known(repo, revision))}
        files = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LFS) or file["size"] > LFS_BYTES
            entry = known.get(file["path"], {})
            oid = entry["lfs"]["oid"] if "lfs" in entry else entry.get("oid")
            mode = "lfs" if large else "regular"
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        return 200, {"files": files}, {}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        self._account()
        objects = []
        for one in asked["objects"]:
            entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if not (self.hub.root / "lfs" / one["oid"]).exists():
                href = f"{self.hub.url}/lfs/{one['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _lfs(self, oid: str, verify: bool) -> tuple[int, Any, dict[str, str]]:
        target = self.hub.root / "lfs" / oid
        if verify:
            there = target.exists() and target.stat().st_size == json.loads(self.body)["size"]
            if not there:
                raise _Refuse(422, "the object's size is another")
            return 200, {}, {}
        if self.fault.lose_bytes == 0 and hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refuse(400, "the digest is another")
        target.write_bytes(self.body)
        return 200, b"", {}

    def _commit(
        self, kind: str, name: str, repo: Path, revision: str
    ) -> tuple[int, Any, dict[str, str]]:
        account = self._account()
        as_pr = self.query.get("create_pr") == "1"
        parent = self._known(repo, revision)
        if not as_pr and not revision.startswith("refs/pr/") and account != name.split("/")[0]:
            raise _Refuse(403, "You have no write access; open a pull request instead")
        header: dict[str, Any] = {}
        files: dict[str, bytes | None] = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if not (self.hub.root / "lfs" / value["oid"]).exists():
                        raise _Refuse(400, f"no such LFS object: {value['path']}")
                    pointer = POINTER.format(oid=value["oid"], size=value["size"])
                    files[value["path"]] = pointer.encode()
                case "deletedFile":
                    files[value["path"]] = None
        if header.get("parentCommit") and header["parentCommit"] != parent:
            raise _Refuse(412, "the branch has moved on")
        found: dict[str, Any] = {"success": True, "commitUrl": "", "commitOid": ""}
        ref = "refs/heads/main" if revision == "main" else revision
        if as_pr:
            number = len(self.hub.discussions.setdefault(name, [])) + 1
            ref = f"refs/pr/{number}"
            found["pullRequestUrl"] = f"{self.hub.url}/{kind}/{name}/discussions/{number}"
            self.hub.discussions[name].append(
                {
                    "title": header["summary"],
                    "num": number,
                    "author": {"name": account},
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "status": "open",
                    "repo": {"name": name, "type": "dataset"},
                    "isPullRequest": True,
                    "events": [],
                }
            )
        found["commitOid"] = self.hub.write(repo, ref, parent, files, header["summary"])
        found["commitUrl"] = f"{self.hub.url}/{kind}/{name}/commit/{found['commitOid']}"
        return 200, found, {}

    def _tag(self, repo: Path, revision: str) -> tuple[int, Any, dict[str, str]]:
        self._account()
        ref = f"refs/tags/{json.loads(self.body)['tag']}"
        if self.hub.git(repo, "for-each-ref", ref):
            raise _Refuse(409, "Tag reference exists already")
        self.hub.git(repo, "update-ref", ref, self._known(repo, revision))
        return 200, {}, {}

    def _discussions(
        self, method: str, name: str, repo: Path, tail: str
    ) -> tuple[int, Any, dict[str, str]]:
        known = self.hub.discussions.setdefault(name, [])
        if not tail:
            wanted = [
                d
                for d in known
                if self.query.get("author", d["author"]["name"]) == d["author"]["name"]
            ]
            start = int(self.query.get("p", "0")) * 10
            page = wanted[start : start + 10]
            return 200, {"count": len(wanted), "start": start, "discussions": page}, {}
        number, _, verb = tail.partition("/")
        one = known[int(number) - 1]
        ref = f"refs/pr/{number}"
        if method == "GET":
            base = self.hub.git(repo, "merge-base", "refs/heads/main", ref).decode().strip()
            diff = self.hub.git(repo, "diff", "--no-color", base, ref).decode()
            changes = {"base": "refs/heads/main"}
            return 200, {**one, "changes": changes, "filesWithConflicts": [], "diff": diff}, {}
        account = self._account()
        comment = (json.loads(self.body or b"{}") or {}).get("comment")
        if verb == "merge":
            if account != name.split("/")[0]:
                raise _Refuse(403, "only maintainers merge")
            main = self._known(repo, "main")
            base = self.hub.git(repo, "merge-base", main, ref).decode().strip()
            changed = self.hub.git(repo, "diff", "--name-only", "-z", base, ref).split(b"\0")
            files: dict[str, bytes | None] = {
                path.decode(): self.hub.git(repo, "cat-file", "blob", f"{ref}:{path.decode()}")
                for path in changed
                if path
            }
            self.hub.write(repo, "refs/heads/main", main, files, f"Merge {number}")
            one["status"] = "merged"
        if verb == "status":
            if account not in (name.split("/")[0], one["author"]["name"]):
                raise _Refuse(403, "only maintainers and its author close it")
            one["status"] = json.loads(self.body or b"{}")["status"]
            change = {
                "id": f"{len(one['events']):016x}",
                "type": "status-change",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "author": {"name": account},
                "data": {"status": one["status"], "reason": comment},
            }
            one["events"].append(change)
            return 200, {"newStatus": change}, {}
        message = {
            "id": f"{len(one['events']):016x}",
            "type": "comment",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "author": {"name": account},
            "data": {
                "edited": False,
                "hidden": False,
                "latest": {
                    "raw": comment or "",
                    "html": "",
                    "updatedAt": "2026-01-01T00:00:00.000Z",
                    "author": {"name": account},
                },
                "history": [],
            },
        }
        if comment:
            one["events"].append(message)
        return 200, {"newMessage": message}, {}
