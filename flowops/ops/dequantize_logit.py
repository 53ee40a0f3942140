"""Dequantisation and the logit of pixels with the log-determinant, and uniform random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import (
    accumulation_dtype,
    empty_like_layout,
    transforms_active,
    typed_call,
)
from flowops.ops.gaussian_rsample import key_for, shape_and_key

_NAME = "dequantize_logit"
_kernel = typed_call("dequantize_logit")


def dequantize_logit(
    values: Tensor,
    levels: int,
    *,
    alpha: float,
    logdet: Tensor | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Add uniform noise to discrete values and take the logit, in one pass.

    .. math::
        y = \frac{v + u}{n}, \qquad z = \mathrm{logit}(\alpha + (1 - 2\alpha)\, y), \qquad
        u \sim U[0, 1)

    Returns the log-determinant of the whole map from :math:`v + u` to :math:`z`,

    .. math::
        \log|\det| = \sum \left[\log \tfrac{1 - 2\alpha}{n} + \mathrm{softplus}(z) +
        \mathrm{softplus}(-z)\right],

    so that :math:`\log p(z) + \log|\det|` bounds the log-probability of the values themselves,
    nats: there is no constant of :math:`\log n` to add.

    Shapes:
        ``values`` and z have shape (B, C, \*S) with any number of pixel dimensions, none included.
        Slices, expanded tensors and channels_last are taken as they are.

    Args:
        values: v in {0, ..., levels - 1}: uint8 is read as it is, other integers are first made
            float32; or float64, float32, float16 or bfloat16.
        levels: n, 1 to 65,536: 256 for bytes, 17 for scikit-learn's digits.
        alpha: In (0, 0.5). Likelihoods of models with different ones compare only at convergence.
        logdet: What is added to, shape (B,), of the type of the result.
        generator: Where the stream is drawn from, on any device; None for the default generator of
            the device of ``values``.
        key: The stream itself, from :func:`random_key`. Not together with ``generator``.

    Returns:
        z, of the dtype of floating values and else float32, and the log-determinant, shape (B,),
        float64 for float64 and else float32. Differentiable in floating values.

    Raises:
        ValueError: If an argument does not fit the others, or is out of range.

    Numerics:
        Arithmetic in float32 for the 16-bit types. Both ends are finite and lose no digits, for the
        logarithms are taken of :math:`\alpha + (1 - 2\alpha) y` and
        :math:`\alpha + (1 - 2\alpha)(1 - y)`. Rounding never carries v + u to the next level.
        Element i, counted in row-major order, takes uniform number i of the stream (see
        :func:`rand`): the same for any memory layout, thread count and device. The backward pass
        makes the noise again from the key. Differentiable twice. Under autocast the op runs in
        float32. ``torch.func`` transforms and forward-mode AD take the reference.

    Cost:
        One pass: reads the values once, a byte each for uint8, and writes z once. The backward pass
        keeps the values and 16 bytes.

    Source:
        Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2016, arXiv:1605.08803,
        section 4.1; Theis et al., A note on the evaluation of generative models, 2015,
        arXiv:1511.01844, section 3.1.

    Example:
        >>> pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
        >>> z, logdet = dequantize_logit(pixels, 256, alpha=0.05, key=torch.tensor([1, 2]))
        >>> logit_inverse(z, alpha=0.05, levels=256)[0].floor()
        tensor([[  0., 255.]])
    """
    key = key_for(_NAME, values, generator, key)
    if values.dtype != torch.uint8 and not values.is_floating_point():
        values = values.to(torch.float32)
    return _run(values, key, logdet, levels, alpha, False)


def logit(
    x: Tensor, *, alpha: float, levels: int = 1, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`z = \mathrm{logit}(\alpha + (1 - 2\alpha)\, x / n)` with its log-determinant.

    :func:`dequantize_logit` without noise, which has the formulas, and the arguments in common.

    Args:
        x: In [0, levels], float64, float32, float16 or bfloat16.
        alpha: In (0, 0.5).
        levels: n.
        logdet: What is added to.

    Returns:
        z like ``x``, and the log-determinant, shape (B,).

    Raises:
        ValueError: If an argument does not fit the others, or is out of range.

    Example:
        >>> logit(torch.tensor([[0.5]]), alpha=0.05)[0]
        tensor([[0.]])
    """
    return _run(x, None, logdet, levels, alpha, False)


def logit_inverse(
    z: Tensor, *, alpha: float, levels: int = 1, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Invert :func:`logit`: :math:`x = n\,(\sigma(z) - \alpha) / (1 - 2\alpha)`.

    Maps onto :math:`n\,(-\alpha, 1 + \alpha) / (1 - 2\alpha)`, a little outside [0, n]: clamp
    samples for display. ``floor`` of it undoes :func:`dequantize_logit`.

    Args:
        z: float64, float32, float16 or bfloat16, shape (B, C, \*S).
        alpha: In (0, 0.5).
        levels: n.
        logdet: What is added to.

    Returns:
        x like ``z``, and the log-determinant, shape (B,): that of :func:`logit`, negative.

    Raises:
        ValueError: If an argument does not fit the others, or is out of range.

    Example:
        >>> logit_inverse(torch.zeros(1, 1), alpha=0.05)[0]
        tensor([[0.5000]])
    """
    return _run(z, None, logdet, levels, alpha, True)


def rand(
    *size: int | Sequence[int],
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw uniform numbers in [0, 1) from the stream that the sampling ops use.

    As :func:`randn`, with the four words of a block as numbers of 24 bits each, in float64 two of
    53 bits. Element i of the result, counted in row-major order, is number i: exactly the same on
    every device, for any thread count, and a prefix of any longer draw.

    Args:
        size: Shape, as integers or one sequence.
        generator: Where the stream is drawn from, on any device; None for the default generator of
            ``device``.
        key: The stream itself, from :func:`random_key`. Not together with ``generator``.
        dtype: float64 or float32; None for the default dtype.
        device: Of the result; None for that of ``key``, else the default device.

    Returns:
        A contiguous tensor.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011.

    Example:
        >>> rand(2, key=torch.tensor([1, 2])).shape
        torch.Size([2])
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    shape, key = shape_and_key("rand", size, generator, key, device)
    if transforms_active():
        return reference.rand(shape, key=key, dtype=dtype)
    return torch.ops.flowops.uniform_noise(key, shape, dtype)


def _run(
    x: Tensor,
    key: Tensor | None,
    logdet: Tensor | None,
    levels: int,
    alpha: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    if transforms_active():
        if inverse:
            return reference.logit_inverse(x, alpha=alpha, levels=levels, logdet=logdet)
        return reference.logit(x, alpha=alpha, levels=levels, logdet=logdet, key=key)
    return _kernel(x, key, logdet, levels, alpha, inverse)


@torch.library.register_fake("flowops::dequantize_logit")
def _(
    x: Tensor, key: Tensor | None, logdet: Tensor | None, levels: int, alpha: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    total = x.new_empty(x.size(0), dtype=accumulation_dtype(dtype))
    return empty_like_layout(x, dtype), total


@torch.library.register_fake("flowops::dequantize_logit_backward")
def _(
    grad_z: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    key: Tensor | None,
    levels: int,
    alpha: float,
    inverse: bool,
) -> Tensor:
    return empty_like_layout(x)


@torch.library.register_fake("flowops::uniform_noise")
def _(key: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return key.new_empty(size, dtype=dtype)
