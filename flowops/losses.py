"""Likelihoods in the unit in which image models are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flowops.distributions import Flow
from flowops.nn.preprocess import dequantize


def bits_per_dim(log_prob: Tensor, dims: int | Sequence[int], levels: int) -> Tensor:
    r"""Return bits per dimension of discrete data from the log-density of dequantised data.

    .. math:: -\frac{\log p_Y(y) - D \log n}{D \log 2}, \qquad y = (v + u) / n

    With one draw of the noise ``u`` its mean is an upper bound of the discrete
    negative log-likelihood.

    Args:
        log_prob: log-density of ``y`` in [0, 1)^D, nats, any shape.
        dims: ``D``, or the event shape whose product it is.
        levels: ``n``, the number of values of a pixel.

    Returns:
        Bits per dimension, shape of ``log_prob``.

    Raises:
        ValueError: if ``levels`` or ``dims`` is below 1.

    >>> bits_per_dim(torch.zeros(1), (1, 28, 28), 256)  # a uniform density costs 8 bits
    tensor([8.])
    """
    size = dims if isinstance(dims, int) else math.prod(dims)
    if size < 1:
        raise ValueError(f"bits_per_dim: dims must be at least 1, got {dims}")
    if levels < 1:
        raise ValueError(f"bits_per_dim: levels must be at least 1, got {levels}")
    return (size * math.log(levels) - log_prob) / (size * math.log(2))


@torch.no_grad()
def importance_weighted_bits_per_dim(
    flow: Flow,
    values: Tensor,
    *,
    levels: int,
    samples: int,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return an upper bound of bits per dimension with several draws of the dequantisation noise.

    .. math:: -\log \frac1K \sum_k p_Y((v + u_k) / n) \; n^{-D}

    It is tighter than :func:`bits_per_dim` of one draw and meets it at K = 1, so a figure from it
    must say K. The flow is put in evaluation mode for the while.

    Args:
        flow: the model.
        values: pixels in ``{0, ..., levels - 1}``, shape ``(B, *event_shape)``.
        levels: ``n``.
        samples: ``K``, at least 1; one pass over the batch each.
        context: ``(B, F)``, for a conditional flow.
        generator: where the noise is drawn from.

    Returns:
        Bits per dimension, shape ``(B,)``.

    Raises:
        ValueError: if ``samples`` is below 1.
    """
    if samples < 1:
        raise ValueError(
            f"importance_weighted_bits_per_dim: samples must be at least 1, got {samples}"
        )
    training = flow.training
    flow.eval()
    try:
        draws = (dequantize(values, levels, generator=generator) for _ in range(samples))
        terms = [flow.log_prob(y.to(flow.device, flow.dtype), context).double() for y in draws]
    finally:
        flow.train(training)
    total = torch.stack(terms).logsumexp(0) - math.log(samples)
    return bits_per_dim(total, flow.event_shape, levels)


def jensen_shannon_loss(joint: Tensor, product: Tensor) -> Tensor:
    r"""Return the loss of a discriminator that tells pairs from unrelated pairs.

    .. math::
        \mathrm{E}_{p(a, b)} \mathrm{softplus}(-T) + \mathrm{E}_{p(a) p(b)} \mathrm{softplus}(T)
        \ge 2 \ln 2 - 2 \mathrm{JSD}(p(a, b), p(a) p(b))

    with equality at :math:`T = \log p(a, b) / p(a) p(b)`. It never exceeds :math:`2 \ln 2` at the
    best T; independent variables reach that. Differentiable in both arguments.

    Args:
        joint: T of pairs that belong together, any shape.
        product: T of pairs that do not, any shape.

    Returns:
        Nats, a 0-dim tensor, float32 or wider.

    Source: Nowozin, Cseke and Tomioka, "f-GAN", 2016, arXiv:1606.00709; Hjelm et al., 2018,
    arXiv:1808.06670, eq. 4.
    """
    wide = torch.promote_types(joint.dtype, torch.float32)
    return softplus(-joint.to(wide)).mean() + softplus(product.to(wide)).mean()
