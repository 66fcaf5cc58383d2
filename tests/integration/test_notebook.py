"""The notebook's cells run from top to bottom, and their curves are those of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "smoke.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    for package in ("matplotlib", "torch", "pyarrow"):
        pytest.importorskip(package)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    check = (
        "assert report.verdict == 'consistent', report.refused_by\n"
        "assert summary['status'] == 'complete'\n"
        "assert len(left.lines[0].get_xdata()) == 60 and len(right.lines[0].get_xdata()) > 2\n"
    )
    script = tmp_path / "cells.py"
    script.write_text("\n".join([*code, check]))
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(NOTEBOOK.parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
