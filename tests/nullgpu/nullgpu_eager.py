"""Eager kernels of a step's micro-batches: which are there, and why no fused one is expected.

The blocks are compiled. What is around them runs as PyTorch's own kernels, each of which reads and
writes its tensor once more. `eager_kernels` counts those that pass over a whole activation (or a
tensor as large); kernels of a few blocks cost their launch alone. The optimizer's update is not
counted: it comes once a step, and `compile_optimizer` compiles it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter

from nullgpu_runs import Log

# A kind, the names that it goes by, and why it is there.
KINDS = {
    "rows of a table": ("gather", "tokens are looked up in the token and value tables"),
    "norm": ("layer_norm", "of the embedding and of the last states, forward and backward"),
    "copy": ("direct_copy|bfloat16_copy|CatArray", "rounding to bf16; smear joins its two parts"),
    "fill": ("FillFunctor", "gradients of tables and of slices begin with zeros"),
    "add": ("CUDAFunctor_add|OnSelf_add", "each layer's gradient of the first states; smear"),
    "mul": ("MulFunctor", "smear, backout and the last norm's scale, forward and backward"),
    "neg": ("neg_kernel", "gradient of backout"),
    "sum": ("reduce_kernel", "gradients of the scales of smear and backout"),
}


def eager_kernels(step: Log, elements: int) -> Counter[str]:
    """Launches by kind that pass over about `elements` values or more, in a step before its update.

    A kernel that is none of `KINDS` is counted under its own name.
    """
    end = step.events.index(("mark", "update"))
    launches = [event for event in step.events[:end] if event[0] == "launch"]
    names = "\n".join(event[1] for event in launches)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for name, event in zip(done.stdout.splitlines(), launches, strict=True):
        x, y, z = map(int, event[2].split(","))
        if "at::native" in name and x * y * z >= elements // 4096:
            kinds = [kind for kind, (pattern, _) in KINDS.items() if re.search(pattern, name)]
            found[kinds[0] if kinds else name[:160]] += 1
    return found


def more_than_expected(found: Counter[str], expected: dict[str, int]) -> dict[str, int]:
    """Kinds with more launches than `expected`, which names the most that each may have."""
    return {kind: n for kind, n in found.items() if n > expected.get(kind, 0)}
