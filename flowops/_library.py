"""Loads the native modules that fit this machine, and says what they are.

``flowops._C`` (schemas, autograd, autocast) is always loaded, then the CPU kernels of the
instruction set that torch itself uses, then the CUDA kernels where torch has a GPU. Importing
flowops runs this once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        "flowops needs torch, which is not installed; "
        "run `pip install torch`, then install flowops again"
    ) from error

_REINSTALL = "run `pip install --force-reinstall --no-deps .` in flowops' source folder"
# Best first; torch's names on other architectures all mean DEFAULT here.
_CPU_CAPABILITIES = ("AVX512", "AVX2", "DEFAULT")


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


def check_torch_version(built: str, running: str) -> None:
    """Refuses a torch of another minor version than the native modules were built against.

    Args:
        built: torch version at build time, such as "2.13.0+cpu".
        running: torch version now.

    Raises:
        ImportError: If the minor versions differ.
    """
    if _minor(built) != _minor(running):
        wanted = ".".join(_minor(built))
        raise ImportError(
            f"flowops was built for torch {built} but torch {running} is installed; "
            f"{_REINSTALL} to build for it, or `pip install 'torch=={wanted}.*'`"
        )


def choose_cpu_module(running: str, built: list[str]) -> str:
    """The instruction set whose kernels to load.

    Args:
        running: What ``torch.backends.cpu.get_cpu_capability()`` names.
        built: Instruction sets that this build holds.

    Returns:
        ``running`` where it was built, else the best lower one.
    """
    best = running if running in _CPU_CAPABILITIES else "DEFAULT"
    usable = _CPU_CAPABILITIES[_CPU_CAPABILITIES.index(best) :]
    return next(capability for capability in usable if capability in built)


def check_cuda_version(built: str, running: str | None) -> None:
    """Refuses a torch of another CUDA major version than the kernels'.

    Raises:
        ImportError: If the major versions differ.
    """
    if running is None or built.split(".")[0] != running.split(".")[0]:
        raise ImportError(
            f"flowops was built for CUDA {built} but torch has CUDA {running}; "
            f"{_REINSTALL} with the CUDA {running} toolkit"
        )


def _load() -> tuple[Any, str, bool]:
    if importlib.util.find_spec("flowops._built_for") is None:
        raise ImportError(
            "flowops' native modules are not built; run `pip install -e .` in its source folder, "
            "or `python setup.py build_ext --inplace`"
        )
    check_torch_version(
        importlib.import_module("flowops._built_for").TORCH_VERSION, torch.__version__
    )
    native = importlib.import_module("flowops._C")
    capabilities = native.capabilities()
    cpu = choose_cpu_module(torch.backends.cpu.get_cpu_capability(), capabilities["cpu"])
    importlib.import_module(f"flowops._cpu_{cpu.lower()}")
    cuda = capabilities["cuda"] is not None and torch.cuda.is_available()
    if cuda:
        check_cuda_version(capabilities["cuda"], torch.version.cuda)
        importlib.import_module("flowops._cuda")
    return native, cpu, cuda


_native, _cpu_capability, _cuda_loaded = _load()


def info() -> dict[str, Any]:
    """What was built and what is in use.

    Returns:
        Versions under ``flowops``, ``torch_built``, ``torch_running`` and ``compiler``; the
        instruction set in use under ``cpu`` and those with kernels under ``cpu_built``; the CUDA
        kernels' version (None without them) under ``cuda_built``, their architectures under
        ``cuda_architectures``, whether they are loaded under ``cuda_usable``, and the ops that no
        committed record has seen pass on a GPU under ``cuda_not_verified``.
    """
    build, capabilities = _native.build_info(), _native.capabilities()
    return {
        "flowops": build["version"],
        "torch_built": build["torch"],
        "torch_running": str(torch.__version__),
        "compiler": build["compiler"],
        "cpu": _cpu_capability,
        "cpu_built": capabilities["cpu"],
        "cuda_built": capabilities["cuda"],
        "cuda_architectures": capabilities["cuda_architectures"],
        "cuda_usable": _cuda_loaded,
        "cuda_not_verified": importlib.import_module("flowops._built_for").CUDA_UNVERIFIED,
    }
