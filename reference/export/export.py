"""What `n4090-kit export model` calls (entry point `n4090_kit.exporters`)."""

from __future__ import annotations

from pathlib import Path

import torch

from reference.errors import TrainerError
from reference.tokenizer.bpe import Tokenizer
from reference.train.checkpoint import MODEL_NAME, load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_model(
    checkpoint: Path, out: Path, form: str, *, name: str, chat: bool, dtype: str = "auto"
) -> list[str]:
    """Writes the checkpoint folder in another form and returns the names of the files in `out`.

    Args:
        form: "hf" or "gguf".
        name: The model's name, for the files that carry one.
        chat: Whether it was finetuned on conversations.
        dtype: Of the stored weights: "float32", "bfloat16", or "auto" for what training computed
            in, which the checkpoint's tables still have.

    Raises:
        TrainerError: The checkpoint is not whole, or the form cannot hold this model.
    """
    model, _ = load_model(checkpoint, "cpu", "float32")
    tokenizer = Tokenizer.load(checkpoint)
    stored = DTYPES.get(dtype) or _trained_in(checkpoint)
    if form == "gguf":
        from reference.export.gguf_file import write_folder as write_gguf

        return write_gguf(model, tokenizer, out, name=name, chat=chat, dtype=stored)
    if form == "hf":
        from reference.export.huggingface import write_folder

        return write_folder(model, tokenizer, out, chat=chat, dtype=stored)
    raise TrainerError("bad_input", f"format {form!r} is unknown", "Use hf or gguf.")


def _trained_in(checkpoint: Path) -> torch.dtype:
    from safetensors import safe_open

    with safe_open(checkpoint / MODEL_NAME, "pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return torch.bfloat16 if "BF16" in stored else torch.float32
