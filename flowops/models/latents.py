"""The codes that a VAE can have: how to draw one given an image, how to draw one anew.

An encoder gives ``params`` numbers an image. ``forward`` turns them into a code, differentiably,
with its divergence from the prior; ``weigh`` into a code and the logarithm of prior over posterior
there, for importance sampling; ``code`` into the code without noise; ``prior`` draws without an
image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax, mse_loss, normalize, one_hot

from flowops import ops


class Draw(NamedTuple):
    """A code with what it costs.

    Attributes:
        code: ``(B, features)``.
        kl: divergence of the posterior from the prior, nats, ``(B,)``.
        penalty: further terms of the loss, ``(B,)``; a latent that has none gives zeros.
    """

    code: Tensor
    kl: Tensor
    penalty: Tensor


class GaussianLatent(nn.Module):
    r"""Diagonal Gaussians, the encoder giving mean and log standard deviation; prior N(m, I).

    Sample and divergence are one pass of :func:`flowops.ops.gaussian_rsample_kl`.

    Args:
        features: size of the code.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.params = 2 * features

    def forward(self, h: Tensor, step: int, prior_mean: Tensor | None = None) -> Draw:
        """Return a code for each row of ``h``, with its divergence from N(prior_mean, I)."""
        prior = None if prior_mean is None else (prior_mean, torch.zeros_like(prior_mean))
        code, kl = ops.gaussian_rsample_kl(params=h, form="log_std", prior=prior)
        return Draw(code, kl, torch.zeros_like(kl))

    def weigh(
        self,
        h: Tensor,
        prior_mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a code for each row of ``h``, with log q(z) - log p(z | x), ``(B,)``."""
        code = ops.gaussian_rsample(params=h, form="log_std", generator=generator)
        prior = ops.gaussian_log_prob(code, prior_mean)
        return code, prior - ops.gaussian_log_prob(code, params=h)

    def code(self, h: Tensor) -> Tensor:
        """Return the means."""
        return h[:, : self.features]

    def prior(
        self, like: Tensor, count: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw ``count`` codes of N(0, temperature^2 I)."""
        shape = (count, self.features)
        noise = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
        return noise * temperature


class VonMisesFisherLatent(nn.Module):
    r"""Directions: von Mises-Fisher around the encoder's, uniform prior on the sphere.

    .. math::
        p(z | x) \propto e^{\kappa \mu^T z}, \qquad
        z = w \mu + \sqrt{1 - w^2} \nu, \quad \nu \perp \mu,

    w being drawn from :math:`e^{\kappa w} (1 - w^2)^{(d - 3) / 2}` by its inverse distribution
    function, a table of angles that quadrature makes once. With :math:`\kappa` fixed the
    divergence is the constant

    .. math:: \kappa A_d - \log \int e^{\kappa w} \rho(w) dw + \log \int \rho(w) dw, \qquad
        A_d = E[w] = I_{d/2}(\kappa) / I_{d/2-1}(\kappa),

    with :math:`\rho(w) = (1 - w^2)^{(d - 3) / 2}`: a code cannot collapse.

    Args:
        features: d, at least 2.
        kappa: concentration, positive.

    Source: Davidson et al., "Hyperspherical variational auto-encoders", 2018, arXiv:1804.00891.
    """

    _ANGLES = 1 << 14

    cumulative: Tensor

    def __init__(self, features: int, kappa: float) -> None:
        super().__init__()
        if features < 2 or not 0 < kappa < math.inf:
            raise ValueError(
                "VonMisesFisherLatent: features must be at least 2 and kappa positive, "
                f"got {features} and {kappa}"
            )
        self.features = self.params = features
        self.kappa = kappa
        # w = cos t has the density e^{kappa cos t} sin(t)^{d - 2} dt, smooth for every d.
        angle = torch.linspace(0, math.pi, self._ANGLES, dtype=torch.float64)
        uniform = angle.sin().clamp(min=0).pow(features - 2)
        density = uniform * (kappa * (angle.cos() - 1)).exp()
        mass = torch.trapezoid(density, angle)
        area = torch.trapezoid(uniform, angle)
        self.mean_cosine = (torch.trapezoid(density * angle.cos(), angle) / mass).item()
        #: log p(z | x) - log q(z) is kappa mu^T z + this.
        self.log_ratio = (area.log() - mass.log()).item() - kappa
        self.kl = kappa * self.mean_cosine + self.log_ratio
        cumulative = torch.cumulative_trapezoid(density, angle) / mass
        table = torch.cat([cumulative.new_zeros(1), cumulative])
        self.register_buffer("cumulative", table, persistent=False)

    def forward(self, h: Tensor, step: int, prior_mean: Tensor | None = None) -> Draw:
        """Return a unit vector for each row of ``h``, with the constant divergence."""
        code = self._draw(self.code(h), None)
        wide = torch.promote_types(h.dtype, torch.float32)
        kl = torch.full((len(h),), self.kl, dtype=wide, device=h.device)
        return Draw(code, kl, torch.zeros_like(kl))

    def weigh(
        self,
        h: Tensor,
        prior_mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a code for each row of ``h``, with log q(z) - log p(z | x), ``(B,)``."""
        direction = self.code(h)
        code = self._draw(direction, generator)
        return code, -(self.kappa * (direction * code).sum(1) + self.log_ratio)

    def code(self, h: Tensor) -> Tensor:
        """Return the directions, unit vectors."""
        return normalize(h, dim=1)

    def prior(
        self, like: Tensor, count: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw ``count`` directions, uniformly; the sphere knows no temperature."""
        shape = (count, self.features)
        noise = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)
        return normalize(noise, dim=1)

    def _draw(self, direction: Tensor, generator: torch.Generator | None) -> Tensor:
        cosine = self._cosines(len(direction), generator).to(direction.dtype)[:, None]
        noise = torch.randn(
            direction.shape, dtype=direction.dtype, device=direction.device, generator=generator
        )
        across = normalize(noise - (noise * direction).sum(1, keepdim=True) * direction, dim=1)
        return cosine * direction + (1 - cosine**2).clamp(min=0).sqrt() * across

    def _cosines(self, count: int, generator: torch.Generator | None) -> Tensor:
        table = self.cumulative
        u = torch.rand(count, dtype=table.dtype, device=table.device, generator=generator)
        right = torch.searchsorted(table, u).clamp(1, len(table) - 1)
        low, high = table[right - 1], table[right]
        part = (u - low) / (high - low).clamp(min=torch.finfo(table.dtype).tiny)
        return ((right - 1 + part) * (math.pi / (len(table) - 1))).cos()


class GumbelLatent(nn.Module):
    r"""Independent categorical variables, relaxed while training; uniform prior.

    .. math::
        z = \mathrm{softmax}\frac{\log \pi + g}{\tau}, \qquad
        \mathrm{KL} = \sum \pi \log \pi + V \log K,

    g being Gumbel noise. The temperature :math:`\tau` falls from 1 by the factor 0.999 a step, to
    0.01. Likelihoods are of the unrelaxed variables: one-hot codes.

    Args:
        variables: V.
        categories: K, at least 2.

    Source: Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", 2016,
    arXiv:1611.01144.
    """

    def __init__(self, variables: int, categories: int) -> None:
        super().__init__()
        if variables < 1 or categories < 2:
            raise ValueError(
                "GumbelLatent: variables must be at least 1 and categories at least 2, "
                f"got {variables} and {categories}"
            )
        self.variables, self.categories = variables, categories
        self.features = self.params = variables * categories

    def forward(self, h: Tensor, step: int, prior_mean: Tensor | None = None) -> Draw:
        """Return relaxed codes at the temperature of ``step``, with their divergence."""
        log_pi = self._log_pi(h)
        code = gumbel_softmax(log_pi, tau=max(0.01, 0.999**step))
        kl = (log_pi.exp() * log_pi).sum((1, 2)) + self.variables * math.log(self.categories)
        return Draw(code.flatten(1).to(h.dtype), kl, torch.zeros_like(kl))

    def weigh(
        self,
        h: Tensor,
        prior_mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a one-hot code for each row of ``h``, with log q(z) - log p(z | x), ``(B,)``."""
        log_pi = self._log_pi(h)
        flat = log_pi.exp().flatten(0, 1)
        index = torch.multinomial(flat, 1, generator=generator).view(len(h), self.variables)
        chosen = log_pi.gather(2, index[..., None]).sum((1, 2))
        return self._one_hot(index, h), -self.variables * math.log(self.categories) - chosen

    def code(self, h: Tensor) -> Tensor:
        """Return the most probable categories, one-hot."""
        return self._one_hot(self._log_pi(h).argmax(2), h)

    def prior(
        self, like: Tensor, count: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw ``count`` codes of uniform categories, which know no temperature."""
        shape = (count, self.variables)
        index = torch.randint(self.categories, shape, device=like.device, generator=generator)
        return self._one_hot(index, like)

    def _log_pi(self, h: Tensor) -> Tensor:
        wide = torch.promote_types(h.dtype, torch.float32)
        return h.to(wide).unflatten(1, (self.variables, self.categories)).log_softmax(2)

    def _one_hot(self, index: Tensor, like: Tensor) -> Tensor:
        return one_hot(index, self.categories).flatten(1).to(like.dtype)


class VectorQuantizedLatent(nn.Module):
    r"""The nearest vectors of a codebook; uniform prior.

    .. math::
        z = e_k, \quad k = \arg\min_j \|h - e_j\|, \qquad
        \text{penalty} = \|\mathrm{sg}(h) - e_k\|^2 + \tfrac14 \|h - \mathrm{sg}(e_k)\|^2,

    with the gradient of z passed to h as it is. The posterior is one point, so that the divergence
    is the constant :math:`V \log K`.

    Args:
        variables: V, vectors of an image.
        categories: K, at least 2, vectors of the codebook.
        width: size of a vector.

    Source: van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", 2017,
    arXiv:1711.00937.
    """

    commitment = 0.25

    def __init__(self, variables: int, categories: int, width: int) -> None:
        super().__init__()
        if min(variables, width) < 1 or categories < 2:
            raise ValueError(
                "VectorQuantizedLatent: variables and width must be at least 1 and categories at "
                f"least 2, got {variables}, {width} and {categories}"
            )
        self.variables, self.categories = variables, categories
        self.features = self.params = variables * width
        self.codebook = nn.Parameter(torch.randn(categories, width) / math.sqrt(width))

    def forward(self, h: Tensor, step: int, prior_mean: Tensor | None = None) -> Draw:
        """Return the nearest code of each row of ``h``, passing its gradient through."""
        code = self.code(h)
        penalty = _squared_error(code, h.detach()) + self.commitment * _squared_error(
            h, code.detach()
        )
        passed = h + (code - h).detach()
        return Draw(passed, self._kl(penalty), penalty)

    def weigh(
        self,
        h: Tensor,
        prior_mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest code of each row of ``h``, with log q(z) - log p(z | x), ``(B,)``."""
        code = self.code(h)
        return code, -self._kl(_squared_error(code, h))

    def code(self, h: Tensor) -> Tensor:
        """Return the nearest vectors."""
        rows = h.unflatten(1, (self.variables, -1))
        index = torch.cdist(rows.detach(), self.codebook.detach()[None]).argmin(2)
        return self.codebook[index].flatten(1)

    def prior(
        self, like: Tensor, count: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Draw ``count`` codes of uniform vectors of the codebook, which know no temperature."""
        shape = (count, self.variables)
        index = torch.randint(self.categories, shape, device=like.device, generator=generator)
        return self.codebook[index].flatten(1)

    def _kl(self, like: Tensor) -> Tensor:
        return torch.full_like(like, self.variables * math.log(self.categories))


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return mse_loss(a.to(wide), b.to(wide), reduction="none").sum(1)
