"""The CORE bundle under the work folder: fetched as one archive, kept file by file.

Only the files whose sha256 the kit ships are taken, under the names the kit knows: nothing in an
archive decides where something is written or how much of it.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from kit.core_eval.bundle import TASKS_FILE, core_facts
from kit.errors import KitError, PrerequisiteError
from kit.files import write_bytes
from kit.prepare.transfer import Expected, Transfer, disk_error, download
from kit.trust.digest import DigestCache, sha256_file

ARCHIVE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
ARCHIVE_NAME = "eval_bundle.zip"


def bundle_bytes() -> int:
    """Bytes of the bundle's files; the archive has fewer."""
    return sum(entry["bytes"] for entry in core_facts()["files"].values())


def missing_core_files(root: Path, *, cache: DigestCache | None = None) -> list[str]:
    """Files of the bundle that are not in `root`; those there are compared with the kit's digests.

    Raises:
        KitError: One of them is another file.
    """
    missing = []
    for name, entry in core_facts()["files"].items():
        path = root / name
        if not path.is_file():
            missing.append(name)
        elif (found := sha256_file(path, cache=cache)) != (expected := f"sha256:{entry['sha256']}"):
            raise KitError(
                f"{path} is not the file of the CORE bundle",
                hint="Remove it and run `n4090-kit prepare` again; a bundle of your own is named "
                "with --core DIR.",
                expected=expected,
                found=found,
            )
    # What makes the folder a bundle comes last, so that half of one is never taken for it.
    return sorted(missing, key=lambda name: (name == TASKS_FILE, name))


def fetch_core(
    root: Path,
    scratch: Path,
    mirror: Path | str | None,
    transfer: Transfer,
    *,
    url: str = ARCHIVE_URL,
) -> None:
    """Brings what is missing of the bundle into `root`.

    Args:
        mirror: A folder that holds the bundle's files, core/ or the archive; or a base address that
            has the archive. None: the published archive at `url`.

    Raises:
        KitError: A file is not the one the kit knows.
        PrerequisiteError: It cannot be had.
    """
    missing = missing_core_files(root)
    if not missing:
        return
    if isinstance(mirror, Path):
        folder = next(
            (path for path in (mirror / "core", mirror) if (path / TASKS_FILE).is_file()), None
        )
        if folder is not None:
            _take(root, missing, lambda name: _open_file(folder, name), str(folder))
            return
        archive = mirror / ARCHIVE_NAME
        if not archive.is_file():
            raise PrerequisiteError(
                f"{mirror} has no CORE bundle",
                hint=f"Looked for {TASKS_FILE}, core/{TASKS_FILE} and {ARCHIVE_NAME}; or name the "
                "bundle's folder with `n4090-kit run --core DIR`.",
            )
    else:
        archive = _download(mirror, url, scratch, transfer)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened)
            _take(root, missing, lambda name: _open_member(opened, members, name), archive.name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise KitError(
            f"{archive} is not a readable archive: {error}",
            hint="Run the command again; it downloads the archive again.",
        ) from error
    finally:
        if not isinstance(mirror, Path):
            archive.unlink(missing_ok=True)  # unpacked, or of no use


def _download(mirror: str | None, url: str, scratch: Path, transfer: Transfer) -> Path:
    target = scratch / ARCHIVE_NAME
    if target.is_file():
        return target
    if mirror is not None:
        try:
            download(f"{mirror.rstrip('/')}/{ARCHIVE_NAME}", target, Expected(), transfer)
            return target
        except PrerequisiteError as error:
            transfer.progress.note(
                f"{error.message}; downloading the CORE bundle from its publisher instead"
            )
            target.with_name(target.name + ".part").unlink(missing_ok=True)
    download(url, target, Expected(), transfer)
    return target


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by the name the kit knows; a folder around them all is left out."""
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    prefixes = {
        name.removesuffix(TASKS_FILE) for name in entries if name.split("/")[-1] == TASKS_FILE
    }
    for prefix in sorted(prefixes, key=len):
        return {
            name: entries[prefix + name]
            for name in core_facts()["files"]
            if prefix + name in entries
        }
    return {}


def _open_file(folder: Path, name: str) -> IO[bytes] | None:
    path = folder / name
    return path.open("rb") if path.is_file() else None


def _open_member(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str
) -> IO[bytes] | None:
    return archive.open(members[name]) if name in members else None


def _take(
    root: Path, names: Sequence[str], open_file: Callable[[str], IO[bytes] | None], source: str
) -> None:
    """Puts each named file into `root` if it is the one the kit knows."""
    for name in names:
        entry = core_facts()["files"][name]
        opened = open_file(name)
        if opened is None:
            raise KitError(
                f"{source} lacks {name} of the CORE bundle",
                hint="Take the whole bundle, or another source (--mirror).",
            )
        with opened as file:
            data = file.read(entry["bytes"] + 1)  # never more than is known to be right
        found, expected = hashlib.sha256(data).hexdigest(), entry["sha256"]
        if found != expected:
            longer = " (its beginning)" if len(data) > entry["bytes"] else ""
            raise KitError(
                f"{name} in {source} is not the file of the CORE bundle",
                hint="A score on other data is no CORE: take another source (--mirror).",
                expected=f"sha256:{expected}",
                found=f"sha256:{found}{longer}",
            )
        try:
            write_bytes(root / name, data)
        except OSError as error:
            raise disk_error(root / name, error) from error
