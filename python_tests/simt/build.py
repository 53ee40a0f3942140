"""Compiles CUDA sources with g++ over csrc/simt, so that tests run the kernels without a GPU.

``python python_tests/simt/build.py [--sanitize]`` builds the library of ``--device simt`` and
prints its path.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-DFLOWOPS_SIMT"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # nvcc's unroll
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
SANITIZE += ["-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def build(*, sanitize: bool = False) -> Path:
    """Return the library that registers the CUDA host code and kernels for CPU tensors."""
    sources = sorted([*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")])
    return link("flowops_simt", sources, sanitize=sanitize)


def link(name: str, sources: list[Path], *, sanitize: bool = False) -> Path:
    """Compile what changed of ``sources`` and the shim, and link them into a shared library."""
    folder = ROOT / "build" / ("simt_sanitized" if sanitize else "simt")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*sources, *sorted((CSRC / "simt").glob("*.cpp"))]
    with (folder / "lock").open("w") as lock:
        # Of several test processes one builds, and the others find it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _compile(source, folder, sanitize), sources))
        library = folder / f"{name}.so"
        built = library.stat().st_mtime if library.exists() else 0
        if any(o.stat().st_mtime > built for o in objects):
            command = [*_compiler(), "-shared", "-o", library, *objects]
            command += ["-Wl,--as-needed", "-lc10", "-ltorch_cpu", *(SANITIZE if sanitize else [])]
            for path in cpp_extension.library_paths():
                command += [f"-L{path}", f"-Wl,-rpath,{path}"]
            _run(command)
    return library


def _compile(source: Path, folder: Path, sanitize: bool) -> Path:
    target = folder / f"{source.stem}.o"
    depends = target.with_suffix(".d")
    command = [*_compiler(), *FLAGS, *(SANITIZE if sanitize else [])]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-I{CSRC}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += ["-MMD", "-MF", depends, "-x", "c++", "-c", source, "-o", target]
    recorded = target.with_suffix(".command")
    text = shlex.join(map(str, command))
    if not (recorded.exists() and recorded.read_text() == text and _is_current(target, depends)):
        recorded.unlink(missing_ok=True)
        _run(command)
        recorded.write_text(text)
    return target


def _is_current(target: Path, depends: Path) -> bool:
    if not (target.exists() and depends.exists()):
        return False
    names = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    built = target.stat().st_mtime
    return all(Path(name).exists() and Path(name).stat().st_mtime <= built for name in names)


def _compiler() -> list[str]:
    cache = [shutil.which("ccache")] if shutil.which("ccache") else []
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    return compiler if "ccache" in compiler[0] else cache + compiler


def _run(command: list[object]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise RuntimeError(f"simt: {shlex.join(map(str, command))} failed:\n{done.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    print(build(sanitize=parser.parse_args().sanitize))  # noqa: T201
