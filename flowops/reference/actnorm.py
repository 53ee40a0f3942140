"""Pure-PyTorch twin of :mod:`flowops.ops.actnorm`: the executable specification."""

from __future__ import annotations

import torch
from torch import Tensor


def actnorm(
    x: Tensor, bias: Tensor, log_scale: Tensor, *, logdet: Tensor | None = None, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.actnorm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (1, -1, *[1] * (x.dim() - 2))
    b, s = bias.to(wide).view(shape), log_scale.to(wide).view(shape)
    z = x.to(wide) * torch.exp(-s) - b if inverse else (x.to(wide) + b) * torch.exp(s)
    total = log_scale.to(wide).sum() * x[0, 0].numel() if x.size(0) else log_scale.to(wide).sum()
    total = (-total if inverse else total).expand(x.size(0))
    return z.to(x.dtype), total.clone() if logdet is None else total + logdet


def actnorm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.actnorm_statistics`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
    mean = wide.mean(1)
    return mean, (wide - mean[:, None]).square().mean(1).sqrt()
