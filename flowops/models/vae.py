"""Variational auto-encoders, with classes as a condition or without."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowops.models.base import LatentVariableModel, Loss, log_mean_exp
from flowops.models.config import check_at_least, check_choice, option
from flowops.models.latents import (
    GaussianLatent,
    GumbelLatent,
    VectorQuantizedLatent,
    VonMisesFisherLatent,
)
from flowops.models.likelihoods import Bernoulli, Gaussian
from flowops.models.networks import NETWORKS, make_decoder, make_encoder

_POSTERIORS = ("gaussian", "vmf", "gumbel", "vq")
_LIKELIHOODS = ("bernoulli", "gaussian")


@dataclass(frozen=True)
class VAEConfig:
    """Configuration of :class:`VAE`."""

    event_shape: tuple[int, ...]
    latent: int = option(40, "numbers of the code; of gumbel and vq, variables")
    network: str = option("mlp", "encoder and decoder", NETWORKS)
    hidden: int = option(300, "units of a hidden layer, or channels after the first halving")
    depth: int = option(2, "hidden layers, or halvings")
    posterior: str = option("gaussian", "distribution of the code given an image", _POSTERIORS)
    likelihood: str = option("bernoulli", "of pixels: binarised or dequantised", _LIKELIHOODS)
    sigma: float = option(0.0, "standard deviation of gaussian pixels; 0 learns it")
    beta: float = option(1.0, "factor of the divergence")
    kl_warmup: int = option(0, "steps in which the divergence's factor grows from 0 to beta")
    importance: int = option(1, "importance samples of the training bound (IWAE); 1 is the ELBO")
    kappa: float = option(20.0, "concentration of vmf")
    categories: int = option(10, "values of a variable of gumbel, vectors of vq's codebook")
    code_width: int = option(8, "size of a vector of vq's codebook")

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("VAE", "network", self.network, NETWORKS)
        check_choice("VAE", "posterior", self.posterior, _POSTERIORS)
        check_choice("VAE", "likelihood", self.likelihood, _LIKELIHOODS)
        for name in ("latent", "hidden", "importance"):
            check_at_least("VAE", name, getattr(self, name), 1)
        check_at_least("VAE", "depth", self.depth, 1 if self.network == "conv" else 0)
        check_at_least("VAE", "kl_warmup", self.kl_warmup, 0)
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"VAE: beta must be at least 0 and finite, got {self.beta}")
        if self.importance > 1 and self.posterior not in ("gaussian", "vmf"):
            raise ValueError(
                "VAE: importance above 1 needs a posterior of gaussian or vmf, whose samples have "
                f"gradients, got {self.posterior}"
            )
        if self.importance > 1 and (self.beta != 1 or self.kl_warmup):
            raise ValueError(
                "VAE: importance above 1 needs beta 1 and kl_warmup 0, for its bound has no "
                f"divergence apart, got beta={self.beta}, kl_warmup={self.kl_warmup}"
            )


class VAE(LatentVariableModel):
    r"""Variational auto-encoder of binarised or dequantised images.

    .. math::
        \log q(x) \ge \mathrm{E}_{p(z|x)} \log q(x|z) - \mathrm{KL}(p(z|x) \| q(z))

    with encoder p(z|x) and decoder q(x|z). ``loss`` is the negative bound in nats of the whole
    image, pixels summed, averaged over the batch: a mean over pixels would be a beta of their
    number. ``beta`` and ``kl_warmup`` weigh the divergence; with ``importance`` = K the loss is the
    importance-weighted bound

    .. math::
        \log \tfrac1K \sum_k q(x|z_k) q(z_k) / p(z_k|x) \le \log q(x).

    Args:
        config: sizes and choices.

    Source: Kingma and Welling, "Auto-encoding variational Bayes", 2013, arXiv:1312.6114; Burda,
    Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015, arXiv:1509.00519; Higgins
    et al., "beta-VAE", 2017.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config.event_shape)
        self.config = config
        self.latent = _latent(config)
        self.likelihood = (
            Bernoulli() if config.likelihood == "bernoulli" else Gaussian(config.sigma)
        )
        self.pixels = self.likelihood.pixels
        size = config.hidden, config.depth
        self.encoder = make_encoder(config.network, config.event_shape, self.latent.params, *size)
        self.decoder = make_decoder(config.network, self.latent.features, config.event_shape, *size)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return the negative bound, nats an image; parts: reconstruction and divergence."""
        self.check_images(x)
        if self.config.importance > 1:
            weights = self.log_weights(x, labels, samples=self.config.importance)
            bound = log_mean_exp(weights).mean()
            return Loss(-bound, {"bound": -bound.detach()})
        draw = self.latent(self.encoder(x), step, self.prior_mean(labels))
        log_likelihood = self.likelihood.log_prob(self.decoder(draw.code), x).mean()
        kl = draw.kl.mean()
        total = self.kl_factor(step) * kl - log_likelihood + draw.penalty.mean()
        return Loss(total, {"reconstruction": -log_likelihood.detach(), "kl": kl.detach()})

    def kl_factor(self, step: int) -> float:
        """Return the factor of the divergence at ``step``."""
        warmup = self.config.kl_warmup
        return self.config.beta * min(1.0, step / warmup if warmup else 1.0)

    def elbo(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the bound of each image with one code, nats, ``(B,)``; beta is 1 here."""
        self.check_images(x)
        draw = self.latent(self.encoder(x), 0, self.prior_mean(labels))
        return self.likelihood.log_prob(self.decoder(draw.code), x) - draw.kl

    def log_weights(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log q(x|z) q(z) / p(z|x) for so many codes of each image, ``(samples, B)``."""
        h = self.encoder(x).repeat(samples, 1)
        prior_mean = self.prior_mean(labels)
        if prior_mean is not None:
            prior_mean = prior_mean.repeat(samples, 1)
        code, log_ratio = self.latent.weigh(h, prior_mean, generator)
        many = x.repeat(samples, *[1] * len(self.event_shape))
        return (self.likelihood.log_prob(self.decoder(code), many) + log_ratio).view(samples, -1)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the code of each image without noise, ``(B, features)``."""
        self.check_images(x)
        return self.latent.code(self.encoder(x))

    def decode(self, code: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of each code, ``(B, *event_shape)``."""
        return self.likelihood.mean(self.decoder(code))

    def sample_codes(
        self,
        count: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw codes of the prior; see :meth:`ImageModel.sample`."""
        code = self.latent.prior(self._like, count, temperature, generator)
        prior_mean = self.prior_mean(labels)
        return code if prior_mean is None else code + prior_mean

    def prior_mean(self, labels: Tensor | None) -> Tensor | None:
        """Return the mean of the codes' prior given labels, None where they have no part."""
        return None


@dataclass(frozen=True)
class CVAEConfig(VAEConfig):
    """Configuration of :class:`CVAE`."""

    classes: int = option(0, "number of classes")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        check_at_least("CVAE", "classes", self.classes, 1)
        if self.posterior != "gaussian":
            raise ValueError(f"CVAE: posterior must be gaussian, got {self.posterior}")


class CVAE(VAE):
    r"""VAE whose prior knows the class: :math:`q(z|y) = N(\mu_y, I)`, the means being learned.

    .. math:: \mathrm{KL} = \tfrac12 \sum (\mu - \mu_y)^2 + \sigma^2 - \log \sigma^2 - 1

    Args:
        config: sizes and choices; ``classes`` at least 1.

    Source: Sohn, Lee and Yan, "Learning structured output representation using deep conditional
    generative models", 2015, with the class in the prior alone.
    """

    labels = "condition"

    def __init__(self, config: CVAEConfig) -> None:
        super().__init__(config)
        self.class_means = nn.Embedding(config.classes, config.latent)

    def prior_mean(self, labels: Tensor | None) -> Tensor:
        """Return the mean of each label's codes, ``(B, latent)``."""
        if labels is None:
            raise ValueError("CVAE: labels must be given, got None")
        return self.class_means(labels)


def _latent(
    config: VAEConfig,
) -> GaussianLatent | VonMisesFisherLatent | GumbelLatent | VectorQuantizedLatent:
    if config.posterior == "gaussian":
        return GaussianLatent(config.latent)
    if config.posterior == "vmf":
        return VonMisesFisherLatent(config.latent, config.kappa)
    if config.posterior == "gumbel":
        return GumbelLatent(config.latent, config.categories)
    return VectorQuantizedLatent(config.latent, config.categories, config.code_width)
