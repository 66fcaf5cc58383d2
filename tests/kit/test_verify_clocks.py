"""V06 against the real tools that bend clocks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import tamper

from kit.verify import verify_result

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow  # each is a whole run


@pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
def test_a_run_under_faketime_is_refused_by_v06(tmp_path: Path) -> None:
    run = tamper.supervised_run(tmp_path, ("faketime", "-f", "+0 x0.5"))
    report = verify_result(run)
    assert report.status("V06") == "fail"
    messages = [finding.message for finding in report.of("V06")]
    assert any("`clock_gettime` is not libc's own" in message for message in messages)
    # Also without looking for the library: the system call and /proc/uptime tell the real time.
    assert any("clock" in message and "ahead" in message for message in messages), messages


def can_unshare_time() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--time", "--boottime", "100000", "--fork", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_unshare_time(), reason="no time namespaces here")
def test_a_run_in_a_shifted_time_namespace_is_named_by_v06(tmp_path: Path) -> None:
    """Its offsets are fixed before its first process: they shift clocks and bend no interval."""
    prefix = ("unshare", "--time", "--boottime", "100000", "--fork")
    report = verify_result(tamper.supervised_run(tmp_path, prefix))
    assert report.status("V06") == "warn" and not report.refused_by
    assert any("time namespace" in finding.message for finding in report.of("V06"))
