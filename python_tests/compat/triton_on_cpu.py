"""Triton's kernels on the CPU, by its interpreter, as far as fla's need it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: Triton reads the variable where a kernel is defined, so that no fixture can set it in time.
needs_triton = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED,
    reason="fla's kernels need a GPU, or TRITON_INTERPRET=1 in the environment",
)

# Their loops call a method of the index, which is a tensor where compiled and an int here.
_LOOPS = ("common.chunk_h", "common.chunk_o", "common.fused_chunk", "utils.cumsum")


class _Index(int):
    def to(self, dtype: object) -> int:
        return self


def _indices(*bounds: Any) -> Iterator[_Index]:
    return (_Index(i) for i in range(*bounds))


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Let fla's kernels run interpreted, where they are to be."""
    if DEVICE == "cuda" or not INTERPRETED:
        return
    from triton.runtime.autotuner import Autotuner

    # There is no driver to time configurations by: the first will do.
    patch.setattr(Autotuner, "prune_configs", lambda tuner, options: tuner.configs[:1])
    for name in _LOOPS:
        patch.setattr(import_module(f"fla.ops.{name}"), "range", _indices, raising=False)
