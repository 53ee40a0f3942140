"""A multilayer perceptron, plain or residual, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import transforms_active, typed_call

_kernel = typed_call("mlp")


def mlp(
    x: Tensor, weight: Sequence[Tensor], bias: Sequence[Tensor], *, residual: bool = False
) -> Tensor:
    r"""Linear layers with ReLU between them, on the rows of ``x``, all in one call.

    With :math:`a_0 = x` and :math:`a_i = \mathrm{relu}(p_{i-1})`, layer :math:`i` of
    :math:`n` gives

    .. math::
        p_i = W_i a_i + b_i \qquad (+\, p_{i-2} \text{ for } i = 2, 4, \ldots \text{ if residual}),

    and the result is :math:`p_{n-1}`. A residual network is thus a first layer, blocks
    :math:`h + W\,\mathrm{relu}(V\,\mathrm{relu}(h) + c) + b`, and a last layer of
    :math:`\mathrm{relu}(h)`.

    Args:
        x: Data (B, inputs), float64, float32, float16 or bfloat16.
        weight: One matrix (outputs, inputs) a layer, dtype of ``x``; any widths that fit.
        bias: One vector (outputs,) a layer, dtype of ``x``.
        residual: Whether every second hidden layer adds what came before the layer ahead of it. The
            number of layers is even then, and the widths of the hidden layers are the same.

    Returns:
        (B, outputs of the last layer), dtype of ``x``.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Sums in float32 for the 16-bit types; what the backward pass keeps has the dtype of ``x``.
        On the CPU a row gives the same bits in any batch, and sums over the batch are taken in a
        fixed order: the same for any thread count. NaN goes through, as in ``torch.relu``.
        Differentiable twice. Under autocast the op runs in the lower precision, as
        ``torch.nn.functional.linear`` does. ``torch.func`` transforms and forward-mode AD take
        :func:`flowops.reference.mlp`.

    Cost:
        2 B sum(outputs inputs) operations forward and twice that backward. On the CPU 96 rows pass
        through all layers while they lie in the caches, which pays for widths up to some 1,000; on
        a GPU each product is cuBLAS's, and one pass over memory follows it. The backward pass keeps
        ``x`` and the hidden layers before their activation, B sum(widths) elements.

    Source:
        The residual form is that of Durkan et al., Neural spline flows, 2019, arXiv:1906.04032,
        whose networks follow He et al., Identity mappings in deep residual networks, 2016,
        arXiv:1603.05027.

    Example:
        >>> one = torch.ones(1, 1)
        >>> mlp(torch.tensor([[2.0], [-3.0]]), [one, one], [one[0], one[0]])
        tensor([[4.],
                [1.]])
    """
    if transforms_active():
        return reference.mlp(x, weight, bias, residual=residual)
    return _kernel(x, list(weight), list(bias), residual, False)[0]


@torch.library.register_fake("flowops::mlp")
def _(
    x: Tensor, weight: list[Tensor], bias: list[Tensor], residual: bool, keep_hidden: bool
) -> tuple[Tensor, Tensor]:
    width = sum(w.size(0) for w in weight[:-1]) if keep_hidden else 0
    return x.new_empty(x.size(0), weight[-1].size(0)), x.new_empty(x.size(0), width)


@torch.library.register_fake("flowops::mlp_backward")
def _(
    grad_out: Tensor, x: Tensor, hidden: Tensor, weight: list[Tensor], residual: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return (
        x.new_empty(x.shape),
        [w.new_empty(w.shape) for w in weight],
        [w.new_empty(w.size(0)) for w in weight],
    )
