"""The splines of FrEIA's ``RationalQuadraticSpline`` blocks, from the output of their networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flowops import ops

__all__ = ["rational_quadratic_spline"]

_NAME = "freia.rational_quadratic_spline"
# What softplus maps to 1.
_ONE = math.log(math.e - 1)


def rational_quadratic_spline(
    x: Tensor,
    parameters: Tensor,
    *,
    bins: int = 10,
    min_bin_sizes: tuple[float, float] = (0.1, 0.1),
    default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
    identity_tails: bool = False,
    domain_clamping: float | None = None,
    rev: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Monotonic splines whose domain is learned, element by element.

    Sizes of bins are :math:`m + \operatorname{softplus}(r + c)`, with c such that zeros give the
    default domain; its lower ends are parameters too, and outside of it the map goes on along the
    line through its corners. With ``identity_tails`` both sides share one centred domain, bins are
    a softmax of it, and the map is the identity outside.

    Shapes:
        ``x``: (B, C, \*S). ``parameters``: (B, C P, \*S), channel by channel, P being 3 K + 1, or
        3 K with ``identity_tails``: K widths, K heights, then bottom and left, or the total width,
        then K - 1 slopes.

    Args:
        x: Data, or with ``rev`` noise.
        parameters: What the block's network gives.
        bins: K.
        min_bin_sizes: Least width and height of a bin; not with ``identity_tails``.
        default_domain: Left, right, bottom, top.
        identity_tails: See above.
        domain_clamping: c, which bounds a domain's size s as :math:`c \tanh(s / c)`.
        rev: Whether to invert.

    Returns:
        The map of ``x``, in its dtype, and the log-determinant of the direction evaluated, nats,
        (B,), float32 or wider.

    Raises:
        ValueError: If ``parameters`` have another shape, or the bins do not fit the domain.

    Numerics:
        On the unit square the spline is that of :func:`flowops.ops.rational_quadratic_spline` with
        linear tails; shift and scale of the domain are composed ops around its kernel.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """
    count = 3 * bins + (not identity_tails)
    expected = (x.size(0), x.size(1) * count, *x.shape[2:])
    if parameters.shape != expected:
        raise ValueError(
            f"{_NAME}: parameters must have shape {list(expected)}, got {list(parameters.shape)}"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    raw = parameters.to(wide).unflatten(1, (x.size(1), count)).movedim(2, -1)
    if identity_tails:
        widths, heights, total, slopes = raw.split([bins, bins, 1, bins - 1], -1)
        size = (default_domain[1] - default_domain[0]) * softplus(total[..., 0] + _ONE)
        width = height = _clamp(size, domain_clamping)
        left = bottom = -width / 2
    else:
        widths, heights, bottom, left, slopes = raw.split([bins, bins, 1, 1, bins - 1], -1)
        start, end, low, high = default_domain
        widths, left, width = _sizes(
            widths, left[..., 0] + start, end - start, min_bin_sizes[0], domain_clamping
        )
        heights, bottom, height = _sizes(
            heights, bottom[..., 0] + low, high - low, min_bin_sizes[1], domain_clamping
        )
    rate = torch.log(height) - torch.log(width)
    unit = torch.cat([widths, heights, _log_softplus(slopes + _ONE) - rate[..., None]], -1)
    source, target = ((left, width), (bottom, height))[:: -1 if rev else 1]
    op = ops.rational_quadratic_spline_inverse if rev else ops.rational_quadratic_spline
    out, logdet = op(
        (x.to(wide) - source[0]) / source[1],
        unit,
        bounds=(0.0, 1.0, 0.0, 1.0),
        slope_map="exp",
        min_width=0.0,
        min_height=0.0,
        logdet=(-rate if rev else rate).flatten(1).sum(1),
    )
    return torch.addcmul(target[0], out, target[1]).to(x.dtype), logdet


def _sizes(
    raw: Tensor, start: Tensor, domain: float, least: float, clamping: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logs of bins, where they start, and their sum."""
    spare = domain / raw.size(-1) - least
    if spare <= 0:
        raise ValueError(
            f"{_NAME}: min_bin_sizes must be below {domain / raw.size(-1):g}, so that "
            f"{raw.size(-1)} bins fit a domain of {domain:g}, got {least:g}"
        )
    sizes = least + softplus(raw + math.log(math.expm1(spare)))
    total = sizes.sum(-1)
    bounded = _clamp(total, clamping)
    return torch.log(sizes), start * (bounded / total), bounded


def _clamp(size: Tensor, bound: float | None) -> Tensor:
    return size if bound is None else bound * torch.tanh(size / bound)


def _log_softplus(x: Tensor) -> Tensor:
    """Return log(softplus(x)), which is x to rounding where softplus would vanish."""
    return torch.where(x > -20, torch.log(softplus(x.clamp_min(-20))), x)
