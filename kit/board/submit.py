"""Submitting into a folder: the same files in the same places as on the Hub, no network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kit.board.layout import Layout, Settings
from kit.board.package import Item, Package
from kit.errors import KitError
from kit.files import whole_file, write_bytes
from kit.trust.digest import sha256_file


def submit_to_folder(root: Path, package: Package) -> list[str]:
    """Puts a package into the board at `root`; returns what was written (nothing the second time).

    Raises:
        KitError: A name is taken by other content.
        SchemaError: The board is newer than this kit.
    """
    layout = Layout(root)
    Settings.read(layout)
    if _is_there(layout, package):
        return place(root, package.document_items())
    repository = None
    written: list[str] = []
    if package.repository is not None:
        repository = f"models/{package.repository}"
        items = [Item(f"{repository}/{item.path}", item.source) for item in package.model]
        written += place(root, items)
    return written + place(root, package.board_items(repository, None))


def _is_there(layout: Layout, package: Package) -> bool:
    """Whether this very result is on the board already, whole."""
    folder = layout.submission(package.path)
    result = folder / "result.json"
    return (
        result.is_file()
        and sha256_file(result) == sha256_file(package.run / "result.json")
        and all((folder / item.path).is_file() for item in package.text)
        and (folder / "submission.json").is_file()
    )


def place(root: Path, items: Sequence[Item]) -> list[str]:
    """Writes `items` below `root`, each whole or not at all; equal files stay as they are.

    Raises:
        KitError: Another file has a name; nothing is written then.
    """
    missing = []
    for item in items:
        target = root / item.path
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise KitError(f"`{item.path}` exists and is not a regular file")
        if not target.exists():
            missing.append(item)
        elif target.stat().st_size != item.size_bytes or sha256_file(target) != item.digest:
            raise KitError(
                f"the name `{item.path}` is taken by another file",
                hint="nothing is ever overwritten; choose another --repo, or withdraw the row",
                expected=item.digest,
                found=sha256_file(target),
            )
    for item in missing:
        _write(root / item.path, item)
    return [item.path for item in missing]


def _write(target: Path, item: Item) -> None:
    if isinstance(item.source, bytes):
        write_bytes(target, item.source)
        return
    with whole_file(target) as temporary:
        shutil.copyfile(item.source, temporary)
        if sha256_file(temporary) != item.digest:
            raise KitError(f"`{item.path}` changed while it was copied")
