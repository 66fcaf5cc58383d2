"""What a run reads: where it lies, and its digests for the log.

A folder given on the command line wins; otherwise `prepare` has put things under the work folder. A
`--data` folder of parquet files may have `sft/` and `chat_eval/` beside it; they are then found
without being named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.contract import INPUT_ENDINGS
from kit.errors import KitError, PrerequisiteError
from kit.files import files_ending
from kit.image import in_image
from kit.prepare import dataset_lock
from kit.recipe import Recipe
from kit.text_mix import text_entries
from kit.trust.canonical import canonical_bytes
from kit.trust.digest import DigestCache, FileDigest, manifest_digest, sha256_file

# Input -> (option, the files that belong to it, stages that read it)
_KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "data": ("--data", (f"*{INPUT_ENDINGS['data']}",), ("tokenizer", "pretrain")),
    "sft": ("--sft", (f"*{INPUT_ENDINGS['sft']}",), ("sft",)),
    "chat_eval": ("--chat-eval", (f"*{INPUT_ENDINGS['chat_eval']}",), ("chat_eval",)),
    "core": ("--core", ("core.yaml", "eval_meta_data.csv", "eval_data/*/*.jsonl"), ("core",)),
}
Progress = Callable[[int, int], None]
GIVEN_HINT = (
    "Folders to name: --data (*.parquet to train on), --core (the CORE bundle), "
    "--sft (conversations, *.jsonl), --chat-eval (questions, *.jsonl)."
)


@dataclass(frozen=True)
class Inputs:
    """Folders of the run's inputs; None where the recipe needs none."""

    data: Path | None = None
    sft: Path | None = None
    chat_eval: Path | None = None
    core: Path | None = None

    def as_dict(self) -> dict[str, Path | None]:
        return {name: getattr(self, name) for name in _KINDS}


def refuse_given(recipe: Recipe, given: Mapping[str, Path | None]) -> None:
    """Refuses folders named by hand that cannot be what the run reads, before anything is fetched.

    Raises:
        PrerequisiteError: One does not exist or lacks its files; all such are named.
    """
    wrong = []
    for name, (option, patterns, _) in _KINDS.items():
        path = given.get(name)
        if path is None:
            continue
        if not path.exists():
            wrong.append(f"{option} {path}: does not exist")
        elif not path.is_dir():
            wrong.append(f"{option} {path}: is not a folder")
        elif reads(recipe, name) and not _has_files(path, patterns):
            wrong.append(f"{option} {path}: holds no {patterns[0]}")
    if wrong:
        raise PrerequisiteError(
            "a folder named on the command line cannot be read:\n"
            + "\n".join(f"  {line}" for line in wrong),
            hint=GIVEN_HINT,
        )


def reads(recipe: Recipe, name: str) -> bool:
    """Whether a stage of the recipe reads input `name`."""
    if any(name in recipe.facts.reads.get(stage, ()) for stage in recipe.stages):
        return True
    return bool(set(_KINDS[name][2]) & set(recipe.stages))


def prepared_folder(work: Path, recipe: Recipe) -> Path:
    """Where `prepare` puts what this recipe reads."""
    data = recipe.section("data")
    if data["kind"] == "stories":
        return work / "data" / f"stories-{data['stories_seed']}-{data['stories']}"
    # Recipes that read different things do not share a folder: a run reads all that is in it.
    asked = {key: data[key] for key in ("repo", "revision", "shards", "sft", "chat_eval")}
    # Folders that were prepared before these fields existed keep their names.
    more = {**data, "text": text_entries(data)}
    asked |= {key: more[key] for key in ("text", "natural_only", "natural_repo") if more.get(key)}
    digest = hashlib.sha256(canonical_bytes(asked)).hexdigest()
    repository = data["natural_repo"] if data.get("natural_only") else data["repo"]
    name = str(repository or data["repo"]).replace("/", "--")
    return work / "data" / f"{name}-{data['shards']}-{digest[:8]}"


def locate(recipe: Recipe, work: Path, given: Mapping[str, Path | None]) -> Inputs:
    """Finds every input the recipe's stages read.

    Raises:
        PrerequisiteError: Some are missing; all of them are named, with the way to get each.
    """
    found = _search(recipe, work, given)
    missing = []
    for name in missing_inputs(recipe, work, given):
        option, patterns, _ = _KINDS[name]
        looked = given.get(name)
        where = f" in {looked}" if looked else ""
        missing.append(f"{name}: no {patterns[0]}{where} ({option} DIR)")
    if missing:
        prepare = f"n4090-kit prepare --recipe {recipe.name}"
        hint = f"Name the folders, or run `{prepare}` on a machine with network."
        if in_image():  # whose network is off for good
            hint = "Fetch them into the same volume, in a container that has a network:\n"
            hint += f"  docker run --rm -v n4090:/work {prepare} --yes"
        raise PrerequisiteError(
            f"recipe `{recipe.name}` lacks inputs:\n" + "\n".join(f"  {line}" for line in missing),
            hint=hint,
        )
    return Inputs(**found)


def missing_inputs(recipe: Recipe, work: Path, given: Mapping[str, Path | None]) -> list[str]:
    """Names of the inputs that the recipe's stages read and that are nowhere."""
    found = _search(recipe, work, given)
    return [name for name in _KINDS if found[name] is None and reads(recipe, name)]


def _search(recipe: Recipe, work: Path, given: Mapping[str, Path | None]) -> dict[str, Path | None]:
    prepared = prepared_folder(work, recipe)
    found: dict[str, Path | None] = {}
    for name, (_, patterns, _) in _KINDS.items():
        if not reads(recipe, name):
            found[name] = None
            continue
        candidates = [given.get(name)]
        if given.get(name) is None:
            if name in ("sft", "chat_eval") and given.get("data") is not None:
                data = given["data"]
                assert data is not None
                candidates = [data / name, data.parent / name]
            subfolder = "pretrain" if name == "data" else name
            if recipe.section("data")["kind"] != "hub" or dataset_lock.usable(prepared, subfolder):
                candidates.append(prepared / subfolder)
            if name == "core" and recipe.section("data")["kind"] != "stories":
                candidates.append(work / "core")
        folder = next((path for path in candidates if path and _has_files(path, patterns)), None)
        found[name] = folder.resolve() if folder else None
    return found


def _has_files(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for _ in _matching(folder, patterns[0]))


def describe(inputs: Inputs, cache: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Digests of every input: what the log's `inputs` event holds.

    Args:
        cache: File that remembers digests of files that have not changed since.
        progress: Called with bytes done and bytes in all.

    Returns:
        For each input used: its files (path, bytes, sha256) and one digest over that list.
    """
    listing = {
        name: (folder, sorted(_files(folder, _KINDS[name][1])))
        for name, folder in inputs.as_dict().items()
        if folder is not None
    }
    total = sum(path.stat().st_size for _, paths in listing.values() for path in paths)
    known = DigestCache(cache)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    described = {}
    for name, (folder, paths) in listing.items():
        files = [
            FileDigest(
                path.relative_to(folder).as_posix(),
                path.stat().st_size,
                # A data folder may be made of links (a Hub cache is); what counts is the bytes.
                sha256_file(path.resolve(), progress=advance, cache=known),
            )
            for path in paths
        ]
        described[name] = {
            "digest": manifest_digest(files),
            "bytes": sum(file.bytes for file in files),
            "files": [
                {"path": file.path, "bytes": file.bytes, "sha256": file.digest} for file in files
            ],
        }
    known.save()
    return described


def hold_to_lock(recipe: Recipe, inputs: Inputs, cache: Path) -> None:
    """Refuses pretraining files other than those whose digest the recipe names.

    Raises:
        KitError: `data.digest` is set and is not that of the folder.
    """
    wanted = recipe.section("data")["digest"]
    if not wanted or inputs.data is None:
        return
    found = describe(Inputs(data=inputs.data), cache)["data"]["digest"]
    if found != wanted:
        raise KitError(
            f"{inputs.data} is not the corpus of recipe `{recipe.name}`",
            hint="Build or fetch that corpus, or empty data.digest to run on another.",
            expected=wanted,
            found=found,
        )


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in _matching(folder, pattern) if path.is_file())


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Of `*.parquet` and the like the files with that ending in any case, as trainers read them."""
    if pattern.startswith("*."):
        return files_ending(folder, pattern[1:])
    return list(folder.glob(pattern)) if folder.is_dir() else []
