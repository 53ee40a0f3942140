"""Affine coupling, the element-wise half of NICE, RealNVP and Glow, with its log-determinant."""

from __future__ import annotations

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
from flowops.reference.affine_coupling import ScaleMap

_NAME = "affine_coupling"
_kernel = typed_call("affine_coupling")
_kernel_backward = torch.ops.flowops.affine_coupling_backward.default
SCALES = (
    "additive",
    "exp",
    "tanh_exp",
    "sigmoid",
    "reciprocal_sigmoid",
    "atan_exp",
    "softsign_exp",
    "softplus",
)
ORDERS = ("scale_then_shift", "shift_then_scale")
LAYOUTS = (
    "scale_shift",
    "shift_scale",
    "scale_shift_interleaved",
    "shift_scale_interleaved",
)


_PLAIN = {kind: ScaleMap(kind).constants for kind in SCALES}


def affine_coupling(
    x: Tensor,
    params: Tensor,
    *,
    scale: str | ScaleMap = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Move some channels of ``x`` by a scale and a shift that a conditioner gave.

    .. math::
        z = s \odot x + t \quad\text{or}\quad z = s \odot (x + t), \qquad
        \log\left|\det \frac{\partial z}{\partial x}\right| = \sum \log s,

    with :math:`s` of the raw scale :math:`h` as :class:`ScaleMap` tells.

    Shapes:
        ``x``: (B, C, \*S) with any number of pixel dimensions, none included; ``params``:
        (B, 2n, \*S), or (B, n, \*S) for an additive coupling. Channels [start, start + n) of ``x``
        are moved, the others pass through. Strided channel slices and channels_last tensors are
        taken as they are.

    Args:
        x: Data, float64, float32, float16 or bfloat16.
        params: The conditioner's output, raw scales and shifts along dimension 1, dtype of ``x``.
        scale: A kind of :class:`ScaleMap`, with its constants where they are not the default.
        order: "scale_then_shift" for s x + t, "shift_then_scale" for s (x + t).
        layout: How dimension 1 of ``params`` holds scales and shifts: in two blocks ("scale_shift",
            "shift_scale") or alternating ("scale_shift_interleaved", "shift_scale_interleaved").
        amplitude: :math:`a` of "tanh_exp", "atan_exp" and "softsign_exp" as a tensor, which gets
            a gradient, shape () or (n,); in place of the scale's limit.
        start: First moved channel.
        mask: bool, broadcastable to (n, \*S); elements where it is True pass through and do not
            count in the log-determinant.
        logdet: Shape (B,), added to the result, in the accumulation type.

    Returns:
        z like ``x``, and the log-determinant in nats, shape (B,), float64 for float64 and else
        float32.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Arithmetic in float32 for the 16-bit types. The log-determinant of a sample is a sum in a
        fixed order: the same for any batch, thread count and run. Differentiable twice. Under
        autocast the op runs in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.affine_coupling`.

    Cost:
        One pass: reads x and params once, writes z once. The backward pass keeps ``params`` and
        either ``x`` (shift last) or ``z`` (shift first), nothing else.

    Source:
        Dinh et al., NICE, 2014, arXiv:1410.8516, eq. 4; Dinh et al., Density estimation using Real
        NVP, 2016, arXiv:1605.08803, eq. 7; Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, table
        1.

    Example:
        >>> x, params = torch.zeros(1, 2), torch.tensor([[0.5, 3.0]])
        >>> affine_coupling(x, params, start=1)
        (tensor([[0., 3.]]), tensor([0.5000]))
    """
    return _run(x, params, scale, order, layout, amplitude, start, mask, logdet, False)


def affine_coupling_inverse(
    z: Tensor,
    params: Tensor,
    *,
    scale: str | ScaleMap = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Undo :func:`affine_coupling`, which has the arguments; the log-det is that of the inverse.

    Returns:
        x like ``z``, and log|det dx/dz| = -sum(log s) in nats, shape (B,).

    Raises:
        ValueError: If an argument does not fit the others.

    Example:
        >>> z, params = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.5, 3.0]])
        >>> affine_coupling_inverse(z, params, start=1)
        (tensor([[0., 0.]]), tensor([-0.5000]))
    """
    return _run(z, params, scale, order, layout, amplitude, start, mask, logdet, True)


def affine_coupling_backward(
    grad_z: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    z: Tensor,
    params: Tensor,
    *,
    scale: str | ScaleMap,
    order: str,
    layout: str,
    amplitude: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, params and amplitude, for code that holds no graph."""
    scale_index, constants = _scale(scale)
    if scale_index == 0:
        grad_params = grad_z if mask is None else grad_z.masked_fill(mask, 0)
        return grad_z, grad_params, grad_z.new_empty(0)
    shift_first = order == "shift_then_scale"
    return _kernel_backward(
        grad_z,
        grad_logdet,
        z if shift_first else x,
        params,
        amplitude,
        mask,
        0,
        scale_index,
        ORDERS.index(order),
        LAYOUTS.index(layout),
        False,
        *constants,
    )


def _scale(scale: str | ScaleMap) -> tuple[int, tuple[float, float, float]]:
    """Return what the kernels know of ``scale``: a number, and its constants."""
    kind = scale.kind if isinstance(scale, ScaleMap) else scale
    index = index_of(_NAME, "scale", kind, SCALES)
    return index, scale.constants if isinstance(scale, ScaleMap) else _PLAIN[kind]


def _run(
    x: Tensor,
    params: Tensor,
    scale: str | ScaleMap,
    order: str,
    layout: str,
    amplitude: Tensor | None,
    start: int,
    mask: Tensor | None,
    logdet: Tensor | None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    scale_index, constants = _scale(scale)
    order_index = index_of(_NAME, "order", order, ORDERS)
    layout_index = index_of(_NAME, "layout", layout, LAYOUTS)
    if transforms_active():
        twin = reference.affine_coupling_inverse if inverse else reference.affine_coupling
        return twin(
            x,
            params,
            scale=scale,
            order=order,
            layout=layout,
            amplitude=amplitude,
            start=start,
            mask=mask,
            logdet=logdet,
        )
    return _kernel(
        x,
        params,
        amplitude,
        mask,
        logdet,
        start,
        scale_index,
        order_index,
        layout_index,
        inverse,
        *constants,
    )


@torch.library.register_fake("flowops::affine_coupling")
def _(
    x: Tensor,
    params: Tensor,
    amplitude: Tensor | None,
    mask: Tensor | None,
    logdet: Tensor | None,
    start: int,
    scale: int,
    order: int,
    layout: int,
    inverse: bool,
    gain: float = 1.0,
    limit: float = 1.0,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    torch._check_value(
        params.dtype == x.dtype,
        lambda: f"{_NAME}: params must be {x.dtype} (like x), got {params.dtype}",
    )
    torch._check_value(
        params.dim() == x.dim() and params.shape[2:] == x.shape[2:],
        lambda: f"{_NAME}: params must have the batch and pixel sizes of x, {list(x.shape)}, "
        f"got {list(params.shape)}",
    )
    return empty_like_layout(x), x.new_empty(x.size(0), dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("flowops::affine_coupling_backward")
def _(
    grad_z: Tensor,
    grad_logdet: Tensor,
    saved: Tensor,
    params: Tensor,
    amplitude: Tensor | None,
    mask: Tensor | None,
    start: int,
    scale: int,
    order: int,
    layout: int,
    inverse: bool,
    gain: float = 1.0,
    limit: float = 1.0,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_amplitude = saved.new_empty(0) if amplitude is None else torch.empty_like(amplitude)
    return empty_like_layout(saved), empty_like_layout(params), grad_amplitude
