"""How a run is to be done, and what it was done on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowops._library import info
from flowops.timing import Timing

#: What is timed: of an op, then of a model.
PHASES = ("forward", "forward_backward", "step", "sample")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """Choices of one run.

    Attributes:
        device: Where everything runs.
        compile: Whether ``torch.compile`` takes part.
        budget: Seconds that one measurement takes at most, after its first calls.
        ours_only: Leave all rivals out; the gate stays.
    """

    device: torch.device
    compile: bool = True
    budget: float = 2.0
    ours_only: bool = False


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit, as every result carries them."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "flowops": info()["flowops"],
        "cpu_kernels": info()["cpu"],
        "commit": git("describe", "--always", "--dirty", "--abbrev=12"),
    }


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def git(*arguments: str) -> str:
    """What git prints in the source tree; nothing where it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package to the version of the distribution that it came with."""
    owners = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(owners[name][0]) for name in packages}


def first_line(error: Exception) -> str:
    """What a report says of an error: the lines after the first are for a terminal."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def rows(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """The timings as JSON."""
    return {name: asdict(timing) for name, timing in timings.items()}
