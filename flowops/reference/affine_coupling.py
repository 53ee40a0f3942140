"""Pure-PyTorch twin of :mod:`flowops.ops.affine_coupling`: the executable specification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def split_params(params: Tensor, scale: str, layout: str) -> tuple[Tensor | None, Tensor]:
    """Return ``(raw_scale, shift)``; ``raw_scale`` is None for an additive coupling."""
    if scale == "additive":
        return None, params
    if layout.endswith("_interleaved"):
        first, second = params[:, 0::2], params[:, 1::2]
    else:
        first, second = params.chunk(2, dim=1)
    return (first, second) if layout.startswith("scale") else (second, first)


def log_scale_of(raw: Tensor, scale: str, amplitude: Tensor | None) -> Tensor:
    """Map the conditioner's raw output to the log of the scale."""
    if scale == "exp":
        return raw
    if scale == "sigmoid":
        return logsigmoid(raw + 2)
    if amplitude is None:
        raise ValueError("affine_coupling: amplitude must be given with scale tanh_exp, got None")
    if amplitude.dim() == 1:
        amplitude = amplitude.view(-1, *[1] * (raw.dim() - 2))
    return amplitude * torch.tanh(raw)


def affine_coupling(
    x: Tensor,
    params: Tensor,
    *,
    scale: str = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.affine_coupling`."""
    return _transform(x, params, scale, order, layout, amplitude, start, mask, logdet, False)


def affine_coupling_inverse(
    z: Tensor,
    params: Tensor,
    *,
    scale: str = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.affine_coupling_inverse`."""
    return _transform(z, params, scale, order, layout, amplitude, start, mask, logdet, True)


def _transform(
    x: Tensor,
    params: Tensor,
    scale: str,
    order: str,
    layout: str,
    amplitude: Tensor | None,
    start: int,
    mask: Tensor | None,
    logdet: Tensor | None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    raw, shift = split_params(params.to(wide), scale, layout)
    moved = x.to(wide).narrow(1, start, shift.size(1))
    log_scale = torch.zeros_like(moved) if raw is None else log_scale_of(raw, scale, amplitude)
    log_scale = log_scale.expand_as(moved)
    if (order == "scale_then_shift") != inverse:
        shift_in, shift_out = 0.0, shift
    else:
        shift_in, shift_out = shift, 0.0
    if inverse:
        shift_in, shift_out, log_scale = -shift_in, -shift_out, -log_scale
    z = (moved + shift_in) * torch.exp(log_scale) + shift_out
    if mask is not None:
        z = torch.where(mask, moved, z)
        log_scale = torch.where(mask, 0.0, log_scale)
    total = log_scale.flatten(1).sum(1)
    if logdet is not None:
        total = total + logdet
    z = z.to(x.dtype)
    if z.size(1) != x.size(1):
        end = start + shift.size(1)
        z = torch.cat([x[:, :start], z, x[:, end:]], dim=1)
    return z, total
