"""Pure-PyTorch twin of :mod:`flowops.ops.spectral_norm`: the executable specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SpectralNorm = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]


def spectral_norm(
    weight: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    coefficient: float | None = None,
) -> SpectralNorm:
    """See :func:`flowops.ops.spectral_norm`."""
    results, new_u, new_v, sigmas = [], [], [], []
    for w, left, right in zip(weight, u, v, strict=True):
        wide = w.to(torch.promote_types(w.dtype, torch.float32))
        matrix = wide.flatten(1)
        a, b = left.detach().to(wide.dtype), right.detach().to(wide.dtype)
        with torch.no_grad():
            for _ in range(n_power_iterations):
                a = _direction(matrix @ b, a, eps)
                b = _direction(matrix.T @ a, b, eps)
        sigma = torch.dot(a, matrix @ b)
        results.append((wide * _factor(sigma, coefficient)).to(w.dtype))
        new_u.append(a.to(left.dtype, copy=True))
        new_v.append(b.to(right.dtype, copy=True))
        sigmas.append(sigma)
    return results, new_u, new_v, torch.stack(sigmas)


def _direction(product: Tensor, before: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(product)
    return torch.where((norm > eps) & torch.isfinite(norm), product / norm, before)


def _factor(sigma: Tensor, coefficient: float | None) -> Tensor:
    if coefficient is None:
        return 1 / sigma
    bounded = sigma <= coefficient
    # Both branches are differentiated, so neither may divide by zero.
    return torch.where(bounded, 1.0, coefficient / torch.where(bounded, coefficient, sigma))
