r"""Estimators of the log-determinant of a residual map, :math:`\ln\det(I + J)`.

With J the Jacobian of a network of Lipschitz constant L < 1,

.. math:: \ln\det(I + J) = \sum_{k \ge 1} \frac{(-1)^{k+1}}{k} \operatorname{tr} J^k,

and a trace is the mean of :math:`v^T J^k v` over vectors v of random signs: of all laws of v with
independent elements the one of least variance, 0 in one dimension. One term costs one
vector-Jacobian product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exact:
    """The log-determinant itself, of the Jacobian written out: d products for d dimensions."""


@dataclass(frozen=True)
class PowerSeries:
    """The first terms of the series: an estimate with the bias :func:`truncation_bound`.

    Args:
        terms: How many, at least 1.
        probes: Random vectors of each sample, over which the estimate is a mean; at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019,
    arXiv:1811.00995, algorithm 2.
    """

    terms: int
    probes: int = 1

    def __post_init__(self) -> None:
        _check("PowerSeries", terms=self.terms, probes=self.probes)

    def weights(self, x: Tensor) -> Tensor:
        """Return by what each term of each sample is multiplied, ``(B, terms)``."""
        return x.new_ones(len(x), self.terms)


@dataclass(frozen=True)
class Roulette:
    r"""The series cut at random, and weighted so that the estimate has no bias.

    Terms k up to ``exact_terms`` always count; of the others the first N, which is geometric,
    :math:`P(N \ge n) = (1 - p)^{n - 1}`, each divided by the probability that it counts. N is drawn
    for each sample, so that errors of the samples of a batch are independent and their mean and its
    standard error are what they seem; samples leave the batch as their series end.

    The variance is finite where :math:`L^2 < 1 - p`; :class:`InvertibleResidual` asks that. The
    Poisson distribution of the paper's code is not offered: 1 / P grows factorially, and the
    variance is infinite for every L.

    Args:
        p: In (0, 1), below :math:`1 - L^2`; None for half of that. A sample takes 1 / p terms
            beyond the exact ones in the mean.
        exact_terms: Terms without randomness, at least 0.
        probes: Random vectors of each sample, each with its own N, over which the estimate is a
            mean; at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative
    modeling", 2019, arXiv:1906.02735, theorem 1.
    """

    p: float | None = None
    exact_terms: int = 2
    probes: int = 1

    def __post_init__(self) -> None:
        _check("Roulette", probes=self.probes)
        if self.exact_terms < 0:
            raise ValueError(f"Roulette: exact_terms must be at least 0, got {self.exact_terms}")
        if self.p is not None and not 0 < self.p < 1:
            raise ValueError(f"Roulette: p must be between 0 and 1, got {self.p}")

    def for_lipschitz(self, lipschitz: float) -> Roulette:
        """Return the same with a ``p``, of finite variance for networks of that constant.

        Raises:
            ValueError: If the variance would be infinite.
        """
        limit = 1 - lipschitz**2
        if self.p is None:
            return replace(self, p=limit / 2)
        if self.p >= limit:
            raise ValueError(
                f"Roulette: p must be below 1 - lipschitz^2 = {limit:.4g}, or the variance of the "
                f"estimate is infinite, got {self.p}"
            )
        return self

    def weights(self, x: Tensor) -> Tensor:
        """Return by what each term of each sample is multiplied, ``(B, terms)``."""
        if self.p is None:
            raise ValueError("Roulette: p must be set, by for_lipschitz(), got None")
        drawn = torch.empty(len(x), dtype=torch.float64, device=x.device).geometric_(self.p)
        longest = int(drawn.max().item()) if len(x) else 0
        n = torch.arange(1, longest + 1, dtype=torch.float64, device=x.device)
        tail = (n <= drawn[:, None]) * (1 - self.p) ** (1 - n)
        return torch.cat([x.new_ones(len(x), self.exact_terms), tail.to(x.dtype)], 1)


LogdetEstimator = Exact | PowerSeries | Roulette


def truncation_bound(lipschitz: float, terms: int, dimensions: int = 1) -> float:
    r"""Return how far the series can be from its first terms, in nats.

    .. math:: d \Bigl[-\ln(1 - L) - \sum_{k \le n} L^k / k\Bigr]

    Args:
        lipschitz: L, in [0, 1).
        terms: n.
        dimensions: d.

    Raises:
        ValueError: If ``lipschitz`` is out of its range.

    Source: Behrmann et al., "Invertible residual networks", 2019, arXiv:1811.00995, theorem 4.
    """
    if not 0 <= lipschitz < 1:
        raise ValueError(f"truncation_bound: lipschitz must be in [0, 1), got {lipschitz}")
    kept = math.fsum(lipschitz**k / k for k in range(1, terms + 1))
    return dimensions * max(0.0, -math.log1p(-lipschitz) - kept)


def terms_for(lipschitz: float, bound: float) -> int:
    r"""Return a number of terms that keeps :func:`truncation_bound` below ``bound``.

    The least n of which :math:`L^{n+1} / ((n + 1) (1 - L))`, a little more than the truncation
    bound, is no larger.

    Args:
        lipschitz: L, in [0, 1).
        bound: In nats a dimension, positive.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not 0 <= lipschitz < 1:
        raise ValueError(f"terms_for: lipschitz must be in [0, 1), got {lipschitz}")
    if not bound > 0:
        raise ValueError(f"terms_for: bound must be positive, got {bound}")
    terms = 1
    while lipschitz ** (terms + 1) > bound * (terms + 1) * (1 - lipschitz):
        terms += 1
    return terms


def jacobian(g: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """Return d g / d x per sample, ``(B, d, d)``."""
    rows = [
        torch.autograd.grad(
            g, x, row.view(g.shape[1:]).expand_as(g), create_graph=create_graph, retain_graph=True
        )[0]
        for row in torch.eye(g.flatten(1).size(1)).to(g)
    ]
    return torch.stack([row.flatten(1) for row in rows], 1)


def exact_logdet(g: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """Return ln det of the identity plus d g / d x, per sample, ``(B,)``."""
    matrix = jacobian(g, x, create_graph)
    return torch.linalg.slogdet(matrix + torch.eye(matrix.size(1)).to(matrix)).logabsdet


def random_signs(x: Tensor) -> Tensor:
    """Return -1 or 1 at random for each element of ``x``."""
    return torch.randint_like(x, 2).mul_(2).sub_(1)


def differentiable_series(g: Tensor, x: Tensor, probe: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted series of each sample, ``(B,)``, with a graph that grows with it."""
    product, total = probe, x.new_zeros(len(x))
    for k, weight in enumerate(weights.unbind(1), start=1):
        (product,) = torch.autograd.grad(g, x, product, create_graph=True)
        total = total + _sign(k) / k * weight * dot(product, probe)
    return total


def series(
    network: Network, g: Tensor, x: Tensor, probe: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Return the weighted series of each sample, ``(B,)``, and the vectors of its gradient.

    The vectors are :math:`w^T = \sum_k (-1)^{k-1} c_k v^T J^{k-1}` for the weights c: the gradient
    of :math:`w^T J v`, w and v held, has the mean of the series' gradient. Nothing has a graph.

    Args:
        network: Evaluated again on fewer samples where half of them have no terms left.
        g: ``network(x)``, with a graph to ``x``.
        x: The input.
        probe: v.
        weights: c, ``(B, terms)``; a sample's zeros come last.
    """
    total, vectors = x.new_zeros(len(x)), torch.zeros_like(x)
    for k, (rows, product, last) in enumerate(products(network, g, x, probe, weights), start=1):
        weight = _sign(k) * weights[rows, k - 1]
        vectors[rows] += weight.view(-1, *[1] * (x.dim() - 1)) * last
        total[rows] += weight / k * dot(product, probe[rows])
    return total, vectors


def neumann_surrogate(g: Tensor, x: Tensor, probe: Tensor, vectors: Tensor) -> Tensor:
    """Return :math:`w^T J v` per sample, ``(B,)``: for its gradient, not for its value."""
    (product,) = torch.autograd.grad(g, x, vectors, create_graph=True)
    return dot(product, probe)


def products(
    network: Network, g: Tensor, x: Tensor, probe: Tensor, weights: Tensor
) -> Generator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, for each k, which samples have a term, their ``v^T J^k``, and that of k - 1."""
    counts = (weights != 0).sum(0).tolist()
    rows, product = torch.arange(len(x), device=x.device), probe
    for k, count in enumerate(counts):
        if 2 * count <= len(rows) and len(rows):
            kept = weights[rows, k] != 0
            rows, product = rows[kept], product[kept]
            with torch.enable_grad():
                x = x.detach()[kept].requires_grad_()
                g = network(x)
        last = product
        (product,) = torch.autograd.grad(g, x, last, retain_graph=True)
        yield rows, product, last


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, ``(B,)``."""
    return (a * b).flatten(1).sum(1)


def _sign(k: int) -> int:
    return 1 if k % 2 else -1


def _check(name: str, **counts: int) -> None:
    for argument, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {count}")
