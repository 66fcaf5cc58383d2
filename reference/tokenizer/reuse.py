"""Tokenizers that others have trained, in our form: tiktoken's and Hugging Face's byte-level BPE.

Merges and split pattern are taken over; ids are dealt anew (bytes and merges in the order of their
rank, then our special tokens), because our special tokens must be there and theirs need not. That
the pieces are the same is checked on text before anything is saved, not believed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken

from reference.errors import TrainerError
from reference.tokenizer.bpe import SPLIT_PATTERN, Tokenizer

_GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # gpt-2's own
)
# The same behind a step that sets every digit apart: white space before a digit stays together.
_GPT2_DIGITS_APART = (
    r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
)
_PROBES = (
    "The year 1984 cost $12,345.67 (about 3.5 %).\n\n\tindented  text   with  spaces\r\n",
    "don't we'll I'M naïve façade 日本語 العربية русский 🙂🏽 ½ ²",
    "def f(x):\n    return x**2  # square\n\n\n",
    "  2 spaces  12 34\n 5\n\n 6  ",
)
_HINT = "Reuse works for byte-level BPE without text normalisation; train a tokenizer otherwise."


def reuse(source: str, pattern: str = "", probes: Sequence[str] = ()) -> Tokenizer:
    """Our form of a tokenizer.

    Args:
        source: A Hugging Face tokenizer.json, a .tiktoken file of ranks, or a name that tiktoken
            knows (fetched by it).
        pattern: Split pattern for a .tiktoken file, which has none; ours when empty.
        probes: More texts on which both must cut alike.

    Raises:
        TrainerError: It is no byte-level BPE, cannot be read, or our form cuts text differently.
    """
    path = Path(source)
    try:
        if path.suffix.lower() == ".json":
            return _from_hugging_face(path, (*_PROBES, *probes))
        if path.suffix.lower() == ".tiktoken":
            return Tokenizer(_read_ranks(path), pattern or SPLIT_PATTERN)
    except (TrainerError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:  # newer formats and patterns: the packages raise plain `Exception`
        raise TrainerError(
            "bad_input",
            f"{source} cannot be used as the tokenizer: {(str(error).splitlines() or [''])[0]}",
            "The split pattern or the file's format is one that the installed packages cannot "
            "read; upgrade tokenizers and tiktoken, or train a tokenizer.",
        ) from error
    try:
        encoding = tiktoken.get_encoding(source)
    except Exception as error:  # unknown name or no network, as several types
        raise TrainerError(
            "bad_input",
            f"no tokenizer {source!r}: {(str(error).splitlines() or [''])[0]}",
            "Name a tokenizer.json, a .tiktoken file, or an encoding tiktoken can fetch.",
        ) from error
    ordered = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    tokenizer = Tokenizer([token for token, _ in ordered], encoding._pat_str)
    for text in (*_PROBES, *probes):
        theirs = [encoding.decode_single_token_bytes(i) for i in encoding.encode_ordinary(text)]
        _same(theirs, tokenizer, text)
    return tokenizer


def _read_ranks(path: Path) -> list[bytes]:
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        ranks = [base64.b64decode(token, validate=True) for token, _ in lines]
        if [int(rank) for _, rank in lines] != list(range(len(lines))):
            raise ValueError("ranks are not 0, 1, 2, …")
        if not {bytes([i]) for i in range(256)} <= set(ranks):
            raise ValueError("single bytes are missing")
        if len(set(ranks)) < len(ranks):
            raise ValueError(f"{len(ranks) - len(set(ranks))} tokens have two ranks")
    except (OSError, ValueError, binascii.Error) as error:
        raise TrainerError("bad_input", f"{path} is not a file of ranks: {error}", _HINT) from error
    return ranks


def _from_hugging_face(path: Path, probes: Sequence[str]) -> Tokenizer:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        if model["type"] != "BPE":
            raise ValueError(f"its model is {model['type']}")
        if document.get("normalizer"):
            raise ValueError(f"it normalises text ({document['normalizer']['type']})")
        if model.get("byte_fallback") or model.get("unk_token"):
            raise ValueError("it is not byte-level")
        pattern = _pattern(document.get("pre_tokenizer"))
        ranks = _ranks(model)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TrainerError(
            "bad_input",
            f"{path} cannot be used as the tokenizer: {type(error).__name__}: {error}",
            _HINT,
        ) from error
    tokenizer = Tokenizer(ranks, pattern)
    try:
        from tokenizers import Tokenizer as HuggingFaceTokenizer
    except ModuleNotFoundError as error:
        raise TrainerError(
            "bad_input",
            "checking a tokenizer.json needs the package tokenizers",
            "in the checkout: pip install '.[eval]'",
        ) from error
    theirs = HuggingFaceTokenizer.from_file(str(path))
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    for text in probes:
        pieces = theirs.encode(text, add_special_tokens=False).tokens
        _same([bytes(letters[letter] for letter in piece) for piece in pieces], tokenizer, text)
    return tokenizer


def _same(theirs: list[bytes], ours: Tokenizer, text: str) -> None:
    found = [ours.ranks[token] for token in ours.encode([text])[0]]
    if found != theirs:
        at = next(
            (i for i, pair in enumerate(zip(found, theirs, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(theirs)),
        )
        raise TrainerError(
            "bad_input",
            f"our form cuts text differently at piece {at}: {found[at : at + 3]} instead of "
            f"{theirs[at : at + 3]}",
            _HINT,
        )


def _ranks(model: dict[str, Any]) -> list[bytes]:
    """Bytes, then merges by rank; a token that two merges make keeps the first."""
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    known: dict[bytes, None] = {bytes([byte]): None for byte in range(256)}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        known.setdefault(bytes(letters[letter] for letter in left + right))
    return list(known)


def _pattern(step: dict[str, Any] | None) -> str:
    """The split pattern of a pre-tokenizer."""
    steps = step.get("pretokenizers", [step]) if step else []
    kinds = [item["type"] for item in steps]
    byte_level = next((item for item in steps if item["type"] == "ByteLevel"), None)
    if byte_level is None or byte_level.get("add_prefix_space"):
        raise ValueError(f"pre-tokenizer {kinds or None}")
    if kinds == ["ByteLevel"] and byte_level.get("use_regex", True):
        return _GPT2_PATTERN
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return _GPT2_DIGITS_APART
    if kinds == ["Split", "ByteLevel"] and not byte_level.get("use_regex", True):
        return str(steps[0]["pattern"]["Regex"])
    raise ValueError(f"pre-tokenizer {kinds}")


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: itself where printable, else from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(spare)) for byte in range(256)}
