"""Both ends of the range of torch that pyproject.toml allows.

torch 2.11 compiled blocks with 8-bit factors so that their weights got no gradients. The comparison
that every such run makes before its first step is made here with each version, in real numbers.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable

import pytest
from nullgpu_environment import CHECKOUT
from nullgpu_runs import INSIDE, NullDevice

pytestmark = pytest.mark.gpuless_full


def lowest_torch() -> str:
    """The lowest version of torch that pyproject.toml allows, such as "2.12.0"."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [w for extra in project["optional-dependencies"].values() for w in extra]
    (floor,) = {m[1] for w in wanted if (m := re.match(r"torch>=([\d.]+)", w))}
    return floor if floor.count(".") == 2 else f"{floor}.0"


@pytest.mark.parametrize("version", ["lowest", "locked"])
def test_compiled_blocks_have_the_gradients_of_eager_ones(
    null_gpu_of: Callable[..., NullDevice], tmp_path, version
):
    wanted = lowest_torch() if version == "lowest" else None
    device = null_gpu_of(torch=wanted)
    device.run(INSIDE / "gradients.py", tmp_path / "found.json", log=tmp_path / "log")
    found = json.loads((tmp_path / "found.json").read_text())
    assert wanted is None or found["torch"].split("+")[0] == wanted
    # With a value embedding and without.
    assert found["compared"] == {"fp8": 2, "fp8_rowwise": 2, "int8": 2}
