"""Fetches what a recipe reads, off the clock: shards, conversations, questions, CORE bundle.

    WORK/data/hub/datasets--OWNER--NAME/snapshots/COMMIT/…  as downloaded, shared by recipes
    WORK/data/<what the recipe asks for>/                   `prepared_folder`: what a run reads
        dataset.lock.json  pretrain/*.parquet  sft/*.jsonl  chat_eval/*.jsonl
    WORK/core/                                              the CORE bundle

Shards are hard links into the download pool, so a second recipe on the same corpus costs neither
disk nor network. A part (pretrain, sft, chat_eval) counts only when the lock says it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
from kit.conversations import conversation_sources
from kit.errors import PrerequisiteError, SchemaError
from kit.network import check_settings
from kit.prepare import core_files
from kit.prepare.bring import bring
from kit.prepare.dataset_lock import (
    PARTS,
    Lock,
    LockedFile,
    LockedPart,
    LockedRepository,
    LockedSource,
    check_part,
    read_lock,
    write_lock,
)
from kit.prepare.inputs import Inputs, locate, missing_inputs, prepared_folder, reads
from kit.prepare.job import Job, Need, Settings, Watcher
from kit.prepare.sources import Folder, Hub, Snapshot, Source
from kit.prepare.transfer import Line, Transfer, disk_error
from kit.prepare.wanted import (
    Wanted,
    conversation_files,
    question_files,
    text_files,
    to_fetch,
    unchanged,
)
from kit.recipe import Recipe
from kit.text_mix import text_mix
from kit.trust.canonical import canonical_bytes
from kit.trust.digest import DigestCache

_SPARE_BYTES = 256 * 2**20
_INPUTS = {"pretrain": "data", "sft": "sft", "chat_eval": "chat_eval"}
Fetch = Callable[[Recipe, Path, Sequence[str]], None]


def parts_of(recipe: Recipe) -> list[str]:
    """What `prepare` can bring for this recipe: read by its stages, named by its data section."""
    data = recipe.section("data")
    parts = []
    if data["kind"] == "hub":
        named = {"pretrain": data["repo"], "sft": data["sft"], "chat_eval": data["chat_eval"]}
        parts = [part for part in PARTS if named[part] and reads(recipe, _INPUTS[part])]
    if data["kind"] != "stories" and "core" in recipe.stages:
        parts.append("core")
    return parts


def prepare(recipe: Recipe, work: Path, watcher: Watcher, settings: Settings) -> bool:
    """Brings what is missing and checks what is there.

    Returns:
        Whether anything was fetched or made; False: all of it was there and right.

    Raises:
        KitError: A file differs from the lock or from what its source announced.
        PrerequisiteError: Something cannot be had, or the disk is too small.
    """
    job = Job(recipe, work, watcher, settings)
    parts = [part for part in parts_of(recipe) if part in settings.parts]
    with _alone(work):
        # 1. What is there, by the lock.
        lock = read_lock(job.folder)
        watcher.begin(_locked_bytes(lock, parts), "checking what is there")
        missing = [part for part in parts if part != "core" and not _is_whole(job, lock, part)]
        without_core = "core" in parts and bool(core_files.missing_core_files(work / "core"))
        watcher.end()
        if not missing and not without_core:
            return False
        with _transfer(watcher, settings) as transfer:
            # 2. What the source has, at the commits the lock names.
            source = _source(work, transfer, settings)
            wanted = {part: _want(job, part, source, lock) for part in missing}
            # 3. Room for it, and leave to begin.
            need = _need(job, source, wanted, without_core)
            agreed = settings.agree(need)
            if need.disk_bytes > need.free_bytes:
                raise PrerequisiteError(
                    f"the disk of {work} is too small: {_gib(need.disk_bytes)} needed, "
                    f"{_gib(need.free_bytes)} free",
                    hint="Free some space, name another folder with --work DIR, or take fewer "
                    "shards with --shards N.",
                )
            if not agreed:
                raise PrerequisiteError("nothing was fetched", hint="`--yes` does not ask.")
            # 4. Part by part; one is complete in the lock when its files are in place.
            for part, files in wanted.items():
                before = lock.get(part)
                lock[part] = _pinned(job, part, files, before)
                # With other shards beside them, files can get other names.
                for path in before.paths() - lock[part].paths() if before else ():
                    (job.folder / path).unlink(missing_ok=True)
                write_lock(job.folder, lock)
                lock[part] = bring(job, part, files, lock[part], source, transfer)
                write_lock(job.folder, lock)
            if without_core:
                watcher.begin(0, "core")  # the size of the archive is not announced
                scratch = work / "cache" / "downloads"
                core_files.fetch_core(
                    work / "core", scratch, settings.mirror, transfer, url=settings.core_url
                )
                watcher.end()
    return True


def check(
    recipe: Recipe, work: Path, parts: Sequence[str], *, cache: DigestCache | None = None
) -> Lock:
    """Compares what is prepared with its lock, and the CORE bundle with the kit's digests. Offline.

    Raises:
        KitError: A file differs.
        PrerequisiteError: Something is missing.
    """
    folder = prepared_folder(work, recipe)
    lock = read_lock(folder)
    missing = []
    for part in parts:
        if part == "core":
            missing += [
                f"core/{name}" for name in core_files.missing_core_files(work / "core", cache=cache)
            ]
        elif part not in lock or not lock[part].complete:
            missing.append(f"{part}/ (not prepared)")
        else:
            missing += check_part(folder, part, lock[part], cache=cache)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise PrerequisiteError(
            f"not everything recipe `{recipe.name}` reads is in {folder}: "
            + ", ".join(missing[:5])
            + more,
            hint=f"`n4090-kit prepare --recipe {recipe.name}` fetches it.",
        )
    return lock


def inputs_for_run(
    recipe: Recipe, work: Path, given: Mapping[str, Path | None], fetch: Fetch | None
) -> Inputs:
    """The run's inputs; what is missing is fetched, what was prepared is compared with its lock.

    Raises:
        KitError: A prepared file has changed.
        PrerequisiteError: Some are missing and cannot be had.
    """
    names = {"data": "pretrain"}
    missing = [names.get(name, name) for name in missing_inputs(recipe, work, given)]
    within_reach = parts_of(recipe)
    if missing and fetch is not None and set(missing) <= set(within_reach):
        fetch(recipe, work, missing)
    inputs = locate(recipe, work, given)
    folder = prepared_folder(work, recipe).resolve()
    prepared = [part for part in PARTS if folder / part in inputs.as_dict().values()]
    if recipe.section("data")["kind"] == "hub" and prepared:
        cache = DigestCache(work / "cache" / "digests.json")
        check(recipe, work, prepared, cache=cache)
        cache.save()
    return inputs


# ---- what is wanted


def _asked(job: Job, part: str) -> dict[str, Any]:
    data = job.data
    if part == "pretrain":
        shards = job.settings.shards or data["shards"]
        mix = text_mix(data)
        main = f"{mix.main.repository}@{mix.main.revision}"
        return {"sources": [main, *map(str, mix.others)], "shards": shards}
    spelled = [
        entry if isinstance(entry, str) else canonical_bytes(entry).decode() for entry in data[part]
    ]
    return {"sources": spelled, "shards": None}


def _is_whole(job: Job, lock: Lock, part: str) -> bool:
    if part not in lock:
        return False
    missing = check_part(job.folder, part, lock[part], progress=job.watcher.advance)
    asked, there = _asked(job, part), lock[part].asked
    # Shards that an earlier call asked for stay.
    enough = (there["shards"] or 0) >= (asked["shards"] or 0)
    return lock[part].complete and not missing and enough and there["sources"] == asked["sources"]


def _want(job: Job, part: str, source: Source, lock: Lock) -> list[Wanted]:
    """The part's files, as its source lists them at the locked commit."""
    snapshots: dict[str, Snapshot] = {}
    locked = lock.get(part)

    def snapshot(repository: str, revision: str = "main") -> Snapshot:
        if repository in snapshots and snapshots[repository].revision != revision:
            raise SchemaError(
                f"the recipe names {repository} at {snapshots[repository].revision} and at "
                f"{revision}",
                hint="Name one revision of each repository in a part of the data section.",
            )
        if repository not in snapshots:
            commit = locked.commit_of(repository) if locked else None
            found = replace(source.snapshot(repository, commit or revision), revision=revision)
            snapshots[repository] = unchanged(found, locked) if locked else found
        return snapshots[repository]

    if part == "pretrain":
        shards = _asked(job, part)["shards"]
        if locked:
            shards = max(shards, locked.asked["shards"] or 0)
        wanted = text_files(text_mix(job.data), snapshot, shards, job.folder)
    elif part == "sft":
        wanted = conversation_files(conversation_sources(job.data["sft"]), snapshot)
    else:
        wanted = question_files(job.data["chat_eval"], snapshot)
    known = {_origin(file): file for file in locked.files if file.sha256} if locked else {}
    there = [known.get((item.path, item.origin)) for item in wanted]
    return [
        replace(item, kept=file) if file and (job.folder / item.path).is_file() else item
        for item, file in zip(wanted, there, strict=True)
    ]


def _origin(file: LockedFile) -> tuple[str, tuple[tuple[str, str], ...]]:
    return file.path, tuple((source.repository, source.path) for source in file.sources)


def _need(job: Job, source: Source, wanted: Mapping[str, list[Wanted]], without_core: bool) -> Need:
    total = here = disk = count = 0
    for files in wanted.values():
        for file, snapshot, growth in to_fetch(files):
            have = source.have_bytes(snapshot, file)
            total += file.bytes
            here += have
            count += 1
            disk += round(file.bytes * growth)
            if not (growth and source.copies):
                disk += file.bytes - have
    if without_core:
        disk += 2 * core_files.bundle_bytes()
        total += core_files.bundle_bytes()
        count += 1
    folder = job.work
    while not folder.exists():
        folder = folder.parent
    free = job.settings.free_bytes(folder)
    return Need(source.name, count, total, here, disk + _SPARE_BYTES, free)


# ---- the lock before


def _pinned(job: Job, part: str, files: list[Wanted], before: LockedPart | None) -> LockedPart:
    """The part before it is fetched: commits and digests as far as they are known."""
    snapshots = {item.snapshot.repository: item.snapshot for item in files}
    known = {_origin(file): file for file in before.files} if before else {}
    asked = _asked(job, part)
    if before and asked["shards"]:
        asked["shards"] = max(asked["shards"], before.asked["shards"] or 0)
    entries = []
    for item in files:
        sources = tuple(
            LockedSource(item.snapshot.repository, file.path, file.bytes, file.sha256)
            for file in item.files
        )
        new = LockedFile(item.path, None, None, None, sources)
        entries.append(known.get((item.path, item.origin), new))
    return LockedPart(
        complete=False,
        asked=asked,
        repositories=tuple(
            LockedRepository(
                snapshot.repository,
                snapshot.revision,
                snapshot.commit,
                snapshot.commit_reason,
                snapshot.licence,
                snapshot.licence_reason,
            )
            for snapshot in snapshots.values()
        ),
        files=tuple(entries),
    )


# ---- surroundings


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keeps a second `prepare` out of the same work folder."""
    try:
        (work / "data").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            work / "data" / ".prepare.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
    except OSError as error:
        raise disk_error(work / "data", error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrerequisiteError(
                f"another `n4090-kit prepare` is at work in {work}",
                hint="Wait for it, or name another folder with --work DIR.",
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _transfer(watcher: Watcher, settings: Settings) -> Iterator[Transfer]:
    """A client for the whole time; it is closed at the end."""
    check_settings(needed=False)  # an offline switch matters only when something is missing
    try:
        from huggingface_hub import close_session, get_session
    except ImportError as error:
        raise PrerequisiteError(
            f"package {error.name} is not installed", hint="in the checkout: pip install '.[train]'"
        ) from error
    agent = {"User-Agent": f"n4090-kit/{kit.__version__}"}
    try:
        yield Transfer(get_session(), agent, watcher, Line(), settings.retry)
    finally:
        close_session()


def _source(work: Path, transfer: Transfer, settings: Settings) -> Source:
    if isinstance(settings.mirror, Path):
        if not settings.mirror.is_dir():
            raise PrerequisiteError(
                f"{settings.mirror} is not a folder",
                hint="--mirror takes a folder or an http address.",
            )
        return Folder(settings.mirror, transfer)
    return Hub(
        work / "data" / "hub",
        transfer,
        endpoint=settings.mirror,
        anonymous=settings.mirror is not None,
    )


def _locked_bytes(lock: Lock, parts: Sequence[str]) -> int:
    return sum(file.bytes or 0 for part in parts if part in lock for file in lock[part].files)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
