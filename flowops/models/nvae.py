"""NVAE: a deep hierarchical VAE of residual cells."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad

from flowops import ops
from flowops.models.base import LatentVariableModel, Loss, Pixels
from flowops.models.config import check_at_least, check_choice, option
from flowops.models.likelihoods import Bernoulli, LogisticMixture
from flowops.models.nvae_cells import (
    AutoregressiveShift,
    DecoderCell,
    Downsample,
    EncoderCell,
    SpectralPenalty,
    Upsample,
)

_LIKELIHOODS = ("bernoulli", "logistic_mixture")
#: Means and log standard deviations stay within this of their prior's.
_REACH = 5.0
#: Added to each group's mean divergence before it is balanced.
_BALANCE_FLOOR = 0.01
_LEAST_KL_FACTOR = 1e-4

#: Gives the code of group ``i`` for the decoder's map before it and the prior's parameters.
Chooser = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NVAEConfig:
    """Configuration of :class:`NVAE`."""

    event_shape: tuple[int, ...]
    scales: int = option(2, "sizes of codes, each half of the one before; the first is half size")
    groups: int = option(3, "groups of codes at each size")
    latent: int = option(8, "channels of a group's code")
    channels: int = option(16, "channels of maps at full size; twice as many at each half")
    cells: int = option(1, "residual cells before each group, and at full size")
    expansion: int = option(6, "width of the decoder's cells, in units of their maps' channels")
    likelihood: str = option("bernoulli", "of pixels: binarised or discrete", _LIKELIHOODS)
    components: int = option(5, "logistics of a pixel's mixture")
    flow: bool = option(False, "move codes of the posterior by autoregressive shifts")
    kl_warmup: int = option(2000, "steps in which the divergence's factor grows, groups balanced")
    spectral: float = option(1e-2, "factor of the weights' largest singular values in the loss")
    values: int = option(256, "values of a pixel")

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("NVAE", "likelihood", self.likelihood, _LIKELIHOODS)
        for name in ("scales", "groups", "latent", "expansion", "components"):
            check_at_least("NVAE", name, getattr(self, name), 1)
        for name in ("cells", "kl_warmup"):
            check_at_least("NVAE", name, getattr(self, name), 0)
        check_at_least("NVAE", "values", self.values, 2)
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"NVAE: channels must be even and positive, got {self.channels}")
        if not 0 <= self.spectral < math.inf:
            raise ValueError(f"NVAE: spectral must be at least 0 and finite, got {self.spectral}")
        if len(self.event_shape) != 3 or min(self.event_shape) < 1:
            raise ValueError(
                "NVAE: event_shape must be (channels, height, width), "
                f"got {tuple(self.event_shape)}"
            )


class NVAE(LatentVariableModel):
    r"""Hierarchical VAE: groups of codes from coarse to fine, each given those before.

    .. math::
        q(z) = \prod_l q(z_l | z_{<l}), \qquad p(z|x) = \prod_l p(z_l | z_{<l}, x)

    A bottom-up encoder and a top-down decoder, shared by prior and posterior. A posterior is
    relative to its prior :math:`N(\mu, \sigma)`,
    :math:`N(\mu + \Delta\mu, \sigma \Delta\sigma)`, so that

    .. math::
        \mathrm{KL}_l = \tfrac12 \sum \frac{\Delta\mu^2}{\sigma^2} + \Delta\sigma^2
        - \log \Delta\sigma^2 - 1

    is exact, sample and divergence being one pass of :func:`flowops.ops.gaussian_rsample_kl`. With
    ``flow`` a pair of autoregressive shifts moves the sample, and the divergence is estimated by
    it.

    While ``kl_warmup`` lasts the groups' divergences are weighed so that none stays unused,
    :math:`\gamma_l \propto (\overline{\mathrm{KL}}_l + 0.01) / \alpha_l`, :math:`\alpha_l` growing
    with the group's size. The loss further has ``spectral`` times :class:`SpectralPenalty`.

    Differences from the paper: one width and depth for encoder and decoder, no weight
    normalisation of the convolutions, images padded to a multiple of the smallest map's size.

    Args:
        config: sizes and choices.

    Source: Vahdat and Kautz, "NVAE: a deep hierarchical variational autoencoder", 2020,
    arXiv:2007.03898; written from the formulas.
    """

    def __init__(self, config: NVAEConfig) -> None:
        super().__init__(config.event_shape)
        self.config = config
        colours, height, width = config.event_shape
        if config.likelihood == "bernoulli":
            self.likelihood, raw_channels = Bernoulli(), colours
        else:
            self.likelihood = LogisticMixture(colours, config.components, config.values)
            raw_channels = self.likelihood.raw_channels
        self.pixels: Pixels = self.likelihood.pixels
        step = 2**config.scales
        self.padded = tuple(math.ceil(side / step) * step for side in (height, width))
        widths = [config.channels * 2**s for s in range(config.scales + 1)]
        self.stem = nn.Conv2d(colours, widths[0], 3, padding=1)
        self.full_encoder = nn.Sequential(*[EncoderCell(widths[0]) for _ in range(config.cells)])
        self.downs = nn.ModuleList(
            Downsample(n_in, n_out) for n_in, n_out in itertools.pairwise(widths)
        )
        self.encoders = nn.ModuleList(
            nn.Sequential(*[EncoderCell(width) for _ in range(config.cells)])
            for width in widths[1:]
            for _ in range(config.groups)
        )
        smallest = tuple(side // step for side in self.padded)
        self.top = nn.Parameter(torch.randn(widths[-1], *smallest))
        self.groups = nn.ModuleList(
            _Group(config, width, first=width == widths[-1] and index == 0)
            for width in widths[:0:-1]
            for index in range(config.groups)
        )
        self.ups = nn.ModuleList(
            Upsample(n_in, n_out) for n_in, n_out in itertools.pairwise(widths[::-1])
        )
        self.full_decoder = nn.Sequential(
            *[DecoderCell(widths[0], expansion=3) for _ in range(config.cells)]
        )
        self.head = nn.Conv2d(widths[0], raw_channels, 3, padding=1)
        self.penalty = SpectralPenalty(self)
        # Depthwise convolutions and norms take half the time in this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return the loss, nats an image; parts: reconstruction, divergence, penalty."""
        self.check_images(x)
        features = self._encode(x)
        divergences: list[Tensor] = []

        def choose(i: int, h: Tensor, prior: Tensor) -> Tensor:
            z, kl = self._group(i).draw(features[i], h, prior)
            divergences.append(kl)
            return z

        raw = self._descend(len(x), choose)
        log_likelihood = self.likelihood.log_prob(raw, x).mean()
        per_group = torch.stack(divergences).mean(1)
        penalty = self.penalty(self) if self.config.spectral else log_likelihood.new_zeros(())
        total = self._weighed(per_group, step) - log_likelihood + self.config.spectral * penalty
        parts = {
            "reconstruction": -log_likelihood.detach(),
            "kl": per_group.detach().sum(),
            "penalty": penalty.detach(),
        }
        return Loss(total, parts)

    def log_weights(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log q(x|z) q(z) / p(z|x), ``(samples, B)``; see the base class."""
        features = [feature.repeat(samples, 1, 1, 1) for feature in self._encode(x)]
        ratios: list[Tensor] = []

        def choose(i: int, h: Tensor, prior: Tensor) -> Tensor:
            z, log_ratio = self._group(i).weigh(features[i], h, prior, generator)
            ratios.append(log_ratio)
            return z

        raw = self._descend(samples * len(x), choose)
        many = x.repeat(samples, 1, 1, 1)
        weights = self.likelihood.log_prob(raw, many) + torch.stack(ratios).sum(0)
        return weights.view(samples, -1)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the means of all groups' codes, coarse to fine, flat: ``(B, features)``."""
        self.check_images(x)
        features = self._encode(x)
        codes: list[Tensor] = []

        def choose(i: int, h: Tensor, prior: Tensor) -> Tensor:
            codes.append(self._group(i).mean(features[i], h, prior))
            return codes[-1]

        self._descend(len(x), choose)
        return torch.cat([code.flatten(1) for code in codes], 1)

    def decode(self, code: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of each flat code, ``(B, *event_shape)``."""
        parts = iter(code.split([math.prod(shape) for shape in self.code_shapes], 1))

        def choose(i: int, h: Tensor, prior: Tensor) -> Tensor:
            return next(parts).unflatten(1, self.code_shapes[i])

        return self.likelihood.mean(self._descend(len(code), choose))

    def sample_codes(
        self,
        count: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw codes of the prior, the temperature scaling every group's deviation."""
        codes: list[Tensor] = []

        def choose(i: int, h: Tensor, prior: Tensor) -> Tensor:
            mean, log_std = prior.chunk(2, 1)
            noise = torch.randn(
                mean.shape, dtype=mean.dtype, device=mean.device, generator=generator
            )
            codes.append(mean + temperature * log_std.exp() * noise)
            return codes[-1]

        self._descend(count, choose)
        return torch.cat([code.flatten(1) for code in codes], 1)

    @property
    def code_shapes(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of each group's code, coarse to fine."""
        height, width = self.padded
        sizes = [2**s for s in range(self.config.scales, 0, -1) for _ in range(self.config.groups)]
        return [(self.config.latent, height // n, width // n) for n in sizes]

    @torch.no_grad()
    def reestimate_norms(
        self,
        *,
        passes: int = 20,
        count: int = 64,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Make the decoder's normalisations those of samples, in place.

        Their running statistics come from codes of the posterior; samples, at a low temperature
        above all, have others. To be done on a copy: likelihoods need the old ones.

        Args:
            passes: Batches of samples, averaged.
            count: Samples of a batch.
            temperature: That samples will have.
            generator: Where the codes are drawn from.
        """
        decoder = nn.ModuleList([self.groups, self.ups, self.full_decoder])
        norms = [layer for layer in decoder.modules() if isinstance(layer, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        training = self.training
        self.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches
        for _ in range(passes):
            self.sample_codes(count, None, temperature, generator)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.train(training)

    def for_sampling(self, temperature: float, generator: torch.Generator | None) -> NVAE:
        """Return a copy whose normalisations are those of samples at ``temperature``."""
        sampler = copy.deepcopy(self)
        sampler.reestimate_norms(temperature=temperature, generator=generator)
        return sampler

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Return the encoder's map for each group, in the order of the decoder."""
        below = self.padded[0] - x.size(2)
        right = self.padded[1] - x.size(3)
        x = pad(2 * x - 1, (0, right, 0, below)).contiguous(memory_format=torch.channels_last)
        h = self.full_encoder(self.stem(x))
        features: list[Tensor] = []
        for i, cells in enumerate(self.encoders):
            if i % self.config.groups == 0:
                h = self.downs[i // self.config.groups](h)
            h = cells(h)
            features.append(h)
        return features[::-1]

    def _descend(self, count: int, choose: Chooser) -> Tensor:
        """Return raw pixels, ``choose`` giving the code of each group."""
        h = self.top.expand(count, *self.top.shape)
        for i in range(len(self.groups)):
            group = self._group(i)
            if i and i % self.config.groups == 0:
                h = self.ups[i // self.config.groups - 1](h)
            h = group.cells(h)
            h = group.merge(h, choose(i, h, group.prior(h)))
        h = self.full_decoder(self.ups[-1](h))
        height, width = self.event_shape[1:]
        return self.head(elu(h))[:, :, :height, :width]

    def _group(self, i: int) -> _Group:
        return cast("_Group", self.groups[i])

    def _weighed(self, per_group: Tensor, step: int) -> Tensor:
        warmup = self.config.kl_warmup
        factor = min(1.0, max(_LEAST_KL_FACTOR, step / warmup)) if warmup else 1.0
        if factor == 1.0:
            return per_group.sum()
        places = torch.arange(len(per_group), device=per_group.device) // self.config.groups
        balance = (per_group.detach().abs() + _BALANCE_FLOOR) / 4.0**places
        return factor * (balance / balance.mean() * per_group).sum()


class _Group(nn.Module):
    """One group: its cells in the decoder, its prior and posterior, and how its code comes in."""

    def __init__(self, config: NVAEConfig, width: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.latent = config.latent
        count = 0 if first else config.cells
        cells = [DecoderCell(width, config.expansion) for _ in range(count)]
        self.cells = nn.Sequential(*cells)
        self.prior_conv = None if first else nn.Conv2d(width, 2 * config.latent, 1)
        self.combine = nn.Conv2d(width, width, 1)
        self.posterior = nn.Conv2d(width, 2 * config.latent, 3, padding=1)
        self.shifts = nn.ModuleList(
            AutoregressiveShift(config.latent, width, reverse=reverse)
            for reverse in ((False, True) if config.flow else ())
        )
        self.merge_conv = nn.Conv2d(width + config.latent, width, 1)

    def prior(self, h: Tensor) -> Tensor:
        """Return mean and log standard deviation of the prior, ``(B, 2 latent, H, W)``."""
        if self.prior_conv is None:
            return h.new_zeros(h.size(0), 2 * self.latent, *h.shape[2:])
        return _clamped(self.prior_conv(elu(h)))

    def draw(self, feature: Tensor, h: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return a code of the posterior and its divergence from the prior, ``(B,)``."""
        relative = self._relative(feature, h)
        if self.shifts:
            z, log_ratio = self._shifted(relative, prior, None)
            return z, -log_ratio
        given = prior[:, : self.latent], prior[:, self.latent :]
        return ops.gaussian_rsample_kl(params=relative, form="log_std", prior=given, residual=True)

    def weigh(
        self, feature: Tensor, h: Tensor, prior: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return a code of the posterior, and log of prior over posterior there, ``(B,)``."""
        return self._shifted(self._relative(feature, h), prior, generator)

    def mean(self, feature: Tensor, h: Tensor, prior: Tensor) -> Tensor:
        """Return the code of the posterior's mean."""
        z = (prior + self._relative(feature, h))[:, : self.latent]
        for shift in self.shifts:
            z = shift(z)
        return z

    def merge(self, h: Tensor, z: Tensor) -> Tensor:
        """Return the decoder's map with the code in it."""
        return self.merge_conv(torch.cat([h, z], 1))

    def _relative(self, feature: Tensor, h: Tensor) -> Tensor:
        """Return the posterior's mean and log standard deviation less those of the prior."""
        seen = elu(self.combine(elu(feature))) if self.first else feature + self.combine(h)
        return _clamped(self.posterior(seen))

    def _shifted(
        self, relative: Tensor, prior: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        params = prior + relative
        start = ops.gaussian_rsample(params=params, form="log_std", generator=generator)
        z = start
        for shift in self.shifts:
            z = shift(z)
        own = ops.gaussian_log_prob(start, params=params)
        return z, ops.gaussian_log_prob(z, params=prior) - own


def _clamped(params: Tensor) -> Tensor:
    return _REACH * torch.tanh(params / _REACH)
