"""The log-probability of images under a mixture of logistics, as VAEs and PixelCNNs write it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from benchmarks.case import Case
from flowops import ops

_COMPONENTS = 10
_HALF = 1 / 255


def eager(x: Tensor, params: Tensor) -> list[Tensor]:
    batch, colours, *pixels = x.shape
    value = (x.float() * (2 / 255) - 1).unsqueeze(2)
    logits = params[:, :_COMPONENTS].log_softmax(1)
    kinds = params[:, _COMPONENTS:].reshape(batch, colours, -1, _COMPONENTS, *pixels)
    mean, log_scale = kinds[:, :, 0], kinds[:, :, 1].clamp(min=-7.0)
    if colours == 3:
        c = kinds[:, :, 2].tanh()
        green = mean[:, 1] + c[:, 0] * value[:, 0]
        blue = mean[:, 2] + c[:, 1] * value[:, 0] + c[:, 2] * value[:, 1]
        mean = torch.stack([mean[:, 0], green, blue], 1)
    centred, inverse = value - mean, torch.exp(-log_scale)
    above, below, middle = (inverse * (centred + side) for side in (_HALF, -_HALF, 0.0))
    mass = torch.sigmoid(above) - torch.sigmoid(below)
    density = middle - log_scale - 2 * softplus(middle) - math.log(127.5)
    inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    upper = torch.where(value > 0.999, -softplus(below), inner)
    log_prob = torch.where(value < -0.999, logsigmoid(above), upper).sum(1)
    return [torch.logsumexp(logits + log_prob, 1).flatten(1).sum(1)]


def ours(x: Tensor, params: Tensor) -> list[Tensor]:
    return [ops.logistic_mixture_log_prob(x, params)]


def case(shape: tuple[int, ...]) -> Case:
    channels = _COMPONENTS * (10 if shape[1] == 3 else 3)

    def inputs() -> list[Tensor]:
        params = torch.randn(shape[0], channels, *shape[2:])
        return [torch.randint(0, 256, shape, dtype=torch.uint8), params]

    pixels = shape[0] * torch.Size(shape[2:]).numel()
    return Case(
        "logistic_mixture_log_prob", f"{shape} uint8, 10 components", inputs, eager, ours,
        pixels * (shape[1] + 4 * channels),
    )  # fmt: skip


CASES = [case((16, 3, 32, 32)), case((64, 1, 28, 28))]
