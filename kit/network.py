"""Settings of the network that people really have, checked before the first request.

huggingface_hub and its HTTP client read these variables, and report a wrong one in terms of their
own, or not at all. Each check names the variable, its fault and the remedy.
"""

from __future__ import annotations

import importlib.util
import os
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from kit.errors import PrerequisiteError, SchemaError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # those that huggingface_hub heeds
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_ON = ("1", "ON", "YES", "TRUE")
_SCHEMES = ("http", "https", "socks5", "socks5h")


def check_settings(variables: Mapping[str, str] | None = None, *, needed: bool = True) -> None:
    """Checks endpoint, token, proxies and offline switches of the environment.

    Args:
        variables: The environment; None: this process's.
        needed: A request will certainly be made, so that being told to stay offline is an error.

    Raises:
        PrerequisiteError: the Hub cannot be reached in offline mode, or a proxy needs a package.
        SchemaError: A variable holds what no request can be made with.
    """
    found = os.environ if variables is None else variables
    for name in OFFLINE:
        if needed and found.get(name, "").upper() in _ON:
            raise PrerequisiteError(
                f"{name} is set: the Hub cannot be reached in offline mode",
                hint=f"Run again with {name} unset; `prepare` can take files from a folder "
                "(--mirror DIR).",
            )
    check_endpoint(found.get("HF_ENDPOINT", ""), "HF_ENDPOINT")
    for name in TOKENS:
        _check_token(found.get(name, ""), name)
    for name in PROXIES:
        for spelling in (name, name.lower()):
            _check_proxy(found.get(spelling, ""), spelling)


def check_endpoint(value: str, name: str) -> None:
    """Refuses an address that has no http:// or https://, or no host.

    Raises:
        SchemaError: With `name`, where the address was given.
    """
    if not value:
        return
    try:
        parts = urlsplit(value.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        valid = valid and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or value != value.strip() or any(ord(sign) < 33 for sign in value):
        raise SchemaError(
            f"{name} is {value!r}, not an address",
            hint="It begins with https:// or http://, such as https://huggingface.co.",
        )


def _check_token(value: str, name: str) -> None:
    """Never shows the token: messages end up in bug reports."""
    if not value:
        return
    fault = ""
    if not value.isascii():
        fault = "a character that is not ASCII"
    elif any(ord(sign) < 33 or ord(sign) == 127 for sign in value):
        fault = "a line break or blank"
    if fault:
        raise SchemaError(
            f"the token in {name} holds {fault}",
            hint=f"Copy it again from the Hub's settings: export {name}=hf_…",
        )


def _check_proxy(value: str, name: str) -> None:
    if not value:
        return
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, valid = urlsplit(""), False
    if not valid or any(ord(sign) < 33 for sign in value):
        raise SchemaError(
            f"{name} is not the address of a proxy",
            hint=f"Write it as {name}=http://HOST:PORT, or unset it.",
        )
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise SchemaError(
            f"{name} has the scheme {scheme!r}, which the HTTP client does not know",
            hint=f"Write {name}=socks5://{parts.hostname}:{parts.port or 1080} for a SOCKS proxy, "
            "or http:// for another.",
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise PrerequisiteError(
            f"{name} names a SOCKS proxy, which needs the package socksio",
            hint="pip install socksio",
        )


def proxy_of(url: str, variables: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """(variable, HOST:PORT) of the proxy that requests to `url` go through; None: none.

    User and password of the proxy are left out: messages end up in bug reports.
    """
    found = os.environ if variables is None else variables
    parts = urlsplit(url)
    if urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
        parts.hostname or "", {"no": found.get("no_proxy") or found.get("NO_PROXY") or ""}
    ):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for spelling in (name, name.upper()):
            if value := found.get(spelling, ""):
                proxy = urlsplit(value if "://" in value else f"http://{value}")
                return spelling, proxy.netloc.rpartition("@")[2]
    return None


def no_connection(url: str, reason: str) -> PrerequisiteError:
    """The error for a server to which no connection can be made, with the setting to look at."""
    parts = urlsplit(url)
    server = f"{parts.scheme}://{parts.netloc}"
    proxy = proxy_of(url)
    hint = (
        "Check the network and run the command again; it resumes where it stopped. Without "
        "network: --mirror DIR takes the same files from a folder, or run `n4090-kit prepare` on "
        "another machine and copy its WORK/data and WORK/core here."
    )
    if "CERTIFICATE" in reason.upper():
        hint = (
            "The network puts a certificate of its own in between (a company's proxy, a login "
            "page). Log in to the network, or name the company's certificate: "
            "export SSL_CERT_FILE=FILE.pem"
        )
    elif proxy is not None:
        name, host = proxy
        reason = f"the proxy {host} (variable {name}): {reason}"
        hint = f"Correct {name} or unset it; NO_PROXY={parts.hostname} goes around the proxy."
    return PrerequisiteError(f"{server} cannot be reached: {reason}", hint=hint)


def web_page(url: str, content_type: str) -> PrerequisiteError | None:
    """The error for an answer that is a web page where a data file was asked for; None: it is not.

    A network with a login page (hotel, train, company) answers so, with status 200.
    """
    if content_type.split(";")[0].strip().lower() not in ("text/html", "application/xhtml+xml"):
        return None
    return PrerequisiteError(
        f"{url.split('?')[0]} answers with a web page, not with the file: often the login page of "
        "a network (hotel, train, company)",
        hint="Open the address in a browser and log in, or check HF_ENDPOINT and --mirror.",
    )


def not_json(endpoint: str) -> SchemaError:
    """The error for an answer that is no JSON where the Hub would send JSON."""
    return SchemaError(
        f"{endpoint} answered with something that is not the Hub's JSON, often the login page of a "
        "network (hotel, train, company)",
        hint="Open the address in a browser and log in, or check HF_ENDPOINT and --mirror.",
    )
