"""Neural spline flows of normflows; ``forward`` goes from the latent to the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flowops.compat._twins import Twin
from flowops.compat.normflows.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
from flowops.compat.normflows.nets import PeriodicFeaturesElementwise, ResidualNet
from flowops.compat.normflows.splines import (
    PiecewiseRationalQuadraticCoupling,
    Tails,
    start_as_identity,
)

__all__ = [
    "AutoregressiveRationalQuadraticSpline",
    "CircularAutoregressiveRationalQuadraticSpline",
    "CircularCoupledRationalQuadraticSpline",
    "CoupledRationalQuadraticSpline",
]


class _Coupled(Twin):
    prqct: Any

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the data and the log-determinant, (N,), nats."""
        return self.prqct.inverse(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        return self.prqct(z, context)


class _Autoregressive(Twin):
    mprqat: Any

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the data and the log-determinant, (N,), nats: a pass for each feature."""
        return self.mprqat.inverse(z, context=context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``, in one pass."""
        return self.mprqat(z, context=context)


class CoupledRationalQuadraticSpline(_Coupled):
    """Spline coupling of vectors, every second feature seen by a residual network.

    The seen features have splines too, whose parameters are learned themselves.

    Args:
        num_input_channels: Size of the vectors.
        num_blocks: Residual blocks of the network.
        num_hidden_channels: Width of the network.
        num_context_channels: Size of the context; None for none.
        num_bins: Bins of each spline.
        tails: "linear" or "circular", or None for splines on [0, 1].
        tail_bound: Splines act on [-tail_bound, tail_bound].
        activation: Class of the network's activation.
        dropout_probability: Of the network.
        reverse_mask: Whether the odd features are seen, not the even ones.
        init_identity: Whether the map begins as the identity; normflows 1.7.3 has no such argument,
            and begins elsewhere.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_blocks: int,
        num_hidden_channels: int,
        num_context_channels: int | None = None,
        num_bins: int = 8,
        tails: Tails = "linear",
        tail_bound: float | Tensor = 3.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout_probability: float = 0.0,
        reverse_mask: bool = False,
        init_identity: bool = True,
    ) -> None:
        super().__init__()

        def network(inputs: int, outputs: int) -> nn.Module:
            net = ResidualNet(
                inputs,
                outputs,
                num_hidden_channels,
                num_context_channels,
                num_blocks,
                activation(),
                dropout_probability,
            )
            if init_identity:
                start_as_identity(net)
            return net

        self.prqct = PiecewiseRationalQuadraticCoupling(
            _alternating(num_input_channels, reverse_mask),
            network,
            num_bins,
            tails,
            tail_bound,
            apply_unconditional_transform=True,
        )


class CircularCoupledRationalQuadraticSpline(_Coupled):
    """:class:`CoupledRationalQuadraticSpline` with some features on a circle.

    The network sees those through sine and cosine.

    Args:
        num_input_channels: Size of the vectors.
        num_blocks: Residual blocks of the network.
        num_hidden_channels: Width of the network.
        ind_circ: Indices of the circular features.
        num_context_channels: Size of the context; None for none.
        num_bins: Bins of each spline.
        tail_bound: Splines act on [-tail_bound, tail_bound]; a tensor has one for each feature.
        activation: Class of the network's activation.
        dropout_probability: Of the network.
        reverse_mask: Whether the odd features are seen, not the even ones.
        mask: In place of that: features are seen where it is at most 0.
        init_identity: Whether the map begins as the identity.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Rezende et al., Normalizing flows on tori and spheres, 2020, arXiv:2002.02428.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_blocks: int,
        num_hidden_channels: int,
        ind_circ: Iterable[int],
        num_context_channels: int | None = None,
        num_bins: int = 8,
        tail_bound: float | Tensor = 3.0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout_probability: float = 0.0,
        reverse_mask: bool = False,
        mask: Tensor | None = None,
        init_identity: bool = True,
    ) -> None:
        super().__init__()
        if mask is None:
            mask = _alternating(num_input_channels, reverse_mask)
        circular = {int(i) for i in ind_circ}
        seen = [int(i) for i in torch.nonzero(mask <= 0)]
        places = [place for place, i in enumerate(seen) if i in circular]

        def network(inputs: int, outputs: int) -> nn.Module:
            bound = tail_bound
            if isinstance(bound, Tensor):
                bound = bound[[seen[place] for place in places]]
            periodic = PeriodicFeaturesElementwise(inputs, places, math.pi / bound)
            net = ResidualNet(
                inputs,
                outputs,
                num_hidden_channels,
                num_context_channels,
                num_blocks,
                activation(),
                dropout_probability,
                periodic if places else None,
            )
            if init_identity:
                start_as_identity(net)
            return net

        self.prqct = PiecewiseRationalQuadraticCoupling(
            mask,
            network,
            num_bins,
            _tails(num_input_channels, circular),
            tail_bound,
            apply_unconditional_transform=True,
        )


class AutoregressiveRationalQuadraticSpline(_Autoregressive):
    """Masked autoregressive splines of vectors.

    Args:
        num_input_channels: Size of the vectors.
        num_blocks: Residual blocks of the network.
        num_hidden_channels: Width of the network.
        num_context_channels: Size of the context; None for none.
        num_bins: Bins of each spline.
        tail_bound: Splines act on [-tail_bound, tail_bound].
        activation: Class of the network's activation.
        dropout_probability: Of the network.
        permute_mask: Whether the order of the features is random.
        init_identity: Whether the map begins as the identity.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_blocks: int,
        num_hidden_channels: int,
        num_context_channels: int | None = None,
        num_bins: int = 8,
        tail_bound: float | Tensor = 3,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout_probability: float = 0.0,
        permute_mask: bool = False,
        init_identity: bool = True,
    ) -> None:
        super().__init__()
        self.mprqat = MaskedPiecewiseRationalQuadraticAutoregressive(
            num_input_channels,
            num_hidden_channels,
            num_context_channels,
            num_bins,
            "linear",
            tail_bound,
            num_blocks,
            permute_mask,
            activation(),
            dropout_probability,
            init_identity,
        )


class CircularAutoregressiveRationalQuadraticSpline(_Autoregressive):
    """:class:`AutoregressiveRationalQuadraticSpline` with some features on a circle.

    The network sees those through sine and cosine.

    Args:
        num_input_channels: Size of the vectors.
        num_blocks: Residual blocks of the network.
        num_hidden_channels: Width of the network.
        ind_circ: Indices of the circular features.
        num_context_channels: Size of the context; None for none.
        num_bins: Bins of each spline.
        tail_bound: Splines act on [-tail_bound, tail_bound]; a tensor has one for each feature.
        activation: Class of the network's activation.
        dropout_probability: Of the network.
        permute_mask: Whether the order of the features is random.
        init_identity: Whether the map begins as the identity.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Rezende et al., Normalizing flows on tori and spheres, 2020, arXiv:2002.02428.
    """

    def __init__(
        self,
        num_input_channels: int,
        num_blocks: int,
        num_hidden_channels: int,
        ind_circ: Iterable[int],
        num_context_channels: int | None = None,
        num_bins: int = 8,
        tail_bound: float | Tensor = 3,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout_probability: float = 0.0,
        permute_mask: bool = True,
        init_identity: bool = True,
    ) -> None:
        super().__init__()
        self.mprqat = MaskedPiecewiseRationalQuadraticAutoregressive(
            num_input_channels,
            num_hidden_channels,
            num_context_channels,
            num_bins,
            _tails(num_input_channels, {int(i) for i in ind_circ}),
            tail_bound,
            num_blocks,
            permute_mask,
            activation(),
            dropout_probability,
            init_identity,
        )


def _alternating(features: int, even: bool) -> Tensor:
    """Return a mask of ones at the even or the odd features."""
    return (torch.arange(features) + even) % 2


def _tails(features: int, circular: set[int]) -> list[str]:
    return ["circular" if i in circular else "linear" for i in range(features)]
