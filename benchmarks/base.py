"""Compares this tree with another commit: both built, run in turn, the same cases on both."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.settings import PHASES, ROOT, git

Medians = dict[tuple[str, str, str], float]


def compare(options: argparse.Namespace) -> int:
    """Print, for every case, how many times as long ``options.base`` takes as this tree."""
    commit = git("rev-parse", "--verify", "--quiet", f"{options.base}^{{commit}}")
    if not commit:
        sys.stderr.write(f"flowops bench: --base must be a commit, got {options.base}\n")
        return 2
    with checkout(commit) as tree:
        runs: dict[Path, list[Medians]] = {tree: [], ROOT: []}
        for _ in range(options.rounds):
            for side, medians in runs.items():
                medians.append(run(side, options))
    lines = [f"base {commit[:12]} over this tree, medians of {options.rounds} runs each"]
    lines += ratios(runs[tree], runs[ROOT])
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A built work tree of ``commit`` that carries this tree's benchmarks."""
    with tempfile.TemporaryDirectory(prefix="flowops-base-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=ROOT, check=True
        )
        try:
            build(tree, commit)
            shutil.rmtree(tree / "benchmarks")
            shutil.copytree(ROOT / "benchmarks", tree / "benchmarks")
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def build(tree: Path, commit: str) -> None:
    """Compile the native modules, or take this tree's where nothing that makes them differs."""
    sources = ["csrc", "setup.py"]
    changed = subprocess.run(
        ["git", "diff", "--quiet", commit, "--", *sources], cwd=ROOT, check=False
    )
    built = [*ROOT.glob("flowops/*.so"), *ROOT.glob("flowops/_built_for.py")]
    if built and changed.returncode == 0:
        for module in built:
            shutil.copy(module, tree / "flowops")
        return
    sys.stderr.write(f"building {commit[:12]}, which takes minutes\n")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"flowops bench: {commit} does not build:\n{done.stdout[-3000:]}")


def arguments_of(options: argparse.Namespace, out: Path) -> list[str]:
    """The command line of one run, of either side."""
    given = ["--ours-only", "--out", str(out), "--device", str(options.device)]
    given += ["--threads", str(options.threads), "--budget", str(options.budget)]
    given += ["--parts", *(part for part in options.parts if part != "scaling")]
    return given if options.op is None else [*given, "--op", options.op]


def run(tree: Path, options: argparse.Namespace) -> Medians:
    """Run the cases on the package in ``tree``, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.run", *arguments_of(options, out)]
        path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
        # A case that fails on one side is in neither side's ratios.
        subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": path},
            stdout=sys.stderr,
            check=False,
        )
        if not out.exists():
            raise SystemExit(f"flowops bench: no case ran on the package in {tree}")
        return medians_of(json.loads(out.read_text()))


def medians_of(report: dict[str, Any]) -> Medians:
    """Op, case and phase to our median."""
    return {
        (result["op"], result["case"], phase): timings["ours"]["median"]
        for result in report["results"]
        for phase, timings in result.items()
        if phase in PHASES
    }


def ratios(before: Sequence[Medians], after: Sequence[Medians]) -> list[str]:
    """One line a case and phase that both sides have."""

    def typical(runs: Sequence[Medians], key: tuple[str, str, str]) -> float:
        return statistics.median(run[key] for run in runs)

    shared = [key for key in after[0] if all(key in run for run in [*before, *after])]
    return [
        f"{op:26s} {case:46s} {phase:16s} {typical(before, key) / typical(after, key):6.2f}x"
        for key in shared
        for op, case, phase in [key]
    ]
