"""Builds flowops' native modules against the installed torch; CONTRIBUTING.md says how.

``flowops._C`` holds schemas, autograd and autocast; the backends beside it hold kernels: one for
every instruction set of the CPU, and one for CUDA. Sources are found by globs, so a new op
needs no line here.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import setuptools

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build_backend"))

from flowops_build import torch_requirement  # noqa: E402

MIN_TORCH = (2, 11)
MIN_SETUPTOOLS = 77
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "flowops/__init__.py").read_text(), re.M
).group(1)
# Commands that describe the package without compiling it, and so need no torch.
SOURCE_COMMANDS = {"sdist", "egg_info", "clean", "--version", "--name", "--help"}

# For a machine without a GPU, where TORCH_CUDA_ARCH_LIST is unset; each runs on its minor versions.
CUDA_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"

# torch forbids what its own half types would make ambiguous; our .cu files include no torch header.
CUDA_CONVERSIONS = [
    f"-U__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")
]

CXX_FLAGS = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wall", "-Wextra"]
CPU_CAPABILITIES = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
        # GCC 12 warns about its own avx512fintrin.h.
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],
}


def build_error(message: str) -> SystemExit:
    """Ends a build that cannot go on; the message is one sentence that names the cure."""
    return SystemExit(f"flowops: {message}")


@dataclass(frozen=True)
class Cuda:
    """Whether the CUDA kernels are built: the toolkit's version (None leaves them out) and why."""

    version: str | None
    reason: str


def check_setuptools(version: str) -> None:
    """Refuses a setuptools that cannot read pyproject.toml, as a bare Python may bring along."""
    if int(version.split(".")[0]) < MIN_SETUPTOOLS:
        raise build_error(
            f"setuptools must be {MIN_SETUPTOOLS} or newer, got {version}; "
            "run `pip install --upgrade setuptools`"
        )


def import_torch() -> Any:
    """The installed torch, new enough to build against."""
    try:
        import torch
    except ModuleNotFoundError:
        raise build_error(
            "torch is not installed in this environment; run `pip install torch`, "
            "or install flowops without --no-build-isolation"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        raise build_error(
            f"torch must be {needed} or newer, got {torch.__version__}; "
            f"run `pip install 'torch>={needed}'`"
        )
    return torch


def check_compiler() -> str:
    """The C++ compiler's program."""
    for variable in {"CC", "CXX"} & os.environ.keys():
        # torch runs one program, and newer ones put ccache before it by themselves.
        os.environ[variable] = shlex.split(os.environ[variable])[-1]
    program = os.environ.get("CXX", "c++")
    if shutil.which(program) is None:
        raise build_error(
            f"no C++ compiler found (looked for {program!r}); "
            "install one (`apt-get install g++`) or set CXX"
        )
    return program


def cpu_capabilities() -> list[str]:
    """Instruction sets that this machine's compiler targets; every machine runs the first."""
    return (
        list(CPU_CAPABILITIES) if platform.machine().lower() in ("x86_64", "amd64") else ["DEFAULT"]
    )


def find_toolkit() -> None:
    """Sets CUDA_HOME, where it is unset, to where nvcc itself says it lies.

    torch takes it from the path of nvcc, which may be a link or a script that lies elsewhere.
    """
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or shutil.which("nvcc") is None:
        return
    command = ["nvcc", "--dryrun", "-E", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    if place := re.search(r"^#\$ _HERE_=(.+)$", said, re.M):
        os.environ["CUDA_HOME"] = str(Path(place[1]).parent)


def nvcc_version(cuda_home: str | None) -> str | None:
    """Release of the toolkit's nvcc, such as "13.0", or None where there is no nvcc."""
    nvcc = Path(cuda_home) / "bin/nvcc" if cuda_home else None
    if nvcc is None or not nvcc.exists():
        return None
    release = re.search(
        r"release (\d+\.\d+)", subprocess.check_output([nvcc, "--version"], text=True)
    )
    return release.group(1) if release else None


def choose_cuda(
    wanted: str | None, torch_cuda: str | None, toolkit: str | None, has_sources: bool
) -> Cuda:
    """Decides whether to build the CUDA kernels.

    Args:
        wanted: The variable FLOWOPS_CUDA: None (build them where possible), "0" or "1".
        torch_cuda: The CUDA version torch was built with, or None.
        toolkit: The installed nvcc's version, or None.
        has_sources: Whether there are CUDA sources.
    """
    if wanted not in (None, "", "0", "1"):
        raise build_error(f"FLOWOPS_CUDA must be 0, 1 or unset, got {wanted!r}")
    if wanted == "0":
        return Cuda(None, "FLOWOPS_CUDA=0")
    if torch_cuda is None:
        if wanted == "1":
            raise build_error(
                "FLOWOPS_CUDA=1 needs a CUDA build of torch, got a CPU build; "
                "install one from pytorch.org, or unset FLOWOPS_CUDA"
            )
        return Cuda(None, "this torch is a CPU build")
    if toolkit is None:
        if wanted == "1":
            raise build_error(
                "FLOWOPS_CUDA=1 needs nvcc, which was not found; install the CUDA "
                f"{torch_cuda} toolkit and put nvcc on PATH or set CUDA_HOME"
            )
        return Cuda(None, f"torch has CUDA {torch_cuda} but no nvcc was found")
    if toolkit.split(".")[0] != torch_cuda.split(".")[0]:
        raise build_error(
            f"nvcc is CUDA {toolkit} but torch was built with CUDA {torch_cuda}; install the CUDA "
            f"{torch_cuda} toolkit and set CUDA_HOME, or set FLOWOPS_CUDA=0 for the CPU alone"
        )
    if not has_sources:
        return Cuda(None, "there are no CUDA sources")
    return Cuda(toolkit, f"nvcc {toolkit}, torch CUDA {torch_cuda}")


def sources(*patterns: str) -> list[str]:
    """Paths under csrc that match, relative to the root and in a fixed order."""
    return sorted(
        str(path.relative_to(ROOT))
        for pattern in patterns
        for path in (ROOT / "csrc").glob(pattern)
    )


def unverified_ops() -> list[str]:
    """The ops whose CUDA kernels no committed record has seen pass on a GPU as they are now."""
    path = ROOT / "benchmarks/record.py"
    spec = importlib.util.spec_from_file_location("record", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit("flowops: benchmarks/record.py is missing, take the whole source tree")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.unverified()


def cuda_architectures(torch: Any, cpp_extension: Any) -> str:
    """What nvcc compiles for, such as "sm_80 sm_90": TORCH_CUDA_ARCH_LIST, else the GPUs here."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    flags = " ".join(cpp_extension._get_cuda_arch_flags())
    return " ".join(sorted(set(re.findall(r"code=((?:sm|compute)_\w+)", flags))))


def extension(
    cpp_extension: Any, name: str, files: list[str], flags: list[str], macros: dict[str, str | None]
) -> Any:
    """One C++ extension module of the package."""
    # As system headers, torch's raise no warnings.
    headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    return cpp_extension.CppExtension(
        f"flowops.{name}",
        files,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=list(macros.items()),
        extra_compile_args=[*CXX_FLAGS, *headers, *flags],
        extra_link_args=["-fopenmp"],
    )


def cuda_extension(cpp_extension: Any, cxx: str) -> Any:
    """The CUDA backend."""
    nvcc_flags = ["-O3", f"-ccbin={cxx}", "-Xcompiler=-fvisibility=hidden,-Wall,-Wextra"]
    nvcc_flags += ["-Xfatbin=-compress-all", *CUDA_CONVERSIONS]
    headers = [f"-isystem{path}" for path in cpp_extension.include_paths("cuda")]
    return cpp_extension.CUDAExtension(
        "flowops._cuda",
        [*sources("cuda/*.cu", "cuda/*.cpp"), "csrc/common/python_module.cpp"],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": [*CXX_FLAGS, *headers], "nvcc": nvcc_flags},
    )


def native_modules(torch: Any) -> list[Any]:
    """Every extension module that this environment can build, announced in one line."""
    find_toolkit()
    from torch.utils import cpp_extension

    cxx = check_compiler()
    capabilities = cpu_capabilities()
    toolkit = nvcc_version(cpp_extension.CUDA_HOME)
    cuda = choose_cuda(
        os.environ.get("FLOWOPS_CUDA"),
        torch.version.cuda,
        toolkit,
        bool(sources("cuda/*.cu", "cuda/*.cpp")),
    )
    architectures = cuda_architectures(torch, cpp_extension) if cuda.version else ""
    macros = {
        "FLOWOPS_VERSION": f'"{VERSION}"',
        "FLOWOPS_TORCH_VERSION": f'"{torch.__version__}"',
        "FLOWOPS_CPU_CAPABILITIES": f'"{" ".join(capabilities)}"',
        "FLOWOPS_CUDA_VERSION": f'"{cuda.version or ""}"',
        "FLOWOPS_CUDA_ARCHITECTURES": f'"{architectures}"',
    }
    core = sources("bindings.cpp", "autocast.cpp", "ops/register.cpp", "autograd/register.cpp")
    modules = [extension(cpp_extension, "_C", core, [], macros)]
    kernels = [*sources("cpu/*.cpp"), "csrc/common/python_module.cpp"]
    for name in capabilities:
        capability = {"CPU_CAPABILITY": name, f"CPU_CAPABILITY_{name}": None}
        modules.append(
            extension(
                cpp_extension, f"_cpu_{name.lower()}", kernels, CPU_CAPABILITIES[name], capability
            )
        )
    if cuda.version:
        modules.append(cuda_extension(cpp_extension, cxx))
    cuda_said = f"CUDA kernels for {architectures}" if cuda.version else "no CUDA kernels"
    print(
        f"flowops {VERSION}: building against torch {torch.__version__}: CPU kernels for "
        f"{', '.join(capabilities)}; {cuda_said} ({cuda.reason})",
        file=sys.stderr,
    )
    return modules


def build_extension_command(torch: Any) -> type:
    """The build_ext of torch, an object folder for each module and a record of torch."""
    from torch.utils.cpp_extension import BuildExtension

    record = (
        '"""Written by setup.py: the torch that the native modules here were built against."""\n'
        f'\nTORCH_VERSION = "{torch.__version__}"\n'
        f"CUDA_UNVERIFIED = {unverified_ops()!r}\n"
    )

    class BuildFlowops(BuildExtension):
        def run(self) -> None:
            os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
            # What an earlier build left, such as CUDA kernels since left out, must not be shipped.
            for stale in Path(self.build_lib, "flowops").glob("_*.so"):
                stale.unlink()
            super().run()
            Path(self.get_ext_fullpath("flowops._C")).with_name("_built_for.py").write_text(record)

        def build_extension(self, ext: Any) -> None:
            # The CPU kernels are the same sources three times over, and would share object files;
            # ninja does not see that torch's headers have changed.
            shared = self.build_temp
            self.build_temp = os.path.join(shared, f"torch-{torch.__version__}", ext.name)
            try:
                super().build_extension(ext)
            finally:
                self.build_temp = shared

    return BuildFlowops


def main() -> None:
    """Runs setuptools with the modules that the command at hand needs."""
    check_setuptools(setuptools.__version__)
    needs_torch = not SOURCE_COMMANDS.intersection(sys.argv[1:])
    options: dict[str, Any] = {
        "install_requires": ["torch>=" + ".".join(map(str, MIN_TORCH)), "numpy"]
    }
    if needs_torch:
        torch = import_torch()
        requirement = torch_requirement(torch.__version__, Path(torch.__file__).parent)
        options["install_requires"] = [requirement, "numpy"]
        options["ext_modules"] = native_modules(torch)
        options["cmdclass"] = {"build_ext": build_extension_command(torch)}
    setuptools.setup(**options)


if __name__ == "__main__":
    main()
