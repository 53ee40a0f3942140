"""Residual and plain networks of linear layers, as the conditioners of flows are written."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.case import Case
from flowops import ops


def layers_of(parameters: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def eager(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """As nflows' ResidualNet, without its dropout and batch normalisation."""
    first, *blocks, last = layers_of(parameters)
    h = linear(x, *first)
    for inner, outer in zip(blocks[::2], blocks[1::2], strict=True):
        h = h + linear(torch.relu(linear(torch.relu(h), *inner)), *outer)
    return [linear(torch.relu(h), *last)]


def ours(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return [ops.mlp(x, parameters[::2], parameters[1::2], residual=True)]


def eager_plain(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    *layers, last = layers_of(parameters)
    for layer in layers:
        x = torch.relu(linear(x, *layer))
    return [linear(x, *last)]


def our_plain(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    return [ops.mlp(x, parameters[::2], parameters[1::2])]


def case(batch: int, sizes: tuple[int, ...], residual: bool) -> Case:
    def inputs() -> list[Tensor]:
        made = [torch.randn(batch, sizes[0])]
        for n_in, n_out in itertools.pairwise(sizes):
            made += [torch.randn(n_out, n_in) / n_in**0.5, torch.randn(n_out) / 2]
        return made

    traffic = 4 * batch * (sizes[0] + sizes[-1])
    flops = 2 * batch * sum(n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
    kind = "residual" if residual else "plain"
    name = f"{batch} rows, {'-'.join(map(str, sizes))} float32, {kind}"
    functions = (eager, ours) if residual else (eager_plain, our_plain)
    return Case("mlp", name, inputs, *functions, traffic, flops=flops)


CASES = [
    case(512, (16, 64, 64, 64, 64, 64, 368), residual=True),
    case(512, (25, 128, 128, 128, 128, 128, 115), residual=True),
    case(4096, (16, 64, 64, 64), residual=False),
    case(64, (32, 256, 256, 64), residual=False),
]
