"""Which code judged and trained, in one digest; `verify` reads it without the supervisor."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from kit.schemas import load_schema
from kit.trust.digest import sha256_bytes, tree_digest


def code_digest() -> str:
    """Digest of the code that judges and trains: every Python file, schema and recipe installed."""
    roots = {"kit": Path(__file__).parent.parent}
    spec = find_spec("reference")
    if spec and spec.submodule_search_locations:
        roots["reference"] = Path(spec.submodule_search_locations[0])
    parts = {
        # Byte code may belong to the user who ran the kit first, and be closed to this one.
        name: tree_digest(root, ("*.py", "*.toml", "bundle.json"), skip=("__pycache__",))
        for name, root in roots.items()
    }
    names = ("event", "recipe", "result")
    parts["schema"] = sha256_bytes(json.dumps([load_schema(name) for name in names]).encode())
    return sha256_bytes("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode())
