"""Monotonic rational-quadratic splines, element by element, from raw parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import (
    accumulation_dtype,
    empty_like_layout,
    index_of,
    transforms_active,
    typed_call,
)

_NAME = "rational_quadratic_spline"
_kernel = typed_call("rational_quadratic_spline")
_TAILS = ("linear", "circular", "none")
_SLOPE_MAPS = ("softplus", "exp")
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
    r"""Map each element of ``x`` by a monotonic spline of K rational-quadratic pieces.

    In bin k, of width w, height h and slopes :math:`d_k, d_{k+1}` at its ends,

    .. math::
        z = y_k + h\, \frac{s t^2 + d_k t u}{s + (d_k + d_{k+1} - 2 s)\, t u}, \qquad
        t = \frac{x - x_k}{w},\; u = 1 - t,\; s = \frac{h}{w}.

    Bins are ``min + (1 - K min) softmax(raw)`` of the domain; slopes are
    ``min_slope + softplus(raw, beta)`` or ``exp(raw)``. The defaults are those of nflows and
    normflows; ``slope_map="exp"`` with minima of 0 and ``soft_clip=1e-3`` is zuko's form.

    Shapes:
        ``x``: (B, C, \*S) with any number of pixel dimensions, none included. ``params``:
        (B, C, \*S, P) with any strides: the output h (B, P C, \*S) of a convolution whose channels
        hold parameter after parameter enters without a copy as
        ``h.unflatten(1, (P, C)).movedim(1, -1)``. P is 3K - 1, 3K or 3K + 1 with linear, circular
        and no tails: K logits of widths, K of heights, then slopes.

    Args:
        x: Data, float64, float32, float16 or bfloat16.
        params: Raw parameters, dtype of ``x``.
        tails: "linear" and "circular": the identity outside of the domain, with slopes of 1 at its
            ends, or slopes that are the same at both. "none": the slopes at the ends are parameters
            and go on outside, so that the map stays invertible and its gradients finite.
        bounds: The domain: B for [-B, B] on both sides, or (left, right, bottom, top), or a tensor
            (4, C) of them for each channel, which gets no gradient. Linear and circular tails need
            the same interval on both sides.
        slope_map: "softplus" or "exp".
        min_width: Least width of a bin, as a share of the domain.
        min_height: Least height of a bin, as a share of the domain.
        min_slope: Least slope at a knot, with "softplus".
        beta: Of the softplus; log(2) / (1 - min_slope) makes raw zeros the identity.
        soft_clip: Bounds raw slopes r smoothly, as r / (1 + abs(r / log(soft_clip))), and logits of
            bins with twice the rate; None leaves them.
        logdet: Added to the result: shape (B,), or like ``x`` with ``elementwise``, in the
            accumulation type: float64 for float64, else float32.
        elementwise: Return the log-derivative of every element instead of their sum over a sample.

    Returns:
        z like ``x``, and log|det dz/dx| in nats, shape (B,) or like ``x``, in the accumulation
        type.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        No branch, copy to the host or assertion depends on the data; NaN gives NaN. Arithmetic in
        float32 for the 16-bit types. The sum over a sample is taken in float64 in a fixed order,
        whatever the number of threads. Differentiable twice, the second time through composed
        ops. Under autocast the op runs in float32. ``torch.func`` transforms and forward-mode AD
        take :func:`flowops.reference.rational_quadratic_spline`.

    Cost:
        One pass: reads x and params once, O(K) operations an element. The backward pass keeps
        both.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032,
        equations 4 to 8.

    Example:
        >>> z, logdet = rational_quadratic_spline(torch.tensor([[0.5, 4.0]]), torch.zeros(1, 2, 23))
        >>> z.shape, logdet.shape
        (torch.Size([1, 2]), torch.Size([1]))
    """
    form = _form(tails, bounds, slope_map, min_width, min_height, min_slope, beta, soft_clip)
    return _run(x, params, tails, bounds, slope_map, form, soft_clip, logdet, elementwise, False)


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
    """Undo :func:`rational_quadratic_spline`, which has the arguments.

    Returns:
        x like ``z``, and log|det dx/dz| in nats, shape (B,) or like ``z``.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        The quadratic's root is taken in the form that adds terms of one sign, and its discriminant
        cannot become negative by rounding.

    Example:
        >>> x, params = torch.tensor([[0.5]]), torch.randn(1, 1, 23)
        >>> z, logdet = rational_quadratic_spline(x, params)
        >>> torch.allclose(rational_quadratic_spline_inverse(z, params)[0], x, atol=1e-4)
        True
    """
    form = _form(tails, bounds, slope_map, min_width, min_height, min_slope, beta, soft_clip)
    return _run(z, params, tails, bounds, slope_map, form, soft_clip, logdet, elementwise, True)


def _form(
    tails: str, bounds: Bounds, slope_map: str, min_width: float, min_height: float,
    min_slope: float, beta: float, soft_clip: float | None,
) -> list[float]:  # fmt: skip
    """Return the numbers of the op's argument `form`, checked where the kernels cannot."""
    if isinstance(bounds, Tensor):
        domain: tuple[float, ...] = (-1.0, 1.0, -1.0, 1.0)
    else:
        domain = bounds if isinstance(bounds, tuple) else (-bounds, bounds, -bounds, bounds)
    if tails != "none" and domain[:2] != domain[2:]:
        raise ValueError(
            f"{_NAME}: bounds must be the same on both sides with {tails} tails, got {bounds}"
        )
    if beta <= 0:
        raise ValueError(f"{_NAME}: beta must be positive, got {beta}")
    if soft_clip is not None and not 0 < soft_clip < 1:
        raise ValueError(f"{_NAME}: soft_clip must be between 0 and 1, got {soft_clip}")
    clip = 0.0 if soft_clip is None else -1 / math.log(soft_clip)
    return [*domain, min_width, min_height, min_slope, beta, clip]


def _run(
    x: Tensor, params: Tensor, tails: str, bounds: Bounds, slope_map: str, form: list[float],
    soft_clip: float | None, logdet: Tensor | None, elementwise: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tail = index_of(_NAME, "tails", tails, _TAILS)
    exp_slope = index_of(_NAME, "slope_map", slope_map, _SLOPE_MAPS) == 1
    if transforms_active():
        twin = (
            reference.rational_quadratic_spline_inverse
            if inverse
            else reference.rational_quadratic_spline
        )
        return twin(
            x, params, tails=tails, bounds=bounds, slope_map=slope_map, min_width=form[4],
            min_height=form[5], min_slope=form[6], beta=form[7], soft_clip=soft_clip, logdet=logdet,
            elementwise=elementwise,
        )  # fmt: skip
    table = bounds if isinstance(bounds, Tensor) else None
    return _kernel(x, params, table, logdet, form, tail, exp_slope, elementwise, inverse)


@torch.library.register_fake("flowops::rational_quadratic_spline")
def _(
    x: Tensor, params: Tensor, bounds: Tensor | None, logdet: Tensor | None, form: list[float],
    tails: int, exp_slope: bool, elementwise: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    torch._check_value(
        params.dim() == x.dim() + 1,
        lambda: (
            f"{_NAME}: params must have the shape of x, {list(x.shape)}, and one more dimension, "
            f"got {list(params.shape)}"
        ),
    )
    shape = x.shape if elementwise else x.shape[:1]
    return empty_like_layout(x), x.new_empty(shape, dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("flowops::rational_quadratic_spline_backward")
def _(
    grad_z: Tensor, grad_logdet: Tensor, saved: Tensor, params: Tensor, bounds: Tensor | None,
    form: list[float], tails: int, exp_slope: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not _is_dense(params):
        return empty_like_layout(saved), params.new_empty(params.shape)
    return empty_like_layout(saved), params.new_empty_strided(params.shape, params.stride())


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of ``x`` fill a block of memory, in any order of the dimensions."""
    span = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != span:
            return False
        span *= size
    return True
