"""Running mean and covariance of codes, to draw new ones from."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    r"""Mean and covariance of vectors that come in batches, and the Gaussian that has them.

    Each batch enters with weight :math:`w`, the ones before it together with :math:`1 - w`:

    .. math::
        \delta = m_b - m, \quad m \leftarrow m + w \delta, \quad
        C \leftarrow (1 - w) (C + w \delta \delta^T) + w C_b,

    exactly the moments of that mixture. :math:`w = \max(\text{momentum}, 1 / n)` for the n-th
    batch: a plain average at first, which then forgets what early weights made. Before the first
    batch the Gaussian is the standard one. Cost: B F^2 multiplications a batch.

    Args:
        features: size F of a vector.
        momentum: least weight of a batch.
    """

    mean: Tensor
    covariance: Tensor
    batches: Tensor

    def __init__(self, features: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("covariance", torch.eye(features))
        self.register_buffer("batches", torch.tensor(0))

    @torch.no_grad()
    def update(self, vectors: Tensor) -> None:
        """Take in a batch ``(B, F)``, B at least 1; in the buffers' precision, also in autocast."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.detach().to(self.mean.dtype)
            self.batches += 1
            weight = self.batches.to(vectors.dtype).reciprocal().clamp(min=self.momentum)
            mean = vectors.mean(0)
            centred = vectors - mean
            own = centred.T @ centred / len(vectors)
            delta = mean - self.mean
            self.mean += weight * delta
            self.covariance += weight * torch.outer(delta, delta)
            self.covariance.lerp_(own, weight)

    def draw(self, count: int, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Draw vectors ``(count, F)``; ``temperature`` multiplies their standard deviation."""
        shape = (count, len(self.mean))
        noise = torch.randn(
            shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator
        )
        variances, axes = torch.linalg.eigh(self.covariance.double())
        root = (axes * variances.clamp(min=0).sqrt()) @ axes.T
        return self.mean + temperature * noise @ root.to(noise.dtype)
