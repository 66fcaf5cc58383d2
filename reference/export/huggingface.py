"""A checkpoint as a folder that plain transformers loads.

A model that maps to a class of transformers (`reference.export.mapping`) needs no code of ours.
Every other one takes `modeling_n4090.py` with it and is loaded with `trust_remote_code=True`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference.export import mapping
from reference.export.tokenizer import BOS, EOS_CHAT, tokenizer_files
from reference.model.gpt import GPT, QUERY_KEY_SCALE
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import rename_whole

MODELING = "modeling_n4090.py"
# Greedy answers of small models loop; `chat` draws with the same numbers.
CHAT_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 50}


def write_folder(
    model: GPT, tokenizer: Tokenizer, out: Path, *, chat: bool, dtype: torch.dtype
) -> list[str]:
    """Fills `out`, config.json last, and returns the names of its files.

    Args:
        chat: Whether it was finetuned on conversations: it then gets a chat template, and a turn's
            end ends its text. A base model's text ends where a next document would begin.
        dtype: Of the stored weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    maps = not mapping.obstacles(model.config)
    tensors = mapping.qwen3_tensors(model) if maps else own_tensors(model)
    config = mapping.qwen3_config(model.config) if maps else own_config(model)
    eos = tokenizer.special[EOS_CHAT] if chat else tokenizer.bos_id
    tokens = {
        "bos_token_id": tokenizer.special[BOS],
        "eos_token_id": eos,
        "pad_token_id": tokenizer.special[BOS],
    }
    name = str(dtype).removeprefix("torch.")
    files = {
        **tokenizer_files(tokenizer, chat=chat, length=model.config.seq_len),
        "generation_config.json": _json(
            {**tokens, "max_new_tokens": 256, **(CHAT_SAMPLING if chat else {})}
        ),
        # Both names: the second is what transformers 4 reads.
        "config.json": _json({**config, **tokens, "dtype": name, "torch_dtype": name}),
    }
    rename_whole(
        out / "model.safetensors",
        lambda path: save_file(
            {key: value.to(dtype).contiguous() for key, value in tensors.items()},
            path,
            metadata={"format": "pt"},
        ),
    )
    written = ["model.safetensors"]
    if not maps:
        source = Path(__file__).with_name(MODELING)
        rename_whole(out / MODELING, lambda path: shutil.copyfile(source, path))
        written.append(MODELING)
    for file, text in files.items():
        rename_whole(out / file, lambda path, text=text: path.write_text(text, "utf-8"))
        written.append(file)
    return written


def own_tensors(model: GPT) -> dict[str, Tensor]:
    """Our weights under the names of `modeling_n4090.py`, without the padding rows of tables."""
    V = model.config.vocab_size
    head, scale = model.head
    tensors = {
        f"model.{name}": value[:V] if name.startswith(("wte.", "value_embeds.")) else value
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    return tensors | {"lm_head.weight": head.detach().float()[:V] * scale}


def own_config(model: GPT) -> dict[str, Any]:
    """`config.json` for `modeling_n4090.py`, without ids of tokens."""
    config = model.config
    module = MODELING.removesuffix(".py")
    return {
        "architectures": ["N4090ForCausalLM"],
        "model_type": "n4090",
        "auto_map": {
            "AutoConfig": f"{module}.N4090Config",
            "AutoModel": f"{module}.N4090Model",
            "AutoModelForCausalLM": f"{module}.N4090ForCausalLM",
        },
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "max_position_embeddings": config.seq_len,
        "windows": list(config.windows),
        "value_embedding_layers": [
            layer for layer in range(config.n_layer) if config.has_value_embedding(layer)
        ],
        "ffn": config.ffn,
        "rope_base": config.rope_base,
        "qk_scale": QUERY_KEY_SCALE,
        "final_logit_softcapping": config.softcap,
        "x0_mix": config.x0_mix,
        "norm_scales": config.norm_scales,
        "smear": config.smear,
        "backout": config.backout,
        "tie_word_embeddings": False,
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
