"""A few seconds of coverage-guided fuzzing of each reader, within 512 MB and 2 s an input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed (it has wheels for x86-64 Linux)")
SECONDS = int(os.environ.get("N4090_FUZZ_SECONDS", "3"))
SEEDS = {
    "document": b'{"a":[1,2.5,null,true,"\\u00e9"],"b":{}}',
    "log": b'{"data":{},"ev":"note","prev":"sha256:0","seq":1,"src":"sup","t_ns":1,"wall_ms":1}\n',
    "signature": b"-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n-----END SSH SIGNATURE-----\n",
    "key": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "manifest": b"\x02\0\0\0\0\0\0\0{}",
    "recipe": b'schema_version = 1\nname = "a"\n[model]\nn_layer = 2\n',
}


@pytest.mark.parametrize("target", SEEDS)
def test_nothing_breaks_a_reader(tmp_path: Path, target: str) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(SEEDS[target])
    script = Path(__file__).with_name("fuzz_target.py")
    options = [f"-max_total_time={SECONDS}", "-timeout=2", "-rss_limit_mb=512", "-max_len=4096"]
    # Through a shell that forks: the fuzzer's memory counts from that of the process it came from,
    # and a test process is large.
    forked = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*forked, sys.executable, str(script), target, *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
