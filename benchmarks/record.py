"""What has run on a GPU: a record of tests and timings, tied to the sources by their SHA-256.

``python -m benchmarks.record write --out FILE --ptxas LOG --timings FILE --sanitizer DIR JUNIT``
``python -m benchmarks.record show``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = "benchmarks/results/gpu-*.json"
SOURCES = ("csrc/cuda/*", "csrc/math/*", "csrc/ops/*.h", "csrc/common/*")
CPU_ONLY = ("csrc/common/vec*", "csrc/common/python_module.cpp")
# Exit codes of a run under compute-sanitizer that say nothing against an op.
CLEAN, NO_SUCH_TEST, OUT_OF_TIME = 0, 5, 124


def ops(root: Path = ROOT) -> list[str]:
    """The stems of all ops with CUDA kernels."""
    return sorted(p.name.removesuffix("_cuda.cpp") for p in root.glob("csrc/cuda/*_cuda.cpp"))


def hashes(root: Path = ROOT) -> dict[str, str]:
    """Path to SHA-256 of every source that a CUDA kernel is made from."""
    cpu_only = {path for pattern in CPU_ONLY for path in root.glob(pattern)}
    paths = sorted({path for pattern in SOURCES for path in root.glob(pattern)} - cpu_only)
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def sources_of(op: str, paths: Iterable[str], stems: Sequence[str]) -> list[str]:
    """The paths that ``op`` is made from: its own files, and those that belong to no op."""

    def owner(path: str) -> str | None:
        name = Path(path).name
        return max((s for s in stems if name.startswith((s + ".", s + "_"))), key=len, default=None)

    return [path for path in paths if owner(path) in (None, op)]


def unverified(root: Path = ROOT) -> list[str]:
    """The ops of which no committed record says that these very sources passed on a GPU."""
    stems, now = ops(root), hashes(root)
    records = [json.loads(path.read_text()) for path in sorted(root.glob(RECORDS))]

    def holds(record: dict[str, Any], op: str) -> bool:
        then = record["sources"]
        same = all(then.get(path) == now[path] for path in sources_of(op, now, stems))
        return same and record["passed"].get(op, False)

    return [op for op in stems if not any(holds(record, op) for record in records)]


def op_of_test(name: str, stems: Sequence[str]) -> str | None:
    """The op that a test file is named after."""
    name = name.removeprefix("test_")
    return max((s for s in stems if name.startswith(s)), key=len, default=None)


def sanitizer_exits(folder: Path) -> dict[str, int]:
    """Test file and tool to the exit code of its run: 9 where compute-sanitizer found something."""
    return {path.stem: int(path.read_text()) for path in sorted(folder.glob("*.exit"))}


def passed(junit: Iterable[Path], exits: dict[str, int], stems: Sequence[str]) -> dict[str, bool]:
    """Whether each op's tests ran, none failed, and compute-sanitizer found nothing."""
    outcome: dict[str, list[bool]] = {op: [] for op in stems}
    for path in junit:
        for case in ElementTree.parse(path).iter("testcase"):
            op = op_of_test(case.get("classname", "").split(".")[-1], stems)
            if op is not None and case.find("skipped") is None:
                outcome[op].append(case.find("failure") is None and case.find("error") is None)
    found = {
        op_of_test(name, stems)
        for name, code in exits.items()
        if code not in (CLEAN, NO_SUCH_TEST, OUT_OF_TIME)
    }
    return {
        op: bool(results) and all(results) and op not in found for op, results in outcome.items()
    }


def write(out: Path, ptxas: Path, timings: Path, sanitizer: Path, junit: Sequence[Path]) -> None:
    """Write the record of one run of ``gpu_check.sh``."""
    report = json.loads(timings.read_text())
    exits = sanitizer_exits(sanitizer)
    record = {
        "environment": report["environment"],
        "passed": passed(junit, exits, ops()),
        "sanitizer": exits,
        "sources": hashes(),
        "kernels": ptxas.read_text().splitlines(),
        "results": report["results"],
    }
    out.write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("show", help="list the ops that are not verified on a GPU")
    writer = verbs.add_parser("write", help="make a record")
    writer.add_argument("--out", type=Path, required=True)
    writer.add_argument("--ptxas", type=Path, required=True, help="table of .ci/cuda_report.py")
    writer.add_argument("--timings", type=Path, required=True, help="JSON of benchmarks.run")
    writer.add_argument("--sanitizer", type=Path, required=True, help="folder of *.exit files")
    writer.add_argument("junit", type=Path, nargs="+", help="results of pytest --junitxml")
    options = parser.parse_args(arguments)
    if options.verb == "write":
        write(options.out, options.ptxas, options.timings, options.sanitizer, options.junit)
    names = ", ".join(unverified()) or "none"
    sys.stdout.write(f"not verified on a GPU: {names}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
