"""Masked autoregressive layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from flowops import ops
from flowops.compat.nflows._base import Transform, check_inputs
from flowops.compat.nflows._made import MADE
from flowops.compat.nflows._splines import (
    DEFAULT_MIN_BIN_HEIGHT,
    DEFAULT_MIN_BIN_WIDTH,
    DEFAULT_MIN_DERIVATIVE,
    SplineTransform,
)


class AutoregressiveTransform(Transform):
    """What the autoregressive layers share: each feature moves as those before it tell.

    ``inverse`` runs the network once a feature, and its gradient goes through all of them.

    Args:
        autoregressive_net: Called as ``net(inputs, context)``; its outputs for a feature depend on
            the features before it alone.
    """

    def __init__(self, autoregressive_net: nn.Module) -> None:
        super().__init__()
        self.autoregressive_net = autoregressive_net

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        self._check(inputs)
        return self._elementwise(inputs, self.autoregressive_net(inputs, context), False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        self._check(inputs)
        outputs = torch.zeros_like(inputs)
        # Each pass makes one more feature right, from those that the passes before it made.
        for _ in range(math.prod(inputs.shape[1:]) - 1):
            outputs = self._elementwise(inputs, self.autoregressive_net(outputs, context), True)[0]
        return self._elementwise(inputs, self.autoregressive_net(outputs, context), True)

    def _check(self, inputs: Tensor) -> None:
        features = getattr(self, "features", inputs.shape[-1])  # nflows' spline layers have none
        check_inputs(self, inputs, features, (2,))

    def _elementwise(self, inputs: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Move each feature by what the network gave for it."""
        raise NotImplementedError


class MaskedAffineAutoregressiveTransform(AutoregressiveTransform):
    """Masked autoregressive flow: ``outputs = scale * inputs + shift``.

    See :func:`flowops.ops.affine_coupling`. The scale is softplus of the network's output, plus
    0.001.

    Args:
        features: Size of the vectors.
        hidden_features: Width of the network, :class:`MADE`.
        context_features: Size of the context vector; None for none.
        num_blocks: Of the network, as the arguments that follow.
        use_residual_blocks: See :class:`MADE`.
        random_mask: See :class:`MADE`.
        activation: See :class:`MADE`.
        dropout_probability: See :class:`MADE`.
        use_batch_norm: See :class:`MADE`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Papamakarios, Pavlakou and Murray, Masked autoregressive flow, 2017, arXiv:1705.07057.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Callable[[Tensor], Tensor] = relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        net = MADE(
            features,
            hidden_features,
            context_features,
            num_blocks,
            2,
            use_residual_blocks,
            random_mask,
            activation,
            dropout_probability,
            use_batch_norm,
        )
        super().__init__(net)
        self.features = features
        self._epsilon = 1e-3

    def _elementwise(self, inputs: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        scale = ops.ScaleMap("softplus", floor=self._epsilon)
        return op(inputs, params, scale=scale, layout="scale_shift_interleaved")


class MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
    SplineTransform, AutoregressiveTransform
):
    """Masked autoregressive splines. See :func:`flowops.ops.rational_quadratic_spline`.

    Args:
        features: Size of the vectors.
        hidden_features: Width of the network, :class:`MADE`.
        context_features: Size of the context vector; None for none.
        num_bins: Pieces of a spline, K.
        tails: "linear": the identity outside of [-tail_bound, tail_bound]. None: splines of [0, 1].
        tail_bound: See ``tails``.
        num_blocks: Of the network, as the arguments that follow.
        use_residual_blocks: See :class:`MADE`.
        random_mask: See :class:`MADE`.
        activation: See :class:`MADE`.
        dropout_probability: See :class:`MADE`.
        use_batch_norm: See :class:`MADE`.
        min_bin_width: Least width of a bin, as a share of the domain.
        min_bin_height: Least height of a bin.
        min_derivative: Least slope at a knot.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        num_blocks: int = 2,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Callable[[Tensor], Tensor] = relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
        min_bin_width: float = DEFAULT_MIN_BIN_WIDTH,
        min_bin_height: float = DEFAULT_MIN_BIN_HEIGHT,
        min_derivative: float = DEFAULT_MIN_DERIVATIVE,
    ) -> None:
        self._set_options(tails, tail_bound, min_bin_width, min_bin_height, min_derivative)
        self.num_bins = num_bins
        net = MADE(
            features,
            hidden_features,
            context_features,
            num_blocks,
            self._parameters_each(),
            use_residual_blocks,
            random_mask,
            activation,
            dropout_probability,
            use_batch_norm,
        )
        AutoregressiveTransform.__init__(self, net)
        self.features = features

    def _parameters_each(self) -> int:
        return 3 * self.num_bins + self._slopes_beyond_bins()

    def _elementwise(self, inputs: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        params = params.unflatten(1, (-1, self._parameters_each()))
        width = getattr(self.autoregressive_net, "hidden_features", None)
        return self._spline(inputs, self._scaled_logits(params, width), inverse)
