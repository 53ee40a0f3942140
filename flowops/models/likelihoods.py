"""What a decoder's raw pixels say about images: log-densities in nats and mean images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from flowops import ops
from flowops.models.base import Pixels
from flowops.reference.logistic_mixture_log_prob import CHANNELS_OF_COMPONENT


class Bernoulli(nn.Module):
    r"""Binary pixels, the decoder giving logits h.

    .. math:: \log q(x | z) = \sum_i x_i \log \sigma(h_i) + (1 - x_i) \log \sigma(-h_i)
    """

    pixels: Pixels = "binary"

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Return the log-probability of each image, nats, ``(B,)``, float32 or wider."""
        wide = torch.promote_types(raw.dtype, torch.float32)
        loss = binary_cross_entropy_with_logits(raw.to(wide), x.to(wide), reduction="none")
        return -loss.flatten(1).sum(1)

    def mean(self, raw: Tensor) -> Tensor:
        """Return the mean image, in (0, 1)."""
        return raw.sigmoid()


class Gaussian(nn.Module):
    r"""Dequantised pixels with one standard deviation, the decoder giving the mean.

    .. math:: \log q(x | z) = -\frac{\|x - h\|^2}{2 \sigma^2} - \frac D2 \log 2 \pi \sigma^2

    A learned standard deviation settles at the root mean square error. It stays above a floor:
    where a decoder can reconstruct exactly, the density would have no upper bound.

    Args:
        sigma: :math:`\sigma`, positive; 0 learns it, from 0.3.
    """

    pixels: Pixels = "dequantized"
    #: Least standard deviation.
    floor = 1e-3
    _first = 0.3

    log_excess: nn.Parameter | Tensor

    def __init__(self, sigma: float = 0.0) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(f"Gaussian: sigma must be at least 0 and finite, got {sigma}")
        if sigma == 0:
            self.log_excess = nn.Parameter(torch.tensor(math.log(self._first - self.floor)))
        elif sigma > self.floor:
            self.register_buffer("log_excess", torch.tensor(math.log(sigma - self.floor)))
        else:
            raise ValueError(f"Gaussian: sigma must be 0 or above {self.floor}, got {sigma}")

    @property
    def sigma(self) -> Tensor:
        """The standard deviation of a pixel, a 0-dim tensor."""
        return self.log_excess.exp() + self.floor

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Return the log-density of each image, nats, ``(B,)``, float32 or wider."""
        return ops.gaussian_log_prob(x, raw, self.sigma.log().to(raw.dtype))

    def mean(self, raw: Tensor) -> Tensor:
        """Return the mean image."""
        return raw


class LogisticMixture(nn.Module):
    """Discrete pixels under a mixture of logistics; see :func:`ops.logistic_mixture_log_prob`.

    Images are grey values ``v / (values - 1)``.

    Args:
        colours: 1 or 3.
        components: of the mixture.
        values: number of values of a pixel, at least 2.
    """

    pixels: Pixels = "grey"

    def __init__(self, colours: int, components: int, values: int) -> None:
        super().__init__()
        if colours not in (1, 3):
            raise ValueError(f"LogisticMixture: colours must be 1 or 3, got {colours}")
        self.colours, self.components, self.values = colours, components, values

        self.raw_channels = components * CHANNELS_OF_COMPONENT[colours]

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Return the log-probability of each image, nats, ``(B,)``, float32 or wider."""
        pixels = (x * (self.values - 1)).round().to(raw.dtype)
        return ops.logistic_mixture_log_prob(pixels, raw, levels=self.values)

    def mean(self, raw: Tensor) -> Tensor:
        """Return the mean image, each component's mean drawn into [0, 1] first."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        weights = raw[:, : self.components].softmax(1)
        kinds = raw[:, self.components :].unflatten(1, (self.colours, -1, self.components))
        means: list[Tensor] = []
        for colour in range(self.colours):
            mean = kinds[:, colour, 0]
            for earlier, value in enumerate(means):
                mean = mean + kinds[:, colour - 1 + earlier, 2].tanh() * value
            means.append(mean.clamp(-1, 1))
        units = torch.stack([(weights * mean).sum(1) for mean in means], 1)
        return (units + 1) / 2
