"""Glow's affine coupling, (x + t) sigmoid(s + 2), as PyTorch implementations of Glow write it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case
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
        tolerance=tolerance,
    )  # fmt: skip


def inverse_case(shape: tuple[int, ...]) -> Case:
    name = f"{shape} float32 inverse"
    traffic = 3 * torch.Size(shape).numel() * 4
    return Case(
        "affine_coupling", name, lambda: [torch.randn(shape), torch.randn(shape)], eager_inverse,
        ours_inverse, traffic, backward=False, tolerance=1e-5,
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
