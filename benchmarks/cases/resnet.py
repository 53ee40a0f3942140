"""Training steps of a ResNet-18 for small images, the weights of all layers normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, relu
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.case import Model, ModelCase
from flowops.nn.utils import spectral_norm_model

CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; without batch norm, as spectral norm stands for it."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1)
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(x))) + self.shortcut(x))


class ResNet18(nn.Module):
    """The stem for small images, then two blocks of each of four widths."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU()]
        for n_in, n_out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            layers += [Block(n_in, n_out, stride), Block(n_out, n_out, 1)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        return self.head(avg_pool2d(maps, maps.size(2)).flatten(1))


def eager(x: Tensor, labels: Tensor) -> Model:
    network = ResNet18()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)
    return Model(network, lambda x, labels: cross_entropy(network(x), labels))


def ours(x: Tensor, labels: Tensor) -> Model:
    network = spectral_norm_model(ResNet18())
    return Model(network, lambda x, labels: cross_entropy(network(x), labels))


def case(batch: int, side: int) -> ModelCase:
    return ModelCase(
        "resnet",
        f"ResNet-18, spectral norm, batch {batch}, {side}x{side} pixels",
        lambda: (torch.randn(batch, 3, side, side), torch.randint(0, CLASSES, (batch,))),
        {"eager": eager, "ours": ours},
    )


CASES = [case(8, 16)]
