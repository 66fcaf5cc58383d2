"""Networks of real life: each wrong setting is named, and no request is made with it."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from kit.errors import KitError, PrerequisiteError, SchemaError
from kit.network import check_endpoint, check_settings, no_connection, proxy_of
from kit.prepare.transfer import Expected, Retry, Transfer, download, is_final

WRONG = {
    "HF_HUB_OFFLINE": ("1", "HF_HUB_OFFLINE is set"),
    "TRANSFORMERS_OFFLINE": ("true", "TRANSFORMERS_OFFLINE is set"),
    "HF_ENDPOINT": ("hf-mirror.com", "HF_ENDPOINT is 'hf-mirror.com', not an address"),
    "ALL_PROXY": ("socks://127.0.0.1:1", "ALL_PROXY has the scheme 'socks'"),
    "all_proxy": ("socks4://h:1", "all_proxy has the scheme 'socks4'"),
    "HTTPS_PROXY": ("http://", "HTTPS_PROXY is not the address"),
    "https_proxy": ("http://h:port", "https_proxy is not the address"),
    "HTTP_PROXY": ("h:99999", "HTTP_PROXY is not the address"),
    "HF_TOKEN": ("hf_aaa\n", "the token in HF_TOKEN holds a line break"),
    "HUGGING_FACE_HUB_TOKEN": ("hf_ключ", "HUGGING_FACE_HUB_TOKEN holds a character"),
}
RIGHT = {
    "HF_ENDPOINT": "https://hf-mirror.com/",
    "HTTPS_PROXY": "127.0.0.1:3128",
    "HTTP_PROXY": "http://user:pass@[::1]:8080/",
    "HF_TOKEN": "hf_abc",
    "HF_HUB_OFFLINE": "0",
    "NO_PROXY": "*",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_with_a_remedy(name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(KitError) as caught:
        check_settings({name: value})
    assert message in caught.value.message and caught.value.hint
    if "TOKEN" in name:
        assert value.strip() not in caught.value.message + (caught.value.hint or "")


def test_settings_that_work_are_let_through() -> None:
    check_settings(RIGHT)
    check_settings({name: "" for name in WRONG})
    check_settings({"HF_HUB_OFFLINE": "1"}, needed=False)


def test_socks_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PrerequisiteError, match="socksio"):
        check_settings({"ALL_PROXY": "socks5h://127.0.0.1:1080"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    check_settings({"ALL_PROXY": "socks5h://127.0.0.1:1080"})


@pytest.mark.parametrize(
    "value", ["ftp://h", "https://", "http://h:0", " https://h", "https://a b", "//h"]
)
def test_addresses_that_are_none(value: str) -> None:
    with pytest.raises(SchemaError, match="--mirror is"):
        check_endpoint(value, "--mirror")


@pytest.fixture
def portal() -> Iterator[str]:
    """A server that answers everything with its login page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<html><body>Please log in to the hotel network</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_login_page_instead_of_the_hub_is_named(
    portal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    from kit.board.hub import Hub, client

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", portal)
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    with pytest.raises(SchemaError, match="login page"):
        Hub(client()).who()


def test_an_offline_switch_is_no_matter_of_the_disk(tmp_path: Path) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    from kit.prepare.transfer import disk_error

    said = disk_error(tmp_path / "x", errors.OfflineModeIsEnabled("no"))
    assert "HF_HUB_OFFLINE" in said.message and "space" not in (said.hint or "")
    assert "cannot be written" in disk_error(tmp_path / "x", OSError(28, "full")).message


def test_prepare_names_a_proxy_of_an_unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from kit.prepare import fetch

    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    with pytest.raises(SchemaError, match="ALL_PROXY"), fetch._transfer(None, None):  # type: ignore[arg-type]
        pass


class Notes:
    """Progress that nobody watches."""

    def advance(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[Transfer]:
    client = httpx2.Client()
    yield Transfer(client, {}, Notes(), retry=Retry(attempts=8, base_s=0.01, cap_s=0.02))
    client.close()


def test_a_login_page_instead_of_a_file_is_named_at_once(
    portal: str, transfer: Transfer, tmp_path: Path
) -> None:
    for size in (None, 10, 100_000):  # unknown, shorter and longer than the page
        with pytest.raises(PrerequisiteError, match="answers with a web page"):
            download(f"{portal}/eval_bundle.zip", tmp_path / "x.zip", Expected(size), transfer)
    assert not (tmp_path / "x.zip").exists()


class Refusing(http.server.BaseHTTPRequestHandler):
    """A proxy that wants a login."""

    asked = 0

    def do_CONNECT(self) -> None:
        type(self).asked += 1
        self.send_response(407)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_a_proxy_that_refuses_is_named_without_another_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    try:
        with httpx2.Client() as client:
            transfer = Transfer(client, {}, Notes(), retry=Retry(base_s=0.01, cap_s=0.02))
            with pytest.raises(PrerequisiteError) as caught:
                download("https://data.example/a", tmp_path / "a", Expected(5), transfer)
    finally:
        server.shutdown()
        server.server_close()
    assert f"the proxy {proxy} (variable HTTPS_PROXY)" in caught.value.message
    assert "407" in caught.value.message and Refusing.asked == 1
    assert "NO_PROXY=data.example" in (caught.value.hint or "")
    assert "secret" not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "https://h", None),
        ({"HTTPS_PROXY": "p:1"}, "https://h", ("HTTPS_PROXY", "p:1")),
        ({"https_proxy": "http://u:w@p:1"}, "https://h/x", ("https_proxy", "p:1")),
        ({"HTTPS_PROXY": "p:1"}, "http://h", None),
        ({"ALL_PROXY": "socks5://p:9"}, "http://h", ("ALL_PROXY", "p:9")),
        ({"HTTPS_PROXY": "p:1", "NO_PROXY": "h"}, "https://h", None),
        ({"HTTPS_PROXY": "p:1", "no_proxy": "*"}, "https://h", None),
        ({"HTTPS_PROXY": "p:1", "NO_PROXY": "other"}, "https://h", ("HTTPS_PROXY", "p:1")),
    ],
)
def test_which_proxy_is_in_the_way(
    variables: dict[str, str], url: str, expected: tuple[str, str] | None
) -> None:
    assert proxy_of(url, variables) == expected


def test_a_certificate_of_the_networks_own_is_told_apart() -> None:
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in certificate chain"
    assert is_final(httpx2.ConnectError(reason))
    assert "SSL_CERT_FILE" in (no_connection("https://h", reason).hint or "")
    assert not is_final(httpx2.ConnectError("[Errno 111] Connection refused"))


def test_submit_names_the_proxy_that_it_cannot_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.board.hub import Hub, client

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:1")
    hub = Hub(client(), retry=Retry(base_s=0.01, cap_s=0.02))
    with pytest.raises(PrerequisiteError, match=r"127\.0\.0\.1:1 \(variable HTTP_PROXY\)"):
        hub.who()
