"""Rational-quadratic splines as PyTorch code writes them: our own copy-free eager version."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case
from flowops import ops, reference


def inputs_of(shape: tuple[int, ...], bins: int) -> list[Tensor]:
    return [torch.randn(shape), torch.randn(*shape, 3 * bins - 1)]


def case(shape: tuple[int, ...], bins: int = 8) -> Case:
    traffic = torch.Size(shape).numel() * 4 * (3 * bins + 1)
    return Case(
        "rational_quadratic_spline", f"{shape} {bins} bins float32",
        lambda: inputs_of(shape, bins), reference.rational_quadratic_spline,
        ops.rational_quadratic_spline, traffic,
    )  # fmt: skip


CASES = [case((4096, 32)), case((256, 32)), case((512, 16)), case((64, 6, 16, 16), 4)]
