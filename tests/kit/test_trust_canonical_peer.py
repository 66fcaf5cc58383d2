"""A second canonicalizer: JavaScript's own number and string forms, on 10,000 random documents.

RFC 8785 is defined by what ECMAScript prints, so an ECMAScript engine is the nearest thing to the
definition itself.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from typing import Any

import pytest

from kit.trust.canonical import canonical_bytes

PEER = """
const sorted = (v) => Array.isArray(v) ? "[" + v.map(sorted).join(",") + "]"
  : v && typeof v === "object"
    ? "{" + Object.keys(v).sort().map((k) => JSON.stringify(k) + ":" + sorted(v[k])).join(",") + "}"
    : JSON.stringify(v);
require("readline").createInterface({ input: process.stdin })
  .on("line", (line) => console.log(sorted(JSON.parse(line))));
"""
LETTERS = 'ab"\\/\x00\x08\x1f\x7f\x80é€\u2028\ufb33😀𝄞 \n\t'


def random_float(rng: random.Random) -> float:
    """Any finite double: half of them by their bits, so that every exponent comes up."""
    if rng.random() < 0.5:
        value = struct.unpack("<d", rng.randbytes(8))[0]
        return value if abs(value) < float("inf") else 0.5  # NaN and infinity fail the comparison
    return rng.choice((0.1, 1e21, 1e-7, 123456789.123, 1e20, 5e-324, -0.0)) * rng.randrange(1, 99)


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(6)))


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.randrange(-(2**53) + 1, 2**53)
    if kind in (2, 3):
        return random_float(rng)
    if kind in (4, 5):
        return random_text(rng)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_writes_the_same_canonical_form() -> None:
    rng = random.Random(8785)
    documents = [random_value(rng) for _ in range(10_000)]
    lines = "\n".join(json.dumps(document) for document in documents)
    done = subprocess.run(
        ["node", "-e", PEER], input=lines.encode(), capture_output=True, check=True
    )
    theirs = done.stdout.splitlines()
    assert len(theirs) == len(documents)
    for document, line in zip(documents, theirs, strict=True):
        assert canonical_bytes(document) == line, document
