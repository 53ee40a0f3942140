"""Stacked auto-encoder: trained layer by layer, then as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from flowops.models.autoencoder import OUTPUT_HELP, OUTPUTS, AutoEncoder, reconstruction_error
from flowops.models.base import Loss
from flowops.models.config import check_at_least, check_choice, option


@dataclass(frozen=True)
class StackedAEConfig:
    """Configuration of :class:`StackedAE`."""

    event_shape: tuple[int, ...]
    latent: int = option(30, "numbers of the code")
    hidden: int = option(1000, "units of the first hidden layer; each other has half as many")
    depth: int = option(3, "hidden layers of the encoder")
    layer_steps: int = option(1000, "training steps for each layer, before all are trained")
    output: str = option("sigmoid", OUTPUT_HELP, OUTPUTS)

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("StackedAE", "output", self.output, OUTPUTS)
        for name in ("latent", "layer_steps"):
            check_at_least("StackedAE", name, getattr(self, name), 1)
        check_at_least("StackedAE", "depth", self.depth, 0)
        check_at_least("StackedAE", "hidden", self.hidden, 2 ** max(self.depth - 1, 0))


class StackedAE(AutoEncoder):
    r"""Auto-encoder whose layers are trained one after the other, then all together.

    Hidden layers are sigmoids, the code is linear. Layer i = 0, 1, ... is an auto-encoder of its
    own, of the activations :math:`h_i` below it, with :math:`h_0 = x`:

    .. math:: \frac1B \sum_x \|h_i - D_i(E_i(h_i))\|^2, \qquad h_{i+1} = E_i(h_i).

    ``loss`` trains layer ``step // layer_steps`` so, and no other has a gradient; after the last
    one the layers are unrolled, :math:`D_0 D_1 \cdots E_1 E_0`, and trained as one auto-encoder. In
    evaluation mode the loss is that of the whole, at any step. With ``output="bernoulli"`` the
    layers' errors are cross-entropies too.

    Args:
        config: sizes and choices.

    Source: Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural networks",
    2006, with auto-encoders in the place of Boltzmann machines as in Bengio et al., "Greedy
    layer-wise training of deep networks", 2007.
    """

    def __init__(self, config: StackedAEConfig) -> None:
        super().__init__(config.event_shape, config.latent, config.output)
        self.config = config
        hidden = [config.hidden // 2**n for n in range(config.depth)]
        sizes = [self.dims, *hidden, config.latent]
        self.encoder = nn.Sequential(nn.Flatten(), *_sigmoid_layers(sizes))
        unflatten = nn.Unflatten(1, config.event_shape)
        self.decoder = nn.Sequential(*_sigmoid_layers(sizes[::-1]), unflatten)

    def phase(self, step: int) -> int:
        """Return the layer that ``step`` trains, the number of layers where it trains all."""
        return min(step // self.config.layer_steps, self.config.depth + 1)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return the error of the layer that ``step`` trains, or that of all; see the class."""
        layer, last = self.phase(step), self.config.depth
        if layer > last or not self.training:
            return super().loss(x, labels, step=step)
        self.check_images(x)
        encoder, decoder = cast("nn.Sequential", self.encoder), cast("nn.Sequential", self.decoder)
        with torch.no_grad():
            below = encoder[: 2 * layer + 1](x)
        code = encoder[2 * layer + 1 : 2 * layer + 3](below)
        if layer == last:
            self.moments.update(code)
        raw = decoder[2 * (last - layer)](code)
        output = "sigmoid" if layer > 0 and self.output == "linear" else self.output
        error, mse = reconstruction_error(raw, below, output)
        return Loss(error, {"mse": mse})


def _sigmoid_layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.Sigmoid()]
    return layers[:-1]
