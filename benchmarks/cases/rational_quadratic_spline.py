"""Splines as nflows writes them, but without boolean indexing, which torch.compile refuses."""

from __future__ import annotations

import importlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Function, Rival, Sweep
from flowops import ops

BOUND, LEAST = 3.0, 1e-3


def knots(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the knots of the bins, and their sizes."""
    sizes = LEAST + (1 - LEAST * raw.size(-1)) * F.softmax(raw, -1)
    edges = F.pad(sizes.cumsum(-1), (1, 0)) * 2 * BOUND - BOUND
    edges = torch.cat([edges[..., :-1], torch.full_like(edges[..., :1], BOUND)], -1)
    return edges, edges[..., 1:] - edges[..., :-1]


def pieces(params: Tensor, position: Tensor, inverse: bool) -> list[Tensor]:
    """Return x, width, y, height and both slopes of the bin that holds each element."""
    bins = (params.size(-1) + 1) // 3
    across, widths = knots(params[..., :bins])
    up, heights = knots(params[..., bins : 2 * bins])
    edge = torch.log(torch.expm1(params.new_full((), 1 - LEAST)))
    slopes = torch.cat([edge.expand_as(across[..., :1]), params[..., 2 * bins :]], -1)
    slopes = LEAST + F.softplus(torch.cat([slopes, edge.expand_as(across[..., :1])], -1))
    index = (position[..., None] >= (up if inverse else across)).sum(-1, keepdim=True) - 1
    index = index.clamp(0, bins - 1)
    values = [across, widths, up, heights, slopes, slopes[..., 1:]]
    return [value.gather(-1, index)[..., 0] for value in values]


def log_slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    over = s + (d0 + d1 - 2 * s) * t * (1 - t)
    top = s.pow(2) * (d1 * t.pow(2) + 2 * s * t * (1 - t) + d0 * (1 - t).pow(2))
    return torch.log(top) - 2 * torch.log(over)


def eager(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    inside = (x >= -BOUND) & (x <= BOUND)
    held = torch.where(inside, x, torch.zeros_like(x))
    left, width, bottom, height, d0, d1 = pieces(params, held, False)
    s, t = height / width, (held - left) / width
    over = s + (d0 + d1 - 2 * s) * t * (1 - t)
    z = bottom + height * (s * t.pow(2) + d0 * t * (1 - t)) / over
    logdet = torch.where(inside, log_slope(t, s, d0, d1), torch.zeros_like(x))
    return torch.where(inside, z, x), logdet.sum(1)


def eager_inverse(z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    inside = (z >= -BOUND) & (z <= BOUND)
    held = torch.where(inside, z, torch.zeros_like(z))
    left, width, bottom, height, d0, d1 = pieces(params, held, True)
    s, rise = height / width, held - bottom
    bend = rise * (d0 + d1 - 2 * s)
    a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * rise
    t = 2 * c / (-b - torch.sqrt((b.pow(2) - 4 * a * c).clamp_min(0)))
    logdet = torch.where(inside, -log_slope(t, s, d0, d1), torch.zeros_like(z))
    return torch.where(inside, t * width + left, z), logdet.sum(1)


def thirds(params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return raw widths, heights and derivatives."""
    bins = (params.size(-1) + 1) // 3
    return params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :]


def load_module(path: str, inverse: bool) -> Function:
    """The function of nflows, or normflows' copy of it."""
    spline = importlib.import_module(path).unconstrained_rational_quadratic_spline

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = spline(x, *thirds(params), inverse=inverse, tail_bound=BOUND)
        return z, logdet.sum(1)

    return call


def load_zuko(inverse: bool) -> Function:
    from zuko.transforms import MonotonicRQSTransform

    def call(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        spline = MonotonicRQSTransform(*thirds(params), bound=BOUND)
        z, logdet = (spline.inv if inverse else spline).call_and_ladj(x)
        return z, logdet.sum(1)

    return call


def rivals(inverse: bool) -> tuple[Rival, ...]:
    nflows = "nflows.transforms.splines.rational_quadratic"
    return (
        Rival("nflows", partial(load_module, nflows, inverse)),
        Rival("normflows", partial(load_module, "normflows.utils.splines", inverse)),
        Rival("zuko", partial(load_zuko, inverse), differs="bins and slopes of another form"),
    )


def case(shape: tuple[int, int], bins: int = 8, inverse: bool = False) -> Case:
    traffic = torch.Size(shape).numel() * 4 * (3 * bins + 1)
    name = f"{shape} {bins} bins float32" + (" inverse" if inverse else "")
    ours = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
    return Case(
        "rational_quadratic_spline", name,
        lambda: [torch.randn(shape), 0.3 * torch.randn(*shape, 3 * bins - 1)],
        eager_inverse if inverse else eager, ours, traffic, rivals=rivals(inverse),
        backward=not inverse,
    )  # fmt: skip


CASES = [
    case((4096, 32)),
    case((4096, 32), inverse=True),
    case((256, 32)),
    case((256, 32), inverse=True),
    case((512, 16), bins=16),
    case((512, 16), bins=5),
]

SWEEPS = [
    Sweep(
        "rational_quadratic_spline", "batch", (512, 1024, 2048, 4096, 8192), lambda n: case((n, 32))
    ),
    Sweep("rational_quadratic_spline", "bins", (4, 8, 16, 32), lambda k: case((1024, 32), bins=k)),
]
