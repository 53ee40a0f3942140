"""What the machine code of every CUDA kernel holds: widths of its accesses, arithmetic, spills.

usage: sass_report.py LIBRARY ARCHITECTURE [CUOBJDUMP]

LIBRARY holds code for ARCHITECTURE, such as sm_90. Prints a Markdown table with a line for each
kernel template: over its instantiations, the fewest and the most of each kind of instruction.
cuobjdump and nvdisasm come with the CUDA toolkit, or from PyPI (nvidia-cuda-cuobjdump,
nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

from cuda_report import demangle

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)")
_WIDTH = re.compile(r"\.(?:[US]?(8|16|64|128))\b")

#: Columns of the table, and the instructions that each counts.
_KINDS = {
    "products on tensor cores": r"HMMA|IMMA|DMMA",
    "special functions": r"MUFU",
    "shuffles": r"SHFL",
    "barriers": r"BAR",
    "atomics": r"ATOM|RED\b|ATOMG|ATOMS",
    "shared loads, stores": r"LDS|STS|LDSM",
    "local loads, stores": r"LDL|STL",
}


def kernels(sass: str) -> Iterator[tuple[str, Counter[str]]]:
    """The functions of a dump with how often each opcode, modifiers included, stands in it."""
    name, opcodes = "", Counter[str]()
    for line in sass.splitlines():
        if function := _FUNCTION.match(line):
            if name:
                yield name, opcodes
            name, opcodes = function[1], Counter()
        elif instruction := _INSTRUCTION.match(line):
            opcodes[instruction[1]] += 1
    if name:
        yield name, opcodes


def columns(opcodes: Counter[str]) -> dict[str, int]:
    """The numbers of one kernel's line; accesses of global memory by their width in bits."""
    numbers = {"instructions": opcodes.total() - opcodes["NOP"]}
    for kind, mnemonic in (("load", "LDG"), ("store", "STG")):
        for width in (128, 64, 32, 16, 8):
            numbers[f"{kind} {width}"] = sum(
                count
                for opcode, count in opcodes.items()
                if opcode.split(".")[0] == mnemonic and _width(opcode) == width
            )
    for kind, pattern in _KINDS.items():
        numbers[kind] = sum(n for opcode, n in opcodes.items() if re.match(pattern, opcode))
    return numbers


def _width(opcode: str) -> int:
    found = _WIDTH.search(opcode)
    return int(found[1]) if found else 32


def table(sass: str) -> list[str]:
    """Lines of Markdown, a kernel template each."""
    found = list(kernels(sass))
    templates: dict[str, list[dict[str, int]]] = defaultdict(list)
    for name, (_, opcodes) in zip(demangle([name for name, _ in found]), found, strict=True):
        templates[name.split("<")[0]].append(columns(opcodes))
    head = ["kernel", "instantiations", *columns(Counter())]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, rows in sorted(templates.items()):
        ranges = [(min(r[k] for r in rows), max(r[k] for r in rows)) for k in rows[0]]
        cells = [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges]
        lines.append(f"| `{name}` | {len(rows)} | " + " | ".join(cells) + " |")
    return lines


def main(library: str, architecture: str, cuobjdump: str = "cuobjdump") -> int:
    """Prints the table; 1 where the library has no code for the architecture."""
    dump = subprocess.run(
        [cuobjdump, "-sass", "-arch", architecture, library],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = table(dump)
    sys.stdout.write("\n".join(lines) + "\n")
    return int(len(lines) == 2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
