"""f-VAE: a VAE whose codes pass a flow before they meet the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from flowops import ops
from flowops.models.base import LatentVariableModel, Loss, Pixels
from flowops.models.config import CHAINS, check_at_least, check_choice, memory_option, option
from flowops.models.glow import glow_step
from flowops.models.likelihoods import Gaussian
from flowops.nn import Bijector


@dataclass(frozen=True)
class FVAEConfig:
    """Configuration of :class:`FVAE`."""

    event_shape: tuple[int, ...]
    latent: int = option(16, "channels of the code, a map of a quarter of the image's sides")
    channels: int = option(32, "channels of encoder and decoder at half the sides, twice below")
    blocks: int = option(2, "residual blocks at each size")
    flow_steps: int = option(6, "steps of the flow; 0 leaves a VAE")
    flow_hidden: int = option(64, "channels of the flow's coupling networks")
    coupling: str = option("additive", "kind of coupling", ("additive", "affine"))
    conv1x1: str = option("lu", "parameterisation of the 1x1 convolutions", ("lu", "full"))
    memory: str = memory_option()

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("channels", "flow_hidden"):
            check_at_least("FVAE", name, getattr(self, name), 1)
        for name in ("blocks", "flow_steps"):
            check_at_least("FVAE", name, getattr(self, name), 0)
        check_at_least("FVAE", "latent", self.latent, 2)
        check_choice("FVAE", "coupling", self.coupling, ("additive", "affine"))
        check_choice("FVAE", "conv1x1", self.conv1x1, ("lu", "full"))
        check_choice("FVAE", "memory", self.memory, tuple(CHAINS))
        if len(self.event_shape) != 3 or min(self.event_shape[1:]) < 4:
            raise ValueError(
                "FVAE: event_shape must be (channels, height, width) with sides of at least 4, "
                f"got {tuple(self.event_shape)}"
            )


class FVAE(LatentVariableModel):
    r"""VAE with a flow F between its codes and the prior.

    .. math::
        v = E(x) + \sigma_1 u, \quad u \sim N(0, I), \qquad z = F(v), \qquad
        q(x|z) = N(G(v), \sigma_2^2 I)

    and the loss, with all constants,

    .. math::
        L = \frac{\|x - G(v)\|^2}{2 \sigma_2^2} + \frac{d_x}{2} \log 2 \pi \sigma_2^2
        + \frac12 \|F(v)\|^2 - \log\left|\det \frac{\partial F}{\partial v}\right|
        - d_z \log \sigma_1 - \frac{d_z}{2}

    so that ``F`` the identity is a VAE. Codes are drawn as :math:`G(F^{-1}(z))`. Pixels are
    dequantised and :math:`\sigma_2` has a floor: without either the density is unbounded where G
    can reconstruct exactly. Encoder, decoder and flow see maps: two halvings with residual blocks
    (normalised over each sample, where the paper normalises over the batch), then Glow steps. Call
    :meth:`initialize` before training: the flow has actnorms.

    Args:
        config: sizes and choices.

    Source: Su and Wu, "f-VAEs: improve VAEs with conditional flows", 2018, arXiv:1809.05861.
    """

    pixels: Pixels = "dequantized"

    def __init__(self, config: FVAEConfig) -> None:
        super().__init__(config.event_shape)
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _Decoder(config)
        self.likelihood = Gaussian()
        self.log_std = nn.Parameter(torch.tensor(math.log(0.5)))
        steps: list[Bijector] = []
        for _ in range(config.flow_steps):
            steps += glow_step(
                config.latent,
                hidden=config.flow_hidden,
                coupling=config.coupling,
                conv1x1=config.conv1x1,
                edge_bias=True,
            )
        self.flow = CHAINS[config.memory](*steps)

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a code."""
        height, width = self.decoder.sizes[0]
        return self.config.latent, height, width

    def initialize(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Set the flow's actnorms from the codes of the batch ``x``, once."""
        self.check_images(x)
        with torch.no_grad():
            self.flow.initialize(self._draw(x, 1, None)[0])

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return L of the batch, nats; parts: reconstruction and what the code costs."""
        self.check_images(x)
        code, entropy = self._draw(x, 1, None)
        log_likelihood = self.likelihood.log_prob(self.decoder(code), x).mean()
        cost = (-self._log_prior(code) - entropy).mean()
        parts = {"reconstruction": -log_likelihood.detach(), "code": cost.detach()}
        return Loss(cost - log_likelihood, parts)

    def log_weights(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log q(x|z) q(z) / p(z|x), ``(samples, B)``; see the base class."""
        mean = self.encoder(x)
        code, _ = self._draw(x, samples, generator)
        own = ops.gaussian_log_prob(code, mean.repeat(samples, 1, 1, 1), self._scale(code))
        many = x.repeat(samples, 1, 1, 1)
        log_likelihood = self.likelihood.log_prob(self.decoder(code), many)
        return (log_likelihood + self._log_prior(code) - own).view(samples, -1)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the flow's image of each mean, which is normal under the prior, ``(B, d_z)``."""
        self.check_images(x)
        return self.flow(self.encoder(x))[0].flatten(1)

    def decode(self, code: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of each code z, ``(B, *event_shape)``."""
        return self.decoder(self.flow.inverse(code.unflatten(1, self.code_shape))[0])

    def sample_codes(
        self,
        count: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw codes z of the prior; see :meth:`ImageModel.sample`."""
        shape = (count, math.prod(self.code_shape))
        noise = torch.randn(shape, dtype=self.dtype, device=self.device, generator=generator)
        return temperature * noise

    def _draw(
        self, x: Tensor, samples: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return codes v of each image, and the entropy of one image's codes, nats."""
        mean = self.encoder(x).repeat(samples, 1, 1, 1)
        scale = self._scale(mean)
        code = ops.gaussian_rsample(mean, scale, form="log_std", generator=generator)
        entropy = self.log_std + 0.5 + 0.5 * math.log(2 * math.pi)
        return code, math.prod(self.code_shape) * entropy

    def _scale(self, like: Tensor) -> Tensor:
        return self.log_std.to(like.dtype).expand_as(like)

    def _log_prior(self, code: Tensor) -> Tensor:
        z, logdet = self.flow(code)
        return ops.gaussian_log_prob(z) + logdet


class _ResidualBlock(nn.Module):
    """x + conv1x1(relu(norm(conv3x3(x)))), the last one zero at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels)
        self.last = nn.Conv2d(channels, channels, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(relu(self.norm(self.first(x))))


def _encoder(config: FVAEConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = config.event_shape[0]
    for channels in (config.channels, 2 * config.channels):
        layers.append(nn.Conv2d(width, channels, 3, stride=2, padding=1))
        layers += [_ResidualBlock(channels) for _ in range(config.blocks)]
        width = channels
    return nn.Sequential(*layers, nn.Conv2d(width, config.latent, 1))


class _Decoder(nn.Module):
    """Mirror of the encoder: codes to raw pixels."""

    def __init__(self, config: FVAEConfig) -> None:
        super().__init__()
        sides = config.event_shape[1:]
        self.sizes = [tuple(math.ceil(side / n) for side in sides) for n in (4, 2, 1)]
        wide, narrow = 2 * config.channels, config.channels
        self.inside = nn.Conv2d(config.latent, wide, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*[_ResidualBlock(channels) for _ in range(config.blocks)])
            for channels in (wide, narrow)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, padding=1)
            for n_in, n_out in ((wide, narrow), (narrow, config.event_shape[0]))
        )

    def forward(self, code: Tensor) -> Tensor:
        h = self.inside(code)
        for size, blocks, conv in zip(self.sizes[1:], self.blocks, self.convs, strict=True):
            h = conv(interpolate(relu(blocks(h)), size=size))
        return h
