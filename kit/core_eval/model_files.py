"""Checks the files of a model before any library opens them.

A library fills what a file does not hold with random numbers, and reports damage in its own terms.
Each check here names the file, what the file is, and what to do.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kit.errors import PrerequisiteError, SchemaError
from kit.files import files_ending, has_ending

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json",
               "special_tokens_map.json", "tokenizer.json", INDEX)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                    "sentencepiece.bpe.model", "tekken.json")  # fmt: skip
_MAX_HEADER = 100 * 2**20  # the limit of the safetensors format
_INTEGERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"}
# Buffers that old files hold and that every architecture makes again from its config.
_REBUILT = re.compile(r"(^|\.)(masked_bias|inv_freq|position_ids)$")
_AGAIN = "Download the file again, with `hf download` or `git lfs pull`."


def describe(head: bytes) -> str | None:
    """What a file that begins with `head` is, if it is one of the usual stand-ins for another file.

    Returns:
        "a Git LFS pointer", …; None if the beginning says nothing.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page, not the file itself"
    if text.startswith((b'{"error"', b'{"message"', b"access to model", b"repository not found",
                        b"entry not found", b"invalid credentials", b"unauthorized")):  # fmt: skip
        return "an error message of a server, not the file itself"
    if not head.strip(b"\0"):
        return "only zero bytes: a download or copy that broke off"
    return None


def check_folder(folder: Path) -> None:
    """Checks the weights, the tokenizer and the JSON files of a Hugging Face folder.

    Raises:
        SchemaError: A file is damaged, missing, or not what its name says.
    """
    for name in _JSON_FILES:
        if (folder / name).exists() or (folder / name).is_symlink():
            _check_json(folder / name)
    if (folder / "adapter_config.json").is_file():
        raise SchemaError(
            f"{folder.name} holds an adapter (adapter_config.json), not a whole model",
            hint="Merge the adapter into its base model (`merge_and_unload` in peft) and save it.",
        )
    tokenizers = [f for n in _TOKENIZER_FILES if (f := folder / n).exists()]
    tokenizers += files_ending(folder, ".tiktoken")
    if not tokenizers:
        raise SchemaError(
            f"{folder.name} holds no tokenizer",
            hint=f"It needs one of {', '.join(_TOKENIZER_FILES)}, saved with the model.",
        )
    for file in tokenizers:
        refuse_stand_in(file)
    check_weights(folder)


def check_weights(folder: Path) -> dict[str, Path]:
    """Checks that the safetensors files of a folder are whole, and all there.

    Returns:
        The file of each tensor.

    Raises:
        SchemaError: See `check_folder`.
    """
    files = _weight_files(folder)
    tensors: dict[str, Path] = {}
    quantized = "quantization_config" in _read_json(folder / "config.json")
    for file in files:
        for name, entry in read_header(file).items():
            if name in tensors:
                raise SchemaError(
                    f"{folder.name}: {file.name} and {tensors[name].name} both hold {name}",
                    hint="The folder mixes two models: keep the files of one.",
                )
            tensors[name] = file
            if entry["dtype"] in _INTEGERS and name.endswith("weight") and not quantized:
                raise SchemaError(
                    f"{file.name}: {name} holds integers ({entry['dtype']}), and config.json names "
                    "no quantization",
                    hint="Add the quantization_config, or save the model in floating point.",
                )
    if (folder / INDEX).is_file() and files != [folder / SINGLE]:
        listed = _read_json(folder / INDEX)["weight_map"]
        lost = sorted(set(listed) - set(tensors))
        if lost:
            raise SchemaError(
                f"{folder.name}: {len(lost)} tensors that {INDEX} lists are in no file: "
                f"{shorten(lost)}",
                hint=_AGAIN,
            )
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        listed = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise SchemaError(f"{folder.name}/{INDEX} holds no weight_map", hint=_AGAIN)
        names = sorted(set(listed.values()))
        bad = [name for name in names if Path(name).name != name]
        if bad:
            raise SchemaError(f"{folder.name}/{INDEX} names a file outside the folder: {bad[0]}")
        lost = [name for name in names if not (folder / name).exists()]
        if lost:
            raise SchemaError(
                f"{folder.name}: {len(lost)} of {len(names)} weight files are missing: "
                f"{shorten(lost)}",
                hint=_AGAIN,
            )
        return [folder / name for name in names]
    others = sorted(p.name for p in folder.iterdir() if has_ending(p, ".bin", ".pt", ".pth"))
    loose = [p.name for p in files_ending(folder, ".safetensors")]
    if loose:
        raise SchemaError(
            f"{folder.name} holds {shorten(loose)}, but neither {SINGLE} nor {INDEX}",
            hint=f"Weights in several files need {INDEX}; a single file must be called {SINGLE}.",
        )
    if others:
        raise SchemaError(
            f"{folder.name} holds only pickled weights ({shorten(others)}), which can run code",
            hint="Save the model again with safe_serialization=True.",
        )
    raise SchemaError(f"{folder.name} holds no weights ({SINGLE})", hint=_AGAIN)


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """The entries of a safetensors file: dtype, shape and data_offsets of each tensor.

    Raises:
        SchemaError: The file is truncated, damaged or not safetensors.
    """
    refuse_stand_in(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MAX_HEADER):
                raise ValueError("its header would be longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        kinds = {name: str(entry["dtype"]) for name, entry in header.items()}
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError,
            RecursionError) as error:  # fmt: skip
        raise SchemaError(f"{file.name} is not a safetensors file: {error}", hint=_AGAIN) from error
    expected = 8 + length + end
    if size != expected:
        what = "is cut off" if size < expected else "has bytes after its last tensor"
        raise SchemaError(
            f"{file.name} {what}: it has {size:,} bytes, and its header describes {expected:,}",
            hint=_AGAIN,
        )
    if not kinds:
        raise SchemaError(f"{file.name} holds no tensors", hint=_AGAIN)
    return header  # type: ignore[no-any-return]


def check_finite(folder: Path) -> None:
    """Refuses a checkpoint folder whose safetensors hold NaN or infinite weights.

    Raises:
        SchemaError: With the names of the tensors.
    """
    broken = []
    for file in _weight_files(folder):
        read_header(file)
        broken += [name for name, tensor in _tensors(file) if not _is_finite(tensor)]
    refuse_not_finite(broken)


def refuse_not_finite(names: list[str]) -> None:
    """Raises the error for tensors that hold NaN or infinity; returns if there are none."""
    if names:
        raise SchemaError(
            f"{len(names)} tensors of the model hold NaN or infinite numbers: {shorten(names)}",
            hint="The training that made them diverged, or --dtype cannot hold their values "
            "(try --dtype float32).",
        )


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            yield name, opened.get_tensor(name)


def _is_finite(tensor: Any) -> bool:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:
        tensor = tensor.to(torch.float32)
    # The sum of the extremes is finite only if every element is: NaN spreads through both.
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def not_finite(network: Any) -> list[str]:
    """Names of the parameters of a torch module that hold NaN or infinity."""
    return [name for name, value in network.named_parameters() if not _is_finite(value)]


def check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """Refuses a model unless every tensor of its architecture came from the file, and none is left.

    Args:
        info: `output_loading_info` of transformers: missing, unexpected and mismatched keys.
    """
    missing = sorted(info["missing_keys"])
    left = sorted(key for key in info["unexpected_keys"] if not _REBUILT.search(key))
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        tensor, stored, expected = wrong[0]
        raise SchemaError(
            f"{name}: {len(wrong)} tensors do not have the shape in config.json: {tensor} is "
            f"{list(stored)} in the file and {list(expected)} by config.json",
            hint="config.json and the weights belong to two models, or the vocabulary was resized "
            "without saving config.json.",
        )
    if missing:
        prefix = _foreign_prefix(missing, left)
        why = (
            f"The tensors in the file begin with {prefix!r} (a compiled or wrapped model): save "
            "the inner model."
            if prefix
            else "The weights were saved under other names or are incomplete: convert them to the "
            "layout that config.json names."
        )
        facts = {"tensors in the file that fit nothing": shorten(left)} if left else {}
        raise SchemaError(
            f"{name}: {len(missing)} tensors of the model are not in the file, so they would be "
            f"random: {shorten(missing)}",
            hint=why,
            **facts,
        )
    if left:
        raise SchemaError(
            f"{name}: {len(left)} tensors in the file have no place in the model that config.json "
            f"describes: {shorten(left)}",
            hint="config.json names fewer layers or another architecture than the file holds.",
        )
    if info["error_msgs"]:
        raise SchemaError(f"{name} cannot be loaded: {str(info['error_msgs'][0]).splitlines()[0]}")


def check_gguf(file: Path) -> None:
    """Refuses a GGUF file that is damaged, one part of several, or that transformers would misread.

    Raises:
        SchemaError: What is wrong with the file.
        PrerequisiteError: The package gguf is not installed.
    """
    refuse_stand_in(file)
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise SchemaError(f"{file.name} is not a GGUF file: it begins with {magic!r}", hint=_AGAIN)
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise PrerequisiteError(
            "GGUF files need the package gguf", hint='in the checkout: pip install ".[eval]"'
        ) from error
    try:
        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in _small_fields(reader)}
    except Exception as error:  # the reader's errors share no type
        raise SchemaError(
            f"{file.name} is a damaged or cut off GGUF file: {str(error).splitlines()[0]}"
            if str(error)
            else f"{file.name} is a damaged or cut off GGUF file",
            hint=_AGAIN,
        ) from error
    parts = fields.get("split.count", 0)
    if parts and int(parts) > 1:
        raise SchemaError(
            f"{file.name} is part {int(fields.get('split.no', 0)) + 1} of {int(parts)} of a model",
            hint="Join the parts: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    kind = _field(fields, ".rope.scaling.type")
    scaled = kind not in (None, "none") and _field(fields, ".rope.scaling.factor") != 1.0
    dropped = [t.name for t in reader.tensors if t.name.startswith("rope_f")]
    if (scaled or dropped) and fields.get("general.architecture") != "gpt-oss":
        raise SchemaError(
            f"{file.name} scales its rotary positions ({kind if scaled else dropped[0]}), and "
            "transformers does not read that from GGUF files",
            hint="Evaluate the Hugging Face folder (safetensors) of the model.",
        )


def _field(fields: Mapping[str, Any], ending: str) -> Any:
    return next((value for name, value in fields.items() if name.endswith(ending)), None)


def _small_fields(reader: Any) -> Iterator[tuple[str, Any]]:
    for name, field in reader.fields.items():
        if name.startswith(("split.", "general.architecture")) or ".rope.scaling." in name:
            yield name, field


def refuse_stand_in(file: Path) -> None:
    """Raises a `SchemaError` for an empty file, an LFS pointer, a web page or a dangling link."""
    if file.is_symlink() and not file.exists():
        raise SchemaError(
            f"{file.name} is a link to a file that does not exist ({file.readlink()})", hint=_AGAIN
        )
    if not file.is_file():
        raise SchemaError(f"{file.name} is not a file")
    with file.open("rb") as stream:
        what = describe(stream.read(512))
    if what is not None:
        raise SchemaError(f"{file.name} is {what}", hint=_AGAIN)


def _check_json(file: Path) -> None:
    refuse_stand_in(file)
    try:
        document = json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{file.name} is damaged or cut off: {error}", hint=_AGAIN) from error
    if not isinstance(document, dict):
        raise SchemaError(f"{file.name} holds no JSON object", hint=_AGAIN)


def _read_json(file: Path) -> dict[str, Any]:
    _check_json(file)
    document: dict[str, Any] = json.loads(file.read_text("utf-8-sig"))
    return document


def _foreign_prefix(missing: list[str], left: list[str]) -> str | None:
    """The prefix that all names in the file carry and the architecture's names do not."""
    wanted = set(missing)
    for name in left:
        for tail in wanted:
            if name != tail and name.endswith(f".{tail}"):
                return name.removesuffix(tail)
    return None


def shorten(names: list[str], shown: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"
