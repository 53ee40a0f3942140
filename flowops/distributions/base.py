"""Base densities of flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent, TransformedDistribution
from torch.nn.functional import softplus

from flowops import ops
from flowops.distributions.normal import Normal


def logistic_noise(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from the standard logistic distribution, with the dtype and device of ``like``."""
    # In float64, so that neither tail is cut short, and u = 0 is all but impossible.
    u = torch.rand(torch.Size(shape), dtype=torch.float64, device=like.device, generator=generator)
    return torch.logit(u, eps=1e-300).to(like.dtype)


class _Standard(nn.Module):
    """A base density of vectors ``(B, features)``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.features}"


class StandardNormal(_Standard):
    """Standard normal density of vectors ``(B, D)``, ``log p = -|z|^2 / 2 - D log(2 pi) / 2``.

    Args:
        features: ``D``.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, nats, shape ``(B,)``, float32 or wider."""
        return ops.gaussian_log_prob(z)

    def sample(self, like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``(count, D)`` with the dtype and device of ``like``."""
        shape = (count, self.features)
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def distribution(self, like: Tensor) -> torch.distributions.Distribution:
        """Return the torch distribution of one vector."""
        zeros = like.new_zeros(self.features)
        return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


class StandardLogistic(_Standard):
    """Standard logistic density, ``log p = -sum(softplus(z) + softplus(-z))``.

    Args:
        features: ``D``.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, nats, shape ``(B,)``, float32 or wider."""
        size = z.to(torch.promote_types(z.dtype, torch.float32)).abs()
        return -(size + 2 * softplus(-size)).sum(1)

    def sample(self, like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``(count, D)`` with the dtype and device of ``like``."""
        return logistic_noise((count, self.features), like, generator)

    def distribution(self, like: Tensor) -> torch.distributions.Distribution:
        """Return the torch distribution of one vector."""
        zeros = like.new_zeros(self.features)
        uniform = torch.distributions.Uniform(zeros, torch.ones_like(zeros))
        to_logistic = torch.distributions.SigmoidTransform().inv
        return Independent(TransformedDistribution(uniform, [to_logistic]), 1)
