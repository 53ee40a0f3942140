"""Actnorm on its own, and its data-dependent initialisation, as PyTorch code writes them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.case import Case, Function, Rival
from benchmarks.peers import bare
from flowops import ops


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(1, -1, *[1] * (x.dim() - 2))


def eager(x: Tensor, bias: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    z = (x + per_channel(bias, x)) * torch.exp(per_channel(log_scale, x))
    return z, (torch.sum(log_scale) * (x[0, 0].numel())).expand(x.size(0))


def eager_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


def inputs_of(shape: tuple[int, ...], last: bool) -> list[Tensor]:
    x = torch.randn(shape)
    x = x.to(memory_format=torch.channels_last) if last else x
    return [x, torch.randn(shape[1]) / 10, torch.randn(shape[1]) / 10]


def load_normflows() -> Function:
    from normflows.flows import ActNorm

    norm = bare(ActNorm((1,)), "s", "t")
    norm.data_dep_init_done = torch.tensor(1.0)

    def call(x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        norm.t, norm.s = t, s
        norm.batch_dims = [0, *range(2, x.dim())]
        z, logdet = norm.inverse(x)
        return z, logdet.expand(x.size(0))

    return call


def other_signs(x: Tensor, bias: Tensor, log_scale: Tensor) -> list[Tensor]:
    """As normflows has it, which subtracts its shift and divides by its scale."""
    return [x, -per_channel(bias, x), -per_channel(log_scale, x)]


def load_nflows(channels: int) -> Function:
    from nflows.transforms.normalization import ActNorm

    norm = bare(ActNorm(channels).eval(), "shift", "log_scale")

    def call(x: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        norm.shift, norm.log_scale = shift, log_scale
        return norm(x)

    return call


def scaled_shift(x: Tensor, bias: Tensor, log_scale: Tensor) -> list[Tensor]:
    """As nflows has it, which shifts after it has scaled."""
    return [x, bias * log_scale.exp(), log_scale]


def case(shape: tuple[int, ...], last: bool = False) -> Case:
    name = f"{shape} float32{' channels_last' if last else ''}"
    traffic = 2 * torch.Size(shape).numel() * 4
    rivals = (
        Rival("nflows", partial(load_nflows, shape[1]), adapt=scaled_shift),
        Rival("normflows", load_normflows, adapt=other_signs),
    )
    return Case(
        "actnorm", name, lambda: inputs_of(shape, last), eager, ops.actnorm, traffic, rivals=rivals
    )


def statistics_case(shape: tuple[int, ...]) -> Case:
    traffic = torch.Size(shape).numel() * 4
    return Case(
        "actnorm", f"{shape} float32 statistics", lambda: inputs_of(shape, False)[:1],
        eager_statistics, ops.actnorm_statistics, traffic, backward=False,
    )  # fmt: skip


CASES = [
    case((64, 12, 16, 16)),
    case((64, 48, 8, 8)),
    case((64, 48, 8, 8), last=True),
    case((64, 32, 2, 2)),
    case((4096, 64)),
    case((256, 12, 32, 32)),
    statistics_case((64, 12, 16, 16)),
    statistics_case((256, 12, 32, 32)),
]
