"""Registers and spills of every CUDA kernel, read from the log of a build with `-Xptxas -v`.

usage: cuda_report.py LOG ALLOWED

ALLOWED lists the spills that are known and why, one a line: `KERNEL ARCHITECTURE REASON`, where
KERNEL is a part of the demangled name without spaces and ARCHITECTURE is such as sm_90, or `*`.
The exit status is 1 if any other kernel spills, or if the log names no kernel.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'")
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass
class Kernel:
    """What ptxas said about one kernel on one architecture."""

    name: str
    architecture: str
    registers: int = 0
    spilled: int = 0


def parse(log: str) -> list[Kernel]:
    """The kernels of a build log, in its order; names still mangled."""
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernels.append(Kernel(entry["name"], entry["architecture"]))
        elif kernels and (spill := _SPILL.search(line)):
            kernels[-1].spilled = max(kernels[-1].spilled, *map(int, spill.groups()))
        elif kernels and (registers := _REGISTERS.search(line)):
            kernels[-1].registers = int(registers[1])
    return kernels


def demangle(names: list[str]) -> list[str]:
    """C++ names without arguments, namespaces and spaces, as c++filt gives them."""
    shown = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    plain = (
        re.sub(r"\(anonymous namespace\)::|flowops::|^void ", "", line)
        for line in shown.stdout.splitlines()
    )
    return [re.sub(r"\(.*|\s", "", re.sub(r"\((bool|int)\)", "", line)) for line in plain]


def allowed(kernel: Kernel, rules: list[list[str]]) -> str | None:
    """The reason for which a kernel may spill, or None."""
    for name, architecture, reason in rules:
        if name in kernel.name and architecture in ("*", kernel.architecture):
            return reason
    return None


def main(log: str, allowed_list: str) -> int:
    """Prints the table; returns the exit status."""
    kernels = parse(Path(log).read_text())
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        kernel.name = name
    lines = Path(allowed_list).read_text().splitlines()
    rules = [line.split(maxsplit=2) for line in lines if line.strip() and not line.startswith("#")]
    table = [f"{'registers':>9} {'spilled':>8}  architecture  kernel"]
    unexplained = 0
    for kernel in sorted(kernels, key=lambda k: (k.name, k.architecture)):
        row = f"{kernel.registers:9} {kernel.spilled:8}  {kernel.architecture:12}  {kernel.name}"
        if kernel.spilled:
            reason = allowed(kernel, rules)
            unexplained += reason is None
            row += f"  [{reason or 'UNEXPLAINED SPILL'}]"
        table.append(row)
    table.append(f"{len(kernels)} kernels, {unexplained} with an unexplained spill")
    sys.stdout.write("\n".join(table) + "\n")
    return int(unexplained > 0 or not kernels)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
