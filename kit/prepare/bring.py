"""Brings one part of a recipe's data: downloads its files, and puts them in place whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from kit.errors import KitError, SchemaError
from kit.files import sync_folder
from kit.prepare.conversion import parquet_shape
from kit.prepare.dataset_lock import NAME, LockedFile, LockedPart, LockedSource
from kit.prepare.job import Job
from kit.prepare.sources import Obtained, RemoteFile, Snapshot, Source
from kit.prepare.transfer import Interrupted, Transfer, disk_error
from kit.prepare.wanted import Wanted, to_fetch
from kit.trust.digest import sha256_file

CONNECTIONS = 8


def bring(
    job: Job,
    part: str,
    files: list[Wanted],
    pinned: LockedPart,
    source: Source,
    transfer: Transfer,
) -> LockedPart:
    """Fetches the part's files and puts them in place; the part as it is then, complete."""
    todo = [(file, snapshot) for file, snapshot, _ in to_fetch(files)]
    job.watcher.begin(sum(file.bytes for file, _ in todo), part)
    obtained = _obtain_all(todo, source, transfer)
    job.watcher.end()
    done = []
    for item, entry in zip(files, pinned.files, strict=True):
        if item.kept is not None:
            done.append(item.kept)
            continue
        sources = [obtained[(item.snapshot.repository, file.path)] for file in item.files]
        finished = _finish(job, item, sources, copy=source.copies)
        if entry.sha256 not in (None, finished.sha256):
            (job.folder / item.path).unlink()
            raise KitError(
                f"{item.path} does not match its digest in {NAME}",
                hint=f"To lock what there is now, remove {job.folder / NAME} and run the command "
                "again.",
                expected=entry.sha256,
                found=finished.sha256,
            )
        done.append(finished)
    return replace(pinned, complete=True, files=tuple(done))


def _finish(job: Job, item: Wanted, sources: Sequence[Obtained], *, copy: bool) -> LockedFile:
    """One file of the prepared folder, from what was fetched for it."""
    target = job.folder / item.path
    notes: dict[str, int] = {}
    try:
        if item.make is None:
            rows = _check_shard(sources[0].path, job.data["text_column"])
            _place(sources[0], target, copy=copy)
            digest = sources[0].digest
        else:
            job.watcher.note(f"writing {item.path}")
            rows, notes = item.make([source.path for source in sources], target)
            digest = sha256_file(target)
    except OSError as error:
        raise disk_error(target, error) from error
    return LockedFile(
        path=item.path,
        bytes=target.stat().st_size,
        sha256=digest,
        rows=rows,
        sources=tuple(
            LockedSource(item.snapshot.repository, file.path, file.bytes, source.digest)
            for file, source in zip(item.files, sources, strict=True)
        ),
        notes=notes,
    )


def _obtain_all(
    todo: Sequence[tuple[RemoteFile, Snapshot]], source: Source, transfer: Transfer
) -> dict[tuple[str, str], Obtained]:
    """Every file, several at a time. The first failure stops the rest; what they have is kept."""

    def obtain(file: RemoteFile, snapshot: Snapshot) -> Obtained:
        if transfer.line.stop.is_set():
            raise Interrupted
        return source.obtain(snapshot, file)

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as threads:
        futures = {
            (snapshot.repository, file.path): threads.submit(obtain, file, snapshot)
            for file, snapshot in todo
        }
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures.values()):
                transfer.line.stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
    errors = [future.exception() for future in futures.values() if not future.cancelled()]
    for error in errors:
        if error is not None and not isinstance(error, Interrupted):
            raise error
    return {key: future.result() for key, future in futures.items()}


def _check_shard(path: Path, column: str) -> int:
    shape = parquet_shape(path)
    if column not in shape.columns:
        raise SchemaError(
            f"{path.name} has no column {column!r}; it has {', '.join(shape.columns)}",
            hint="Set data.text_column in the recipe to the column that holds the text.",
        )
    if not shape.rows:
        raise SchemaError(
            f"{path.name} holds no documents",
            hint="Name another data.revision in the recipe, then run `n4090-kit prepare` again.",
        )
    return shape.rows


def _place(obtained: Obtained, target: Path, *, copy: bool) -> None:
    """The file under its final name: a hard link to the pool, or a copy."""
    if target.is_file() and sha256_file(target) == obtained.digest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    if not copy:
        try:
            temporary.hardlink_to(obtained.path)
        except OSError as error:  # a disk without hard links
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP):
                raise
            copy = True
    if copy:
        shutil.copyfile(obtained.path, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if (found := sha256_file(temporary)) != obtained.digest:
            temporary.unlink()
            raise KitError(
                f"{obtained.path} changed while it was copied",
                hint="Run the command again.",
                expected=obtained.digest,
                found=found,
            )
    temporary.replace(target)
    sync_folder(target.parent)
