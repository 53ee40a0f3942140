"""Spectral norm of all convolutions of a network, against torch's parametrization of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from benchmarks.case import Case
from flowops import ops

Shape = tuple[int, int, int, int]


def resnet18() -> list[Shape]:
    """The 20 convolutions of ResNet-18, stem and 1x1 shortcuts included."""
    shapes: list[Shape] = [(64, 3, 7, 7)]
    channels = 64
    for width in (64, 128, 256, 512):
        shapes += [(width, channels, 3, 3), (width, width, 3, 3), (width, width, 3, 3)]
        shapes += [(width, width, 3, 3)]
        if width != channels:
            shapes.append((width, channels, 1, 1))
        channels = width
    return shapes


def small() -> list[Shape]:
    """20 convolutions of at most 128 channels, as in the discriminator of a small GAN."""
    widths = [32] * 7 + [64] * 7 + [128] * 6
    return [(width, previous, 3, 3) for previous, width in zip([3, *widths], widths, strict=False)]


class Rival(nn.Module):
    """torch's parametrizations of all layers, in the dtypes of the timed and of the exact run."""

    def set_weights(self, weights: list[Tensor]) -> None:
        """Begin anew, with vectors fitted to these weights."""
        self.single = nn.ModuleList(_SpectralNorm(w) for w in weights)
        self.double_ = nn.ModuleList(_SpectralNorm(w.double()) for w in weights)

    def forward(self, *weights: Tensor) -> list[Tensor]:
        """As a network in training asks for its weights, layer by layer."""
        layers = self.single if weights[0].dtype == torch.float32 else self.double_
        return [layer(w) for layer, w in zip(layers, weights, strict=True)]


class Layers:
    """Weights, and the vectors that each side keeps and moves in every training step."""

    def __init__(self, shapes: list[Shape]) -> None:
        self.shapes = shapes
        self.rival = Rival()

    def inputs(self) -> list[Tensor]:
        """Weights, for which both sides begin with the same vectors."""
        weights = []
        for rows, *rest in self.shapes:
            # One direction stands out, so the vectors have converged when they are first used, and
            # both sides give the same result however often they have run.
            noise = torch.randn(rows, *rest) / rows**0.5
            left, right = torch.randn(rows), torch.randn(torch.Size(rest).numel())
            bump = torch.outer(left / left.norm(), right / right.norm()) * 20
            weights.append(noise + bump.view_as(noise))
        self.rival.set_weights(weights)
        self.u = [layer._u.clone() for layer in self.rival.single]
        self.v = [layer._v.clone() for layer in self.rival.single]
        return weights

    def ours(self, *weights: Tensor) -> list[Tensor]:
        """One step through flowops."""
        results, self.u, self.v, _ = ops.spectral_norm(weights, self.u, self.v)
        return results


def case(shapes: list[Shape], name: str) -> Case:
    layers = Layers(shapes)
    traffic = 2 * 4 * sum(torch.Size(shape).numel() for shape in shapes)
    return Case("spectral_norm", name, layers.inputs, layers.rival, layers.ours, traffic)


CASES = [
    case(resnet18(), "20 convolutions of ResNet-18 float32"),
    case(small(), "20 convolutions of at most 128 channels"),
]
