"""A checkpoint as a GGUF file for llama.cpp and a Modelfile for Ollama.

Both know a fixed list of networks; a model goes where Qwen3 computes the same
(`reference.export.mapping`), and the cut of text into pieces has to be one that llama.cpp knows.
"""

from __future__ import annotations

from pathlib import Path

import torch

from reference.errors import TrainerError
from reference.export import mapping
from reference.export.huggingface import CHAT_SAMPLING
from reference.export.tokenizer import (
    CHAT_TEMPLATE,
    EOS_CHAT,
    OLLAMA_TEMPLATE,
    merges,
    token_names,
)
from reference.kernels.fused import EPSILON
from reference.model.gpt import GPT, ModelConfig
from reference.tokenizer.bpe import Tokenizer, split_pattern
from reference.train.checkpoint import rename_whole

FILE_NAME = "model.gguf"
# Our split pattern -> llama.cpp's name for the same cuts. It has none for two digits together.
PRE_TOKENIZERS = {split_pattern(3): "llama-bpe", split_pattern(1): "qwen2"}


def obstacles(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """The settings that the model lacks -> the part that llama.cpp has no equal of."""
    found = mapping.obstacles(config, llama_cpp=True)
    if tokenizer.pattern not in PRE_TOKENIZERS:
        found["tokenizer.digits=3"] = "digits in groups of two"
    return found


def write_folder(
    model: GPT, tokenizer: Tokenizer, out: Path, *, name: str, chat: bool, dtype: torch.dtype
) -> list[str]:
    """Writes model.gguf and Modelfile into `out` and returns their names.

    Args:
        name: The model's name in the file.
        dtype: Of the matrices; norms stay fp32, as llama.cpp wants them.

    Raises:
        TrainerError: The model does not map; the message names the parts, the hint the switches.
    """
    missing = obstacles(model.config, tokenizer)
    if missing:
        raise TrainerError(
            "bad_input",
            "llama.cpp has no network that computes this model: it has "
            + ", ".join(missing.values()),
            "Export it with --format hf, or train again with these settings:\n  n4090-kit run "
            "--recipe NAME " + "\n  ".join(f"--set {setting}" for setting in missing),
        )
    out.mkdir(parents=True, exist_ok=True)
    rename_whole(
        out / FILE_NAME,
        lambda path: _write_gguf(model, tokenizer, path, name=name, chat=chat, dtype=dtype),
    )
    rename_whole(
        out / "Modelfile", lambda path: path.write_text(_modelfile(model.config, chat), "utf-8")
    )
    return [FILE_NAME, "Modelfile"]


def _write_gguf(
    model: GPT, tokenizer: Tokenizer, path: Path, *, name: str, chat: bool, dtype: torch.dtype
) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(name)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocab_size)
    bf16 = dtype == torch.bfloat16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    special = len(tokenizer.special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[tokenizer.pattern])
    writer.add_token_list(token_names(tokenizer))
    writer.add_token_types(
        [gguf.TokenType.NORMAL] * len(tokenizer.ranks) + [gguf.TokenType.CONTROL] * special
    )
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.special[EOS_CHAT] if chat else tokenizer.bos_id)
    writer.add_pad_token_id(tokenizer.bos_id)
    writer.add_add_bos_token(True)
    if chat:
        # llama.cpp puts BOS in front itself.
        writer.add_chat_template(CHAT_TEMPLATE.replace("{{- bos_token -}}\n", ""))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.n_layer)
    for theirs, tensor in mapping.qwen3_tensors(model).items():
        key = names.get_name(theirs, try_suffixes=(".weight",))
        assert key is not None, f"llama.cpp has no tensor {theirs}"
        if bf16 and tensor.dim() > 1:
            data = gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(key, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _modelfile(config: ModelConfig, chat: bool) -> str:
    """What `ollama create NAME -f Modelfile` reads."""
    lines = [f"FROM ./{FILE_NAME}", f"PARAMETER num_ctx {config.seq_len}"]
    if chat:
        lines += [
            f'TEMPLATE """{OLLAMA_TEMPLATE}"""',
            f'PARAMETER stop "{EOS_CHAT}"',
            f"PARAMETER temperature {CHAT_SAMPLING['temperature']}",
            f"PARAMETER top_k {CHAT_SAMPLING['top_k']}",
        ]
    else:
        lines += ['TEMPLATE """{{ .Prompt }}"""', 'PARAMETER stop "<|bos|>"']
    return "\n".join(lines) + "\n"
