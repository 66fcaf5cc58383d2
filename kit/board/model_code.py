"""Code and pickles in a model repository that a visitor would run without knowing whose they are.

The signature covers the checkpoint. The copy for transformers beside it brings modelling code, and
a card tells visitors to run it. So the board says when that code is not n4090-kit's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.trust.digest import sha256_bytes
from kit.verify.finding import Finding, warn

if TYPE_CHECKING:
    from kit.board.hub import Hub

# Every version of reference/export/modeling_n4090.py that was ever released, by its digest.
OWN_CODE = frozenset(
    {
        "sha256:4517c8d51e97e8842f7cfcffeb20d414dd56011f1c8c011650ff61fca44f9c21",
        "sha256:ae6fca0f11c7935e399d4400745fca905de98c366e172a7aa3a194f3160a626d",
    }
)
_EXECUTED = (".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
_MAX_CODE_BYTES = 2**20
_SHOWN = 5


def foreign_code(hub: Hub, repository: str, revision: str) -> list[Finding]:
    """A warning for each file of the repository that loading may execute and that is not ours.

    Raises:
        KitError: The repository cannot be read.
    """
    names = hub.ask(
        f"files of {repository}",
        lambda: hub.api.list_repo_files(repository, repo_type="model", revision=revision),
    )
    found = []
    for name in sorted(name for name in names if name.lower().endswith(_EXECUTED)):
        if name.lower().endswith(".py"):
            data = hub.read(repository, "model", name, revision, _MAX_CODE_BYTES)
            if sha256_bytes(data) in OWN_CODE:
                continue
        found.append(
            warn("loading this file can run code that is not n4090-kit's: read it first", name)
        )
    return found[:_SHOWN]
