"""Residual networks on vectors, one with autoregressive masks."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flowops import ops
from flowops.nn.split import append_context


class ResidualMLP(nn.Module):
    """Residual network on vectors: blocks ``h + W relu(V relu(h))`` and a zero last layer.

    All layers run in one call of :func:`flowops.ops.mlp`, so that hooks on one of them do not run.

    Args:
        in_features: size of the input vector.
        out_features: size of the output vector.
        hidden: width.
        blocks: number of residual blocks.
        context_features: size of the context vector, seen beside the input; 0 for none.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range, or the context has not the size promised.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        context_features: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if min(in_features, out_features, hidden) < 1 or min(blocks, context_features) < 0:
            raise ValueError(
                f"{name}: sizes must be at least 1, blocks and context_features at least 0, got "
                f"in_features={in_features}, out_features={out_features}, hidden={hidden}, "
                f"blocks={blocks}, context_features={context_features}"
            )
        self.context_features = context_features
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.first = self._linear(in_features + context_features, hidden, **factory)
        self.inner = nn.ModuleList(self._linear(hidden, hidden, **factory) for _ in range(blocks))
        self.outer = nn.ModuleList(self._linear(hidden, hidden, **factory) for _ in range(blocks))
        self.last = self._linear(hidden, out_features, **factory)
        self._zero_last()

    def _linear(self, n_in: int, n_out: int, **factory: Any) -> nn.Linear:
        return nn.Linear(n_in, n_out, **factory)

    def _zero_last(self) -> None:
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the last layer's are zero."""
        for layer in [self.first, *self.inner, *self.outer]:
            layer.reset_parameters()  # type: ignore[operator]
        self._zero_last()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_features)`` to ``(B, out_features)``."""
        if self.context_features:
            x = append_context(self, x, context, self.context_features)
        blocks = zip(self.inner, self.outer, strict=True)
        layers = [self.first, *itertools.chain.from_iterable(blocks), self.last]
        weight = [self._weight(layer) for layer in layers]
        bias = [layer.bias for layer in layers]
        return ops.mlp(x, weight, bias, residual=True)  # type: ignore[arg-type]

    def _weight(self, layer: nn.Module) -> Tensor:
        return layer.weight  # type: ignore[return-value]


class MaskedLinear(nn.Linear):
    """Linear layer with a fixed pattern of weights that count.

    Args:
        in_features: size of the input vector.
        out_features: size of the output vector.
        device: of the parameters.
        dtype: of the parameters.
    """

    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, device=device, dtype=dtype)
        everything = torch.ones(out_features, in_features, dtype=torch.bool, device=device)
        self.register_buffer("mask", everything)

    def masked_weight(self) -> Tensor:
        """Return the weight with zeros where it does not count."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, in_features)`` to ``(B, out_features)``."""
        return linear(input, self.masked_weight(), self.bias)


class MADE(ResidualMLP):
    """Residual network whose outputs for a feature depend on the features before it alone.

    The features form ``passes`` groups, made one after the other; outputs for a group see the
    groups before it, and the context. The masks belong to the state.

    Args:
        features: size of the input vector.
        outputs: numbers given for each feature.
        hidden: width.
        blocks: number of residual blocks.
        context_features: size of the context vector, which all outputs see; 0 for none.
        order: int64, shape ``(features,)``: the place of each feature in the order; default as
            they come.
        passes: number of groups, from 1 to ``features``, the default.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range, or the context has not the size promised.

    Source: Germain, Gregor, Murray and Larochelle, "MADE: masked autoencoder for distribution
    estimation", 2015, arXiv:1502.03509.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        context_features: int = 0,
        order: Tensor | None = None,
        passes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            features,
            features * outputs,
            hidden=hidden,
            blocks=blocks,
            context_features=context_features,
            device=device,
            dtype=dtype,
        )
        order = torch.arange(features) if order is None else order.cpu()
        if order.shape != (features,) or not torch.equal(
            order.sort().values, torch.arange(features)
        ):
            raise ValueError(
                f"MADE: order must be a permutation of range({features}), got {order.tolist()}"
            )
        self.features = features
        self.outputs = outputs
        self.passes = features if passes is None else passes
        if not 1 <= self.passes <= features:
            raise ValueError(f"MADE: passes must be from 1 to {features}, got {passes}")
        # Groups from 1; the context is of group 0. A hidden unit of group g sees groups up to g,
        # and an output of group g the hidden units of groups below g.
        group = 1 + order * self.passes // features
        seen = torch.cat([group, group.new_zeros(context_features)])
        least = min(self.passes - 1, 0 if context_features else 1)
        units = torch.linspace(least, self.passes - 1, hidden).round().long()
        self.first.mask.copy_(units[:, None] >= seen)  # type: ignore[operator]
        for layer in [*self.inner, *self.outer]:
            layer.mask.copy_(units[:, None] >= units)  # type: ignore[operator]
        self.last.mask.copy_(group.repeat_interleave(outputs)[:, None] > units)  # type: ignore[operator]

    def _linear(self, n_in: int, n_out: int, **factory: Any) -> MaskedLinear:
        return MaskedLinear(n_in, n_out, **factory)

    def _weight(self, layer: nn.Module) -> Tensor:
        return layer.masked_weight()  # type: ignore[operator]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, features)`` to ``(B, features, outputs)``."""
        return super().forward(x, context).unflatten(1, (self.features, self.outputs))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.features}, {self.outputs}, passes={self.passes}"
