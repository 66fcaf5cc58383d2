"""The reference trainer with AdamW for the blocks' matrices: what Muon is measured against.

    [trainer]
    command = ["python", "-m", "reference.lab.adamw"]
    options = { matrix_lr = 0.002, matrix_betas = [0.9, 0.95], matrix_weight_decay = 0.1 }

Everything else, the other groups' AdamW included, stays the trainer's own. A trial of a study is
the purpose; checkpoints work as ever, since the group's kind is one that `MuonAdamW` knows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Groups = list[dict[str, Any]]
DEFAULTS = {"matrix_lr": 0.002, "matrix_betas": [0.9, 0.95], "matrix_weight_decay": 0.1}


def with_adamw(
    parameter_groups: Callable[..., Groups], options: Mapping[str, Any]
) -> Callable[..., Groups]:
    """`parameter_groups` with its Muon groups turned into AdamW ones."""
    chosen = {**DEFAULTS, **options}

    def groups(*arguments: Any, **named: Any) -> Groups:
        found = []
        for group in parameter_groups(*arguments, **named):
            if group["kind"] == "muon":
                group = {
                    "name": group["name"],
                    "kind": "adamw",
                    "params": group["params"],
                    "lr": chosen["matrix_lr"],
                    "betas": tuple(chosen["matrix_betas"]),
                    "eps": 1e-10,
                    "weight_decay": chosen["matrix_weight_decay"],
                    "fused": True,
                }
            found.append(group)
        return found

    return groups


def main(argv: list[str]) -> int:
    """As `python -m reference`, with the other optimizer."""
    from reference import pretrain, stage

    if len(argv) == 1:
        options = json.loads(Path(argv[0]).read_text())["recipe"]["trainer"]["options"]
        pretrain.parameter_groups = with_adamw(pretrain.parameter_groups, options)
    return stage.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
