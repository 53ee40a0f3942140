"""Random arguments for every op in ``torch.ops.flowops``."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = list[Any]


def shape_of(rng: random.Random, channels: int | None = None, most: int = 5) -> tuple[int, ...]:
    """(batch, channels, *pixels).

    Now and then the batch or a side is empty, or the channels are short rows for several tiles.
    """
    sides = [rng.randint(1, most) for _ in range(rng.randint(0, 3))]
    batch = rng.randint(0, 4)
    if sides and rng.randint(0, 9) == 0:
        sides[0] = 0
    if channels is None:
        many = sides and rng.randint(0, 4) == 0
        channels = rng.randint(100, 150) if many else rng.randint(1, 9)
    return (batch, channels, *sides)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def chance(rng: random.Random) -> bool:
    return rng.random() < 0.5


def actnorm(rng: random.Random) -> Arguments:
    shape = shape_of(rng)
    logdet = normal(shape[0]) if chance(rng) else None
    return [normal(*shape), normal(shape[1]), normal(shape[1]) / 3, logdet, chance(rng)]


def actnorm_backward(rng: random.Random) -> Arguments:
    x, bias, log_scale, _, inverse = actnorm(rng)
    return [torch.randn_like(x), normal(x.size(0)), x, bias, log_scale, inverse]


def actnorm_statistics(rng: random.Random) -> Arguments:
    shape = shape_of(rng)
    return [normal(max(shape[0], 2), *(max(side, 1) for side in shape[1:]))]


def affine_coupling(rng: random.Random, first_scale: int = 0) -> Arguments:
    shape = shape_of(rng)
    moved = rng.randint(1, shape[1])
    start, scale = rng.randint(0, shape[1] - moved), rng.randint(first_scale, 7)
    params = normal(shape[0], moved if scale == 0 else 2 * moved, *shape[2:])
    amplitude = mask = None
    gain, limit, floor = 1.0, math.inf if scale == 7 else 1.0, 0.1 if scale == 7 else 0.0
    if scale in (2, 5, 6):
        gain, limit = rng.choice((0.5, 1.0)), rng.choice((1.0, 2.0))
        amplitude = rng.choice((normal(moved), normal(), None))
    elif scale == 3:
        floor = rng.choice((0.0, 0.01))
    if chance(rng):
        mask = torch.rand(moved, *shape[2:]) < 0.5
    logdet = normal(shape[0]) if chance(rng) else None
    options = [start, scale, rng.randint(0, 1), rng.randint(0, 3), chance(rng), gain, limit, floor]
    return [normal(*shape), params, amplitude, mask, logdet, *options]


def affine_coupling_backward(rng: random.Random) -> Arguments:
    # Additive couplings have no kernel for it.
    x, params, amplitude, mask, _, *options = affine_coupling(rng, first_scale=1)
    return [torch.randn_like(x), normal(x.size(0)), x, params, amplitude, mask, *options]


def key(rng: random.Random) -> Tensor:
    return torch.tensor([rng.getrandbits(62), rng.getrandbits(40)], dtype=torch.int64)


def dequantize_logit(rng: random.Random) -> Arguments:
    shape, inverse, levels = shape_of(rng), chance(rng), rng.choice((1, 17, 256))
    x = normal(*shape) if inverse else torch.rand(shape) * levels
    if not inverse and chance(rng):
        x = torch.randint(0, levels, shape, dtype=torch.uint8)
    noise = None if inverse or chance(rng) else key(rng)
    if noise is not None and x.is_floating_point():
        x = x.floor()
    logdet = normal(shape[0]) if chance(rng) else None
    return [x, noise, logdet, levels, rng.choice((1e-6, 0.05)), inverse]


def dequantize_logit_backward(rng: random.Random) -> Arguments:
    x, noise, _, *options = dequantize_logit(rng)
    x = x.float()
    return [torch.randn_like(x), normal(x.size(0)), x, noise, *options]


def uniform_noise(rng: random.Random) -> Arguments:
    return [key(rng), list(shape_of(rng)), torch.float32]


def gaussian_log_prob(rng: random.Random) -> Arguments:
    shape = shape_of(rng)
    if chance(rng):
        params = normal(shape[0], 2 * shape[1], *shape[2:])
        return [normal(*shape), None, None, params]
    given = [normal(*shape) if chance(rng) else None for _ in range(2)]
    return [normal(*shape), *given, None]


def gaussian_log_prob_backward(rng: random.Random) -> Arguments:
    arguments = gaussian_log_prob(rng)
    wants = [chance(rng) or chance(rng), chance(rng), chance(rng), chance(rng)]
    return [normal(arguments[0].size(0)), *arguments, *wants]


def gaussian_noise(rng: random.Random) -> Arguments:
    return [key(rng), list(shape_of(rng)), torch.float32]


def gaussian_rsample(rng: random.Random) -> Arguments:
    shape, with_kl, residual = shape_of(rng), chance(rng), chance(rng)
    prior = residual or chance(rng)
    form = rng.randint(0, 3)

    def scale() -> Tensor:
        return normal(*shape).abs() + 0.3 if form == 2 else normal(*shape)

    of_prior = [normal(*shape), scale()] if prior else [None, None]
    given, params = [normal(*shape), scale()], None
    if chance(rng):
        given, params = [None, None], torch.cat(given, 1)
    return [*given, key(rng), *of_prior, params, form, residual, with_kl]


def gaussian_rsample_backward(rng: random.Random) -> Arguments:
    arguments = gaussian_rsample(rng)
    mean, params = arguments[0], arguments[5]
    like = params.chunk(2, 1)[0] if mean is None else mean
    return [normal(*like.shape), normal(like.size(0)), *arguments]


def random_key(rng: random.Random) -> Arguments:
    return [normal(rng.randint(0, 3))]


def invertible_conv1x1(rng: random.Random) -> Arguments:
    shape = shape_of(rng)
    bias = normal(shape[1]) if chance(rng) else None
    return [normal(*shape), normal(shape[1], shape[1]), bias]


def invertible_conv1x1_backward(rng: random.Random) -> Arguments:
    x, weight, _ = invertible_conv1x1(rng)
    wants = [chance(rng), chance(rng), chance(rng)]
    wants[rng.randint(0, 2)] = True
    return [torch.randn_like(x), x, weight, *wants]


def matrices(
    rng: random.Random,
) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor], bool]:
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
    weight = [torch.linalg.qr(normal(n, n)).Q + normal(n, n) / (9 * n) for n in sizes]
    folded = chance(rng)
    bias, log_scale = ([normal(n) / 3 for n in sizes if folded] for _ in range(2))
    return sizes, weight, bias, log_scale, chance(rng)


def invertible_conv1x1_full(rng: random.Random) -> Arguments:
    return list(matrices(rng)[1:])


def invertible_conv1x1_full_backward(rng: random.Random) -> Arguments:
    _, weight, bias, log_scale, inverse = matrices(rng)
    result, result_bias, logdet = torch.ops.flowops.invertible_conv1x1_full(
        weight, bias, log_scale, inverse
    )
    grads = [torch.randn_like(t) for t in result], [torch.randn_like(t) for t in result_bias]
    return [*grads, torch.randn_like(logdet), result, weight, bias, log_scale, inverse]


def invertible_conv1x1_lu(rng: random.Random) -> Arguments:
    sizes, _, bias, log_scale, inverse = matrices(rng)
    lower, upper = ([normal(n, n) / (2 + n) for n in sizes] for _ in range(2))
    sign = [torch.randint(0, 2, (n,)).float() * 2 - 1 for n in sizes]
    permutation = [torch.randperm(n) for n in sizes]
    log_s = [normal(n) / 3 for n in sizes]
    return [lower, upper, log_s, sign, permutation, bias, log_scale, inverse]


def invertible_conv1x1_lu_backward(rng: random.Random) -> Arguments:
    arguments = invertible_conv1x1_lu(rng)
    result, bias, logdet = torch.ops.flowops.invertible_conv1x1_lu(*arguments)
    grads = [torch.randn_like(t) for t in result], [torch.randn_like(t) for t in bias]
    return [*grads, torch.randn_like(logdet), result, *arguments]


def linear_attention(rng: random.Random) -> Arguments:
    causal, packed, given = chance(rng), chance(rng), chance(rng)
    batch, heads = 1 if packed else rng.randint(0, 3), rng.randint(1, 3)
    queries, keys = rng.randint(0, 40), rng.randint(0, 40)
    if causal or packed:
        keys = queries
    dim, value_dim = rng.randint(1, 9), rng.randint(1, 9)
    mask = torch.rand(batch, keys) < 0.3 if chance(rng) else None
    cuts = sorted(rng.randint(0, keys) for _ in range(rng.randint(0, 2)))
    offsets = torch.tensor([0, *cuts, keys]) if packed else None
    sequences = len(cuts) + 1 if packed else batch
    state = [normal(sequences, heads, dim, value_dim), normal(sequences, heads, dim).abs()]
    rows = [(queries, dim), (keys, dim), (keys, value_dim)]
    feature_map = rng.randint(0, 3)
    # Of the other maps the sum of weights comes near 0.
    normalize = feature_map in (0, 2) and chance(rng)
    return [*(normal(batch, time, heads, width) for time, width in rows),
            *(state if given else [None, None]), mask, offsets, feature_map, causal, normalize,
            1e-6]  # fmt: skip


def linear_attention_backward(rng: random.Random) -> Arguments:
    arguments = linear_attention(rng)
    out, kv, z, denominator = torch.ops.flowops.linear_attention(*arguments)
    grads = [torch.randn_like(t) if chance(rng) else None for t in (kv, z)]
    given, settings = arguments[:7], arguments[7:]
    return [torch.randn_like(out), *grads, *given, out, kv, z, denominator, *settings]


def logistic_mixture_log_prob(rng: random.Random) -> Arguments:
    shape, levels, components = shape_of(rng), rng.choice((2, 256)), rng.randint(1, 4)
    colours = rng.choice((1, 3))
    x = torch.randint(0, levels, (shape[0], colours, *shape[2:]), dtype=torch.uint8)
    params = normal(shape[0], (10 if colours == 3 else 3) * components, *shape[2:])
    return [x if chance(rng) else x.float(), params, levels, -7.0]


def logistic_mixture_log_prob_backward(rng: random.Random) -> Arguments:
    x, *arguments = logistic_mixture_log_prob(rng)
    return [normal(x.size(0)), x, *arguments]


def mlp(rng: random.Random) -> Arguments:
    residual, width = chance(rng), rng.randint(1, 40)
    hidden = [width if residual else rng.randint(1, 40) for _ in range(rng.randint(0, 4))]
    if residual and len(hidden) % 2 == 0:
        hidden.append(width)
    sizes = [rng.randint(1, 20), *hidden, rng.randint(1, 40)]
    weight = [normal(o, i) / i**0.5 for i, o in itertools.pairwise(sizes)]
    x = normal(rng.choice((0, 1, 5, 200)), sizes[0])
    return [x, weight, [normal(o) for o in sizes[1:]], residual, chance(rng)]


def mlp_backward(rng: random.Random) -> Arguments:
    x, weight, bias, residual, _ = mlp(rng)
    out, hidden = torch.ops.flowops.mlp(x, weight, bias, residual, True)
    return [torch.randn_like(out), x, hidden, weight, residual]


def rational_quadratic_spline(rng: random.Random) -> Arguments:
    shape, tails, elementwise = shape_of(rng), rng.randint(0, 2), chance(rng)
    params = normal(*shape, 3 * rng.randint(1, 33) + tails - 1)
    bounds = None
    if chance(rng):
        low = normal(2, shape[1])
        bounds = torch.stack([low[0], low[0] + 2, low[1], low[1] + 3])
    logdet = normal(*(shape if elementwise else shape[:1])) if chance(rng) else None
    form = [-3.0, 2.0, -2.0, 3.0, 1e-3, 1e-3, 1e-3, 1.0, rng.randint(0, 1) / 1000]
    return [2 * normal(*shape), params, bounds, logdet, form, tails, chance(rng), elementwise,
            chance(rng)]  # fmt: skip


def rational_quadratic_spline_backward(rng: random.Random) -> Arguments:
    x, params, bounds, _, form, tails, exp_slope, elementwise, inverse = rational_quadratic_spline(
        rng
    )
    grad_logdet = normal(*(x.shape if elementwise else x.shape[:1]))
    return [torch.randn_like(x), grad_logdet, x, params, bounds, form, tails, exp_slope, inverse]


def spectral_norm(rng: random.Random) -> Arguments:
    layers = rng.randint(1, 4)
    weight = [normal(rng.randint(1, 9), *shape_of(rng, most=3)[1:]) for _ in range(layers)]
    weight = [w if w.numel() else normal(2, 3) for w in weight]
    u = [torch.nn.functional.normalize(normal(w.size(0)), dim=0) for w in weight]
    v = [torch.nn.functional.normalize(normal(w[0].numel()), dim=0) for w in weight]
    return [weight, u, v, rng.randint(0, 2), 1e-12, 0.9 if chance(rng) else None]


def spectral_norm_backward(rng: random.Random) -> Arguments:
    weight, u, v, _, _, coefficient = spectral_norm(rng)
    sigma = torch.stack(
        [torch.dot(a, w.flatten(1) @ b) for w, a, b in zip(weight, u, v, strict=True)]
    )
    grads = [torch.randn_like(w) for w in weight]
    return [grads, torch.randn_like(sigma), weight, u, v, sigma.abs() + 0.1, coefficient]


SAMPLES: dict[str, Callable[[random.Random], Arguments]] = {
    function.__name__: function
    for function in (
        actnorm, actnorm_backward, actnorm_statistics, affine_coupling, affine_coupling_backward,
        dequantize_logit, dequantize_logit_backward, gaussian_log_prob, gaussian_log_prob_backward,
        gaussian_noise, gaussian_rsample, gaussian_rsample_backward, invertible_conv1x1,
        invertible_conv1x1_backward, invertible_conv1x1_full, invertible_conv1x1_full_backward,
        invertible_conv1x1_lu, invertible_conv1x1_lu_backward, linear_attention,
        linear_attention_backward, logistic_mixture_log_prob, logistic_mixture_log_prob_backward,
        mlp, mlp_backward, random_key,
        rational_quadratic_spline, rational_quadratic_spline_backward, spectral_norm,
        spectral_norm_backward, uniform_noise,
    )
}  # fmt: skip
