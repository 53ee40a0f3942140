"""Times flowops against eager and compiled PyTorch and the packages that are installed.

``python -m benchmarks.run [--op OP] [--parts ops models scaling] [--out FILE] [--base REV]``, or
``flowops bench``. All variants of a case are interleaved in one process. JSON goes to ``--out``;
``benchmarks.table`` and ``benchmarks.plot`` read it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks.cases
from benchmarks import base, table
from benchmarks.case import Case, ModelCase, Sweep
from benchmarks.models import run_model_case
from benchmarks.operators import GEMM_FLOPS, run_case
from benchmarks.scaling import run_sweep
from benchmarks.settings import PHASES, Settings, environment

PARTS = ("ops", "models", "scaling")


def _declared(name: str) -> Iterator[Any]:
    for module in pkgutil.iter_modules(benchmarks.cases.__path__):
        yield from getattr(importlib.import_module(f"benchmarks.cases.{module.name}"), name, ())


def op_cases() -> list[Case]:
    """The workloads of every module in benchmarks/cases."""
    return [case for case in _declared("CASES") if isinstance(case, Case)]


def model_cases() -> list[ModelCase]:
    """The models of every module in benchmarks/cases."""
    return [case for case in _declared("CASES") if isinstance(case, ModelCase)]


def sweeps() -> list[Sweep]:
    """The sweeps of every module in benchmarks/cases."""
    return list(_declared("SWEEPS"))


def describe(result: dict[str, Any]) -> str:
    """One line a pass: our median, and how many times as long each rival takes."""
    head = f"{result['op']:18s} {result.get('case') or result['axis']:40s}"
    if "failed" in result:
        return f"{head} FAILED: {result['failed']}"
    lines = [f"{head} {_ratios(phase, result[phase])}" for phase in PHASES if phase in result]
    if "exponents" in result:
        fits = ", ".join(f"{name} {value:.2f}" for name, value in result["exponents"].items())
        lines.append(f"{head} exponents: {fits}")
    if result.get("absent"):
        lines.append(f"{head} not installed: {', '.join(result['absent'])}")
    for key in ("left_out", "not_compared"):
        for name, reason in result.get(key, {}).items():
            lines.append(f"{head} {name} {key.replace('_', ' ')}: {reason}")
    return "\n".join(lines)


def _ratios(phase: str, timings: dict[str, Any]) -> str:
    ours = timings["ours"]["median"]
    ratios = [
        f"{name} {row['median'] / ours:6.2f}x" + ("" if row["clean"] else "!")
        for name, row in timings.items()
        if name != "ours"
    ]
    return f"{phase:16s} {ours * 1e6:9.1f} us  " + "  ".join(ratios)


def run_suite(
    options: argparse.Namespace, settings: Settings, report: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Run what was asked for, each result put into the report as it comes."""
    work: dict[str, tuple[str, Callable[[Any, Settings], dict[str, Any]], Sequence[Any]]] = {
        "ops": ("results", run_case, op_cases()),
        "models": ("results", run_model_case, model_cases()),
        "scaling": ("scaling", run_sweep, sweeps()),
    }
    for part in options.parts:
        section, run, cases = work[part]
        for case in cases:
            if options.op in (None, case.op):
                started = time.perf_counter()
                result = run(case, settings)
                result["wall_seconds"] = round(time.perf_counter() - started, 1)
                report[section].append(result)
                yield result


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flowops bench", description=__doc__)
    parser.add_argument("--op", help="only the cases of this op or model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--ours-only", action="store_true", help="leave all rivals out")
    parser.add_argument(
        "--budget", type=float, default=Settings.budget, help="seconds a measurement at most"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--base", metavar="REV", help="compare with this commit instead")
    parser.add_argument(
        "--rounds", type=int, default=2, help="with --base: runs of each side (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.op not in {None, *(c.op for c in [*op_cases(), *model_cases(), *sweeps()])}:
        parser().error(f"--op must name an op or model with cases, got {options.op}")
    if options.rounds < 1:
        parser().error(f"--rounds must be at least 1, got {options.rounds}")
    if options.base is not None:
        return base.compare(options)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    settings = Settings(options.device, not options.no_compile, options.budget, options.ours_only)
    report: dict[str, Any] = {
        "environment": environment(options.device), "gemm_flops": GEMM_FLOPS,
        "results": [], "scaling": [],
    }  # fmt: skip
    for result in run_suite(options, settings, report):
        sys.stdout.write(describe(result) + "\n")
        sys.stdout.flush()
        if options.out is not None:  # after each case: a run cut short leaves what it has
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    seconds = sum(result["wall_seconds"] for result in report["results"] + report["scaling"])
    sys.stdout.write(f"\n{seconds / 60:.1f} minutes\n")
    if not options.ours_only:
        sys.stdout.write("\n" + table.table(report, str(options.out)))
    return int(any("failed" in result for result in report["results"] + report["scaling"]))


if __name__ == "__main__":
    raise SystemExit(main())
