"""`torch.compile` for the trainer, with room for every variant of a function.

Dynamo keeps the variants of a function at its code object. After eight of them it stops compiling
and runs the function eagerly without a word, which in a trial means timing the wrong code.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import count
from typing import Any

import torch

# For one code object. Windows, value embeddings, sequence lengths, precision, with and without
# gradients each give another variant of a block.
RECOMPILE_LIMIT = 128
_copies = count()


@cache
def has_triton() -> bool:
    """Whether PyTorch's builds here bring Triton (on Linux those for NVIDIA cards do)."""
    return find_spec("triton") is not None


def allow_recompiles() -> None:
    """Raises Dynamo's limits, so that no run of this trainer meets them."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
    # Over all functions that share a code object; PyTorch's own value is 32 times the other limit.
    accumulated = max(limits.accumulated_recompile_limit, 32 * RECOMPILE_LIMIT)
    limits.accumulated_recompile_limit = accumulated


def forget_compiled() -> None:
    """Drops all compiled code, if there is any: a benchmark's next configuration starts afresh."""
    compiler = sys.modules.get("torch._dynamo.utils")  # importing it would take seconds
    if compiler and compiler.counters["stats"]["unique_graphs"]:
        torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` compiled for fixed shapes, with a variant for each set of shapes it is given.

    Args:
        options: More of `torch.compile`, such as another backend.
    """
    allow_recompiles()
    return torch.compile(function, dynamic=False, **options)


def compiled_alone(function: Any, **options: Any) -> Callable[..., Any]:
    """`compiled` for a function that is made many times, such as one inside a trial.

    Each call gives the function a code object of its own, so that the variants of one trial do not
    count against the next one's limit. They are freed with the function.
    """
    code = function.__code__
    fresh = types.FunctionType(
        code.replace(co_name=f"{code.co_name}_{next(_copies)}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return compiled(fresh, **options)
