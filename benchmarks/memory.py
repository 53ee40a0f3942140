"""Bytes that a call allocates, and operators that it runs, counted and not estimated."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

# The profiler writes two lines to stderr each time it runs, at every lower level.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


@dataclass(frozen=True)
class Footprint:
    """Bytes above those that were allocated before.

    ``peak`` is the most at any time of the call; ``kept`` is what its forward pass leaves behind
    while the result lives: the outputs, and what is saved for the backward pass.
    """

    peak: int
    kept: int


def footprint(
    forward: Callable[[], object], whole: Callable[[], object], device: torch.device
) -> Footprint:
    """Count the bytes of ``whole``, and of ``forward``, which records a graph.

    Both run once unseen: what a first call allocates for good is not counted.
    """
    count = _cuda_bytes if device.type == "cuda" else _cpu_bytes
    for call in (forward, whole):
        call()
    return Footprint(peak=count(whole)[0], kept=count(forward)[1])


def _cpu_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """Peak and final sum of all allocations, by the allocator's own reports to the profiler.

    The reports come from the allocator itself, so those of C++ kernels are among them, which no
    Python dispatch sees. Memory that a library takes past torch's allocator is not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    changes = _changes(profiler)
    del result
    live, peak = 0, 0
    for _, size in changes:
        live += size
        peak = max(peak, live)
    return peak, live


def _changes(profiler: Any) -> list[tuple[int, int]]:
    results = profiler.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    return sorted(((e.start_ns(), e.nbytes()) for e in events), key=lambda change: change[0])


def _cuda_bytes(call: Callable[[], object]) -> tuple[int, int]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak, live = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return peak - before, live - before


class _Counter(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operator_calls(call: Callable[[], object], device: torch.device) -> int:
    """Operators that ``call`` runs, views included; on a GPU, kernels that it launches."""
    call()
    if device.type == "cuda":
        return _launches(call)
    with _Counter() as counter:
        call()
    return counter.calls


def _launches(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names = (event.name() for event in profiler.profiler.kineto_results.events())
    return sum(name in ("cudaLaunchKernel", "cuLaunchKernel", "cuLaunchKernelEx") for name in names)
