"""Glow's affine coupling, (x + t) sigmoid(s + 2), as PyTorch implementations of Glow write it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Function, Rival, Sweep
from flowops import ops


def eager(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    kept, moved = x.chunk(2, 1)
    log_s, t = params.chunk(2, 1)
    s = torch.sigmoid(log_s + 2)
    z = torch.cat([kept, (moved + t) * s], 1)
    return z, torch.sum(torch.log(s).flatten(1), 1)


def eager_inverse(z: Tensor, params: Tensor) -> tuple[Tensor]:
    kept, moved = z.chunk(2, 1)
    log_s, t = params.chunk(2, 1)
    return (torch.cat([kept, moved / torch.sigmoid(log_s + 2) - t], 1),)


def ours(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    return ops.affine_coupling(
        x, params, scale="sigmoid", order="shift_then_scale", start=x.size(1) // 2
    )


def ours_inverse(z: Tensor, params: Tensor) -> tuple[Tensor]:
    x, _ = ops.affine_coupling_inverse(
        z, params, scale="sigmoid", order="shift_then_scale", start=z.size(1) // 2
    )
    return (x,)


class Given(nn.Module):
    """Stands for the network of a package's layer: gives the parameters of the case."""

    params: Tensor

    def forward(self, *seen: Any) -> Tensor:
        return self.params


def load_normflows(inverse: bool) -> Function:
    from normflows.flows import AffineCoupling

    given = Given()
    layer = AffineCoupling(given, scale_map="sigmoid")

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        given.params = params
        halves, logdet = (layer.forward if inverse else layer.inverse)(list(x.chunk(2, 1)))
        z = torch.cat(halves, 1)
        return (z,) if inverse else (z, logdet)

    return call


def interleaved(x: Tensor, params: Tensor) -> list[Tensor]:
    """As normflows has it: shift and scale of each channel in turn, the shift subtracted."""
    log_s, t = params.chunk(2, 1)
    return [x, torch.stack([-t, log_s], 2).flatten(1, 2)]


def load_nflows(shape: tuple[int, ...], inverse: bool) -> Function:
    from nflows.transforms import AffineCouplingTransform

    given = Given()
    mask = torch.arange(shape[1]) >= shape[1] // 2
    layer = AffineCouplingTransform(mask, lambda n_in, n_out: given)

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        given.params = params
        z, logdet = (layer.inverse if inverse else layer.forward)(x)
        return (z,) if inverse else (z, logdet)

    return call


def load_freia(shape: tuple[int, ...], inverse: bool) -> Function:
    from FrEIA.modules import AffineCouplingOneSided

    given = Given()
    layer = AffineCouplingOneSided([shape[1:]], subnet_constructor=lambda n_in, n_out: given)

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, ...]:
        given.params = params
        (z,), logdet = layer([x], rev=inverse)
        return (z,) if inverse else (z, logdet)

    return call


def rivals(shape: tuple[int, ...], inverse: bool) -> tuple[Rival, ...]:
    """Couplings of the same work; two of them have another scale."""
    return (
        Rival("nflows", partial(load_nflows, shape, inverse), differs="scale has 0.001 added"),
        Rival("normflows", partial(load_normflows, inverse), adapt=interleaved),
        Rival(
            "FrEIA", partial(load_freia, shape, inverse), differs="scale is exp of an arc tangent"
        ),
    )


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, last: bool = False) -> Case:
    def inputs() -> list[Tensor]:
        tensors = [torch.randn(shape).to(dtype) for _ in range(2)]
        return [t.to(memory_format=torch.channels_last) for t in tensors] if last else tensors

    elements = torch.Size(shape).numel()
    layout = " channels_last" if last else ""
    name = f"{tuple(shape)} {str(dtype).removeprefix('torch.')}{layout}"
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    return Case(
        "affine_coupling", name, inputs, eager, ours, 3 * elements * dtype.itemsize,
        rivals=rivals(shape, inverse=False), tolerance=tolerance,
    )  # fmt: skip


def inverse_case(shape: tuple[int, ...]) -> Case:
    name = f"{shape} float32 inverse"
    traffic = 3 * torch.Size(shape).numel() * 4
    return Case(
        "affine_coupling", name, lambda: [torch.randn(shape), torch.randn(shape)], eager_inverse,
        ours_inverse, traffic, rivals=rivals(shape, inverse=True), backward=False, tolerance=1e-5,
    )  # fmt: skip


CASES = [
    case((64, 16)),
    case((4096, 64)),
    case((64, 12, 16, 16)),
    case((64, 48, 8, 8)),
    case((256, 12, 32, 32)),
    case((64, 48, 8, 8), last=True),
    case((64, 12, 16, 16), torch.bfloat16),
    case((4096, 64), torch.bfloat16),
    inverse_case((64, 12, 16, 16)),
]

SWEEPS = [
    Sweep("affine_coupling", "batch", (64, 128, 256, 512), lambda n: case((n, 12, 16, 16))),
]
