"""Stage `tokenizer`: learn the merges, then tokenize the corpus once. Both count on the clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reference.errors import TrainerError
from reference.events import Events
from reference.request import Request
from reference.rows.documents import (
    Shards,
    ShardTokens,
    find_shards,
    sample_texts,
    shard_rows,
    token_folder,
    tokenize_shard,
    write_index,
)
from reference.stage import Stopped, stop_requested
from reference.tokenizer.bpe import FILE_NAME, Tokenizer, split_pattern

PROGRESS_EVERY = 0.01  # share of the documents between two progress events


def run(request: Request, events: Events) -> None:
    """Leaves `tokenizer.json` in `paths.out` and the token cache of the run in `paths.cache`.

    Started again after a kill it keeps what is whole (the tokenizer, finished shards) and does the
    rest; every file comes out with the same bytes as in an uninterrupted run.
    """
    recipe = request.recipe
    column: str = recipe["data"]["text_column"]
    shards = find_shards(request.path("data"), anneal=recipe["data"]["anneal"] > 0)
    folder = request.path("out")
    if request.attempt and (folder / FILE_NAME).is_file():
        tokenizer = Tokenizer.load(folder)
    else:
        tokenizer = reused_tokenizer(request) or train_tokenizer(
            shards, column, recipe["tokenizer"]
        )
        check_digest(tokenizer, recipe["tokenizer"]["digest"])
        tokenizer.save(folder)
    wanted: int = recipe["tokenizer"]["vocab_size"]
    if tokenizer.vocab_size < wanted:
        events.emit(
            "note",
            text=f"the training text has merges for {tokenizer.vocab_size} tokens, not {wanted}",
        )

    cache = token_folder(request.path("cache"), request.run_id)
    train, validation = tokenize_corpus(shards, cache, tokenizer, column, request.threads, events)
    text_bytes = sum(shard.text_bytes for shard in train)
    tokens = sum(shard.tokens for shard in train)
    # BOS stands for no text: it is left out of the compression figure.
    text_tokens = tokens - sum(shard.documents for shard in train)
    events.emit(
        "note",
        text=f"tokenizer {tokenizer.digest}, {tokenizer.vocab_size} tokens, "
        f"{text_bytes / max(1, text_tokens):.3f} bytes a token",
        tokenizer=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bytes_per_token=text_bytes / max(1, text_tokens),
        train_tokens=tokens,
        train_documents=sum(shard.documents for shard in train),
        validation_tokens=sum(shard.tokens for shard in validation),
        skipped_documents=sum(shard.skipped for shard in (*train, *validation)),
    )


def _report_refused(records: Sequence[ShardTokens], events: Events) -> None:
    """Names the documents that no engine could split; they are in no split of the corpus."""
    refused = [place for record in records for place in record.refused]
    if refused:
        shown = "; ".join(refused[:10]) + (" …" if len(refused) > 10 else "")
        events.emit(
            "note",
            text=f"{len(refused)} documents left out, the tokenizer cannot split them: {shown}",
            refused_documents=len(refused),
        )


def reused_tokenizer(request: Request) -> Tokenizer | None:
    """The tokenizer that the recipe brings along; None when it has to be learnt."""
    section = request.recipe["tokenizer"]
    if not section["path"]:
        return None
    tokenizer = Tokenizer.load(request.path("recipe_dir") / section["path"])
    if tokenizer.vocab_size != section["vocab_size"]:
        raise TrainerError(
            "bad_input",
            f"tokenizer.path leads to {tokenizer.vocab_size} tokens, tokenizer.vocab_size is "
            f"{section['vocab_size']}",
            f"Set tokenizer.vocab_size = {tokenizer.vocab_size}: the plans count with it.",
        )
    return tokenizer


def check_digest(tokenizer: Tokenizer, wanted: str) -> None:
    """Holds the tokenizer to the recipe's lock.

    Raises:
        TrainerError: It is another one.
    """
    if wanted and tokenizer.digest != wanted:
        raise TrainerError(
            "bad_input",
            f"the tokenizer is {tokenizer.digest}, the recipe's tokenizer.digest is {wanted}",
            "The shards or options it was learnt from differ; CORE moves with the tokenizer.",
        )


def train_tokenizer(shards: Shards, column: str, section: dict[str, Any]) -> Tokenizer:
    """The tokenizer of `section` (recipe section [tokenizer]), learnt from the training shards.

    The trainer holds no Python lock while it merges, so it works in a thread and this one keeps
    looking whether the stage has to stop.
    """
    texts = sample_texts(
        shards.train, column, max_chars=section["max_chars"], doc_cap=section["doc_cap"]
    )
    outcome: list[Tokenizer | BaseException] = []

    def learn() -> None:
        try:
            pattern = split_pattern(section["digits"])
            outcome.append(
                Tokenizer.train(_until_stopped(texts), section["vocab_size"], pattern=pattern)
            )
        except BaseException as error:  # handed to the thread that waits
            outcome.append(error)

    worker = threading.Thread(target=learn, name="merges", daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.2)
        if stop_requested():
            raise Stopped
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _until_stopped(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        if stop_requested():
            raise Stopped
        yield text


def tokenize_corpus(
    shards: Shards,
    folder: Path,
    tokenizer: Tokenizer,
    column: str,
    threads: int,
    events: Events,
) -> tuple[list[ShardTokens], list[ShardTokens]]:
    """Fills the token cache `folder`; training and validation shards as they came out."""
    paths = (*shards.train, *shards.validation, *shards.anneal)
    total = sum(shard_rows(path, column) for path in paths)  # finds unusable files before work
    done = reported = 0

    def advance(count: int) -> None:
        nonlocal done, reported
        if stop_requested():
            raise Stopped
        done += count
        if done == total or done - reported >= PROGRESS_EVERY * total:
            reported = done
            events.emit("progress", done=done, total=total, unit="documents")

    records = [
        tokenize_shard(
            path, folder, tokenizer, column=column, threads=threads, on_documents=advance
        )
        for path in paths
    ]
    _report_refused(records, events)
    last = len(shards.train) + len(shards.validation)
    train, validation = records[: len(shards.train)], records[len(shards.train) : last]
    anneal = records[last:]
    for split, part in (("training", train), ("validation", validation)):
        if not any(shard.documents for shard in part):
            raise TrainerError(
                "bad_input",
                f"the {split} shards hold no document with text: "
                + ", ".join(shard.name for shard in part),
                "Check data.text_column in the recipe and the files in the data folder.",
            )
    names = [[shard.name for shard in split] for split in (train, validation, anneal)]
    write_index(folder, *names)
    return train, validation
