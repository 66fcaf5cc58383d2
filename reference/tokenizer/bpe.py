"""Byte-level BPE: learnt by a Rust trainer (rustbpe), encoded by tiktoken, kept in one JSON file.

Choices a reader may question:

- The split pattern is GPT-4's with digits in groups of at most two instead of three: a small
  vocabulary has better use for its slots than for a thousand three-digit numbers.
- Special tokens take the last ids and are never recognised in text: `encode` treats a text that
  spells `<|bos|>` as the seven characters it is, so no document can forge a turn border.
- The file holds merges as base64, the pattern and the special names, no pickle and no code; its
  SHA-256 is the identity of the tokenizer (`digest`) everywhere in the trainer.
- rustbpe breaks ties between equal counts by the pair itself, so the same texts give the same
  file whatever the number of threads (tests/reference/test_tokenizer.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import regex
import rustbpe
import tiktoken

from reference.errors import TrainerError
from reference.files import write_whole

FILE_NAME = "tokenizer.json"
FORMAT = "n4090-bpe-1"


def split_pattern(digits: int = 2) -> str:
    """The regular expression that cuts text before merging; at most `digits` digits together."""
    return (
        r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
        r"|[^\r\n\p{L}\p{N}]?+\p{L}+"  # a word with at most one leading sign or space
        rf"|\p{{N}}{{1,{digits}}}"  # digits
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*"  # punctuation, with the line breaks that follow
        r"|\s*[\r\n]|\s+(?!\S)|\s+"  # white space; the last space goes to the next word
    )


SPLIT_PATTERN = split_pattern()
SPECIAL_TOKENS = (
    "<|bos|>",  # opens every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
_MAX_BLANKS = 20_000
_BLANKS = re.compile(rf"(?<!\s)(\s{{{_MAX_BLANKS}}})\s+")
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


class Tokenizer:
    """A trained tokenizer. `ranks[i]` are the bytes of token i; special tokens follow.

    Args:
        extra_special: Names of special tokens besides `SPECIAL_TOKENS`; they come after those.

    Attributes:
        special: Name of a special token -> id.
        digest: "sha256:…" of the file `save` writes.
    """

    def __init__(
        self,
        ranks: Sequence[bytes],
        pattern: str = SPLIT_PATTERN,
        extra_special: Sequence[str] = (),
    ) -> None:
        self.ranks = list(ranks)
        self.pattern = pattern
        names = (*SPECIAL_TOKENS, *extra_special)
        self.special = {name: len(self.ranks) + i for i, name in enumerate(names)}
        self._file = _render(self.ranks, pattern, self.special)
        self.digest = f"sha256:{hashlib.sha256(self._file).hexdigest()}"
        self._encoding = tiktoken.Encoding(
            name=self.digest,
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens=self.special,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.ranks) + len(self.special)

    @property
    def bos_id(self) -> int:
        return self.special["<|bos|>"]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = SPLIT_PATTERN,
        extra_special: Sequence[str] = (),
    ) -> Tokenizer:
        """Learns merges from `texts`.

        Args:
            vocab_size: Tokens wanted, special ones included. Fewer come out when the texts have
                no more pairs to merge.

        Raises:
            TrainerError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
        """
        least = MIN_VOCAB_SIZE + len(extra_special)
        if vocab_size < least:
            raise TrainerError(
                "bad_input",
                f"tokenizer.vocab_size is {vocab_size}; 256 bytes and {least - 256} "
                f"special tokens need at least {least}",
                "Raise tokenizer.vocab_size in the recipe.",
            )
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(
            map(_shorten_blanks, texts), vocab_size - (least - 256), pattern=pattern
        )
        pairs = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
        return cls([token for _, token in pairs], pattern, extra_special)

    def save(self, folder: Path) -> None:
        """Writes `folder/tokenizer.json`, whole or not at all."""
        write_whole(folder / FILE_NAME, self._file)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads `folder/tokenizer.json`.

        Raises:
            TrainerError: The file is missing or is not what `save` writes.
        """
        path = folder / FILE_NAME
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r} instead of {FORMAT!r}")
            ranks = [base64.b64decode(token, validate=True) for token in document["ranks"]]
            if len(set(ranks)) != len(ranks) or not {bytes([i]) for i in range(256)} <= set(ranks):
                raise ValueError("ranks repeat, or single bytes are missing")
            names = list(document["special"])
            tokenizer = cls(ranks, document["pattern"], names[len(SPECIAL_TOKENS) :])
            if tokenizer.special != document["special"]:
                raise ValueError("other special tokens than this release's")
        except FileNotFoundError as error:
            raise TrainerError(
                "bad_input", f"no tokenizer at {path}", "Run the tokenizer stage first."
            ) from error
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise TrainerError(
                "bad_input",
                f"{path} is not a tokenizer: {type(error).__name__}: {error}",
                "Run the tokenizer stage again, or copy the file again from its source.",
            ) from error
        return tokenizer

    def encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without BOS; text that spells a special token stays text."""
        return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """As `encode`, but uint32 arrays: no Python integer a token.

        Raises:
            TrainerError: A text that neither tiktoken nor `regex` can split.
        """
        found = self.encode_documents(texts, threads)
        for text, ids in zip(texts, found, strict=True):
            if ids is None:
                raise TrainerError(
                    "bad_input",
                    f"a text of {len(text):,} characters cannot be tokenized: {text[:60]!r} …",
                    "Shorten its longest run of one character.",
                )
        return [ids for ids in found if ids is not None]

    def encode_documents(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray | None]:
        """As `encode_arrays`; None for a text that cannot be split, so that one ends no run."""
        if threads > 1 and len(texts) > 1:
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(self._encode_array, texts))
        return [self._encode_array(text) for text in texts]

    def _encode_array(self, text: str) -> np.ndarray | None:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate, as tiktoken's `encode_ordinary` reads it
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._encode_array(text)
        except ValueError:
            return self._encode_pieces(text)

    def _encode_pieces(self, text: str) -> np.ndarray | None:
        """The tokens of a text on which tiktoken's backtracking runs out of stack.

        That happens on blank runs of some 300,000 characters. The package `regex` cuts the text at
        the same places, and each piece is merged alone, as tiktoken does.
        """
        try:
            # \s of `regex` is Python's in some places; White_Space is Unicode's, and tiktoken's.
            pattern = self.pattern.replace(r"\s", r"\p{White_Space}")
            pieces = regex.findall(pattern.replace(r"\S", r"\P{White_Space}"), text)
            if "".join(pieces) != text:
                return None
            found = [self._merges.encode_to_numpy(p, disallowed_special=()) for p in pieces]
        except (regex.error, ValueError, TypeError):
            return None
        return np.concatenate(found) if found else np.empty(0, dtype=np.uint32)

    @cached_property
    def _merges(self) -> tiktoken.Encoding:
        """This vocabulary with a pattern that cuts nothing: merges alone."""
        return tiktoken.Encoding(
            name=f"{self.digest}-merges",
            pat_str=r"(?s).+",
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens={},
        )

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes behind `ids`; a special token gives its name."""
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text behind `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(V,) int32: how many bytes of text each token stands for; 0 for special tokens."""
        lengths = [len(token) for token in self.ranks] + [0] * len(self.special)
        return np.array(lengths, dtype=np.int32)


def _shorten_blanks(text: str) -> str:
    """`text` for the trainer, whose engine runs out of stack on very long runs of blanks."""
    return text if len(text) <= _MAX_BLANKS else _BLANKS.sub(r"\1", text)


def _render(ranks: Sequence[bytes], pattern: str, special: dict[str, int]) -> bytes:
    document = {
        "format": FORMAT,
        "pattern": pattern,
        "special": special,
        "ranks": [base64.b64encode(token).decode("ascii") for token in ranks],
    }
    return (json.dumps(document, indent=0, ensure_ascii=True) + "\n").encode("ascii")
