"""Benchmarks of this project: `python -m benchmarks.verify`, `… .board`, `… .data_study`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # their runs come from tests/support
