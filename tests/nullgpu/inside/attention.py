"""The trial of attention kernels on the null device: attention.py OUT.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from reference.kernels.attention_trial import choose_backends, cuda_milliseconds


def main() -> None:
    rows = []
    for documents in (False, True):
        _, tried = choose_backends(
            (2, 2048, 2, 2, 128),
            [2048, 512],
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
            documents=documents,
            timer=lambda function: cuda_milliseconds(function, repeats=1),
        )
        rows += [{**row._asdict(), "documents": documents} for row in tried]
    found = {"rows": rows, "breaks": dict(counters["graph_break"])}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
