"""Times flowops against eager and compiled PyTorch, interleaved in one process, and writes JSON.

``python -m benchmarks.run [--op OP] [--device cpu|cuda] [--threads N] [--no-compile] [--out FILE]``
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import benchmarks.cases
from benchmarks.case import Case, Function, StepCase
from flowops._library import info
from flowops.timing import measure

#: Steps after which a model must have learned something.
_WARM_UP = 20
#: Seconds of consecutive steps in one sample: a step finds the caches and the heap as its like left
#: them, not as another library did.
_STEPS_BLOCK = 0.1


def all_cases() -> list[Case | StepCase]:
    """The cases of every module in benchmarks/cases, those of models last: they take longest."""
    modules = pkgutil.iter_modules(benchmarks.cases.__path__)
    loaded = [importlib.import_module(f"benchmarks.cases.{module.name}") for module in modules]
    cases = [case for module in loaded for case in module.CASES]
    return sorted(cases, key=lambda case: isinstance(case, StepCase))


def error_against(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest element of each reference."""
    worst = 0.0
    for want, got in zip(reference, outputs, strict=True):
        scale = want.double().abs().max().clamp_min(1e-30)
        worst = max(worst, ((want.double() - got.double()).abs().max() / scale).item())
    return worst


def with_backward(function: Function, inputs: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """A call of ``function`` and of its gradients under fixed weights."""
    moved = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    leaves = [t for t in moved if t.requires_grad]
    weights = [torch.randn_like(out) for out in function(*inputs)]

    def call() -> Sequence[Tensor]:
        return torch.autograd.grad(function(*moved), leaves, weights)

    return call


def variants_of(case: Case, compile_rival: bool) -> dict[str, Function]:
    variants = {"eager": case.eager, "ours": case.ours}
    if compile_rival:
        torch.compiler.reset()
        variants["compile"] = torch.compile(case.eager, fullgraph=True, dynamic=False)
    return variants


def run_case(
    case: Case, device: torch.device, compile_rival: bool, budget: float
) -> dict[str, Any]:
    """Gate the case on its correctness, then time forward and forward+backward."""
    with device:
        inputs = case.inputs()
    exact = case.eager(*[t.double() if t.is_floating_point() else t for t in inputs])
    first = case.first_compared
    error = error_against(exact[first:], case.ours(*inputs)[first:])
    result: dict[str, Any] = {"op": case.op, "case": case.name, "error": error}
    if not error <= case.tolerance:
        return result | {"failed": f"error {error:.1e} above {case.tolerance:.0e}"}
    variants = variants_of(case, compile_rival)
    source = torch.empty(max(1, case.traffic // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    forward: dict[str, Callable[[], object]] = {
        name: (lambda f=f: f(*inputs)) for name, f in variants.items()
    }
    forward["copy"] = lambda: target.copy_(source)
    with torch.no_grad():
        result["forward"] = _rows(measure(forward, budget=budget, device=device))
    if case.backward:
        both = {name: with_backward(f, inputs) for name, f in variants.items()}
        result["forward_backward"] = _rows(measure(both, budget=budget, device=device))
    return result


def run_steps(
    case: StepCase, device: torch.device, compile_ours: bool, budget: float
) -> dict[str, Any]:
    """Gate the case on the loss of every model, which must fall, then time the steps."""
    torch.compiler.reset()
    installed = [name for name in case.rivals if importlib.util.find_spec(name) is not None]
    with device:
        steps = case.steps(installed, compile_ours)
    absent = [name for name in case.rivals if name not in installed]
    versions = {name: importlib.metadata.version(name) for name in installed}
    result: dict[str, Any] = {
        "op": case.op, "case": case.name, "absent": absent, "versions": versions,
    }  # fmt: skip
    for name, step in steps.items():
        losses = [step().item() for _ in range(_WARM_UP)]
        if not losses[-1] < losses[0]:
            return result | {"failed": f"{name}: loss {losses[0]:.3f} became {losses[-1]:.3f}"}
    return result | {
        "step": _rows(measure(steps, block=_STEPS_BLOCK, budget=budget, device=device))
    }


def _rows(timings: dict[str, Any]) -> dict[str, Any]:
    return {name: asdict(timing) for name, timing in timings.items()}


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions and commit, as every result carries them."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "flowops": info()["flowops"],
        "cpu_kernels": info()["cpu"],
        "commit": commit,
    }


def describe(result: dict[str, Any]) -> str:
    """One line a pass: our median, and how many times faster than each rival."""
    head = f"{result['op']:18s} {result['case']:40s}"
    if "failed" in result:
        return f"{head} FAILED: {result['failed']}"
    lines = []
    for phase in ("forward", "forward_backward", "step"):
        rows = result.get(phase)
        if rows is None:
            continue
        ours = rows["ours"]["median"]
        ratios = [
            f"{name} {row['median'] / ours:6.2f}x" + ("" if row["clean"] else "!")
            for name, row in rows.items()
            if name != "ours"
        ]
        lines.append(f"{head} {phase:16s} {ours * 1e6:9.1f} us  " + "  ".join(ratios))
    if result.get("absent"):
        lines.append(f"{head} not installed: {', '.join(result['absent'])}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", help="only the cases of this op")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds a measurement at most")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report: dict[str, Any] = {"environment": environment(options.device), "results": []}
    for case in all_cases():
        if options.op not in (None, case.op):
            continue
        choices = options.device, not options.no_compile, options.budget
        if isinstance(case, StepCase):
            result = run_steps(case, *choices)
        else:
            result = run_case(case, *choices)
        report["results"].append(result)
        sys.stdout.write(describe(result) + "\n")
        sys.stdout.flush()
        if options.out is not None:  # after each case: a run cut short leaves what it has
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any("failed" in result for result in report["results"]))


if __name__ == "__main__":
    raise SystemExit(main())
