"""Time several ways of computing one thing side by side, on a machine that is not quiet."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

#: A sample is dropped when the process waited for a core for more than this share of it.
_MAX_WAIT = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, 10th and 90th percentile of ``samples`` clean samples.

    ``clean`` is False where the machine never left three samples undisturbed, and the quickest
    third of all samples stands in.
    """

    median: float
    low: float
    high: float
    samples: int
    clean: bool


def measure(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 25,
    block: float = 3e-3,
    budget: float = 20.0,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time the variants interleaved, one block of calls each in turn, each round in another order.

    A variant meets the memory and the caches as the one before it left them, so none always
    follows the same other.

    Args:
        variants: Name to a function without arguments.
        rounds: Clean samples wanted of each.
        block: Least seconds of one sample; short calls are repeated to fill it.
        budget: Seconds after which to stop with what there is.
        device: Where the work runs; CUDA devices are synchronised around each sample.

    Returns:
        A :class:`Timing` for each name.
    """
    synchronise = (
        torch.cuda.synchronize if device is not None and device.type == "cuda" else _nothing
    )
    repeats = {name: _repeats(call, block, synchronise) for name, call in variants.items()}
    clean: dict[str, list[float]] = {name: [] for name in variants}
    disturbed: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants.items()), random.Random(0).shuffle
    end = time.perf_counter() + budget
    while time.perf_counter() < end and min(map(len, clean.values())) < rounds:
        shuffle(order)
        for name, call in order:
            waited, started = _waiting_time(), time.perf_counter()
            for _ in range(repeats[name]):
                call()
            synchronise()
            elapsed = time.perf_counter() - started
            undisturbed = _waiting_time() - waited <= _MAX_WAIT * elapsed
            (clean if undisturbed else disturbed)[name].append(elapsed / repeats[name])
    return {name: _summary(clean[name], disturbed[name]) for name in variants}


def _nothing() -> None:
    pass


def _repeats(call: Callable[[], object], block: float, synchronise: Callable[[], None]) -> int:
    quickest = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        call()
        synchronise()
        quickest = min(quickest, time.perf_counter() - started)
    return max(1, int(block / max(quickest, 1e-7)))


def _waiting_time() -> float:
    """Seconds that this process's threads were ready but had no core; 0 where Linux is silent."""
    nanoseconds = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            nanoseconds += int(task.read_text().split()[1])
        except OSError:
            continue
    return nanoseconds * 1e-9


def _summary(clean: list[float], disturbed: list[float]) -> Timing:
    enough = len(clean) >= 3
    if enough:
        samples = sorted(clean)
    else:
        everything = sorted(clean + disturbed)
        samples = everything[: max(1, len(everything) // 3)]
    at = [samples[min(len(samples) - 1, int(share * len(samples)))] for share in (0.1, 0.9)]
    return Timing(statistics.median(samples), at[0], at[1], len(samples), enough)
