"""`flowops bench`: the benchmarks of the source tree that this package is imported from."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import flowops
from flowops.cli.errors import CommandError


def bench(arguments: Sequence[str]) -> int:
    """Run ``python -m benchmarks.run`` with ``arguments``; returns its exit code.

    Raises:
        CommandError: The package is installed without its source tree, which has the benchmarks.
    """
    root = Path(flowops.__file__).resolve().parents[1]
    if not (root / "benchmarks/run.py").exists():
        raise CommandError(
            "bench needs the benchmarks, which are in the source tree alone; get it and "
            "`pip install -e .` there"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.run").main(arguments)
