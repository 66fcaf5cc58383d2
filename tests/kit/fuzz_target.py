"""Coverage-guided fuzzing of what reads strangers' bytes: `python tests/kit/fuzz_target.py NAME`.

Needs atheris. Arguments after the name go to libFuzzer (`-max_total_time=60 corpus/`). Without
any it runs until something breaks: any exception but the reader's own is a find.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kit", "tomllib", "json"]):
    from kit.errors import KitError
    from kit.recipe import parse_recipe
    from kit.run_log import LOG_KIND
    from kit.trust import sshsig
    from kit.trust.canonical import canonical_bytes, parse_strict
    from kit.trust.chain import chain_seed, read_chain
    from kit.verify.evidence import read_events, safe_path
    from kit.verify.weights import BrokenWeights, read_weights

SCRATCH = Path(tempfile.mkdtemp(prefix="n4090-fuzz-"))


def document(data: bytes) -> None:
    value = parse_strict(data)
    assert parse_strict(canonical_bytes(value)) == value


def log(data: bytes) -> None:
    """Lines that may follow a right header, and any bytes as a whole log."""
    path = SCRATCH / "events.jsonl"
    prefix = b'{"prev":"' + chain_seed(LOG_KIND).encode() + b'","seq":0,"ev":"header","data":{}}\n'
    for content in (data, prefix + data):
        path.write_bytes(content)
        chain = read_chain(path, LOG_KIND)
        read_events(chain.records)


def signature(data: bytes) -> None:
    text = data.decode("latin-1")
    sshsig.verify(b"message", text, sshsig.RESULT_NAMESPACE)


def key(data: bytes) -> None:
    sshsig.PublicKey.parse(data.decode("latin-1"))


def manifest(data: bytes) -> None:
    path = SCRATCH / "model.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(BrokenWeights):
        read_weights(path)
    name = data.decode("latin-1")
    if safe_path(name):
        assert (Path("/root/run") / name).resolve().is_relative_to("/root/run")


def recipe(data: bytes) -> None:
    parse_recipe(data.decode("utf-8", "replace"), folder=SCRATCH)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "document": document,
    "log": log,
    "signature": signature,
    "key": key,
    "manifest": manifest,
    "recipe": recipe,
}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def once(data: bytes) -> None:
        try:
            target(data)
        except KitError:
            return

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
