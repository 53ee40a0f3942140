"""What the models of the cases share where they are written without flowops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases.gaussian_log_prob import eager_standard


def bare(module: nn.Module, *names: str) -> Any:
    """Take the parameters out of a layer, so that any tensor can be set in their place."""
    for name in names:
        delattr(module, name)
    return module


class MLP(nn.Sequential):
    """Fully connected network whose last layer begins at zero, as those of flowops do."""

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        super().__init__(*layers[:-1])
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, input: Tensor, context: Tensor | None = None) -> Tensor:
        """The packages that give a context give None here."""
        return super().forward(input)


class EagerFlow(nn.Module):
    """A flow under a standard normal density, of layers that map ``x`` to ``(z, logdet)``.

    Their ``inverse`` gives ``x`` alone.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def log_prob(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.size(0), device=x.device)
        for layer in self.layers:
            x, logdet = layer(x)
            total = total + logdet
        return eager_standard(x)[0] + total

    def sample(self, like: Tensor) -> Tensor:
        """As many samples as ``like`` holds, of its shape."""
        x = torch.randn_like(like)
        for layer in reversed(self.layers):
            x = layer.inverse(x)
        return x
