"""normflows' masked autoregressive transforms, of which ``forward`` is one pass of the network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin
from flowops.compat.normflows._common import promoted
from flowops.compat.normflows.nets import MADE, PeriodicFeaturesElementwise
from flowops.compat.normflows.splines import Splines, Tails, start_as_identity
from flowops.ops import ScaleMap

__all__ = ["MaskedAffineAutoregressive", "MaskedPiecewiseRationalQuadraticAutoregressive"]

_SCALE = ScaleMap("sigmoid", floor=1e-3)


class _Autoregressive(Twin):
    """Transforms of each feature by parameters that its network makes of the features before it."""

    autoregressive_net: Any

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the map and the log-determinant, (N,), nats: one pass."""
        return self._elementwise(inputs, self.autoregressive_net(inputs, context), inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``: as many passes as features, each making one more of them right."""
        outputs, logdet = torch.zeros_like(inputs), inputs.new_zeros(inputs.size(0))
        for _ in range(inputs.size(1)):
            params = self.autoregressive_net(outputs, context)
            outputs, logdet = self._elementwise(inputs, params, inverse=True)
        return outputs, logdet

    def _elementwise(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__}: _elementwise must be defined")


class MaskedAffineAutoregressive(_Autoregressive):
    r"""Masked affine autoregressive flow.

    .. math:: z' = (\operatorname{sigmoid}(h) + 0.001)\, z + t

    with h, less 2, and t of the features before.

    Args:
        features: Size of the vectors.
        hidden_features: Width of the network.
        context_features: Size of the context; None for none.
        num_blocks: Residual blocks of the network.
        activation: Of the network.
        dropout_probability: Of the network.

    Raises:
        ValueError: If a batch does not consist of vectors.

    Source:
        Papamakarios, Pavlakou and Murray, Masked autoregressive flow, 2017, arXiv:1705.07057.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        activation: nn.Module | None = None,
        dropout_probability: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.autoregressive_net = MADE(
            features,
            hidden_features,
            context_features,
            num_blocks,
            2,
            activation=activation,
            dropout_probability=dropout_probability,
        )

    def _elementwise(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        x, params = promoted(x, params)
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        return op(x, params, scale=_SCALE, layout="scale_shift_interleaved")


class MaskedPiecewiseRationalQuadraticAutoregressive(Splines, _Autoregressive):
    """Masked autoregressive splines; of the network's forms, the residual one without batch norm.

    Args:
        features: Size of the vectors.
        hidden_features: Width of the network.
        context_features: Size of the context; None for none.
        num_bins: Bins of each spline.
        tails: See :class:`PiecewiseRationalQuadraticCDF`. The network sees features with circular
            tails through sine and cosine, if the tails are a list.
        tail_bound: See there.
        num_blocks: Residual blocks of the network.
        permute_mask: Whether the order of the features is random.
        activation: Of the network.
        dropout_probability: Of the network.
        init_identity: Whether the map begins as the identity.
        min_bin_width: See :class:`PiecewiseRationalQuadraticCDF`.
        min_bin_height: See there.
        min_derivative: See there.

    Raises:
        ValueError: If an argument does not fit the others.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_bins: int = 10,
        tails: Tails = None,
        tail_bound: float | Tensor = 1.0,
        num_blocks: int = 2,
        permute_mask: bool = False,
        activation: nn.Module | None = None,
        dropout_probability: float = 0.0,
        init_identity: bool = True,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        self._set_splines(tails, tail_bound, (min_bin_width, min_bin_height, min_derivative))
        self.num_bins = num_bins
        periodic = None
        if isinstance(tails, (list, tuple)):
            circular = [i for i, tail in enumerate(tails) if tail == "circular"]
            bound = tail_bound[circular] if isinstance(tail_bound, Tensor) else tail_bound
            periodic = PeriodicFeaturesElementwise(features, circular, math.pi / bound)
        self.autoregressive_net = MADE(
            features,
            hidden_features,
            context_features,
            num_blocks,
            self._parameter_count(num_bins),
            permute_mask,
            activation,
            dropout_probability,
            periodic,
        )
        if init_identity:
            start_as_identity(self.autoregressive_net, min_derivative)

    def _elementwise(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raw = params.view(*x.shape, self._parameter_count(self.num_bins))
        hidden = getattr(self.autoregressive_net, "hidden_features", None)
        return self._spline(x, self._spline_parameters(raw, self.num_bins, hidden), inverse=inverse)
