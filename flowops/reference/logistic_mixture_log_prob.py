"""Twin of :mod:`flowops.ops.logistic_mixture_log_prob` in PyTorch: the executable specification."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

#: Channels of the parameters that one component has, by the number of colours.
CHANNELS_OF_COMPONENT = {1: 3, 3: 10}


def logistic_mixture_log_prob(
    x: Tensor, params: Tensor, *, levels: int = 256, min_log_scale: float = -7.0
) -> Tensor:
    """See :func:`flowops.ops.logistic_mixture_log_prob`."""
    wide = torch.promote_types(params.dtype, torch.float32)
    colours, components = x.size(1), params.size(1) // CHANNELS_OF_COMPONENT[x.size(1)]
    x, params = x.detach().to(wide)[..., None].flatten(2), params.to(wide)[..., None].flatten(2)
    x = x.unsqueeze(2)
    value, half = 2 * x / (levels - 1) - 1, 1 / (levels - 1)
    logits = params[:, :components]
    kinds = params[:, components:].unflatten(1, (colours, -1, components))
    mean, log_scale = kinds[:, :, 0], kinds[:, :, 1].clamp(min=min_log_scale)
    if colours == 3:
        (q0, q1, q2), (red, green, _) = kinds[:, :, 2].tanh().unbind(1), value.unbind(1)
        mean = mean + torch.stack([torch.zeros_like(q0), q0 * red, q1 * red + q2 * green], 1)
    inverse = torch.exp(-log_scale)
    zero = torch.zeros_like(mean)
    upper = torch.where(x < levels - 1, logsigmoid(inverse * (value - mean + half)), zero)
    lower = torch.where(x > 0, logsigmoid(-inverse * (value - mean - half)), zero)
    # log(1 - exp(-w)), w = 2 half inverse, which may underflow.
    w = (2 * half * inverse).clamp(min=1e-30)
    width = math.log(2 * half) - log_scale + torch.log(-torch.expm1(-w) / w)
    mass = upper + lower + torch.where((x > 0) & (x < levels - 1), width, zero)
    joint = torch.logsumexp(logits + mass.sum(1), 1)
    return (joint - torch.logsumexp(logits, 1)).sum(1)
