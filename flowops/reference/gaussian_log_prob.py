"""Pure-PyTorch twin of :mod:`flowops.ops.gaussian_log_prob`: the executable specification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def gaussian_log_prob(
    x: Tensor,
    mean: Tensor | None = None,
    log_scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
) -> Tensor:
    """See :func:`flowops.ops.gaussian_log_prob`."""
    if params is not None:
        mean, log_scale = params.chunk(2, 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    distance = x.to(wide)
    if mean is not None:
        distance = distance - mean.to(wide)
    terms = torch.zeros_like(distance)
    if log_scale is not None:
        terms = terms + log_scale.to(wide)
        distance = distance * torch.exp(-log_scale.to(wide))
    return -(0.5 * (distance.square() + _LOG_2PI) + terms).flatten(1).sum(1)
