"""A whole day that a program invents in seconds, without a GPU: the shipped reference recipe.

It does what a forger with the source can do: every event, clock, sample and digest agrees with
every other. Nothing was trained, so it has no weights: their files are listed with digests of
nothing. `python -m support.fake_day FOLDER` (in `tests/`) writes one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kit.recipe import load_recipe
from kit.trust.digest import FileDigest, manifest_digest, sha256_bytes
from support.draft import Draft
from support.synthetic import Plan, Synthesis

STEPS = 6_100  # of 11.6 s: what is left of the recipe's 20.75 hours after evaluations


class FakeDay(Synthesis):
    """A run of the reference recipe whose checkpoints exist as names alone."""

    def outputs(self, stage: str, folder: str, files: dict[str, bytes], **more: Any) -> None:
        if not folder.startswith("checkpoints"):
            super().outputs(stage, folder, files, **more)
            return
        listed = [
            FileDigest(name, self.size(name, content), sha256_bytes(stage.encode() + content))
            for name, content in sorted(files.items())
        ]
        self.say(
            "sup",
            "artifacts",
            stage=stage,
            folder=folder,
            digest=manifest_digest(listed),
            files=[{"path": f.path, "bytes": f.bytes, "sha256": f.digest} for f in listed],
        )

    def size(self, name: str, content: bytes) -> int:
        return 4 * self.parameters + 40_000 if name.endswith(".safetensors") else len(content)


def fake_day(seed: int = 1) -> Draft:
    """The invented run, ready to be chained and signed."""
    text = load_recipe("reference").text
    return FakeDay(Plan(seed=seed, steps=STEPS, recipe=text)).run()


if __name__ == "__main__":
    print(fake_day().write(Path(sys.argv[1])))
