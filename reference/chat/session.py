"""Talking to a chat model: what the `chat` command is made of, apart from the terminal.

A `Session` keeps the conversation and gives the next answer piece by piece. When the conversation
outgrows the context, its oldest exchanges are dropped.
"""

from __future__ import annotations

import codecs
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from reference.chat.conversation import Message, render_prompt
from reference.chat.engine import Sampling, stream
from reference.errors import TrainerError
from reference.model.gpt import GPT
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import CONFIG_NAME, load_model

CHAT_STAGE, BASE_STAGE = "sft", "pretrain"
STAGES = (CHAT_STAGE, BASE_STAGE)  # the checkpoints of a run, best to talk to first


def find_checkpoint(path: Path, stages: Sequence[str] = STAGES) -> Path:
    """The checkpoint folder that `path` means: itself, or one of a run folder.

    Args:
        stages: The stages whose checkpoint is taken, the first that there is.

    Raises:
        TrainerError: There is neither.
    """
    candidates = [path, *(path / "checkpoints" / stage for stage in stages)]
    for folder in candidates:
        if (folder / CONFIG_NAME).is_file():
            return folder
    if (path / "events.jsonl").is_file():
        raise TrainerError(
            "bad_input",
            f"run {path.resolve().name} has no trained model yet",
            f"`n4090-kit watch {path}` shows how far it is.",
        )
    raise TrainerError(
        "bad_input",
        f"{path} is not a run folder or a checkpoint: it has no {CONFIG_NAME}"
        if path.is_dir()
        else f"{path} is a file, not a folder"
        if path.exists()
        else f"there is no folder {path}",
        "Name a folder such as runs/RUN or runs/RUN/checkpoints/sft.",
    )


class Session:
    """A conversation with a model.

    Attributes:
        messages: All of it so far; an answer that was broken off is kept as far as it got.
        ended: Whether the last answer handed the turn back, rather than hitting the length limit.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, sampling: Sampling, system: str | None = None
    ) -> None:
        self._model, self._tokenizer, self._sampling = model, tokenizer, sampling
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []
        self.ended = False

    @classmethod
    def open(
        cls,
        path: Path,
        sampling: Sampling,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        system: str | None = None,
    ) -> Session:
        """A session with the model at `path` (see `find_checkpoint`)."""
        folder = find_checkpoint(path)
        model, _ = load_model(folder, device, dtype)
        return cls(model, Tokenizer.load(folder), sampling, system)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to `text`, in pieces as they are generated.

        Stopping to iterate breaks the answer off.
        """
        self.messages.append({"role": "user", "content": text})
        room = self._model.config.seq_len - 1
        prompt = render_prompt(
            self._tokenizer,
            [*self._system, *self.messages],
            max(room // 2, room - self._sampling.max_new_tokens),
        )
        end = self._tokenizer.special["<|assistant_end|>"]
        # Another seed for each turn, or equal questions would get equal draws.
        sampling = replace(self._sampling, seed=self._sampling.seed + len(self.messages) // 2)
        # Letters beyond ASCII can span tokens: bytes wait until they make whole characters.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        answer, self.ended = "", False
        try:
            for _, token in stream(self._model, [prompt], sampling, {end}):
                if token == end:
                    self.ended = True
                    break
                piece = decoder.decode(self._tokenizer.decode_bytes([token]))
                if piece:
                    answer += piece
                    yield piece
            if rest := decoder.decode(b"", final=True):
                answer += rest
                yield rest
        finally:
            self.messages.append({"role": "assistant", "content": answer})
