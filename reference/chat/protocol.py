"""What the OpenAI-compatible server understands of a request, and how it refuses the rest.

A field that cannot be honoured is refused, unless its value asks for nothing; fields that only
describe the caller are ignored.
"""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from reference.chat.conversation import check_messages, render_prompt
from reference.chat.engine import Sampling
from reference.tokenizer.bpe import Tokenizer

MAX_ANSWERS = 8
_IGNORED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# Not supported: the values that ask for nothing.
_NEUTRAL: dict[str, list[Any]] = {
    "presence_penalty": [0, None],
    "frequency_penalty": [0, None],
    "logit_bias": [{}, None],
    "logprobs": [False, None],
    "top_logprobs": [0, None],
    "echo": [False, None],
    "suffix": ["", None],
    "best_of": [1, None],
    "tools": [[], None],
    "tool_choice": ["none", "auto", None],
    "response_format": [{"type": "text"}, None],
    "modalities": [["text"], None],
}
_COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"type": ["integer", "null"], "minimum": 0},
    "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_ANSWERS},
    "stop": {
        "anyOf": [
            {"type": ["string", "null"], "minLength": 1},
            {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1}},
        ]
    },
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": {"type": ["boolean", "null"]}},
    },
    **{name: {} for name in _IGNORED},
    **{name: {"enum": values} for name, values in _NEUTRAL.items()},
}
_CHAT = {
    "type": "object",
    "required": ["messages"],
    "additionalProperties": False,
    "properties": {
        **_COMMON,
        "messages": {"type": "array", "minItems": 1},
        # "auto" drops the oldest exchanges of a conversation that is too long.
        "truncation": {"enum": ["auto", "disabled", None]},
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": False,
    "properties": {
        **_COMMON,
        "prompt": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string"}},
                {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
            ]
        },
    },
}


class BadRequest(Exception):
    """A request that is refused; becomes OpenAI's error object."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def to_json(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one model can be asked for."""

    name: str
    chat: bool
    context: int  # positions: prompt and answer
    defaults: Sampling


@dataclass(frozen=True)
class Asked:
    """A request that can be run."""

    prompts: list[list[int]]
    sampling: Sampling
    n: int
    stop: tuple[str, ...]
    stream: bool
    usage: bool  # in the stream


def read_chat(body: Any, limits: Limits, tokenizer: Tokenizer) -> Asked:
    """The request of /v1/chat/completions.

    Raises:
        BadRequest: It cannot be run as written.
    """
    _check(body, _CHAT, limits)
    if not limits.chat:
        raise BadRequest(
            f"{limits.name} is a base model: it continues text and knows no turns; "
            "use /v1/completions",
            param="messages",
        )
    messages = [_as_text(message, i) for i, message in enumerate(body["messages"])]
    try:
        check_messages(messages)
    except ValueError as error:
        raise BadRequest(str(error), param="messages") from error
    if messages[-1]["role"] != "user":
        raise BadRequest("the last message must be by the user", param="messages")
    room = limits.context - 1
    wanted = _max_tokens(body) or limits.defaults.max_new_tokens
    length = max(room // 2, room - wanted) if body.get("truncation") == "auto" else None
    return _asked(body, [render_prompt(tokenizer, messages, length)], limits, "messages")


def read_completion(body: Any, limits: Limits, tokenizer: Tokenizer) -> Asked:
    """The request of /v1/completions: text, texts, or the ids of tokens.

    Raises:
        BadRequest: It cannot be run as written.
    """
    _check(body, _COMPLETION, limits)
    prompt = body["prompt"]
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        if max(prompt) >= tokenizer.vocab_size:
            raise BadRequest(
                f"token {max(prompt)} is not below {tokenizer.vocab_size}", param="prompt"
            )
        return _asked(body, [prompt], limits, "prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    prompts = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode(texts)]
    return _asked(body, prompts, limits, "prompt")


def _check(body: Any, schema: dict[str, Any], limits: Limits) -> None:
    for error in Draft202012Validator(schema).iter_errors(body):
        path = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            unknown = sorted(set(body) - set(schema["properties"]))[0]
            raise BadRequest(f"there is no parameter {unknown!r} here", param=unknown)
        if path in _NEUTRAL:
            raise BadRequest(f"{path} is not supported by this server", param=path)
        if error.validator == "anyOf":
            kinds = "a text or a list of texts" + (" or of token ids" if path == "prompt" else "")
            raise BadRequest(
                f"{path} must be {kinds}, at most 4 of them"
                if path == "stop"
                else f"{path} must be {kinds}",
                param=path,
            )
        raise BadRequest(
            f"{path}: {error.message[:200]}" if path else error.message[:200], param=path or None
        )
    if body.get("model", limits.name) != limits.name:
        raise BadRequest(
            f"there is no model {body['model'][:80]!r}; this server runs {limits.name!r}",
            param="model", code="model_not_found", status=404,
        )  # fmt: skip


def _as_text(message: Any, index: int) -> dict[str, str]:
    """A message whose content is one text; OpenAI also sends a list of parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest(f"message {index + 1} needs the fields role and content", param="messages")
    content: Any = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        parts = [text for text in texts if isinstance(text, str)]
        if len(parts) < len(texts):
            raise BadRequest(f"message {index + 1}: only parts of text", param="messages")
        content = "".join(parts)
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": str(role), "content": content}


def _max_tokens(body: dict[str, Any]) -> int | None:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def _asked(body: dict[str, Any], prompts: list[list[int]], limits: Limits, param: str) -> Asked:
    longest = max(map(len, prompts))
    room = limits.context - longest
    if room < 1:
        raise BadRequest(
            f"the prompt has {longest} tokens and the model reads {limits.context}, its answer "
            "included",
            param=param, code="context_length_exceeded",
        )  # fmt: skip
    default = limits.defaults

    def given(name: str, otherwise: Any) -> Any:
        value = body.get(name)
        return otherwise if value is None else value

    seed = body.get("seed")
    stop = given("stop", [])
    return Asked(
        prompts=prompts,
        sampling=Sampling(
            max_new_tokens=min(_max_tokens(body) or default.max_new_tokens, room),
            temperature=given("temperature", default.temperature),
            top_k=given("top_k", default.top_k),
            top_p=given("top_p", default.top_p),
            # A stream's number is made of 43 bits of the seed and the row.
            seed=secrets.randbits(40) if seed is None else seed % 2**40,
        ),
        n=given("n", 1),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=bool(body.get("stream")),
        usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


class TextStream:
    """Tokens to text, piece by piece, cut before the first stop text.

    Letters beyond ASCII can span tokens, and stop texts too: what could still become either waits.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that is certain now; after a stop text `stopped` is set."""
        return self._release(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        waiting = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - waiting :]
        return held[: len(held) - waiting]


def _overlap(text: str, stop: str) -> int:
    """How many letters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
