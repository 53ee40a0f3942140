"""What the layers share: their contract, checks of arguments, and reordered channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowops.compat._twins import Twin
from flowops.ops._dispatch import transforms_active


class Transform(Twin):
    """An invertible map of batches; both directions return ``(outputs, logabsdet)``.

    ``forward`` goes from data to noise. ``logabsdet`` is log|det d outputs / d inputs| of the
    direction evaluated, nats, shape (N,), float64 for float64 inputs and else float32: nflows
    returns the dtype of the inputs.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        raise NotImplementedError(f"{type(self).__name__}: forward must be defined")

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data."""
        raise NotImplementedError(f"{type(self).__name__}: inverse must be defined")


def check_positive(
    owner: object, argument: str, value: object, error: type[Exception] = TypeError
) -> None:
    """Refuse what is not a positive integer, with the type of error that nflows raises."""
    if not isinstance(value, int) or value < 1:
        raise error(f"{type(owner).__name__}: {argument} must be a positive integer, got {value!r}")


def check_inputs(
    owner: object, inputs: Tensor, features: int, dims: tuple[int, ...] = (2, 4)
) -> None:
    """Refuse inputs of another number of dimensions or channels."""
    if inputs.dim() not in dims or inputs.size(1) != features:
        shapes = {2: f"(N, {features})", 4: f"(N, {features}, H, W)"}
        raise ValueError(
            f"{type(owner).__name__}: inputs must have shape "
            f"{' or '.join(shapes[d] for d in dims)}, got {tuple(inputs.shape)}"
        )


class _Reordered(torch.autograd.Function):
    """``x.index_select(dim, order)`` of a permutation, whose gradient is the inverse one's.

    The gradient that autograd gives to ``index_select`` adds into zeros, for indices may repeat.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(order)
        return x.index_select(dim, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (order,) = ctx.saved_tensors
        return reordered(grad, order.argsort(), ctx.dim), None, None


def reordered(x: Tensor, order: Tensor, dim: int = 1) -> Tensor:
    """Return ``x`` with ``dim`` in ``order``, which is a permutation."""
    if transforms_active():
        return x.index_select(dim, order)
    return _Reordered.apply(x, order, dim)  # pyright: ignore[reportReturnType]
