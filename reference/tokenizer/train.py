"""Training a tokenizer from a pinned list of shards, and holding a second training to the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.files import write_whole
from reference.rows.documents import find_shards, sample_texts
from reference.tokenizer.bpe import Tokenizer, split_pattern

LOCK = "tokenizer.lock.json"
FORMAT = 1


def train_locked(
    folder: Path,
    out: Path,
    options: dict[str, Any],
    shards: Sequence[str] = (),
    lock: Path | None = None,
) -> dict[str, Any]:
    """Trains a tokenizer into `out` and writes its lock; returns the lock.

    Args:
        options: vocab_size, digits, pattern, special, text_column, max_chars, doc_cap.
        shards: File names in `folder`; all training shards when empty.
        lock: An earlier lock: its shards and options replace those given, and the outcome must
            have its digest.

    Raises:
        TrainerError: A shard is missing or differs from the lock, or the outcome does.
    """
    wanted: dict[str, Any] | None = None
    if lock is not None:
        wanted = read_lock(lock)
        options, shards = wanted["options"], [shard["path"] for shard in wanted["shards"]]
    paths = [folder / name for name in shards] or list(find_shards(folder).train)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise TrainerError(
            "bad_input", f"{folder} lacks {', '.join(missing)}", "Name shards that are there."
        )
    found = [{"path": path.name, "sha256": _sha256(path)} for path in paths]
    if wanted is not None:
        different = [
            new["path"]
            for new, old in zip(found, wanted["shards"], strict=True)
            if new["sha256"] != old["sha256"]
        ]
        if different:
            raise TrainerError(
                "bad_input",
                f"not the shards of {lock}: {', '.join(different)} differ",
                "Fetch them again, or train without --lock.",
            )
    texts = sample_texts(
        paths, options["text_column"], max_chars=options["max_chars"], doc_cap=options["doc_cap"]
    )
    tokenizer = Tokenizer.train(
        texts,
        options["vocab_size"],
        pattern=options["pattern"] or split_pattern(options["digits"]),
        extra_special=options["special"],
    )
    if wanted is not None and tokenizer.digest != wanted["digest"]:
        raise TrainerError(
            "bad_input",
            f"the same shards and options gave {tokenizer.digest}, the lock says "
            f"{wanted['digest']}",
            f"The lock was made with rustbpe {wanted['rustbpe']}, this is {version('rustbpe')}.",
        )
    tokenizer.save(out)
    document = {
        "format": FORMAT,
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "options": options,
        "shards": found,
        "rustbpe": version("rustbpe"),
    }
    write_whole(out / LOCK, (json.dumps(document, indent=1) + "\n").encode())
    return document


def read_lock(path: Path) -> dict[str, Any]:
    """What `train_locked` wrote.

    Raises:
        TrainerError: It is missing or something else.
    """
    try:
        document = dict(json.loads(path.read_text()))
        if document["format"] != FORMAT or not document["shards"]:
            raise ValueError(f"format {document['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            "bad_input", f"{path} is not a tokenizer lock: {error}", "Name a tokenizer.lock.json."
        ) from error
    return document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
