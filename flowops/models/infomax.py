"""Deep InfoMax: codes that tell an image from others, without a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from flowops import ops
from flowops.losses import jensen_shannon_loss
from flowops.models.base import ImageModel, Loss
from flowops.models.config import check_at_least, option
from flowops.nn import MLP

_SLOPE = 0.2


@dataclass(frozen=True)
class InfoMaxConfig:
    """Configuration of :class:`InfoMax`."""

    event_shape: tuple[int, ...]
    latent: int = option(64, "numbers of the code")
    channels: int = option(32, "channels at half the sides, twice at a quarter and below")
    hidden: int = option(256, "units of the discriminators' two hidden layers")
    alpha: float = option(0.5, "factor of the information of whole image and code")
    beta: float = option(1.5, "factor of the information of image parts and code")
    gamma: float = option(0.01, "factor of the divergence from the prior, a mean over the code")

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("latent", "channels", "hidden"):
            check_at_least("InfoMax", name, getattr(self, name), 1)
        for name in ("alpha", "beta", "gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"InfoMax: {name} must be at least 0 and finite, got {getattr(self, name)}"
                )


class InfoMax(ImageModel):
    r"""Encoder trained by mutual information instead of reconstruction.

    A VAE's loss is a divergence of codes from their prior less the information that the decoder
    extracts; here discriminators T estimate that information:

    .. math::
        L = \gamma \overline{\mathrm{KL}}(p(z|x) \| N(0, I)) + \alpha J(h, z) + \beta J(c, z),
        \qquad J = \mathrm{E}_{p(a, z)} \mathrm{softplus}(-T) + \mathrm{E}_{p(a) p(z)}
        \mathrm{softplus}(T) \ge 2 \ln 2 - 2 \mathrm{JSD},

    h being the pooled features of the image and c those of each part of a quarter of its sides. The
    product of marginals is the batch's codes shifted by a random number of places, so that no
    image meets its own code. The divergence is a mean over the code's numbers.

    Args:
        config: sizes and factors.

    Source: Hjelm et al., "Learning deep representations by mutual information estimation and
    maximization", 2018, arXiv:1808.06670; Su, "Mutual information in deep learning", 2018.
    """

    labels = "judge"

    def __init__(self, config: InfoMaxConfig) -> None:
        super().__init__(config.event_shape)
        self.config = config
        wide = 2 * config.channels
        self.parts = nn.ModuleList(
            [
                _block(config.event_shape[0], config.channels, stride=2),
                _block(config.channels, wide, stride=2),
            ]
        )
        self.rest = nn.ModuleList([_block(wide, wide, stride=1) for _ in range(2)])
        self.posterior = nn.Linear(wide, 2 * config.latent)
        width = wide + config.latent
        hidden = [config.hidden] * 2
        self.whole_judge = MLP(width, 1, hidden=hidden, zero_last=False)
        self.part_judge = MLP(width, 1, hidden=hidden, zero_last=False)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return L of the batch, of at least 2 images; parts: its three terms, unweighed."""
        self.check_images(x)
        if len(x) < 2:
            raise ValueError(f"InfoMax: x must have at least 2 images, got {len(x)}")
        part, whole = self._features(x)
        code, kl = ops.gaussian_rsample_kl(params=self.posterior(whole), form="log_std")
        shift = torch.randint(1, len(x), (1,), device=x.device)
        other = code[(torch.arange(len(x), device=x.device) + shift) % len(x)]
        whole_term = jensen_shannon_loss(
            self.whole_judge(torch.cat([whole, code], 1)),
            self.whole_judge(torch.cat([whole, other], 1)),
        )
        cells = part.flatten(2).transpose(1, 2)
        part_term = jensen_shannon_loss(self._judge(cells, code), self._judge(cells, other))
        prior_term = kl.mean() / self.config.latent
        config = self.config
        total = config.gamma * prior_term + config.alpha * whole_term + config.beta * part_term
        parts = {
            "prior": prior_term.detach(),
            "whole": whole_term.detach(),
            "part": part_term.detach(),
        }
        return Loss(total, parts)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the means of the codes, ``(B, latent)``."""
        self.check_images(x)
        return self.posterior(self._features(x)[1])[:, : self.config.latent]

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of the parts ``(B, C, H / 4, W / 4)`` and of the whole ``(B, C)``."""
        for block in self.parts:
            x = leaky_relu(block(x), _SLOPE)
        part = x
        for block in self.rest:
            x = leaky_relu(block(x), _SLOPE)
        return part, x.amax((2, 3))

    def _judge(self, cells: Tensor, code: Tensor) -> Tensor:
        pairs = torch.cat([cells, code[:, None].expand(-1, cells.size(1), -1)], 2)
        return self.part_judge(pairs.flatten(0, 1))


def _block(n_in: int, n_out: int, *, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out))
