"""Pure-PyTorch twin of :mod:`flowops.ops.dequantize_logit`: the executable specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .gaussian_rsample import philox_blocks


def rand(size: Sequence[int], *, key: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """See :func:`flowops.ops.rand`."""
    count = math.prod(size)
    if dtype == torch.float64:
        words = philox_blocks(count, 2, key)
        pairs = ((words[0], words[1]), (words[2], words[3]))
        numbers = [((high << 21) | (low >> 11)).double() * 2.0**-53 for low, high in pairs]
    else:
        words = philox_blocks(count, 4, key)
        numbers = [(word >> 8).to(dtype) * 2.0**-24 for word in words]
    return torch.stack(numbers, 1).flatten()[:count].reshape(tuple(size))


def add_noise(values: Tensor, noise: Tensor, levels: int) -> Tensor:
    """Return ``values + noise`` such that rounding never carries a value to the next level.

    The sum is rounded to a grid of spacing up to ``levels * eps / 2``: noise in [0, 1) is kept
    further than that from 1.
    """
    return values + noise.clamp(max=1 - 2 * levels * torch.finfo(noise.dtype).eps)


def logit(
    x: Tensor,
    *,
    alpha: float,
    levels: int = 1,
    logdet: Tensor | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.logit`; with ``key`` :func:`flowops.ops.dequantize_logit`."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    wide = torch.promote_types(dtype, torch.float32)
    t = x.to(wide)
    if key is not None:
        t = add_noise(t, rand(x.shape, key=key, dtype=wide), levels)
    slope = (1 - 2 * alpha) / levels
    lower, upper = torch.log(alpha + slope * t), torch.log(alpha + slope * (levels - t))
    total = (math.log(slope) - lower - upper).flatten(1).sum(1)
    return (lower - upper).to(dtype), total if logdet is None else logdet + total


def dequantize_logit(
    values: Tensor, levels: int, *, alpha: float, logdet: Tensor | None = None, key: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.dequantize_logit`."""
    return logit(values, alpha=alpha, levels=levels, logdet=logdet, key=key)


def logit_inverse(
    z: Tensor, *, alpha: float, levels: int = 1, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.logit_inverse`."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    slope = (1 - 2 * alpha) / levels
    x = (torch.sigmoid(wide) - alpha) / slope
    total = (logsigmoid(wide) + logsigmoid(-wide) - math.log(slope)).flatten(1).sum(1)
    return x.to(z.dtype), total if logdet is None else logdet + total
