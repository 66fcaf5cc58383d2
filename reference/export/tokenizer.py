"""Our tokenizer in the form of the `tokenizers` library, and the chat template for both runtimes.

Text gives the same ids as `reference.tokenizer.bpe`. One difference remains: transformers and
llama.cpp recognise the names of special tokens in text, which our own tokenizer never does.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from reference.tokenizer.bpe import Tokenizer

BOS, EOS_CHAT = "<|bos|>", "<|assistant_end|>"
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ['user', 'assistant'] -%}
{{- raise_exception('the roles must be user and assistant in turn, after at most one system message') -}}
{%- endif -%}
{{- '<|' + message['role'] + '_start|>' + (system if loop.first else '') + message['content'] + '<|' + message['role'] + '_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant_start|>' -}}
{%- endif -%}
"""  # noqa: E501 - a Jinja expression cannot be broken across lines
# The same for Ollama, in Go's template language; Ollama and llama.cpp put BOS in front.
OLLAMA_TEMPLATE = (
    "{{- range $i, $_ := .Messages }}"
    '{{- if eq .Role "user" }}<|user_start|>'
    "{{ if and $.System (le $i 1) }}{{ $.System }}\n\n{{ end }}{{ .Content }}<|user_end|>"
    '{{- else if eq .Role "assistant" }}<|assistant_start|>{{ .Content }}<|assistant_end|>'
    "{{- end }}{{- end }}<|assistant_start|>"
)


def byte_letters() -> dict[int, str]:
    """The printable letter that byte-level BPE files write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def token_names(tokenizer: Tokenizer) -> list[str]:
    """The name of each token id: its bytes as letters, or the special token's own name."""
    letters = byte_letters()
    return ["".join(letters[b] for b in token) for token in tokenizer.ranks] + list(
        tokenizer.special
    )


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The two parts that each token of several bytes is merged from, by ascending id."""
    letters = byte_letters()
    ranks = {token: rank for rank, token in enumerate(tokenizer.ranks)}

    def written(part: bytes) -> str:
        return "".join(letters[byte] for byte in part)

    return [
        (written(first), written(second))
        for rank, token in enumerate(tokenizer.ranks)
        if len(token) > 1
        for first, second in [_parts(token, ranks, rank)]
    ]


def _parts(token: bytes, ranks: dict[bytes, int], below: int) -> tuple[bytes, bytes]:
    """What merging by the ranks before `below` leaves of `token`: the last merge's two sides."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(
            ((ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))),
        )
        if best[0] >= below:
            raise ValueError(f"token {below} cannot be reached by merging two earlier tokens")
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def tokenizer_document(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer.json` of the `tokenizers` library: byte-level BPE with our split pattern."""
    names = token_names(tokenizer)
    bos = tokenizer.bos_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": identity,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, identity in tokenizer.special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": tokenizer.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # As tiktoken does: a piece that is a token as a whole is not split.
            "ignore_merges": True,
            "vocab": {name: i for i, name in enumerate(names[: len(tokenizer.ranks)])},
            "merges": [list(pair) for pair in merges(tokenizer)],
        },
    }


def tokenizer_files(tokenizer: Tokenizer, *, chat: bool, length: int) -> dict[str, str]:
    """File name -> content: tokenizer.json, its config, and the template of a chat model.

    Args:
        length: Positions that the model was trained with.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS_CHAT if chat else BOS,
        "pad_token": BOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
        "padding_side": "left",
    }
    files = {
        "tokenizer.json": json.dumps(tokenizer_document(tokenizer), ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
    if chat:
        files["chat_template.jinja"] = CHAT_TEMPLATE
    return files
