"""Pure-PyTorch twin of :mod:`flowops.ops.rational_quadratic_spline`: the specification."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Bounds = float | tuple[float, float, float, float] | Tensor


def rational_quadratic_spline(
    x: Tensor,
    params: Tensor,
    *,
    tails: str = "linear",
    bounds: Bounds = 3.0,
    slope_map: str = "softplus",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_slope: float = 1e-3,
    beta: float = 1.0,
    soft_clip: float | None = None,
    logdet: Tensor | None = None,
    elementwise: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.rational_quadratic_spline`."""
    return _spline(
        x, params, tails, bounds, slope_map, (min_width, min_height, min_slope, beta), soft_clip,
        logdet, elementwise, False,
    )  # fmt: skip


def rational_quadratic_spline_inverse(
    z: Tensor,
    params: Tensor,
    *,
    tails: str = "linear",
    bounds: Bounds = 3.0,
    slope_map: str = "softplus",
    min_width: float = 1e-3,
    min_height: float = 1e-3,
    min_slope: float = 1e-3,
    beta: float = 1.0,
    soft_clip: float | None = None,
    logdet: Tensor | None = None,
    elementwise: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.rational_quadratic_spline_inverse`."""
    return _spline(
        z, params, tails, bounds, slope_map, (min_width, min_height, min_slope, beta), soft_clip,
        logdet, elementwise, True,
    )  # fmt: skip


def _clipped(raw: Tensor, scale: float) -> Tensor:
    return raw / (1 + (raw * scale).abs())


def _bins(raw: Tensor, least: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return the starts and the sizes of the bins in the unit interval."""
    sizes = least + (1 - least * raw.size(-1)) * _clipped(raw, 2 * scale).softmax(-1)
    return sizes.cumsum(-1) - sizes, sizes


def _slopes(raw: Tensor, tails: str, slope_map: str, least: float, beta: float) -> Tensor:
    if slope_map == "exp":
        slopes = raw.exp()
    else:
        slopes = least + (F.relu(raw * beta) + torch.log1p(torch.exp(-(raw * beta).abs()))) / beta
    if tails == "none":
        return slopes
    return (
        torch.cat([slopes, slopes[..., :1]], -1)
        if tails == "circular"
        else F.pad(slopes, (1, 1), value=1)
    )


def _domain(bounds: Bounds, x: Tensor) -> list[Tensor]:
    if isinstance(bounds, Tensor):
        return list(bounds.to(x.dtype).view(4, -1, *[1] * (x.dim() - 2)))
    if isinstance(bounds, tuple):
        return [x.new_full((1,), bound) for bound in bounds]
    return [x.new_full((1,), bound) for bound in (-bounds, bounds, -bounds, bounds)]


def _spline(
    x_given: Tensor, params: Tensor, tails: str, bounds: Bounds, slope_map: str,
    least: tuple[float, float, float, float], soft_clip: float | None, logdet: Tensor | None,
    elementwise: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(x_given.dtype, torch.float32)
    x, params = x_given.to(wide), params.to(wide)
    extra = ("linear", "circular", "none").index(tails) - 1
    bins = (params.size(-1) - extra) // 3
    scale = 0.0 if soft_clip is None else 1 / abs(math.log(soft_clip))
    x_start, x_size = _bins(params[..., :bins], least[0], scale)
    y_start, y_size = _bins(params[..., bins : 2 * bins], least[1], scale)
    slopes = _slopes(_clipped(params[..., 2 * bins :], scale), tails, slope_map, *least[2:])
    left, right, bottom, top = _domain(bounds, x)
    width, height = right - left, top - bottom
    low, high = (bottom, top) if inverse else (left, right)
    # Not torch.minimum, which halves the gradient at the edge itself.
    inside = torch.where(x < low, low, torch.where(x > high, high, x))
    position = (inside - low) / (high - low)
    starts = y_start if inverse else x_start
    index = ((position.detach()[..., None] >= starts.detach()).sum(-1, keepdim=True) - 1).clamp_min(
        0
    )
    x0, w, y0, h, d0 = (
        values.gather(-1, index)[..., 0] for values in (x_start, x_size, y_start, y_size, slopes)
    )
    d1 = slopes.gather(-1, index + 1)[..., 0]
    s = h * height / (w * width)
    if inverse:
        r = (position - y0) / h
        b = d0 - r * (d0 + d1 - 2 * s)
        a = s - b
        q = b.abs() + (b * b + 4 * a * r * s).clamp_min(0).sqrt()
        t = torch.where(b >= 0, 2 * r * s, q) / torch.where(b >= 0, q, 2 * a)
    else:
        t = (position - x0) / w
    # Exactly 1 at the end of the domain, whose slope goes on beyond it.
    t = torch.where(position >= 1, t + (1 - t).detach(), t)
    u = 1 - t
    over = s + (d0 + d1 - 2 * s) * t * u
    slope = (s / over).square() * (d1 * t * t + 2 * s * t * u + d0 * u * u)
    if inverse:
        z, log_slope = left + width * (x0 + w * t), -slope.log()
        further = (x - inside) / slope
    else:
        z = bottom + height * (y0 + h * (s * t * t + d0 * t * u) / over)
        log_slope, further = slope.log(), (x - inside) * slope
    beyond = inside != x
    if tails == "none":
        z = torch.where(beyond, z + further, z)
    else:
        z, log_slope = torch.where(beyond, x, z), log_slope.masked_fill(beyond, 0)
    total = log_slope if elementwise else log_slope.flatten(1).sum(1)
    return z.to(x_given.dtype), total if logdet is None else logdet + total
