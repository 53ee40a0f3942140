"""Invertible 1x1 convolution: the product, and weight, bias and log-det from its parameters.

LU of the 1x1 convolution (Glow): ``W = P L (U + diag(sign * exp(log_s)))``, L unit lower, U
strictly upper, P fixed, given as an index: ``(P A)[i] = A[permutation[i]]``; ``logdet = H W
sum(log_s)``.
"""

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

_NAME = "invertible_conv1x1"
_kernel = typed_call("invertible_conv1x1")
_kernel_backward = torch.ops.flowops.invertible_conv1x1_backward.default
_kernel_lu = typed_call("invertible_conv1x1_lu")
_kernel_full = typed_call("invertible_conv1x1_full")
Tensors = Sequence[Tensor]
Prepared = tuple[list[Tensor], list[Tensor], Tensor]


def invertible_conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Multiply the channels of every pixel by a square matrix.

    .. math::
        z_{bp} = W x_{bp} + b \quad \text{for each sample } b \text{ and pixel } p.

    The log-determinant, :math:`N \log|\det W|` for :math:`N` pixels, comes with the weight from
    :func:`invertible_conv1x1_lu` or :func:`invertible_conv1x1_full`, per pixel; so does the inverse
    map.

    Shapes:
        ``x``: (B, C, \*S) with any number of pixel dimensions, none included. Strided channel
        slices and channels_last tensors are taken as they are.

    Args:
        x: Data, float64, float32, float16 or bfloat16.
        weight: :math:`W`, shape (C, C), dtype of ``x`` or the accumulation type: float64 for
            float64, else float32.
        bias: :math:`b`, shape (C,), dtype of ``weight``.

    Returns:
        z like ``x``.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Sums in float32 for the 16-bit types. The gradients of weight and bias are summed in a fixed
        order: the same for any thread count and run. Differentiable twice. Under autocast the op
        runs in float32: halves would cost the inverse two digits. ``torch.func`` transforms and
        forward-mode AD take :func:`flowops.reference.invertible_conv1x1`.

    Cost:
        2 B N C^2 operations; reads x once, writes z once. The backward pass keeps ``x`` and
        ``weight``.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, section 3.2.

    Example:
        >>> invertible_conv1x1(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[2., 1.]])
    """
    if transforms_active():
        return reference.invertible_conv1x1(x, weight, bias)
    return _kernel(x, weight, bias)


def invertible_conv1x1_backward(
    grad_z: Tensor, x: Tensor, weight: Tensor, has_bias: bool
) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight and, where there is one, bias, without a graph.

    For backward passes that have ``x`` from elsewhere. See :func:`invertible_conv1x1`.
    """
    grads = _kernel_backward(grad_z, x, weight, True, True, has_bias)
    return grads if has_bias else grads[:2]


def invertible_conv1x1_lu(
    lower: Tensors,
    upper: Tensors,
    log_s: Tensors,
    sign: Tensors,
    permutation: Tensors,
    *,
    actnorm_bias: Tensors = (),
    actnorm_log_scale: Tensors = (),
    inverse: bool = False,
) -> Prepared:
    r"""Weight, bias and log-determinant of LU 1x1 convolutions, all layers in one call.

    .. math::
        W = P L \left(U + \operatorname{diag}(\text{sign} \odot e^{\text{log\_s}})\right), \qquad
        \log|\det W| = \sum \text{log\_s},

    with L unit lower and U strictly upper triangular. An :func:`actnorm <flowops.ops.actnorm>`
    :math:`(x + b) e^{l}` before the convolution is folded into it: weight :math:`W
    \operatorname{diag}(e^l)`, bias :math:`W \operatorname{diag}(e^l)\, b`, and :math:`\sum l` more.
    With ``inverse`` the results are those of the inverse map, weight
    :math:`\operatorname{diag}(e^{-l})\, W^{-1}` and bias :math:`-b`. In both directions
    ``invertible_conv1x1(x, weights[i], biases[i])`` runs layer i.

    Args:
        lower: One (C, C) matrix a layer; its strict lower triangle is used. C may differ between
            layers.
        upper: One (C, C) matrix a layer; its strict upper triangle is used.
        log_s: One (C,) vector a layer: logs of the absolute diagonal.
        sign: One (C,) vector a layer, of -1 and 1; not differentiated.
        permutation: One (C,) int64 vector a layer, the rows of P: ``(P A)[i] = A[permutation[i]]``.
        actnorm_bias: One (C,) vector a layer, or nothing.
        actnorm_log_scale: One (C,) vector a layer, or nothing.
        inverse: Whether to give the inverse map.

    Returns:
        weights (one a layer), biases (one a layer; empty without actnorm), and the log-determinants
        **per pixel** of the direction asked for, nats, shape (layers,): all float64 for float64
        parameters, else float32.

    Raises:
        ValueError: If the lists do not fit each other, or ``permutation`` is not one (checked on
            the CPU alone).

    Numerics:
        Inverses are solved in float64 on the CPU. Differentiable twice. Under autocast the op runs
        in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.invertible_conv1x1_lu`.

    Cost:
        O(C^3) a layer, whatever the batch; layers are shared between threads, and on a GPU take one
        launch.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, eq. 10 and 11.

    Example:
        >>> one, up = torch.eye(2), torch.tensor([[0.0, 3.0], [0.0, 0.0]])
        >>> order = [torch.tensor([1, 0])]
        >>> invertible_conv1x1_lu([one], [up], [torch.zeros(2)], [torch.ones(2)], order)
        ([tensor([[0., 1.],
                [1., 3.]])], [], tensor([0.]))
    """
    _check_any_layer("invertible_conv1x1_lu", "lower", lower)
    if transforms_active():
        return reference.invertible_conv1x1_lu(
            lower,
            upper,
            log_s,
            sign,
            permutation,
            actnorm_bias=actnorm_bias,
            actnorm_log_scale=actnorm_log_scale,
            inverse=inverse,
        )
    return _kernel_lu(
        list(lower),
        list(upper),
        list(log_s),
        list(sign),
        list(permutation),
        list(actnorm_bias),
        list(actnorm_log_scale),
        inverse,
    )


def invertible_conv1x1_full(
    weight: Tensors,
    *,
    actnorm_bias: Tensors = (),
    actnorm_log_scale: Tensors = (),
    inverse: bool = False,
) -> Prepared:
    r"""Weight, bias and log-determinant of 1x1 convolutions with full matrices, in one call.

    As :func:`invertible_conv1x1_lu`, with W given as it is: :math:`\log|\det W|` comes from an LU
    factorisation with partial pivoting, and so does the inverse.

    Args:
        weight: One (C, C) matrix a layer. C may differ between layers.
        actnorm_bias: One (C,) vector a layer, or nothing.
        actnorm_log_scale: One (C,) vector a layer, or nothing.
        inverse: Whether to give the inverse map.

    Returns:
        weights, biases and log-determinants per pixel, as :func:`invertible_conv1x1_lu`.

    Raises:
        ValueError: If the lists do not fit each other.

    Numerics:
        Factorised in float64 on the CPU. A singular W gives log-determinant -inf and, inverted,
        values that are not finite; nothing is raised, for that would wait for the GPU.
        Differentiable twice.

    Cost:
        O(C^3) a layer, whatever the batch. The backward pass factorises again instead of keeping
        factors.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, eq. 9.

    Example:
        >>> invertible_conv1x1_full([torch.tensor([[2.0, 0.0], [0.0, 2.0]])], inverse=True)
        ([tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])], [], tensor([-1.3863]))
    """
    _check_any_layer("invertible_conv1x1_full", "weight", weight)
    if transforms_active():
        return reference.invertible_conv1x1_full(
            weight,
            actnorm_bias=actnorm_bias,
            actnorm_log_scale=actnorm_log_scale,
            inverse=inverse,
        )
    return _kernel_full(list(weight), list(actnorm_bias), list(actnorm_log_scale), inverse)


def _check_any_layer(op: str, name: str, layers: Tensors) -> None:
    """Refuse an empty list here: without a tensor the dispatcher would not know which backend."""
    if not len(layers):
        raise ValueError(f"{op}: {name} must hold at least one layer, got an empty list")


@torch.library.register_fake("flowops::invertible_conv1x1")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    channels = x.size(1)
    torch._check_value(
        weight.dim() == 2 and weight.size(0) == channels and weight.size(1) == channels,
        lambda: (
            f"{_NAME}: weight must have shape [{channels}, {channels}] (the channels of x), "
            f"got {list(weight.shape)}"
        ),
    )
    return empty_like_layout(x)


@torch.library.register_fake("flowops::invertible_conv1x1_backward")
def _(
    grad_z: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.size(1)
    grad_x = empty_like_layout(x) if wants_x else x.new_empty(0)
    grad_weight = weight.new_empty(channels, channels) if wants_weight else weight.new_empty(0)
    return grad_x, grad_weight, weight.new_empty(channels if wants_bias else 0)


def _fake_prepared(matrices: list[Tensor], vectors: list[Tensor]) -> Prepared:
    torch._check_value(
        len(matrices) > 0, lambda: f"{_NAME}: there must be at least one layer, got an empty list"
    )
    dtype = accumulation_dtype(matrices[0].dtype)
    weights = [m.new_empty(m.shape, dtype=dtype) for m in matrices]
    biases = [v.new_empty(v.shape, dtype=dtype) for v in vectors]
    return weights, biases, matrices[0].new_empty(len(matrices), dtype=dtype)


def _fake_gradients(*lists: list[Tensor]) -> tuple[list[Tensor], ...]:
    return tuple([t.new_empty(t.shape) for t in tensors] for tensors in lists)


@torch.library.register_fake("flowops::invertible_conv1x1_lu")
def _(
    lower: list[Tensor],
    upper: list[Tensor],
    log_s: list[Tensor],
    sign: list[Tensor],
    permutation: list[Tensor],
    actnorm_bias: list[Tensor],
    actnorm_log_scale: list[Tensor],
    inverse: bool,
) -> Prepared:
    return _fake_prepared(lower, actnorm_bias)


@torch.library.register_fake("flowops::invertible_conv1x1_full")
def _(
    weight: list[Tensor],
    actnorm_bias: list[Tensor],
    actnorm_log_scale: list[Tensor],
    inverse: bool,
) -> Prepared:
    return _fake_prepared(weight, actnorm_bias)


@torch.library.register_fake("flowops::invertible_conv1x1_lu_backward")
def _(
    grad_weight: list[Tensor],
    grad_bias: list[Tensor],
    grad_logdet: Tensor,
    result: list[Tensor],
    lower: list[Tensor],
    upper: list[Tensor],
    log_s: list[Tensor],
    sign: list[Tensor],
    permutation: list[Tensor],
    actnorm_bias: list[Tensor],
    actnorm_log_scale: list[Tensor],
    inverse: bool,
) -> tuple[list[Tensor], ...]:
    return _fake_gradients(lower, upper, log_s, actnorm_bias, actnorm_log_scale)


@torch.library.register_fake("flowops::invertible_conv1x1_full_backward")
def _(
    grad_weight: list[Tensor],
    grad_bias: list[Tensor],
    grad_logdet: Tensor,
    result: list[Tensor],
    weight: list[Tensor],
    actnorm_bias: list[Tensor],
    actnorm_log_scale: list[Tensor],
    inverse: bool,
) -> tuple[list[Tensor], ...]:
    return _fake_gradients(weight, actnorm_bias, actnorm_log_scale)
