"""Bytes that a call allocates or moves, and operators that it runs, counted and not estimated."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The profiler writes two lines to stderr each time it runs, at every lower level.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

#: Operators whose first tensor gives a shape or a place alone, as do ``new_*`` and ``*_like``.
UNREAD = ("random_key", "copy_", "fill_", "zero_")


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


class _Traffic(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = args, {name: value for name, value in kwargs.items() if name != "out"}
        read, written = _tensors(inputs), _tensors(result)
        storages = {t.untyped_storage().data_ptr() for t in read if t.numel()}
        if not func._schema.is_mutable:
            written = [t for t in written if t.untyped_storage().data_ptr() not in storages]
            if not written:  # a view, or nothing but numbers for Python
                return result
        name = func._schema.name.split("::")[1]
        if name in UNREAD or name.startswith("new_") or name.endswith("_like"):
            read = read[1:]
        if not name.startswith(("empty", "new_empty")):
            self.total += _nbytes(read) + _nbytes(written)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the elements; one that has several names or indices is counted once."""
    distinct = {(t.data_ptr(), t.dtype, t.size(), t.stride()): t for t in tensors}
    return sum(_elements(t) * t.element_size() for t in distinct.values())


def _elements(tensor: Tensor) -> int:
    sizes = zip(tensor.size(), tensor.stride(), strict=True)
    return torch.Size(n for n, stride in sizes if stride or not n).numel()


def operator_bytes(call: Callable[[], object]) -> int:
    """Bytes that the operators of ``call`` read and write.

    Each takes its tensors from memory once and puts its results there; views are free.
    """
    with _Traffic() as traffic:
        call()
    return traffic.total
