"""Actnorm: a shift and a scale for each channel, and the statistics that initialise them."""

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

_NAME = "actnorm"
_kernel = typed_call("actnorm")


def actnorm(
    x: Tensor, bias: Tensor, log_scale: Tensor, *, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Shift and scale each channel of ``x``.

    .. math::
        z_{bc} = (x_{bc} + b_c)\, e^{l_c}, \qquad
        \log\left|\det \frac{\partial z}{\partial x}\right| = N \sum_c l_c,

    with :math:`N` the number of pixels.

    Shapes:
        ``x``: (B, C, \*S) with any number of pixel dimensions, none included. Strided channel
        slices and channels_last tensors are taken as they are.

    Args:
        x: Data, float64, float32, float16 or bfloat16.
        bias: :math:`b`, shape (C,), dtype of ``x`` or the accumulation type.
        log_scale: :math:`l`, shape (C,), likewise.
        logdet: Shape (B,), added to the result, in the accumulation type: float64 for float64, else
            float32.

    Returns:
        z like ``x``, and the log-determinant in nats, shape (B,), in the accumulation type.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Arithmetic in float32 for the 16-bit types. The shift comes before the product, so a mean
        that is large against the spread does not cancel. Sums over a channel are taken in a fixed
        order and, on the CPU, joined in float64: the same for any thread count and run.
        Differentiable twice. Under autocast the op runs in float32. ``torch.func`` transforms and
        forward-mode AD take :func:`flowops.reference.actnorm`.

    Cost:
        One pass: reads x once, writes z once. The backward pass keeps ``x``. Before a 1x1
        convolution it costs nothing: fold it, see :func:`flowops.ops.invertible_conv1x1_lu`.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, section 3.1.

    Example:
        >>> actnorm(torch.ones(1, 2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        (tensor([[2.0000, 2.7183]]), tensor([1.]))
    """
    return _run(x, bias, log_scale, logdet, False)


def actnorm_inverse(
    z: Tensor, bias: Tensor, log_scale: Tensor, *, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Undo :func:`actnorm`, which has the arguments; the log-determinant is that of the inverse.

    Returns:
        x = z exp(-log_scale) - bias like ``z``, and log|det dx/dz| = -N sum(log_scale) in nats,
        shape (B,).

    Raises:
        ValueError: If an argument does not fit the others.

    Example:
        >>> actnorm_inverse(torch.ones(1, 2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        (tensor([[0.0000, 0.3679]]), tensor([-1.]))
    """
    return _run(z, bias, log_scale, logdet, True)


def actnorm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and population standard deviation of each channel, for data-dependent initialisation.

    An actnorm with ``bias = -mean`` and ``log_scale = -log(std + eps)`` makes every channel of
    ``x`` standard.

    Shapes:
        ``x``: (B, C, \*S) as in :func:`actnorm`; both results (C,).

    Args:
        x: Data, float64, float32, float16 or bfloat16.

    Returns:
        mean and std in the accumulation type: float64 for float64, else float32; NaN for an empty
        batch.

    Raises:
        ValueError: If ``x`` has fewer than two dimensions or another dtype.

    Numerics:
        Deviations are taken from local means and merged, so a mean that is large against the spread
        does not cancel. Differentiable twice.

    Cost:
        One pass over ``x`` in memory.

    Source:
        Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances, 1979.

    Example:
        >>> actnorm_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        (tensor([2., 5.]), tensor([1., 0.]))
    """
    if transforms_active():
        return reference.actnorm_statistics(x)
    return torch.ops.flowops.actnorm_statistics(x)


def _run(
    x: Tensor, bias: Tensor, log_scale: Tensor, logdet: Tensor | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    if transforms_active():
        twin = reference.actnorm_inverse if inverse else reference.actnorm
        return twin(x, bias, log_scale, logdet=logdet)
    return _kernel(x, bias, log_scale, logdet, inverse)


@torch.library.register_fake("flowops::actnorm")
def _(
    x: Tensor, bias: Tensor, log_scale: Tensor, logdet: Tensor | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    for name, parameter in (("bias", bias), ("log_scale", log_scale)):
        torch._check_value(
            parameter.dim() == 1 and parameter.size(0) == x.size(1),
            lambda name=name, parameter=parameter: (
                f"{_NAME}: {name} must have shape [{x.size(1)}] (one value a channel of x), "
                f"got {list(parameter.shape)}"
            ),
        )
    return empty_like_layout(x), x.new_empty(x.size(0), dtype=accumulation_dtype(x.dtype))


@torch.library.register_fake("flowops::actnorm_backward")
def _(
    grad_z: Tensor, grad_logdet: Tensor, x: Tensor, bias: Tensor, log_scale: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like_layout(x), torch.empty_like(bias), torch.empty_like(log_scale)


@torch.library.register_fake("flowops::actnorm_statistics")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.size(1), dtype=accumulation_dtype(x.dtype))
    return mean, torch.empty_like(mean)
