"""The header of a safetensors file, read without loading a tensor.

A file is whole when its header is one JSON object with every name once, each tensor's shape gives
exactly the bytes of its span, and the spans tile the rest of the file.

References:
    https://github.com/huggingface/safetensors, FORMAT
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.files import open_regular

MAX_HEADER_BYTES = 100 * 2**20
MAX_DIMENSIONS = 16
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "F4": 4,
}


class BrokenWeights(Exception):
    """Why a file is not a whole safetensors file."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a file: the shape of each, by name."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_weights(path: Path) -> Weights:
    """The shapes in the safetensors file at `path`.

    Raises:
        BrokenWeights: It is not a whole one.
        OSError, SchemaError: It cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BrokenWeights("shorter than its header")
        length = struct.unpack("<Q", prefix)[0]
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise BrokenWeights("header longer than the file")
        header = _parse(file.read(length))
    spans, shapes = [], {}
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
                raise BrokenWeights("metadata are not text by name")
            continue
        shapes[name], span = _tensor(name, entry)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise BrokenWeights("tensors overlap or leave holes")
        end = stop
    if end != size - 8 - length:
        raise BrokenWeights("bytes that belong to no tensor")
    return Weights(shapes)


def _parse(data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise BrokenWeights("header names a tensor or a field twice")
        return found

    if not data.startswith(b"{"):
        raise BrokenWeights("header is not a JSON object")
    try:
        header = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise BrokenWeights("header is not JSON") from None
    if not isinstance(header, dict):
        raise BrokenWeights("header is not a JSON object")
    return header


def _tensor(name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Shape and span of one tensor, which have to give the same number of bytes."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BrokenWeights(f"tensor {name[:60]!r} has no dtype, shape and data_offsets")
    bits = _BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    shape, span = entry["shape"], entry["data_offsets"]
    if bits is None:
        raise BrokenWeights(f"tensor {name[:60]!r} has an unknown dtype")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise BrokenWeights(f"tensor {name[:60]!r} has no shape of whole sizes")
    if not _counts(span) or len(span) != 2 or span[1] < span[0]:
        raise BrokenWeights(f"tensor {name[:60]!r} has no offsets")
    if math.prod(shape) * bits != 8 * (span[1] - span[0]):
        raise BrokenWeights(f"tensor {name[:60]!r}: its shape does not give its bytes")
    return tuple(shape), (span[0], span[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**53 for v in value)
