"""Networks that give couplings their scales and shifts.

All are called as ``conditioner(x, context=None)``, begin by giving zeros, and set their actnorms in
``initialize(x, context)``, which returns what a call would.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import glu, relu

from flowops import ops
from flowops.nn.convolution import ActNormConv2d, ZeroConv2d
from flowops.nn.split import append_context


class MLP(nn.Module):
    """Fully connected network on vectors: ReLU between layers, a linear last layer.

    All layers run in one call of :func:`flowops.ops.mlp`, so that hooks on one of them do not run.

    Args:
        in_features: size of the input vector.
        out_features: size of the output vector.
        hidden: sizes of the hidden layers.
        context_features: size of the context vector, seen beside the input; 0 for none.
        zero_last: the last layer begins as zeros, so that a coupling begins as the identity;
            otherwise it begins like the others, as an encoder or decoder needs.
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
        hidden: Sequence[int] = (64, 64),
        context_features: int = 0,
        zero_last: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = [in_features + context_features, *hidden, out_features]
        if min(in_features, out_features, *sizes) < 1 or context_features < 0:
            raise ValueError(
                f"MLP: sizes must be at least 1, got in_features={in_features}, "
                f"out_features={out_features}, hidden={tuple(hidden)}, "
                f"context_features={context_features}"
            )
        self.context_features = context_features
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            nn.Linear(n_in, n_out, **factory) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.zero_last = zero_last
        self._begin_last()

    def _begin_last(self) -> None:
        if self.zero_last:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def reset_parameters(self) -> None:
        """Draw the weights anew; the last layer's are zero with ``zero_last``."""
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]
        self._begin_last()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_features)`` to ``(B, out_features)``."""
        if self.context_features:
            x = append_context(self, x, context, self.context_features)
        weight, bias = zip(*((layer.weight, layer.bias) for layer in self.layers), strict=True)
        return ops.mlp(x, weight, bias)  # type: ignore[arg-type]


class GlowConvNet(nn.Module):
    """Glow's conditioner: 3x3 and 1x1 convolutions with actnorm and ReLU, then a zero 3x3 one.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        hidden: channels of the two hidden maps.
        context_features: size of the context vector; 0 for none.
        edge_bias: give the 3x3 convolutions a bias at the border, as Glow's own code does.
        device: of the parameters.
        dtype: of the parameters.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", 2018,
    arXiv:1807.03039, section 5.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 512,
        context_features: int = 0,
        edge_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.first = ActNormConv2d(
            in_channels,
            hidden,
            3,
            context_features=context_features,
            edge_bias=edge_bias,
            **factory,
        )
        self.second = ActNormConv2d(hidden, hidden, 1, **factory)
        self.last = ZeroConv2d(hidden, out_channels, 3, edge_bias=edge_bias, **factory)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        h = relu(self.first(x, context), inplace=True)
        return self.last(relu(self.second(h), inplace=True))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set the actnorms from the batch, in order, once; return the output."""
        h = relu(self.first.initialize(x, context))
        return self.last(relu(self.second.initialize(h)))


class _GatedBlock(nn.Module):
    """Residual block: ``h + a * sigmoid(b)``, a and b from two convolutions of ``relu(h)``."""

    def __init__(self, channels: int, context_features: int, factory: dict[str, Any]) -> None:
        super().__init__()
        self.first = ActNormConv2d(
            channels, channels, 3, context_features=context_features, **factory
        )
        self.second = ActNormConv2d(channels, 2 * channels, 1, **factory)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        return h + glu(self.second(relu(self.first(relu(h), context), inplace=True)), 1)

    @torch.no_grad()
    def initialize(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        return h + glu(self.second.initialize(relu(self.first.initialize(relu(h), context))), 1)


class GatedResNet(nn.Module):
    """Residual network of gated, pre-activated blocks with actnorm; the last convolution is zero.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        hidden: channels of the hidden maps.
        blocks: how many residual blocks.
        mask: bool, ``(1, H, W)``: given to the network as one more channel, which tells it a masked
            pixel from a zero one. None for none.
        context_features: size of the context vector; 0 for none.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        mask: Tensor | None = None,
        context_features: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if blocks < 0:
            raise ValueError(f"GatedResNet: blocks must be at least 0, got {blocks}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("mask", None if mask is None else mask.to(device))
        self.first = ActNormConv2d(in_channels + (mask is not None), hidden, 3, **factory)
        self.blocks = nn.ModuleList(
            _GatedBlock(hidden, context_features, factory) for _ in range(blocks)
        )
        self.last = ZeroConv2d(hidden, out_channels, 3, **factory)

    def _with_mask(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x
        return torch.cat([x, self.mask.to(x.dtype).expand(x.size(0), 1, *x.shape[2:])], 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        h = self.first(self._with_mask(x))
        for block in self.blocks:
            h = block(h, context)
        return self.last(relu(h))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set the actnorms from the batch, in order, once; return the output."""
        h = self.first.initialize(self._with_mask(x))
        for block in self.blocks:
            h = block.initialize(h, context)  # type: ignore[operator]
        return self.last(relu(h))
