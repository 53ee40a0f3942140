"""The log-density of a learned and of the standard Gaussian, as flows write it in PyTorch."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Function, Rival
from flowops import ops

_LOG_2PI = math.log(2 * math.pi)


def eager(x: Tensor, params: Tensor) -> list[Tensor]:
    mean, log_scale = params.chunk(2, 1)
    terms = ((x - mean) * torch.exp(-log_scale)).square() + 2 * log_scale + _LOG_2PI
    return [-0.5 * terms.flatten(1).sum(1)]


def eager_standard(z: Tensor) -> list[Tensor]:
    return [-0.5 * (z.square() + _LOG_2PI).flatten(1).sum(1)]


def load_nflows(shape: tuple[int, ...]) -> Function:
    from nflows.distributions import ConditionalDiagonalNormal, StandardNormal

    learned = ConditionalDiagonalNormal(shape[1:], context_encoder=lambda p: p.flatten(1))
    standard = StandardNormal(shape[1:])
    return lambda x, *params: [(learned if params else standard).log_prob(x, *params)]


def ours(x: Tensor, params: Tensor) -> list[Tensor]:
    return [ops.gaussian_log_prob(x, params=params)]


def rivals(shape: tuple[int, ...]) -> tuple[Rival, ...]:
    return (Rival("nflows", partial(load_nflows, shape)),)


def case(shape: tuple[int, ...]) -> Case:
    def inputs() -> list[Tensor]:
        return [torch.randn(shape), torch.randn(shape[0], 2 * shape[1], *shape[2:]) / 2]

    traffic = 3 * torch.Size(shape).numel() * 4
    return Case(
        "gaussian_log_prob", f"{shape} float32", inputs, eager, ours, traffic, rivals=rivals(shape)
    )


def standard_case(shape: tuple[int, ...]) -> Case:
    return Case(
        "gaussian_log_prob", f"{shape} float32, N(0, I)", lambda: [torch.randn(shape)],
        eager_standard, lambda z: [ops.gaussian_log_prob(z)], torch.Size(shape).numel() * 4,
        rivals=rivals(shape),
    )  # fmt: skip


CASES = [
    case((512, 16)),
    case((64, 24, 8, 8)),
    case((256, 12, 32, 32)),
    standard_case((512, 16)),
    standard_case((256, 3072)),
]
