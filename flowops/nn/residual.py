"""Invertible residual layers, i-ResNets and residual flows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowops.nn._replay import Replay
from flowops.nn._residual_map import differentiable, invert, neumann, steady
from flowops.nn.base import Bijector, zeros_logdet
from flowops.nn.lipschitz import settle_spectral_norms
from flowops.nn.residual_logdet import (
    Exact,
    LogdetEstimator,
    PowerSeries,
    Roulette,
    differentiable_series,
    exact_logdet,
    random_signs,
    series,
    terms_for,
)
from flowops.ops._dispatch import accumulation_dtype

# How much, in nats a dimension, the series of evaluation mode may leave out.
_EVAL_BOUND = 1e-4


class InvertibleResidual(Bijector):
    r"""The residual map :math:`z = x + g(x)` of a network g with Lipschitz constant L below 1.

    The inverse is the fixed point of :math:`x \leftarrow z - g(x)`. After k steps it is off by
    :math:`L^k / (1 - L) \, \|x_1 - x_0\|` at most. Its gradients are those of the implicit function
    theorem, from a second fixed point in the backward pass.

    Log-determinants are estimates, of independent errors for each sample and call, unless they are
    :class:`Exact`: see :mod:`flowops.nn.residual_logdet`. Random vectors and numbers come from the
    default generator. The value is always that of the estimate, in training too; its gradient comes

    - with ``gradient="neumann"`` from :math:`E\,[w^T (\partial J) v]`, w being what is left of
      the series, weighted by each sample's own upstream gradient. The layer keeps its input, v and
      w, whatever the number of terms; the backward pass evaluates g once more.
    - with ``gradient="series"`` from the graph of the estimate itself, which grows with every term,
      and can be differentiated again.

    ``context`` is not used. 16-bit inputs are widened, and the network runs without autocast: the
    digits that 16 bits drop are those the inverse is made of. What it gives for a sample must not
    depend on the others, or on chance.

    Args:
        network: g, twice differentiable, called as ``network(x)``, of x's own shape. Such as
            :class:`LipschitzMLP` and :class:`LipschitzConvNet`.
        lipschitz: L, in (0, 1), that is promised; None for ``network.lipschitz``. See
            :func:`lipschitz_constant`; leaving training mode settles spectral norms of the
            network, that they may be trusted.
        logdet: Estimator in training; by default ``Roulette()``.
        eval_logdet: Estimator in evaluation; by default ``Exact()`` where training has that, and
            else as many terms of the series as leave out no more than 1e-4 nats a dimension, so
            that the bias is certified, where that of a few terms is not.
        gradient: ``"neumann"`` or ``"series"``.
        tolerance: How much the inverse's last step may be, as a share of the largest element of
            :math:`(1, x, z)`; by default 1e-6 in float32 and 1e-12 in float64.
        max_iterations: Of the fixed points.

    Raises:
        ValueError: If an argument is out of its range, or the variance of ``logdet`` infinite.
        RuntimeError: If a fixed point is not reached; if a gradient is to be differentiated again
            that cannot be.

    Cost:
        One vector-Jacobian product of g for each term, and one evaluation of g for each step of the
        inverse, after which the device is waited for. ``torch.compile`` breaks its graph here.

    Source: Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019,
    arXiv:1811.00995; Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible
    generative modeling", 2019, arXiv:1906.02735.

    Example:
        >>> from flowops.nn import LipschitzMLP
        >>> layer = InvertibleResidual(LipschitzMLP(2, 2), logdet=Exact())
        >>> z, logdet = layer(torch.randn(3, 2))
    """

    reversible = False

    def __init__(
        self,
        network: nn.Module,
        *,
        lipschitz: float | None = None,
        logdet: LogdetEstimator | None = None,
        eval_logdet: LogdetEstimator | None = None,
        gradient: str = "neumann",
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> None:
        super().__init__()
        known = getattr(network, "lipschitz", None) if lipschitz is None else lipschitz
        if not isinstance(known, float) or not 0 < known < 1:
            raise ValueError(f"InvertibleResidual: lipschitz must be between 0 and 1, got {known}")
        if gradient not in ("neumann", "series"):
            raise ValueError(
                f"InvertibleResidual: gradient must be 'neumann' or 'series', got {gradient!r}"
            )
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"InvertibleResidual: tolerance must be positive, got {tolerance}")
        if max_iterations < 1:
            raise ValueError(
                f"InvertibleResidual: max_iterations must be at least 1, got {max_iterations}"
            )
        self.network = network
        self.lipschitz = known
        self.logdet = _checked(logdet or Roulette(), known)
        self.eval_logdet = _checked(eval_logdet or _for_evaluation(self.logdet, known), known)
        self.gradient = gradient
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return _uncompiled(self._forward)(x, logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return _uncompiled(self._inverse)(z, logdet)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """See :class:`Bijector`; nothing here depends on data."""
        with steady(self.network, x.device):
            x = _widened(x)
            return x + self.network(x)

    def train(self, mode: bool = True) -> InvertibleResidual:
        """Set the mode; evaluation begins with :func:`settle_spectral_norms` of the network."""
        if self.training and not mode:
            settle_spectral_norms(self.network)
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"lipschitz={self.lipschitz}, logdet={self.logdet}, eval_logdet={self.eval_logdet}, "
            f"gradient={self.gradient!r}"
        )

    def _forward(self, x: Tensor, logdet: Tensor | None) -> tuple[Tensor, Tensor]:
        with steady(self.network, x.device) as replay:
            x = _widened(x)
            g, own = self._evaluate(x, replay)
            return x + g, own if logdet is None else logdet + own

    def _inverse(self, z: Tensor, logdet: Tensor | None) -> tuple[Tensor, Tensor]:
        with steady(self.network, z.device) as replay:
            x = invert(
                "InvertibleResidual",
                self.network,
                _widened(z),
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            _, own = self._evaluate(x, replay)
            return x, -own if logdet is None else logdet - own

    def _evaluate(self, x: Tensor, replay: Replay) -> tuple[Tensor, Tensor]:
        """Return g and the log-determinant, with a graph where one is asked for."""
        estimator = self.logdet if self.training else self.eval_logdet
        learns = x.requires_grad or any(t.requires_grad for t in replay.tensors)
        if not torch.is_grad_enabled() or not learns:
            return _without_graph(estimator, self.network, x)[:2]
        if self.gradient == "series" or isinstance(estimator, Exact):
            return _with_graph(self.network, x, estimator)
        return neumann("InvertibleResidual", replay, x, partial(_without_graph, estimator))


def _without_graph(
    estimator: LogdetEstimator, network: nn.Module, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return g, the log-determinant, the random vectors, and those of the Neumann gradient."""
    with torch.enable_grad():
        x = differentiable(x.detach())
        g = network(x)
    if isinstance(estimator, Exact):
        none = x.new_empty(0)
        return g.detach(), exact_logdet(g, x, create_graph=False), none, none
    value = zeros_logdet(x)
    probes = x.new_empty(estimator.probes, *x.shape)
    vectors = torch.empty_like(probes)
    for i in range(estimator.probes):
        probes[i] = random_signs(x)
        total, vectors[i] = series(network, g, x, probes[i], estimator.weights(x))
        value += total / estimator.probes
    return g.detach(), value, probes, vectors


def _with_graph(network: nn.Module, x: Tensor, estimator: LogdetEstimator) -> tuple[Tensor, Tensor]:
    x = differentiable(x)
    g = network(x)
    if isinstance(estimator, Exact):
        return g, exact_logdet(g, x, create_graph=True)
    value = zeros_logdet(x)
    for _ in range(estimator.probes):
        probe = random_signs(x)
        value = value + differentiable_series(g, x, probe, estimator.weights(x))
    return g, value / estimator.probes


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the compiler out of loops of unknown length and of derivatives."""
    # Not a decorator: it would import the compiler, which takes a second.
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def _for_evaluation(estimator: LogdetEstimator, lipschitz: float) -> LogdetEstimator:
    if isinstance(estimator, Exact):
        return estimator
    return PowerSeries(terms_for(lipschitz, _EVAL_BOUND), estimator.probes)


def _checked(estimator: LogdetEstimator, lipschitz: float) -> LogdetEstimator:
    if isinstance(estimator, Roulette):
        return estimator.for_lipschitz(lipschitz)
    return estimator


def _widened(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))
