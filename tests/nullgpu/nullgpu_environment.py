"""Python environments with the CUDA build of torch, cached outside the checkout.

    python tests/nullgpu/nullgpu_environment.py [--python PYTHON] [--torch VERSION]

An environment holds what the image holds: the entries of `requirements/cuda.lock` that the
Dockerfile keeps, installed with `--require-hashes`. It needs about 5 GB and two minutes, and no
GPU. The name of its folder is a digest of the lock, so a changed lock gives a new environment and
an unchanged one is found again by every checkout. With `--torch` the locked torch is replaced by
another version, whose hashes the lock does not know.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED_BYTES = 14 << 30  # the environment, pip's downloads and their unpacking
KEPT_PER_PYTHON = 2  # environments of older locks are removed beyond this many


class Unavailable(Exception):
    """The environment or the null device cannot be made here; the text says why."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "n4090-kit" / "nullgpu"


def image_lock() -> str:
    """The entries of the CUDA lock that the Dockerfile installs in its stage `packages`."""
    stage = (CHECKOUT / "Dockerfile").read_text().split("AS packages", 1)[1]
    left_out = re.search(r"lock-only (--not .*?)\s*< /src/all\.lock", stage, re.DOTALL)
    if left_out is None:
        raise AssertionError("the Dockerfile's stage `packages` does not call lock-only --not")
    names = left_out[1].replace("\\\n", " ").split()
    command = ["sh", str(CHECKOUT / "docker/build/lock-only"), *names]
    lock = (CHECKOUT / "requirements/cuda.lock").read_text()
    return subprocess.run(command, input=lock, capture_output=True, text=True, check=True).stdout


def without_torch(lock: str) -> str:
    """A lock without torch and the packages that each torch pins to a version of its own."""
    pinned = re.compile(r"(torch|triton|nvidia-(?!ml-py)[\w-]+|cuda-[\w-]+)==")
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", lock)
    return "".join(entry for entry in entries if not pinned.match(entry))


def environment(python: str | None = None, torch: str | None = None) -> Path:
    """The folder of an environment with `bin/python`, made at the first call.

    Args:
        python: An interpreter; None: the one that runs this.
        torch: A version such as "2.12.1" to install in place of the locked one.

    Raises:
        Unavailable: No such interpreter, no registry, no space, or a cache that cannot be written.
    """
    python = python or sys.executable
    try:
        version = _run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"Python {python} cannot be run: {error}") from error
    lock = image_lock()
    digest = hashlib.sha256(f"{lock}{torch}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"python{version}-torch{torch or 'locked'}-{digest}"
    try:
        with locked(folder):
            if not (folder / "complete").exists():
                _make(folder, python, lock, torch)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made: {error}") from error
    return folder / "venv"


def _make(folder: Path, python: str, lock: str, torch: str | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left half made by a process that was killed
    if shutil.disk_usage(folder.parent).free < NEEDED_BYTES:
        _forget_older(folder, kept=0)
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise Unavailable(
            f"{folder.parent} has {free / 2**30:.0f} GiB free; making the environment takes "
            f"{NEEDED_BYTES / 2**30:.0f} GiB"
        )
    folder.mkdir(parents=True)
    tools, venv = folder / "tools", folder / "venv"
    (folder / "image.lock").write_text(without_torch(lock) if torch else lock)
    try:
        _run([python, "-m", "venv", str(tools)])
        _run([python, "-m", "venv", "--without-pip", str(venv)])
        pip = [str(tools / "bin/pip"), "--python", str(venv / "bin/python"), "install", "--quiet"]
        pip += ["--only-binary", ":all:", "--disable-pip-version-check", "--no-cache-dir"]
        if torch:
            _run([*pip, f"torch=={torch}"])
        _run([*pip, "--require-hashes", "-r", str(folder / "image.lock")])
        # The Dockerfile builds the wheel of the checkout with the locked hatchling.
    except subprocess.CalledProcessError as error:
        shutil.rmtree(folder, ignore_errors=True)
        last = (error.stderr or str(error)).strip().splitlines()[-3:]
        raise Unavailable("the environment cannot be made: " + " ".join(last)) from error
    shutil.rmtree(tools)
    (folder / "complete").touch()
    _forget_older(folder, kept=KEPT_PER_PYTHON)


def _forget_older(folder: Path, *, kept: int) -> None:
    """Removes all but the newest `kept` environments of the Python and torch of `folder`.

    Those that a killed process left half made go too, of any Python and torch.
    """
    kind = folder.name.rsplit("-", 1)[0]
    others = [path for path in folder.parent.glob(f"{kind}-*") if (path / "complete").exists()]
    others.sort(key=lambda path: (path / "complete").stat().st_mtime, reverse=True)
    half_made = [
        path
        for path in folder.parent.glob("python*-torch*-*")
        if path != folder and not (path / "complete").exists() and not _is_locked(path)
    ]
    for path in (*others[kept:], *half_made):
        shutil.rmtree(path, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    """Whether a process is making an environment now."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds other processes off a cached folder while it is made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Prints the folder of the environment; exits 3 where it cannot be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", help="the interpreter to make the environment with")
    parser.add_argument("--torch", help="another version of torch than the locked one")
    options = parser.parse_args()
    try:
        print(environment(options.python, options.torch))
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
