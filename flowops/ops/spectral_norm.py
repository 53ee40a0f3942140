"""Spectral normalisation of the weights of many layers by power iteration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import accumulation_dtype, transforms_active, typed_call

_NAME = "spectral_norm"
_kernel = typed_call("spectral_norm")
SpectralNorm = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]


def spectral_norm(
    weight: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    coefficient: float | None = None,
) -> SpectralNorm:
    r"""Divide weights by their largest singular values, all layers of a model in one call.

    A weight of shape (M, ...) is the matrix :math:`W` (M, N) of its rows. Each iteration is

    .. math::
        u \leftarrow \frac{W v}{\|W v\|}, \qquad v \leftarrow \frac{W^T u}{\|W^T u\|};

    after all of them :math:`\sigma = u^T W v`, and the result is

    .. math::
        \frac{W}{\sigma}, \quad \text{or, with a coefficient } c, \quad
        \frac{W}{\max(1, \sigma / c)},

    whose norm is at most c. u and v are held fixed in the gradients of the results and of
    :math:`\sigma`.

    Args:
        weight: One weight a layer, of two dimensions or more, whose sizes may differ between
            layers; all float64, float32, float16 or bfloat16.
        u: One unit vector (M,) a layer, dtype of ``weight`` or the accumulation type: float64 for
            float64, else float32.
        v: One unit vector (N,) a layer, over the elements of a row of ``weight`` in the order of
            its shape; dtype as ``u``.
        n_power_iterations: Iterations, 0 (u and v are used as they are) or more.
        eps: A product :math:`W v` or :math:`W^T u` no longer than this, or not finite, leaves its
            vector as it was: a zero weight, or one step with a NaN, does not end the iteration for
            good.
        coefficient: :math:`c`, positive; None divides by :math:`\sigma`.

    Returns:
        results (like the weights), the new u, the new v (dtypes as given), and :math:`\sigma`,
        shape (layers,), in the accumulation type. Nothing is changed in place.

    Raises:
        ValueError: If the lists do not fit each other.

    Numerics:
        Sums in float32 for the 16-bit types. Deterministic: the same for any thread count. A zero
        weight without coefficient gives NaN, as 0/0 must. :math:`\sigma` of a convolution's weight
        is that of the matrix, which the convolution itself can exceed. Differentiable twice.
        Under autocast the op runs in float32. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.spectral_norm`.

    Cost:
        One pass over W an iteration and one for the result, 4 M N operations an iteration; the
        layers are shared between threads, and take three launches an iteration on a GPU. The
        backward pass keeps W, u and v, and reads W once and its gradient twice.

    Source:
        Miyato et al., Spectral Normalization for GANs, 2018, arXiv:1802.05957, algorithm 1; with a
        coefficient, Behrmann et al., Invertible Residual Networks, 2019, arXiv:1811.00995, eq. 6.

    Example:
        >>> up = torch.tensor([1.0, 0.0])
        >>> spectral_norm([torch.tensor([[4.0, 0.0], [0.0, 2.0]])], [up], [up])[0]
        [tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])]
    """
    if not len(weight):
        raise ValueError(f"{_NAME}: weight must hold at least one layer, got an empty list")
    if transforms_active():
        return reference.spectral_norm(
            weight,
            u,
            v,
            n_power_iterations=n_power_iterations,
            eps=eps,
            coefficient=coefficient,
        )
    return _kernel(list(weight), list(u), list(v), n_power_iterations, eps, coefficient)


def _dense_rows(weight: Tensor) -> bool:
    """Mirror ``has_dense_rows`` of csrc/ops/spectral_norm.h."""
    dense = torch.ops.aten.is_non_overlapping_and_dense.default(weight)
    return dense and (weight.size(0) == 1 or weight.stride(0) * weight.size(0) == weight.numel())


def _empty_result(weight: Tensor) -> Tensor:
    if _dense_rows(weight):
        return weight.new_empty_strided(weight.shape, weight.stride())
    return weight.new_empty(weight.shape)


@torch.library.register_fake("flowops::spectral_norm")
def _(
    weight: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    n_power_iterations: int,
    eps: float,
    coefficient: float | None,
) -> SpectralNorm:
    sigma = weight[0].new_empty(len(weight), dtype=accumulation_dtype(weight[0].dtype))
    vectors = [[t.new_empty(t.shape) for t in list_] for list_ in (u, v)]
    return [_empty_result(w) for w in weight], vectors[0], vectors[1], sigma


@torch.library.register_fake("flowops::spectral_norm_backward")
def _(
    grad_result: list[Tensor],
    grad_sigma: Tensor,
    weight: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    sigma: Tensor,
    coefficient: float | None,
) -> list[Tensor]:
    return [_empty_result(w) for w in weight]
