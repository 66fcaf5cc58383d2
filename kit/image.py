"""Which image this process runs from, and whether its code is still the one it was built with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

DIGEST_VARIABLE = "N4090_IMAGE_DIGEST"  # passed in: a container cannot see its own image
CODE_TREE_VARIABLE = "N4090_CODE_TREE"  # a list as sha256sum prints it, made when the image was


def in_image() -> bool:
    """Whether this is the kit's image."""
    return CODE_TREE_VARIABLE in os.environ


def describe_image() -> dict[str, str | None]:
    """The image's digest for the log's header; None with the reason."""
    digest = os.environ.get(DIGEST_VARIABLE)
    changed = changed_code()
    if changed:
        return {"digest": None, "reason": f"the code differs from the image's: {changed[0]}"}
    if not digest:
        return {"digest": None, "reason": "not run from an image whose digest was passed in"}
    return {"digest": digest, "reason": None}


def changed_code() -> list[str]:
    """Files of the kit and the trainer that are not as the image was built; outside one, none."""
    listed = os.environ.get(CODE_TREE_VARIABLE)
    if not listed:
        return []
    site = Path(__file__).parents[1]
    try:
        lines = Path(listed).read_text().splitlines()
    except OSError:
        return ["the list of the image's code is missing"]
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {
        path.relative_to(site).as_posix()
        for package in ("kit", "reference")
        for path in (site / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    changed = [name for name in wanted if name not in found or _digest(site / name) != wanted[name]]
    return sorted({*changed, *(found - set(wanted))})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
