"""Pure-PyTorch twin of :mod:`flowops.ops.actnorm`: the executable specification."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def actnorm(
    x: Tensor, bias: Tensor, log_scale: Tensor, *, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.actnorm`."""
    b, s = _per_channel(x, bias), _per_channel(x, log_scale)
    return ((x + b) * torch.exp(s)).to(x.dtype), _logdet(x, log_scale, logdet)


def actnorm_inverse(
    z: Tensor, bias: Tensor, log_scale: Tensor, *, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.actnorm_inverse`."""
    b, s = _per_channel(z, bias), _per_channel(z, log_scale)
    return (z * torch.exp(-s) - b).to(z.dtype), _logdet(z, -log_scale, logdet)


def _per_channel(x: Tensor, parameter: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return parameter.to(wide).view(-1, *[1] * (x.dim() - 2))


def _logdet(x: Tensor, log_scale: Tensor, logdet: Tensor | None) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = log_scale.to(wide).sum() * math.prod(x.shape[2:])
    return total.repeat(x.size(0)) if logdet is None else logdet + total


def actnorm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.actnorm_statistics`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
    mean = wide.mean(1)
    return mean, (wide - mean[:, None]).square().mean(1).sqrt()
