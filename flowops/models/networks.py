"""The encoders and decoders that models of images share."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from flowops.nn import MLP

#: Networks by the value of the option ``network``.
NETWORKS = ("mlp", "conv")


class DenseEncoder(nn.Module):
    """Images ``(B, *event_shape)`` to vectors ``(B, features)``, fully connected.

    Args:
        event_shape: of an image.
        features: of the result.
        hidden: sizes of the hidden layers, ReLU after each.
    """

    def __init__(self, event_shape: Sequence[int], features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = MLP(math.prod(event_shape), features, hidden=hidden, zero_last=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *event_shape)`` to ``(B, features)``."""
        return self.mlp(x.flatten(1))


class DenseDecoder(nn.Module):
    """Vectors ``(B, features)`` to raw pixels ``(B, *event_shape)``, fully connected.

    Args:
        features: of the code.
        event_shape: of an image.
        hidden: sizes of the hidden layers, ReLU after each.
    """

    def __init__(self, features: int, event_shape: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.mlp = MLP(features, math.prod(event_shape), hidden=hidden, zero_last=False)

    def forward(self, code: Tensor) -> Tensor:
        """Map ``(B, features)`` to ``(B, *event_shape)``."""
        return self.mlp(code).unflatten(1, self.event_shape)


class ConvEncoder(nn.Module):
    """Images to vectors by 3x3 convolutions, then a linear layer.

    Args:
        event_shape: ``(channels, height, width)``.
        features: of the result.
        channels: after each convolution.
        strides: of each convolution; by default all halve the sides.
        slope: of the leaky ReLU after each, below 0.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        features: int,
        channels: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.slope = slope
        strides = strides or [2] * len(channels)
        ends = itertools.pairwise([event_shape[0], *channels])
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)
            for (n_in, n_out), stride in zip(ends, strides, strict=True)
        )
        self.out = nn.Linear(channels[-1] * math.prod(_sizes(event_shape, strides)[-1]), features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *event_shape)`` to ``(B, features)``."""
        for conv in self.convs:
            x = leaky_relu(conv(x), self.slope)
        return self.out(x.flatten(1))


class ConvDecoder(nn.Module):
    """Mirror of :class:`ConvEncoder`: sides grow to the nearest pixel, then a 3x3 convolution.

    Args:
        features: of the code.
        event_shape: ``(channels, height, width)``.
        channels: those of the encoder, in its order.
        strides: those of the encoder.
        slope: of the leaky ReLU before each convolution, below 0.
    """

    def __init__(
        self,
        features: int,
        event_shape: Sequence[int],
        channels: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.slope = slope
        sizes = _sizes(event_shape, strides or [2] * len(channels))
        self.sizes = sizes[-2::-1]
        self.start = (channels[-1], *sizes[-1])
        self.inside = nn.Linear(features, math.prod(self.start))
        ends = itertools.pairwise([*reversed(channels), event_shape[0]])
        self.convs = nn.ModuleList(nn.Conv2d(n_in, n_out, 3, padding=1) for n_in, n_out in ends)

    def forward(self, code: Tensor) -> Tensor:
        """Map ``(B, features)`` to ``(B, *event_shape)``."""
        h = self.inside(code).unflatten(1, self.start)
        for size, conv in zip(self.sizes, self.convs, strict=True):
            h = leaky_relu(h, self.slope)
            h = conv(h if h.shape[2:] == size else interpolate(h, size=size))
        return h


def _sizes(event_shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Return height and width before the first convolution and after each."""
    height, width = event_shape[1:]
    products = itertools.accumulate([1, *strides], operator.mul)
    return [(math.ceil(height / n), math.ceil(width / n)) for n in products]


def make_encoder(
    network: str, event_shape: Sequence[int], features: int, hidden: int, depth: int
) -> nn.Module:
    """Return the encoder that the options ``network``, ``hidden`` and ``depth`` name.

    ``mlp`` has ``depth`` hidden layers of ``hidden`` units; ``conv`` has ``depth`` halvings, of
    ``hidden`` channels after the first and twice as many after each other.
    """
    if network == "mlp":
        return DenseEncoder(event_shape, features, [hidden] * depth)
    return ConvEncoder(event_shape, features, _doubling(hidden, depth))


def make_decoder(
    network: str, features: int, event_shape: Sequence[int], hidden: int, depth: int
) -> nn.Module:
    """Return the mirror of :func:`make_encoder`'s network, from codes to raw pixels."""
    if network == "mlp":
        return DenseDecoder(features, event_shape, [hidden] * depth)
    return ConvDecoder(features, event_shape, _doubling(hidden, depth))


def _doubling(channels: int, depth: int) -> list[int]:
    return [channels * 2**n for n in range(depth)]
