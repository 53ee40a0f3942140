"""FrEIA's invertible residual layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from flowops.compat.freia.base import Dims, InvertibleModule
from flowops.nn._residual_map import differentiable, invert, neumann, steady
from flowops.nn.residual_logdet import PowerSeries, series

_ITERATIONS = 1000


class IResNetLayer(InvertibleModule):
    r"""Residual map :math:`z = x + g(x)` of a fully connected or convolutional network with ELU.

    Outputs and log-Jacobians forwards are FrEIA's, of the same random signs. Different on purpose:

    - The log-Jacobian has a gradient, that of :class:`flowops.nn.InvertibleResidual`; in FrEIA it
      has none, so that a likelihood does not train the layer.
    - The log-Jacobian of ``rev`` is that at the x found, in FrEIA that at z.
    - The inverse is iterated until it is exact to 1e-6 (1e-12 in float64), or raises.
    - ``lipschitz_correction`` measures the convolutions as they are used, padded; FrEIA leaves
      the padding out, and may leave norms above the bound.

    Args:
        dims_in: Shape of a sample, (D,) or (C, H, W), in a list.
        dims_c: Not used.
        internal_size: Size, or channels, of the hidden layers; by default twice the input's.
        n_internal_layers: Layers between the first and the last.
        jacobian_iterations: Terms of the series of the log-Jacobian.
        hutchinson_samples: Random vectors over which it is a mean.
        fixed_point_iterations: Not used.
        lipschitz_iterations: Power iterations of a correction.
        lipschitz_batchsize: Vectors that are iterated, of which the largest norm counts.
        spectral_norm_max: Bound of each layer's norm, at most 1.

    Raises:
        ValueError: If ``spectral_norm_max`` is out of its range.
        RuntimeError: If the inverse does not converge, as where no correction has been made.

    Source:
        Behrmann et al., Invertible Residual Networks, 2019, arXiv:1811.00995.
    """

    layers: list[Any]
    residual: nn.Module

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims = (),
        internal_size: int | None = None,
        n_internal_layers: int = 1,
        jacobian_iterations: int = 20,
        hutchinson_samples: int = 1,
        fixed_point_iterations: int = 50,
        lipschitz_iterations: int = 10,
        lipschitz_batchsize: int = 10,
        spectral_norm_max: float = 0.8,
    ) -> None:
        super().__init__(dims_in, dims_c)
        if not 0 < spectral_norm_max <= 1:
            raise ValueError(
                f"IResNetLayer: spectral_norm_max must be in (0, 1], got {spectral_norm_max}"
            )
        self.dims_in: Any = tuple(self.dims_in[0])
        self.internal_size = internal_size or 2 * self.dims_in[0]
        self.n_internal_layers = n_internal_layers
        self.jacobian_iterations = jacobian_iterations
        self.hutchinson_samples = hutchinson_samples
        self.fixed_point_iterations = fixed_point_iterations
        self.lipschitz_iterations = lipschitz_iterations
        self.lipschitz_batchsize = lipschitz_batchsize
        self.spectral_norm_max = spectral_norm_max
        ends = self.dims_in[0]
        sizes = [ends, *[self.internal_size] * (n_internal_layers + 1), ends]
        self.layers = [self._layer(*pair) for pair in pairwise(sizes)]
        steps = [step for layer in self.layers for step in (layer, nn.ELU())]
        self.residual = nn.Sequential(*steps[:-1])

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        if len(self.dims_in) == 1:
            return nn.Linear(inputs, outputs)
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    @torch.no_grad()
    def lipschitz_correction(self) -> None:
        """Scale each weight whose norm is beyond ``spectral_norm_max`` to that."""
        for layer in self.layers:
            size = (self.lipschitz_batchsize, layer.weight.size(1), *self.dims_in[1:])
            x = torch.randn(size, device=layer.weight.device).to(layer.weight)
            for _ in range(self.lipschitz_iterations):
                x = _image(layer, _image(layer, x), back=True)
                x = x / _norms(x).view(-1, *[1] * (x.dim() - 1))
            norm = (_norms(_image(layer, x)) / _norms(x)).max()
            if norm > self.spectral_norm_max:
                layer.weight.mul_(self.spectral_norm_max / norm)

    def forward(
        self, x: Sequence[Tensor], c: Iterable[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """See :mod:`flowops.compat.freia`; the log-Jacobian is None without ``jac``."""
        data = x[0]
        with steady(self.residual, data.device) as replay:
            if rev:
                data = invert(
                    "IResNetLayer", self.residual, data, tolerance=None, max_iterations=_ITERATIONS
                )
            if not jac:
                return [data if rev else data + self.residual(data)], None
            g, logdet = neumann("IResNetLayer", replay, data, self._estimate)
        return ([data], -logdet) if rev else ([data + g], logdet)

    def _estimate(self, network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = differentiable(x.detach())
            g = network(x)
        probes = torch.stack([torch.randn_like(x).sign() for _ in range(self.hutchinson_samples)])
        weights = PowerSeries(self.jacobian_iterations).weights(x)
        values, vectors = zip(
            *(series(network, g, x, probe, weights) for probe in probes), strict=True
        )
        return g.detach(), torch.stack(values).mean(0), probes, torch.stack(vectors)


def _image(layer: Any, x: Tensor, *, back: bool = False) -> Tensor:
    """Apply a layer's weight, or its transpose."""
    if isinstance(layer, nn.Linear):
        return x @ (layer.weight if back else layer.weight.t())
    return (conv_transpose2d if back else conv2d)(x, layer.weight, padding=1)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)
