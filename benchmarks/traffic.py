"""Counts the bytes that eager PyTorch, Inductor's code and our kernels read and write.

``python -m benchmarks.traffic [--op OP] [--faked-h100] [--out FILE]``. Nothing is timed and no GPU
is needed; ``benchmarks.table`` puts ``benchmarks/results/traffic.json``, and ``traffic-sm_90.json``
for Inductor's Triton code, into docs/benchmarks.md.

Everything is counted at the borders of kernels. One operator of eager PyTorch or of flowops is one
kernel, which reads each of its arguments once and writes each of its results once; views are free.
Inductor's code is counted by the reads and writes of each fused loop. Caches are left out, and so
is what a kernel keeps or reads again inside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor import dependencies, scheduler
from torch._inductor.graph import GraphLowering

from benchmarks import faked_h100
from benchmarks.case import Case, Function, with_backward
from benchmarks.memory import operator_bytes
from benchmarks.run import op_cases
from benchmarks.settings import PHASES, environment
from benchmarks.table import traffic_table


@contextmanager
def inductor_bytes() -> Iterator[list[int]]:
    """Make a list to which each graph that Inductor compiles in the meantime adds its bytes."""
    counted: list[int] = []
    compile_to_module = GraphLowering.compile_to_module

    def count(graph: GraphLowering) -> Any:
        module = compile_to_module(graph)
        counted.append(sum(node_bytes(node) for node in graph.scheduler.nodes))
        return module

    torch.compiler.reset()
    with (
        mock.patch.object(GraphLowering, "compile_to_module", count),
        inductor_config.patch(fx_graph_cache=False),
        functorch_config.patch(enable_autograd_cache=False),
    ):
        yield counted


def node_bytes(node: scheduler.BaseSchedulerNode) -> int:
    """Bytes that one kernel of Inductor's reads and writes, what it keeps in registers left out.

    As ``GraphLowering.count_bytes`` has it, except that it takes a fused kernel to read the whole
    of a buffer where it reads a slice.
    """
    accesses = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    reached: dict[str, set[dependencies.Dep]] = {name: set() for name in accesses}
    for dep in node.read_writes.reads | node.read_writes.writes:
        reached.get(dep.name, set()).add(dep)
    return sum(
        min(size, sum(dep.numbytes_hint() for dep in reached[name]))
        if all(isinstance(dep, dependencies.MemoryDep) for dep in reached[name])
        else size
        for name, size in accesses.items()
    )


def count_case(
    case: Case, device: torch.device, backend: str | Callable[..., Any] = "inductor"
) -> dict[str, Any]:
    """Bytes of the forward pass, and of both passes, of each way to compute the case."""
    with device:
        inputs = case.inputs()
    counts = {
        "ours": operator_counts(case, case.ours, inputs),
        "compile": inductor_counts(case, inputs, backend),
        "eager": operator_counts(case, case.eager, inputs),
    }
    phases = PHASES[: 1 + case.backward]
    return {
        "op": case.op,
        "case": case.name,
        "traffic": case.traffic,
        "bytes": {p: {name: counts[name][i] for name in counts} for i, p in enumerate(phases)},
    }


def operator_counts(case: Case, function: Function, inputs: Sequence[Tensor]) -> list[int]:
    """Bytes of the operators that ``function`` runs, in each phase."""
    calls: list[Callable[[], object]] = [lambda: function(*inputs)]
    if case.backward:
        calls.append(with_backward(function, inputs))
    return [operator_bytes(call) for call in calls]


def inductor_counts(
    case: Case, inputs: Sequence[Tensor], backend: str | Callable[..., Any]
) -> list[int]:
    """Bytes of Inductor's code for ``eager``, in each phase."""
    compiled = torch.compile(case.eager, fullgraph=True, dynamic=False, backend=backend)
    with inductor_bytes() as counted:
        if not case.backward:
            compiled(*inputs)
            return [sum(counted)]
        call = with_backward(compiled, inputs)  # runs it, and so compiles it, without gradients
        forward = sum(counted)
        call()
    return [forward, sum(counted) - forward]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.traffic", description=__doc__)
    cases = op_cases()
    parser.add_argument("--op", choices=sorted({case.op for case in cases}))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--faked-h100", action="store_true", help="count Inductor's Triton code, not its C++ code"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    backend = faked_h100.backend if options.faked_h100 else "inductor"
    report = {
        "environment": environment(options.device) | {"faked_h100": options.faked_h100},
        "results": [
            count_case(case, options.device, backend)
            for case in cases
            if options.op in (None, case.op)
        ],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write("\n".join([*traffic_table(report), ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
