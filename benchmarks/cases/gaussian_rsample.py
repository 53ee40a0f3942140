"""Reparameterised sampling with its KL divergence, and normal numbers, as PyTorch draws them."""

from __future__ import annotations

import torch
from torch import Tensor

import flowops
from benchmarks.case import Case
from flowops import ops


def eager(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    z = mean + std * torch.randn_like(std)
    kl = -0.5 * torch.sum((1 + logvar - mean.square() - logvar.exp()).flatten(1), 1)
    return z, kl


def case(shape: tuple[int, ...]) -> Case:
    traffic = 3 * torch.Size(shape).numel() * 4
    return Case(
        "gaussian_rsample", f"{shape} float32, with KL", lambda: list(torch.randn(2, *shape)),
        eager, ops.gaussian_rsample_kl, traffic, first_compared=1,
    )  # fmt: skip


def params_case(shape: tuple[int, ...]) -> Case:
    batch, channels, *pixels = shape
    traffic = 3 * torch.Size(shape).numel() * 4
    return Case(
        "gaussian_rsample", f"{shape} float32, with KL, from a net's output",
        lambda: [torch.randn(batch, 2 * channels, *pixels)],
        lambda params: eager(*params.chunk(2, 1)),
        lambda params: ops.gaussian_rsample_kl(params=params), traffic, first_compared=1,
    )  # fmt: skip


def noise_case(shape: tuple[int, ...]) -> Case:
    return Case(
        "gaussian_rsample", f"{shape} float32, noise alone", lambda: [torch.zeros(shape)],
        lambda like: [torch.randn_like(like)],
        lambda like: [flowops.randn(shape, device=like.device)],
        torch.Size(shape).numel() * 4, backward=False, first_compared=1,
    )  # fmt: skip


CASES = [
    case((128, 64)),
    case((512, 512)),
    case((64, 128, 16, 16)),
    params_case((64, 128, 16, 16)),
    noise_case((512, 512)),
]
