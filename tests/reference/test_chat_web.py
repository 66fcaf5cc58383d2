"""The chat page's server: what it streams, how it is stopped, and whom it does not answer."""

import http.client
import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference.chat.web import MAX_REQUEST_BYTES, ChatServer
from reference.errors import TrainerError


class ScriptedSession:
    """A session whose pieces the test hands over one by one; None ends the turn."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[str | None] = queue.Queue()
        self.messages: list[dict[str, str]] = []
        self.ended = False
        self.closed = threading.Event()

    def ask(self, text: str) -> Iterator[str]:
        self.closed.clear()
        self.ended = False
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            while (piece := self.pieces.get(timeout=30)) is not None:
                answer += piece
                yield piece
            self.ended = True
        finally:
            self.messages.append({"role": "assistant", "content": answer})
            self.closed.set()

    def restart(self) -> None:
        self.messages = []


@pytest.fixture
def session() -> ScriptedSession:
    return ScriptedSession()


@pytest.fixture
def server(session: ScriptedSession) -> Iterator[ChatServer]:
    with ChatServer(session, "a run") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.stop.set()
        session.pieces.put(None)
        server.shutdown()
        thread.join()


class Client:
    def __init__(self, server: ChatServer) -> None:
        self.port = server.server_address[1]
        self.connections: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        self.connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.connections[-1]

    def open(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = self.connect()
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def post(self, path: str, value: object = None, **headers: str) -> http.client.HTTPResponse:
        return self.open("POST", path, json.dumps(value or {}).encode(), **headers)


@pytest.fixture
def client(server: ChatServer) -> Iterator[Client]:
    client = Client(server)
    yield client
    for connection in client.connections:
        connection.close()


def test_pieces_arrive_as_they_are_made(client: Client, session: ScriptedSession) -> None:
    response = client.post("/ask", {"text": "Hi"})
    for piece in ("Grüß ", "dich 🦊"):
        session.pieces.put(piece)
        assert json.loads(response.readline()) == {"piece": piece}  # before the next is made
    session.pieces.put(None)
    assert json.loads(response.readline()) == {"ended": True, "stopped": False}
    assert response.readline() == b""
    shown = json.loads(client.open("GET", "/messages").read())
    assert shown["title"] == "a run"
    assert [m["content"] for m in shown["messages"]] == ["Hi", "Grüß dich 🦊"]


def test_stop_ends_the_answer_and_keeps_what_was_said(
    client: Client,
    session: ScriptedSession,
) -> None:
    response = client.post("/ask", {"text": "Hi"})
    session.pieces.put("a")
    assert json.loads(response.readline()) == {"piece": "a"}
    assert client.post("/stop").status == 200
    session.pieces.put("b")
    assert json.loads(response.readline()) == {"piece": "b"}
    assert json.loads(response.readline()) == {"ended": False, "stopped": True}
    assert session.messages[-1]["content"] == "ab"


def test_one_answer_at_a_time(client: Client, session: ScriptedSession) -> None:
    first = client.post("/ask", {"text": "one"})
    session.pieces.put("x")
    first.readline()
    second = client.post("/ask", {"text": "two"})
    assert second.status == 409
    assert "stop it first" in json.loads(second.read())["error"]
    session.pieces.put(None)
    assert json.loads(first.readline())["ended"]


def test_a_page_that_goes_away_ends_its_answer(
    client: Client,
    session: ScriptedSession,
) -> None:
    response = client.post("/ask", {"text": "Hi"})
    session.pieces.put("a")
    response.readline()
    client.connections[-1].close()
    response.close()
    while not session.closed.is_set():
        session.pieces.put("more")
        session.closed.wait(0.01)
    again = client.post("/ask", {"text": "Still there?"})
    while not session.pieces.empty():
        session.pieces.get_nowait()
    session.pieces.put(None)
    assert again.status == 200
    assert json.loads(again.read().splitlines()[-1])["ended"]


def test_a_new_conversation_forgets(client: Client, session: ScriptedSession) -> None:
    session.pieces.put(None)
    client.post("/ask", {"text": "Hi"}).read()
    assert client.post("/new").status == 200
    assert session.messages == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_another_sites_page_gets_nothing(
    client: Client, session: ScriptedSession, headers: dict[str, str]
) -> None:
    session.messages.append({"role": "user", "content": "secret"})
    for method, path in (("GET", "/messages"), ("GET", "/"), ("POST", "/ask")):
        response = client.open(method, path, b'{"text": "x"}', **headers)
        assert response.status == 403
        assert b"secret" not in response.read()


def test_bad_requests_are_answered_and_do_no_harm(
    client: Client,
    session: ScriptedSession,
) -> None:
    assert client.post("/ask", {"text": "  "}).status == 400
    assert client.post("/ask", {"text": 3}).status == 400
    assert client.open("POST", "/ask", b"[]").status == 400
    assert client.open("POST", "/ask", b"{not json").status == 400
    assert client.open("GET", "/../etc/passwd").status == 404
    big = client.connect()
    big.putrequest("POST", "/ask")
    big.putheader("Content-Length", str(MAX_REQUEST_BYTES + 1))
    big.endheaders()
    assert big.getresponse().status == 413
    assert session.messages == []


def test_the_page_loads_nothing_from_elsewhere(client: Client) -> None:
    response = client.open("GET", "/")
    policy, page = response.headers["Content-Security-Policy"], response.read().decode()
    assert "default-src 'none'" in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2
    assert "NONCE" not in page
    assert "http://" not in page and "https://" not in page and "innerHTML" not in page


def test_a_taken_port_is_one_message(server: ChatServer, session: ScriptedSession) -> None:
    with pytest.raises(TrainerError, match="cannot listen on"):
        ChatServer(session, "another", port=server.server_address[1])


def test_a_browser_asks_stops_and_reads_what_a_model_wrote_as_text(
    server: ChatServer, session: ScriptedSession
) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dev)")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    complaints: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
        outside: list[str] = []
        page.on("request", lambda r: r.url.startswith(server.url) or outside.append(r.url))
        page.goto(server.url)
        page.fill("#text", "Hi")
        page.press("#text", "Enter")
        session.pieces.put("<img src=x onerror=alert(1)> & more")
        answer = page.locator(".assistant").first
        api.expect(answer).to_contain_text("<img src=x onerror=alert(1)> & more")
        session.pieces.put(None)
        api.expect(page.locator("#send")).to_have_text("Send")
        page.fill("#text", "Go on")
        page.press("#text", "Enter")
        session.pieces.put("and")
        api.expect(page.locator("#send")).to_have_text("Stop")
        with page.expect_response("**/stop"):
            page.keyboard.press("Escape")
        session.pieces.put(" on")
        api.expect(page.locator(".assistant").last).to_contain_text("stopped")
        page.reload()
        api.expect(page.locator(".turn")).to_have_count(4)
        with page.expect_response("**/new"):
            page.click("#new")
        api.expect(page.locator("#empty")).to_be_visible()
        browser.close()
    assert not complaints
    assert not outside
