"""Tiny Hugging Face models with a tokenizer of their own, for tests."""

from pathlib import Path
from typing import Any

import torch

TEXTS = ["What is the capital of France? Paris", "A story of a fox and an owl, told twice."]
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 320 entries; `<|endoftext|>` is 0."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)


def save(folder: Path, config: Any, model: Any, *, seed: int = 1, noise: float = 0.1) -> Path:
    """A model with random weights (seed `seed`), saved with its tokenizer."""
    torch.manual_seed(seed)
    network = model(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path, **overrides: Any) -> Path:
    """A Llama of two layers."""
    import transformers

    config = transformers.LlamaConfig(**{**SHAPE, **overrides})
    return save(folder, config, transformers.LlamaForCausalLM)
