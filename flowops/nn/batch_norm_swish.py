"""Batch normalisation and swish as one step of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, silu

from flowops.ops._dispatch import transforms_active


class BatchNormSwish(nn.Module):
    r"""Batch normalisation followed by swish, :math:`y = h \, \sigma(h)`, keeping its input alone.

    .. math:: h = \gamma \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta

    The two layers apart keep x and h for the backward pass; here h is computed again from x and the
    batch's statistics. Results are those of ``norm``, an ``nn.BatchNorm2d``, and ``silu``. They are
    computed by these two in evaluation, under ``torch.compile`` and ``torch.func``, and where
    another normalisation (synchronised, say) has been put in the place of ``norm``. A gradient that
    is itself to be differentiated goes through them too.

    Args:
        channels: of the maps.
        eps: added to the variance.
        momentum: of the running statistics; None for a plain average.
        device: of the parameters.
        dtype: of the parameters.

    Cost: one pass over x more in the backward pass; half the memory of the two layers.

    Source: Vahdat and Kautz, "NVAE", 2020, arXiv:2007.03898, section 3.3.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, momentum, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        norm = self.norm
        traced = torch.compiler.is_compiling() or transforms_active()
        plain = type(norm) is nn.BatchNorm2d and norm.training and torch.is_grad_enabled()
        if traced or not plain:
            return silu(norm(x))
        norm._check_input_dim(x)
        count = norm.num_batches_tracked
        if count is not None:
            count.add_(1)
        average = norm.momentum is None and count is not None
        momentum = 1.0 / float(count) if average else norm.momentum  # type: ignore[arg-type]
        return _NormSwish.apply(x, norm.weight, norm.bias, momentum, norm)


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, momentum: float, layer: nn.BatchNorm2d
    ) -> Tensor:
        h, mean, inverse_std = torch.native_batch_norm(
            x, weight, bias, layer.running_mean, layer.running_var, True, momentum, layer.eps
        )
        ctx.save_for_backward(x, weight, bias, mean, inverse_std)
        ctx.eps = layer.eps
        return silu(h, inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _graph(ctx, grads[0])
        return _fused(ctx, grads[0])


@once_differentiable
def _fused(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, inverse_std = ctx.saved_tensors
    variance = inverse_std.pow(-2) - ctx.eps
    h = batch_norm(x, mean, variance, weight, bias, False, 0.0, ctx.eps)
    inner = torch.ops.aten.silu_backward(grad, h)
    grads = torch.ops.aten.native_batch_norm_backward(
        inner, x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
    )
    return *grads, None, None


def _graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated, through the two layers apart."""
    x, weight, bias, _, _ = ctx.saved_tensors
    y = silu(batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps))
    grads = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
    return *grads, None, None
