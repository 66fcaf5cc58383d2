"""The rows that pretraining reads: the same for the run and for whoever does steps of it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reference.chat.conversation import find_sources
from reference.config.experiment import asked_for, load
from reference.errors import TrainerError
from reference.request import Request
from reference.rows.anneal import AnnealedLoader, open_loader
from reference.rows.conversations import (
    ConversationLoader,
    hold_out,
    hold_out_seed,
    load_conversations,
)
from reference.rows.documents import Documents
from reference.rows.mixing import MixedLoader, Replay, Talks
from reference.rows.packing import PackedLoader
from reference.tokenizer.bpe import Tokenizer

Loader = PackedLoader | AnnealedLoader | MixedLoader


def open_training_rows(
    request: Request,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    rows: int,
    seq_len: int,
    device: torch.device,
    prefetch: int,
    state: dict[str, Any] | None,
    say: Callable[[str], None],
) -> Loader:
    """The loader that a recipe asks for, at its beginning or at `state`.

    Args:
        rows, seq_len: Shape of the first batches.
        say: Gets what a reader of the log should know.

    Raises:
        TrainerError: `state` was made with other settings, or data the recipe reads is missing.
    """
    section = request.recipe["pretrain"]
    buffers = [e.row_buffer for e in asked_for(section) if e.row_buffer]
    mixes = bool(buffers) or section.get("sft_share", 0) > 0
    if state is not None and ("mixed" in state) != mixes:
        raise TrainerError(
            "bad_input",
            "the saved data position was made with another replay_share or sft_share",
            "Resume with the recipe the run began with.",
        )
    bos = tokenizer.bos_id if section["document_mask"] else None
    # A mixer puts its batches together on the CPU and finds their documents itself.
    place = torch.device("cpu") if mixes else device
    loader = open_loader(
        lambda documents, position: PackedLoader(
            documents,
            rows,
            seq_len,
            request.seed,
            device=place,
            prefetch=prefetch,
            bos=None if mixes else bos,
            state=position,
        ),
        Documents.open(cache, "train", tokenizer),
        cache,
        tokenizer,
        request.recipe["data"]["anneal"],
        state["mixed"] if state is not None and mixes else state,
    )
    if not mixes:
        return loader
    replay = talks = None
    if buffers:
        replay = Replay(
            section["replay_share"],
            section["replay_from"],
            section["replay_keep"],
            request.seed,
            load(buffers[0]),
        )
    full = request.recipe["model"]["seq_len"]
    if section["sft_share"]:
        talks = _talks(request, tokenizer, full, state["talks"] if state else None, say)
    return MixedLoader(
        loader,
        seq_len=seq_len,
        full_seq_len=full,
        device=device,
        pad_id=tokenizer.bos_id,
        bos=bos,
        replay=replay,
        talks=talks,
        state=state,
    )


def _talks(
    request: Request,
    tokenizer: Tokenizer,
    seq_len: int,
    state: dict[str, Any] | None,
    say: Callable[[str], None],
) -> Talks:
    section = request.recipe["pretrain"]
    if request.paths.get("sft") is None:
        raise TrainerError(
            "bad_input",
            "pretrain.sft_share is above 0, and no conversations were given",
            "Give them with --sft DIR, or set pretrain.sft_share to 0.",
        )
    names = request.recipe["sft"]["sources"]
    sources = find_sources(request.path("sft"), names)
    found = load_conversations(sources, tokenizer, seq_len, request.threads, names)
    seed = hold_out_seed(request.recipe, request.seed)
    train, held_out = hold_out(found.rendered, seed, found.times)
    say(
        f"from {section['sft_from']:.0%} on, {section['sft_share']:.0%} of the rows are of"
        f" {len(train)} conversations from {', '.join(path.name for path in sources)};"
        f" {len(held_out)} held out, {found.truncated} cut, {found.dropped} left out"
    )
    # Of one row at a time: `MixedLoader` asks for as many as a batch has room for.
    source = ConversationLoader(train, 1, seq_len, request.seed, tokenizer.bos_id, state=state)
    return Talks(section["sft_share"], section["sft_from"], source, section["sft_targets"] == "all")
