"""What has run on a GPU: a record of tests and timings, tied to the sources by their SHA-256.

``python -m benchmarks.record write --out FILE --ptxas LOG --timings FILE [JUNIT ...]``
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


def ops(root: Path = ROOT) -> list[str]:
    """The stems of all ops with CUDA kernels."""
    return sorted(p.name.removesuffix("_cuda.cpp") for p in root.glob("csrc/cuda/*_cuda.cpp"))


def hashes(root: Path = ROOT) -> dict[str, str]:
    """Path to SHA-256 of every source that a CUDA kernel is made from."""
    patterns = ("csrc/cuda/*", "csrc/math/*", "csrc/common/*")
    paths = sorted(path for pattern in patterns for path in root.glob(pattern))
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


def passed(junit: Iterable[Path], stems: Sequence[str]) -> dict[str, bool]:
    """Whether each op's tests, those of the files named after it, ran and none failed."""
    outcome: dict[str, list[bool]] = {op: [] for op in stems}
    for path in junit:
        for case in ElementTree.parse(path).iter("testcase"):
            name = case.get("classname", "").split(".")[-1].removeprefix("test_")
            op = max((s for s in stems if name.startswith(s)), key=len, default=None)
            if op is not None and case.find("skipped") is None:
                outcome[op].append(case.find("failure") is None and case.find("error") is None)
    return {op: bool(results) and all(results) for op, results in outcome.items()}


def write(out: Path, ptxas: Path, timings: Path, junit: Sequence[Path]) -> None:
    """Write the record of one run of ``gpu_check.sh``."""
    report = json.loads(timings.read_text())
    record = {
        "environment": report["environment"],
        "passed": passed(junit, ops()),
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
    writer.add_argument("junit", type=Path, nargs="+", help="results of pytest --junitxml")
    options = parser.parse_args(arguments)
    if options.verb == "write":
        write(options.out, options.ptxas, options.timings, options.junit)
    names = ", ".join(unverified()) or "none"
    sys.stdout.write(f"not verified on a GPU: {names}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
