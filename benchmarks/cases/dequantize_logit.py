"""Dequantisation with the logit, and the logit alone, as flows write them in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.case import Case
from flowops import ops

ALPHA = 0.05


def eager_logit(y: Tensor) -> list[Tensor]:
    squeezed = ALPHA + (1 - 2 * ALPHA) * y
    z = torch.log(squeezed) - torch.log1p(-squeezed)
    terms = softplus(z) + softplus(-z) + math.log1p(-2 * ALPHA)
    return [z, terms.flatten(1).sum(1)]


def eager(values: Tensor) -> list[Tensor]:
    return eager_logit((values + torch.rand(values.shape, device=values.device)) / 256)


def case(shape: tuple[int, ...]) -> Case:
    return Case(
        "dequantize_logit", f"{shape} uint8", lambda: [torch.randint(0, 256, shape).byte()], eager,
        lambda values: ops.dequantize_logit(values, 256, alpha=ALPHA),
        torch.Size(shape).numel() * 5, backward=False, first_compared=2,
    )  # fmt: skip


def logit_case(shape: tuple[int, ...]) -> Case:
    return Case(
        "dequantize_logit", f"{shape} float32, logit alone", lambda: [torch.rand(shape)],
        eager_logit, lambda y: ops.logit(y, alpha=ALPHA), torch.Size(shape).numel() * 8,
    )  # fmt: skip


CASES = [
    case((64, 3, 32, 32)),
    case((512, 784)),
    logit_case((64, 3, 32, 32)),
    logit_case((512, 64)),
]
