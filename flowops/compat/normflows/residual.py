"""The residual blocks of normflows, which came from residual-flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowops.compat._normed import held
from flowops.compat._twins import Twin
from flowops.nn._replay import Replay
from flowops.nn._residual_map import differentiable, invert, neumann, steady
from flowops.nn.residual_logdet import (
    differentiable_series,
    dot,
    exact_logdet,
    jacobian,
    neumann_surrogate,
    products,
    series,
)

# Terms without randomness in evaluation mode, whatever the training has.
_EVAL_EXACT_TERMS = 20
_ITERATIONS = 1000


class iResBlock(Twin):
    r"""Residual map :math:`y = x + g(x)`, its log-determinant *subtracted* from what comes in.

    Random numbers are drawn as there, the number of terms from numpy, one for the whole batch, the
    vector from torch. In training with ``neumann_grad`` the log-determinant's value is that of the
    Neumann gradient's surrogate, as there: it has the right gradient, and is no log-likelihood. In
    evaluation it has no gradient but with ``exact_trace``, ``brute_force`` or two dimensions.

    Different on purpose: the log-determinant of each sample is weighted by that sample's own
    upstream gradient, where residual-flows takes the first one's for all; the inverse is exact to
    1e-6 (1e-12 in float64), where there the last step may be 3e-3, and an error if it does not get
    there; its gradient is that of the fixed point, of constant memory. Inputs stay as they are. The
    network runs without autocast.

    Args:
        nnet: g, of Lipschitz constant below 1.
        geom_p: Parameter of the geometric distribution of the number of terms.
        lamb: Mean of the Poisson distribution of it.
        n_power_series: Number of terms in training, without randomness; None for random.
        exact_trace: Traces of the Jacobian written out, for vectors.
        brute_force: The log-determinant itself, for two dimensions.
        n_samples: Numbers of terms over which weights are averaged.
        n_exact_terms: Terms that always count in training; 20 do in evaluation.
        n_dist: ``"geometric"``, or ``"poisson"``, whose estimates have infinite variance: see
            :class:`flowops.nn.Roulette`.
        neumann_grad: Take the Neumann gradient in training.
        grad_in_forward: And keep none of its graph.

    Raises:
        ValueError: If ``n_dist`` is not known.
        RuntimeError: If the inverse does not converge.

    Source:
        Chen, Behrmann, Duvenaud and Jacobsen, Residual Flows, 2019, arXiv:1906.02735.
    """

    nnet: nn.Module
    geom_p: Tensor
    lamb: Tensor
    last_n_samples: Tensor
    last_firmom: Tensor
    last_secmom: Tensor
    n_dist: str

    def __init__(
        self,
        nnet: nn.Module,
        geom_p: float = 0.5,
        lamb: float = 2.0,
        n_power_series: int | None = None,
        exact_trace: bool = False,
        brute_force: bool = False,
        n_samples: int = 1,
        n_exact_terms: int = 2,
        n_dist: str = "geometric",
        neumann_grad: bool = True,
        grad_in_forward: bool = False,
    ) -> None:
        super().__init__()
        if n_dist not in ("geometric", "poisson"):
            raise ValueError(f"iResBlock: n_dist must be 'geometric' or 'poisson', got {n_dist!r}")
        self.nnet = nnet
        self.n_dist = n_dist
        logit = torch.tensor(math.log(geom_p) - math.log(1 - geom_p), dtype=torch.float64)
        self.geom_p = nn.Parameter(logit)
        self.lamb = nn.Parameter(torch.tensor(lamb))
        self.n_samples = n_samples
        self.n_power_series = n_power_series
        self.exact_trace = exact_trace
        self.brute_force = brute_force
        self.n_exact_terms = n_exact_terms
        self.grad_in_forward = grad_in_forward
        self.neumann_grad = neumann_grad
        self.register_buffer("last_n_samples", torch.zeros(n_samples))
        self.register_buffer("last_firmom", torch.zeros(1))
        self.register_buffer("last_secmom", torch.zeros(1))

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`TwinBase`."""
        if peer.n_dist in ("geometric", "poisson"):
            return None
        return f"its n_dist {peer.n_dist!r} is neither 'geometric' nor 'poisson'"

    def forward(self, x: Tensor, logpx: Any = None) -> Any:
        """Return y, and with ``logpx`` ``logpx`` less the log-determinant, (N, 1), nats."""
        if logpx is None:
            return x + self.nnet(x)
        g, logdet = self._logdetgrad(x)
        return x + g, logpx - logdet

    def inverse(self, y: Tensor, logpy: Any = None) -> Any:
        """Return x, and with ``logpy`` ``logpy`` plus the log-determinant at x, (N, 1), nats."""
        with steady(self.nnet, y.device):
            x = invert("iResBlock", self.nnet, y, tolerance=None, max_iterations=_ITERATIONS)
        if logpy is None:
            return x
        return x, logpy + self._logdetgrad(x)[1]

    def _logdetgrad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and the log-determinants, (N, 1)."""
        two = x.dim() == 2 and x.size(1) == 2
        if two and (self.brute_force or not self.training):
            g, value = self._written_out(x, exact_logdet)
            return g, value.view(-1, 1)
        drawn, weights = self._terms()
        if self.exact_trace:
            g, value = self._written_out(x, partial(_traces, weights))
        else:
            g, value = self._estimate(x, weights)
        if self.training and self.n_power_series is None:
            self.last_n_samples.copy_(torch.from_numpy(drawn))
            self.last_firmom.fill_(value.detach().mean())
            self.last_secmom.fill_(value.detach().square().mean())
        return g, value.view(-1, 1)

    def _written_out(
        self, x: Tensor, logdet: Callable[[Tensor, Tensor, bool], Tensor]
    ) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        with steady(self.nnet, x.device), torch.enable_grad():
            x = differentiable(x)
            g = self.nnet(x)
            return g, logdet(g, x, graph)

    def _estimate(self, x: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
        probe = torch.randn_like(x)
        surrogate = self.training and self.neumann_grad
        self._initialize(x)
        with steady(self.nnet, x.device) as replay:
            if surrogate and (self.grad_in_forward or not torch.is_grad_enabled()):
                return self._neumann(replay, x, probe, weights)
            with torch.enable_grad():
                x = differentiable(x)
                g = self.nnet(x)
                coefficients = _for_all(weights, x)
                if surrogate:
                    vectors = _surrogate(self.nnet, g, x, probe, weights)[1]
                    return g, neumann_surrogate(g, x, probe, vectors)
                if self.training and torch.is_grad_enabled():
                    return g, differentiable_series(g, x, probe, coefficients)
                return g, series(self.nnet, g, x, probe, coefficients)[0]

    def _neumann(
        self, replay: Replay, x: Tensor, probe: Tensor, weights: list[float]
    ) -> tuple[Tensor, Tensor]:
        def estimate(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                x = differentiable(x.detach())
                g = network(x)
            value, vectors = _surrogate(network, g, x, probe, weights)
            return g.detach(), value, probe[None], vectors[None]

        return neumann("iResBlock", replay, x, estimate)

    def _initialize(self, x: Tensor) -> None:
        """Let layers that take the size of images from their first batch do so, before a replay."""
        if not all(bool(getattr(module, "initialized", True)) for module in self.nnet.modules()):
            with torch.no_grad(), held(self.nnet):
                self.nnet(x)

    def _terms(self) -> tuple[np.ndarray, list[float]]:
        """Return the numbers drawn, and the weights of the terms of the series."""
        if self.training and self.n_power_series is not None:
            return np.empty(0), [1.0] * self.n_power_series
        exact = self.n_exact_terms if self.training else _EVAL_EXACT_TERMS
        # numpy's global generator, so that results under its seed are normflows'.
        if self.n_dist == "geometric":
            p = torch.sigmoid(self.geom_p).item()
            drawn = np.random.geometric(p, self.n_samples)  # noqa: NPY002
            reached = partial(_geometric, p)
        else:
            mean = self.lamb.item()
            drawn = np.random.poisson(mean, self.n_samples)  # noqa: NPY002
            reached = partial(_poisson, mean)
        beyond = [
            np.count_nonzero(drawn >= k) / len(drawn) / reached(k)
            for k in range(1, int(drawn.max()) + 1)
        ]
        return drawn, [1.0] * exact + beyond

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"dist={self.n_dist}, n_samples={self.n_samples}, "
            f"n_power_series={self.n_power_series}, neumann_grad={self.neumann_grad}, "
            f"exact_trace={self.exact_trace}, brute_force={self.brute_force}"
        )


class Residual(Twin):
    """Residual block; ``forward`` goes from the latent to the data.

    Args:
        net: See :class:`iResBlock`, as for the other arguments.
        reverse: Whether ``inverse`` is the map x + net(x), rather than ``forward``.
        reduce_memory: Take the Neumann gradient and keep none of its graph.
        geom_p: See there.
        lamb: See there.
        n_power_series: See there.
        exact_trace: See there.
        brute_force: See there.
        n_samples: See there.
        n_exact_terms: See there.
        n_dist: See there.
    """

    iresblock: Any
    reverse: bool

    def __init__(
        self,
        net: nn.Module,
        reverse: bool = True,
        reduce_memory: bool = True,
        geom_p: float = 0.5,
        lamb: float = 2.0,
        n_power_series: int | None = None,
        exact_trace: bool = False,
        brute_force: bool = False,
        n_samples: int = 1,
        n_exact_terms: int = 2,
        n_dist: str = "geometric",
    ) -> None:
        super().__init__()
        self.reverse = reverse
        self.iresblock = iResBlock(
            net,
            geom_p,
            lamb,
            n_power_series,
            exact_trace,
            brute_force,
            n_samples,
            n_exact_terms,
            n_dist,
            neumann_grad=reduce_memory,
            grad_in_forward=reduce_memory,
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the log-determinant, (N,), nats."""
        z, less = self.iresblock.inverse(z, 0) if self.reverse else self.iresblock(z, 0)
        return z, -less.view(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        z, less = self.iresblock(z, 0) if self.reverse else self.iresblock.inverse(z, 0)
        return z, -less.view(-1)


def _geometric(p: float, k: int) -> float:
    """Return the probability of k or more, k being at least 1."""
    return (1 - p) ** (k - 1)


def _poisson(mean: float, k: int) -> float:
    """Return the probability of k or more, k being at least 1."""
    return 1 - math.exp(-mean) * sum(mean**i / math.factorial(i) for i in range(k))


def _for_all(weights: list[float], x: Tensor) -> Tensor:
    return x.new_tensor(weights).expand(len(x), -1)


def _traces(weights: list[float], g: Tensor, x: Tensor, graph: bool) -> Tensor:
    """Return the series with the traces of the Jacobian's powers."""
    matrix = jacobian(g, x, graph)
    power, total = matrix, x.new_zeros(len(x))
    for k, weight in enumerate(weights, start=1):
        power = matrix if k == 1 else torch.bmm(matrix, power)
        total = total - (-1) ** k * weight / k * power.diagonal(dim1=1, dim2=2).sum(1)
    return total


def _surrogate(
    network: nn.Module, g: Tensor, x: Tensor, probe: Tensor, weights: list[float]
) -> tuple[Tensor, Tensor]:
    r"""Return :math:`w^T J v` and :math:`w^T = \sum_{k \ge 0} (-1)^k c_k v^T J^k`, c_0 being 1."""
    signed = [(-1) ** k * weight for k, weight in enumerate([1.0, *weights])]
    value, vectors = x.new_zeros(len(x)), torch.zeros_like(x)
    terms = products(network, g, x, probe, _for_all(signed, x))
    for (_, product, last), weight in zip(terms, signed, strict=True):
        vectors += weight * last
        value += weight * dot(product, probe)
    return value, vectors
