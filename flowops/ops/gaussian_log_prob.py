"""Log-density of diagonal Gaussians, summed over each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import (
    accumulation_dtype,
    empty_like_layout,
    transforms_active,
    typed_call,
)

_NAME = "gaussian_log_prob"
_kernel = typed_call("gaussian_log_prob")


def gaussian_log_prob(
    x: Tensor,
    mean: Tensor | None = None,
    log_scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
) -> Tensor:
    r"""Return the log-density of each sample under a diagonal Gaussian, in one pass.

    .. math::
        \log p(x) = -\sum \left[\tfrac12 \left(\frac{x - \mu}{\sigma}\right)^2 +
        \log \sigma + \tfrac12 \log 2\pi\right]

    Shapes:
        ``x`` has shape (B, C, \*S) with any number of pixel dimensions, none included; the sum is
        over all but B. ``params``: (B, 2C, \*S). Channel slices of a net's output (``h[:, ::2]``),
        expanded tensors and channels_last are taken as they are.

    Args:
        x: Where, float64, float32, float16 or bfloat16.
        mean: :math:`\mu`, dtype of ``x`` and of a shape that expands to that of ``x``; None for 0.
        log_scale: :math:`\log \sigma`, likewise; None for 0, the standard deviation 1.
        params: A net's output whole, dtype of ``x``: :math:`\mu`, then :math:`\log \sigma` along
            dimension 1, in the place of ``mean`` and ``log_scale``.

    Returns:
        Nats, shape (B,), float64 for float64 and else float32, differentiable in all arguments.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Arithmetic in float32 for the 16-bit types. Nothing overflows on the way to a density that
        does not: :math:`1 / \sigma` enters as the square of its root. The sum of a sample is in a
        fixed order, the same for any thread count and batch. Differentiable twice. Under autocast
        the op runs in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.gaussian_log_prob`.

    Cost:
        One pass: reads x, mean and log_scale once. The backward pass reads them once more and
        writes only the gradients that are wanted. That of ``params`` is written whole; from
        ``mean, log_scale = h.chunk(2, 1)`` autograd would concatenate it, a pass more.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, whose priors have a mean and a log
        standard deviation given by a net.

    Example:
        >>> gaussian_log_prob(torch.zeros(2, 3))
        tensor([-2.7568, -2.7568])
    """
    mean, log_scale = _expand("mean", mean, x), _expand("log_scale", log_scale, x)
    if transforms_active():
        _check_params(x, mean, log_scale, params)
        return reference.gaussian_log_prob(x, mean, log_scale, params=params)
    return _kernel(x, mean, log_scale, params)


def _expand(name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    if value is None or value.shape == x.shape:
        return value
    try:
        return value.expand(x.shape)
    except RuntimeError:
        message = (
            f"{_NAME}: {name} must expand to shape {list(x.shape)} (like x), "
            f"got {list(value.shape)}"
        )
        raise ValueError(message) from None


def _check_params(
    x: Tensor, mean: Tensor | None, log_scale: Tensor | None, params: Tensor | None
) -> None:
    """Mirror what csrc/ops/gaussian_log_prob.h checks, where its kernels do not run."""
    if params is None:
        return
    torch._check_value(
        mean is None and log_scale is None,
        lambda: f"{_NAME}: params must be None where mean or log_scale is given, got a tensor",
    )
    shape = (x.size(0), 2 * x.size(1), *x.shape[2:])
    torch._check_value(
        params.shape == shape,
        lambda: (
            f"{_NAME}: params must have shape {list(shape)} (means and log-scales of x), "
            f"got {list(params.shape)}"
        ),
    )
    torch._check_value(
        params.dtype == x.dtype,
        lambda: f"{_NAME}: params must be {x.dtype} (like x), got {params.dtype}",
    )
    torch._check_value(
        params.device == x.device,
        lambda: f"{_NAME}: params must be on {x.device} (like x), got {params.device}",
    )


@torch.library.register_fake("flowops::gaussian_log_prob")
def _(x: Tensor, mean: Tensor | None, log_scale: Tensor | None, params: Tensor | None) -> Tensor:
    _check_params(x, mean, log_scale, params)
    return x.new_empty(x.size(0), dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("flowops::gaussian_log_prob_backward")
def _(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    log_scale: Tensor | None,
    params: Tensor | None,
    wants_x: bool,
    wants_mean: bool,
    wants_log_scale: bool,
    wants_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def gradient(wanted: bool, like: Tensor | None) -> Tensor:
        return empty_like_layout(like) if wanted and like is not None else x.new_empty(0)

    return (
        gradient(wants_x, x),
        gradient(wants_mean, mean),
        gradient(wants_log_scale, log_scale),
        gradient(wants_params, params),
    )
