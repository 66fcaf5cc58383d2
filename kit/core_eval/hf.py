"""Any local Hugging Face causal LM, or a GGUF file, as an `EvalModel` (extra `eval`).

Weights come from safetensors (or GGUF), nothing is downloaded, and a folder's own code runs only
with `trust_remote_code`. The optional fast methods are offered where the architecture allows them
and, like everybody's, used only after they have repeated the model's own logits. `logits` is what
transformers computes and nothing else; the fast methods also choose the CPU's matrix library.

Prompts are cut to a length only where the model cannot read further: learned positions (GPT-2: the
last 1,024 tokens). Rotary models read the whole prompt, as nanochat's evaluation lets them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.core_eval.cpu_linear import faster_linear
from kit.core_eval.model_files import (
    check_folder,
    check_gguf,
    check_loaded,
    not_finite,
    refuse_not_finite,
)
from kit.errors import KitError, PrerequisiteError, SchemaError

if TYPE_CHECKING:
    from torch import Tensor

# The first of these that a tokenizer knows opens each prompt; then its own BOS, then its EOS.
BOS_NAMES = ("<|bos|>", "<|endoftext|>")


def load(
    path: Path, *, device: str = "cpu", dtype: str = "auto", trust_remote_code: bool = False
) -> HuggingFaceModel:
    """The model in a folder, or in a GGUF file."""
    try:
        import transformers
    except ImportError as error:
        raise PrerequisiteError(
            "Hugging Face models need the package transformers",
            hint='in the checkout: pip install ".[eval]"',
        ) from error
    import torch

    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    folder, options = path, dict[str, Any](local_files_only=True)
    if path.is_file():
        folder, options = path.parent, {**options, "gguf_file": path.name}
    else:
        options["trust_remote_code"] = trust_remote_code
    if path.is_file():
        check_gguf(path)
    else:
        check_folder(path)
        options["use_safetensors"] = True
    with _quiet(transformers), _explained(path.name):
        tokenizer = _tokenizer(folder, {k: v for k, v in options.items() if k != "use_safetensors"})
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_loaded` refuses them, by name
            **options,
        )
    network, info = loaded
    check_loaded(path.name, info)
    refuse_not_finite(not_finite(network))
    _refuse_ids_past_embedding(network, tokenizer)
    network = network.to(device).eval()
    if network.get_output_embeddings() is None:
        return HuggingFaceModel(network, tokenizer)
    if _full_attention(network.config):
        return PrefixHuggingFaceModel(network, tokenizer)
    return HiddenHuggingFaceModel(network, tokenizer)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Holds back the library's own reports and progress bars; the kit's errors take their place."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what the library raises into one error: its exceptions share no type."""
    import torch

    try:
        yield
    except KitError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise PrerequisiteError(
            f"{name} does not fit in memory",
            hint="Use a smaller --dtype, --device cpu, or a machine with more memory.",
        ) from error
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        raise SchemaError(
            f"{name} cannot be loaded: {said or type(error).__name__}",
            hint="A folder needs config.json, *.safetensors and its tokenizer; its own code runs "
            "only with --trust-remote-code.",
        ) from error


def _tokenizer(folder: Path, options: dict[str, Any]) -> Any:
    """The tokenizer, which must turn a sentence into more than one unknown token."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except Exception:
        _refuse_unknown_tokenizer(folder / "tokenizer.json")
        raise
    ids = tokenizer.encode("The model reads this sentence.", add_special_tokens=False)
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise SchemaError(
            f"{folder.name}: the tokenizer knows no text (its vocabulary holds {len(tokenizer)} "
            "entries)",
            hint="Its vocabulary file is missing or empty: download the tokenizer again.",
        )
    return tokenizer


def _refuse_unknown_tokenizer(file: Path) -> None:
    """Raises the error for a tokenizer.json that the installed package cannot read."""
    import tokenizers

    if not file.is_file():
        return
    try:
        tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain `Exception`
        raise SchemaError(
            f"{file.parent.name}: tokenizer.json is damaged, or made by a newer version of the "
            f"package tokenizers than the installed {tokenizers.__version__}: "
            f"{str(error).splitlines()[0]}",
            hint="pip install --upgrade tokenizers transformers, or download the file again.",
        ) from error


def _refuse_ids_past_embedding(network: Any, tokenizer: Any) -> None:
    """Added tokens may lie past the embedding (a text cannot hold them); ordinary ones may not."""
    rows = network.get_input_embeddings().weight.shape[0]
    added = set(tokenizer.get_added_vocab())
    past = [(i, t) for t, i in tokenizer.get_vocab().items() if i >= rows and t not in added]
    if past:
        last, token = max(past)
        raise SchemaError(
            f"the tokenizer makes ids up to {last} ({token!r}), and the model's embedding has "
            f"{rows} rows",
            hint="The tokenizer belongs to another model, or the embedding was not resized.",
        )


class HuggingFaceModel:
    """Tokens to logits with any causal LM of transformers."""

    def __init__(self, network: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = network, tokenizer
        config = network.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.bos_id = _bos_id(tokenizer)
        self.context_len = _context_len(config)
        self.max_seq_len = None if _reads_on(config) else self.context_len
        self.device = str(network.device)
        self.dtype = str(network.dtype).removeprefix("torch.")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.encode_special_tokens = True  # special names in a text are plain text
            # Whatever tokenizer.json carries for training: a score depends on the text alone.
            backend.no_truncation()
            backend.no_padding()
            _without_sampling(backend)
            self.tokenizer_digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
        self._backend = backend
        self._rotary = [m for m in network.modules() if hasattr(m, "original_max_seq_len")]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            found = [encoding.ids for encoding in encodings]
        else:
            found = [
                self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
                for text in texts
            ]
        largest = max((max(ids) for ids in found if ids), default=0)
        if largest >= self.vocab_size:
            raise SchemaError(
                f"the tokenizer gave the id {largest} "
                f"({self.tokenizer.convert_ids_to_tokens(largest)!r}), and the model knows "
                f"{self.vocab_size}",
                hint="The tokenizer belongs to another model, or the embedding was not resized.",
            )
        return found

    def logits(self, tokens: Tensor) -> Tensor:
        self._forget_lengths()
        logits: Tensor = self.network(input_ids=tokens, use_cache=False).logits
        return logits

    def _forget_lengths(self) -> None:
        """Dynamic rotary positions keep the frequencies of the longest sequence so far."""
        for rotary in self._rotary:
            for name in vars(rotary).keys() | rotary._buffers.keys():
                if name.endswith("original_inv_freq"):
                    buffer = name.replace("original_", "")
                    # A copy: the module may write into the buffer.
                    setattr(rotary, buffer, getattr(rotary, name).to(self.device, copy=True))
                elif name.endswith("max_seq_len_cached"):
                    setattr(rotary, name, rotary.original_max_seq_len)


class HiddenHuggingFaceModel(HuggingFaceModel):
    """States first, logits only where they are asked for."""

    def hidden(self, tokens: Tensor) -> Tensor:
        self._forget_lengths()
        with faster_linear():
            states: Tensor = self.network.base_model(input_ids=tokens, use_cache=False)[0]
        return states

    def head(self, hidden: Tensor) -> Tensor:
        with faster_linear():
            logits: Tensor = self.network.get_output_embeddings()(hidden)
        return logits


class PrefixHuggingFaceModel(HiddenHuggingFaceModel):
    """With the key/value cache, for models whose every layer looks at all earlier tokens.

    Rows of uneven length leave a hole between a row's text and its continuation. The mask covers
    the hole and the positions skip it; a sliding window would count it.
    """

    def prefill(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        from transformers import DynamicCache

        self._forget_lengths()
        cache = DynamicCache(config=self.network.config)
        with faster_linear():
            states = self.network.base_model(
                input_ids=tokens, past_key_values=cache, use_cache=True
            )[0]
        return states, (cache, lengths, tokens.shape[1])

    def extend(self, cache: Any, rows: Tensor, tokens: Tensor) -> Tensor:
        import torch

        stored, lengths, width = cache
        taken = copy.copy(stored)
        taken.layers = [copy.copy(layer) for layer in stored.layers]
        taken.batch_select_indices(rows)  # makes new tensors; the stored ones stay
        begin = lengths[rows][:, None]  # (R, 1)
        new = torch.arange(tokens.shape[1], device=tokens.device)
        positions = begin + new
        if self.max_seq_len is not None:  # only padding lies beyond
            positions = positions.clamp(max=self.max_seq_len - 1)
        seen = torch.arange(width, device=tokens.device) < begin  # (R, width)
        with faster_linear():
            states: Tensor = self.network.base_model(
                input_ids=tokens,
                attention_mask=torch.cat([seen, torch.ones_like(tokens, dtype=torch.bool)], dim=1),
                position_ids=positions,
                past_key_values=taken,
                use_cache=True,
            )[0]
        return states


def _without_sampling(backend: Any) -> None:
    """Switches off BPE dropout and unigram sampling, which give another encoding at each call."""
    for name in ("dropout", "alpha", "nbest_size"):
        if getattr(backend.model, name, None) is not None:
            setattr(backend.model, name, None)


def _bos_id(tokenizer: Any) -> int:
    vocabulary = tokenizer.get_vocab()
    for name in BOS_NAMES:
        if name in vocabulary:
            return int(vocabulary[name])
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SchemaError(
        "the tokenizer has no token to open a prompt with",
        hint=f"It needs {' or '.join(BOS_NAMES)}, a BOS or an EOS token.",
    )


def _context_len(config: Any) -> int | None:
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def _reads_on(config: Any) -> bool:
    """Whether positions beyond the trained length exist: rotary, ALiBi or no positions at all."""
    rotary = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_dim", "rotary_pct")
    if any(getattr(config, name, None) is not None for name in rotary):
        return True
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


def _full_attention(config: Any) -> bool:
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None)
    if layers:
        return all(layer == "full_attention" for layer in layers)
    window = getattr(text, "sliding_window", None)
    return window is None or getattr(text, "use_sliding_window", True) is False
