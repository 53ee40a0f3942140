"""Checks the rules of the tree that no linter knows; prints each breach and exits 1 if any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
MAX_BYTES = 500_000
TORCH_INCLUDE = re.compile(r"#include\s+<(torch|ATen|c10)/")
FLOORS = (
    "csrc/ops/{op}.h",
    "csrc/ops/{op}.cpp",
    "csrc/autograd/{op}_autograd.cpp",
    "csrc/cpu/{op}_cpu.cpp",
    "csrc/cuda/{op}_cuda.cpp",
    "csrc/cuda/{op}_kernels.cu",
    "csrc/math/{op}.h",
    "flowops/ops/{op}.py",
    "flowops/reference/{op}.py",
    "python_tests/ops/test_{op}.py",
    "benchmarks/cases/{op}.py",
)


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listing.stdout.splitlines()]


def breaches() -> list[str]:
    found = []
    sources = (".py", ".h", ".cuh", ".cpp", ".cu")
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if path.stat().st_size > MAX_BYTES:
            found.append(f"{name}: {path.stat().st_size} bytes, more than {MAX_BYTES}")
        if path.suffix not in sources:
            continue
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            found.append(f"{name}: {text.count(chr(10))} lines, more than {MAX_LINES}")
        torch_free = name.startswith("csrc/math/") or path.suffix == ".cu"
        if torch_free and TORCH_INCLUDE.search(text):
            found.append(f"{name}: includes a torch header")
    for path in sorted((ROOT / "csrc/ops").glob("*.cpp")):
        op = path.stem
        if op == "register":
            continue
        missing = [f.format(op=op) for f in FLOORS if not (ROOT / f.format(op=op)).exists()]
        found += [f"{op}: has no {name}" for name in missing]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    if "## [Unreleased]" not in changelog:
        found.append("CHANGELOG.md: has no Unreleased section")
    return found


if __name__ == "__main__":
    problems = breaches()
    sys.stdout.write("".join(f"{problem}\n" for problem in problems))
    sys.exit(bool(problems))
