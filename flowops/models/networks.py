"""The encoders and decoders that models of images share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

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
    """Images to vectors by 3x3 convolutions that halve the sides, then a linear layer.

    Args:
        event_shape: ``(channels, height, width)``.
        features: of the result.
        channels: after each halving; ReLU after each.
    """

    def __init__(self, event_shape: Sequence[int], features: int, channels: Sequence[int]) -> None:
        super().__init__()
        ins = [event_shape[0], *channels[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
            for n_in, n_out in zip(ins, channels, strict=True)
        )
        height, width = halved(event_shape, len(channels))
        self.out = nn.Linear(channels[-1] * height * width, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *event_shape)`` to ``(B, features)``."""
        for conv in self.convs:
            x = relu(conv(x))
        return self.out(x.flatten(1))


class ConvDecoder(nn.Module):
    """Mirror of :class:`ConvEncoder`: each doubling is a nearest-neighbour one and a convolution.

    Args:
        features: of the code.
        event_shape: ``(channels, height, width)``.
        channels: those of the encoder, in its order.
    """

    def __init__(self, features: int, event_shape: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [halved(event_shape, n) for n in range(len(channels))][::-1]
        self.start = (channels[-1], *halved(event_shape, len(channels)))
        self.inside = nn.Linear(features, math.prod(self.start))
        widths = [*channels[::-1], event_shape[0]]
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, padding=1) for n_in, n_out in itertools.pairwise(widths)
        )

    def forward(self, code: Tensor) -> Tensor:
        """Map ``(B, features)`` to ``(B, *event_shape)``."""
        h = self.inside(code).unflatten(1, self.start)
        for size, conv in zip(self.sizes, self.convs, strict=True):
            h = conv(interpolate(relu(h), size=size))
        return h


def halved(event_shape: Sequence[int], times: int) -> tuple[int, int]:
    """Return height and width after so many convolutions of stride 2."""
    height, width = event_shape[1:]
    return math.ceil(height / 2**times), math.ceil(width / 2**times)


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
