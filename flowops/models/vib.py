"""The variational information bottleneck: a classifier that may know only so much of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flowops import ops
from flowops.models.base import ImageModel, Loss
from flowops.models.config import check_at_least, check_choice, option
from flowops.models.networks import NETWORKS, make_encoder

_LN2 = math.log(2)


@dataclass(frozen=True)
class VIBConfig:
    """Configuration of :class:`VIB`."""

    event_shape: tuple[int, ...]
    latent: int = option(256, "numbers of the code")
    network: str = option("mlp", "encoder", NETWORKS)
    hidden: int = option(1024, "units of a hidden layer, or channels after the first halving")
    depth: int = option(2, "hidden layers, or halvings")
    beta: float = option(1e-3, "price of a bit that the code holds, in bits of the prediction")
    classes: int = option(0, "number of classes")

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("VIB", "network", self.network, NETWORKS)
        for name in ("latent", "hidden", "classes"):
            check_at_least("VIB", name, getattr(self, name), 1)
        check_at_least("VIB", "depth", self.depth, 1 if self.network == "conv" else 0)
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"VIB: beta must be at least 0 and finite, got {self.beta}")


class VIB(ImageModel):
    r"""Classifier through a noisy code, trained to hold few bits of the image.

    .. math::
        L = \mathrm{E}[-\log_2 q(y|z)] + \beta R, \qquad
        R = \mathrm{E}_x \mathrm{KL}(p(z|x) \| N(0, I)) / \ln 2 \ge I(X; Z)

    The code is Gaussian, with standard deviations softplus(s - 5) of the encoder's s; the decoder
    is linear. Both terms are in bits, and :math:`H(Y)` less the first bounds :math:`I(Z; Y)` from
    below.

    Args:
        config: sizes and choices; ``classes`` at least 1.

    Source: Alemi, Fischer, Dillon and Murphy, "Deep variational information bottleneck", 2016,
    arXiv:1612.00410.
    """

    labels = "target"

    def __init__(self, config: VIBConfig) -> None:
        super().__init__(config.event_shape)
        self.config = config
        size = config.hidden, config.depth
        self.encoder = make_encoder(config.network, config.event_shape, 2 * config.latent, *size)
        self.decoder = nn.Linear(config.latent, config.classes)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return the loss, bits; parts: the prediction's bits, the code's rate in bits."""
        self.check_images(x)
        if labels is None:
            raise ValueError("VIB: labels must be given, got None")
        mean, scale = self._posterior(x)
        code, kl = ops.gaussian_rsample_kl(mean, scale, form="softplus")
        prediction = cross_entropy(self.decoder(code), labels) / _LN2
        rate = kl.mean() / _LN2
        parts = {"prediction": prediction.detach(), "rate": rate.detach()}
        return Loss(prediction + self.config.beta * rate, parts)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the means of the codes, ``(B, latent)``."""
        self.check_images(x)
        return self._posterior(x)[0]

    def rate(self, x: Tensor) -> Tensor:
        """Return the divergence of each image's code from the prior, bits, ``(B,)``."""
        self.check_images(x)
        return ops.gaussian_rsample_kl(*self._posterior(x), form="softplus")[1] / _LN2

    @torch.no_grad()
    def predict(
        self, x: Tensor, *, samples: int = 12, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return log-probabilities of the classes, ``(B, classes)``.

        The probabilities are means over so many codes of an image; with 0 they are those of the
        code's mean.

        Raises:
            ValueError: If ``samples`` is below 0, or ``x`` is no batch of images.
        """
        self.check_images(x)
        if samples < 0:
            raise ValueError(f"VIB.predict: samples must be at least 0, got {samples}")
        mean, scale = self._posterior(x)
        if samples == 0:
            return self.decoder(mean).log_softmax(1)
        many = mean.repeat(samples, 1), scale.repeat(samples, 1)
        codes = ops.gaussian_rsample(*many, form="softplus", generator=generator)
        log_probs = self.decoder(codes).log_softmax(1).view(samples, len(x), -1)
        return log_probs.logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def information(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        r"""Return an estimate of what the codes of ``x`` tell about which image they are, bits.

        .. math:: \frac1N \sum_i \log_2 \frac{p(z_i|x_i)}{\frac1N \sum_j p(z_i|x_j)}

        A 0-dim tensor. In expectation it bounds :math:`I(X; Z)` from below; it is at most
        :math:`\log_2 N`, and below the mean rate, which bounds it from above.

        Cost: N^2 densities at once; a thousand images or so.
        """
        self.check_images(x)
        mean, scale = self._posterior(x)
        codes = ops.gaussian_rsample(mean, scale, form="softplus", generator=generator)
        log_std = torch.nn.functional.softplus(scale).log()
        density = torch.stack(
            [
                ops.gaussian_log_prob(codes, m[None], s[None])
                for m, s in zip(mean, log_std, strict=True)
            ]
        )
        own = density.diagonal()
        return (own - density.logsumexp(0) + math.log(len(x))).mean() / _LN2

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and raw scales, before the softplus."""
        mean, scale = self.encoder(2 * x - 1).chunk(2, 1)
        return mean, scale - 5
