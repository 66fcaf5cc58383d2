"""Builds the null device: stand-ins for NVIDIA's libraries, cached beside the environment.

Every function that the real library exports and that `device/` does not write out answers 0, and
says so in the log. The headers and the lists of functions come from NVIDIA's wheels in the
environment, so the stand-ins fit the version of torch that is installed there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from nullgpu_environment import Unavailable, locked

SOURCES = Path(__file__).parent / "device"
COMPILE = ["g++", "-std=c++17", "-O1", "-fPIC", "-w"]


class Library(NamedTuple):
    """A stand-in: its sources, the real library below site-packages/nvidia, and its version tag."""

    soname: str
    sources: tuple[str, ...]
    real: str | None
    versioned: bool


LIBRARIES = (
    Library("libcudart.so.13", ("runtime.cc",), "cu13/lib/libcudart.so.13", True),
    Library("libcuda.so.1", ("driver.cc", "cubin.cc"), None, False),
    Library("libcublasLt.so.13", ("cublaslt.cc",), "cu13/lib/libcublasLt.so.13", True),
    Library("libcublas.so.13", ("cublas.cc",), "cu13/lib/libcublas.so.13", True),
    Library("libcudnn.so.9", ("cudnn.cc",), "cudnn/lib/libcudnn.so.9", True),
    Library("libcupti.so.13", ("cupti.cc",), "cu13/lib/libcupti.so.13", True),
    Library("libnvidia-ml.so.1", ("nvml.cc",), None, False),
)


def null_device(venv: Path) -> Path:
    """The folder of the stand-ins for an environment, built at the first call.

    Raises:
        Unavailable: There is no C++ compiler, or it fails.
    """
    if not (shutil.which("g++") and shutil.which("gcc") and shutil.which("nm")):
        raise Unavailable("the null device needs g++, gcc and nm: install a C++ compiler")
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    folder = venv.parent / f"device-{digest.hexdigest()[:16]}"
    with locked(folder):
        if not folder.exists():
            for older in venv.parent.glob("device-*"):
                shutil.rmtree(older, ignore_errors=True)
            # Under a name of its own until it is whole; the libraries find each other by $ORIGIN.
            with tempfile.TemporaryDirectory(dir=venv.parent, prefix=".device-") as unfinished:
                made = Path(unfinished) / "device"
                made.mkdir()
                _build(_site_packages(venv), made)
                made.rename(folder)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """The environment variables under which a process sees the null device."""
    names = ["libnullgpu.so", *(library.soname for library in LIBRARIES)]
    before = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_PRELOAD": " ".join(str(folder / name) for name in names),
        "LD_LIBRARY_PATH": f"{folder}:{before}" if before else str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
    }


def _site_packages(venv: Path) -> Path:
    (found,) = venv.glob("lib/python3.*/site-packages")
    return found


def _build(site: Path, out: Path) -> None:
    include = [
        f"-I{path}"
        for path in (
            site / "nvidia/cu13/include",
            site / "nvidia/cudnn/include",
            site / "triton/backends/nvidia/include",
            SOURCES,
        )
    ]
    core = ["-shared", "-Wl,-soname,libnullgpu.so", "-o", str(out / "libnullgpu.so")]
    _run([*COMPILE, *include, str(SOURCES / "device.cc"), *core])
    for library in LIBRARIES:
        _build_library(library, site, out, include)
    (out / "libcuda.so").symlink_to("libcuda.so.1")
    for leftover in (*out.glob("*.o"), *out.glob("*.c"), *out.glob("*.map")):
        leftover.unlink()


def _build_library(library: Library, site: Path, out: Path, include: list[str]) -> None:
    objects = []
    for source in library.sources:
        target = out / f"{library.soname}.{source}.o"
        _run([*COMPILE, *include, "-c", str(SOURCES / source), "-o", str(target)])
        objects.append(target)
    written = set().union(*(_defined(path) for path in objects))
    others = sorted(_exported(library, site) - written)
    rest = out / f"{library.soname}.rest.c"
    rest.write_text(
        "void null_answered(const char *);\n"
        + "".join(
            f'long {name}(void) {{ static int said; if (!said++) null_answered("{name}"); '
            "return 0; }\n"
            for name in others
        )
    )
    _run(["gcc", "-O1", "-fPIC", "-w", "-fno-builtin", "-c", str(rest), "-o", f"{rest}.o"])
    link = [f"-L{out}", "-lnullgpu", "-Wl,-rpath,$ORIGIN", f"-Wl,-soname,{library.soname}"]
    if library.versioned:
        script = out / f"{library.soname}.map"
        script.write_text(f"{library.soname} {{ global: *; }};\n")
        link.append(f"-Wl,--version-script={script}")
    paths = [*map(str, objects), f"{rest}.o"]
    _run(["g++", "-shared", *paths, *link, "-o", str(out / library.soname)])


def _exported(library: Library, site: Path) -> set[str]:
    """The C functions that the real library exports; the driver's are those of its header."""
    if library.soname == "libcuda.so.1":
        header = (site / "nvidia/cu13/include/cuda.h").read_text()
        declared = re.findall(r"CUresult CUDAAPI (cu\w+)\(", header)
        renamed = re.findall(
            r"(?m)#define\s+cu\w+\s+(?:__CUDA_API_PT(?:DS|SZ)\()?(cu\w+)\)?\s*$", header
        )
        return {*declared, *renamed}
    if library.real is None:
        return set()
    return {name for name in _defined(site / "nvidia" / library.real, "-D") if name[:2] != "_Z"}


def _defined(path: Path, *options: str) -> set[str]:
    names = set()
    for line in _run(["nm", "--defined-only", *options, str(path)]).splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "TWi":
            name = words[2].split("@")[0]
            if re.fullmatch(r"\w+", name) and not name.startswith(("_init", "_fini")):
                names.add(name)
    return names


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{command[0]} fails: {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    made = null_device(Path(sys.argv[1]))
    print(made)
