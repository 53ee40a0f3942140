"""The transforms inside of normflows' neural spline flows; ``forward`` goes from the data here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin
from flowops.compat.normflows._common import promoted

__all__ = [
    "PiecewiseRationalQuadraticCDF",
    "PiecewiseRationalQuadraticCoupling",
]

Tails = str | Sequence[str] | None
_TAILS = ("linear", "circular")


class Splines(Twin):
    """What has a spline for each feature."""

    tails: Tails
    tail_bound: float | Tensor
    min_bin_width: float
    min_bin_height: float
    min_derivative: float

    def _set_splines(
        self, tails: Tails, tail_bound: float | Tensor, least: tuple[float, float, float]
    ) -> None:
        self.min_bin_width, self.min_bin_height, self.min_derivative = least
        self.tails = tails
        if isinstance(tail_bound, Tensor):
            self.register_buffer("tail_bound", tail_bound)
        else:
            self.tail_bound = tail_bound
        problem = self.refusal(self)
        if problem:
            raise ValueError(problem)

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`~flowops.compat._twins.Twin`."""
        tails = peer.tails
        if tails is None or tails in _TAILS:
            return None
        if isinstance(tails, (list, tuple)) and all(tail in _TAILS for tail in tails):
            return None
        return f"{cls.__name__}: tails must be linear, circular, None or a list, got {tails!r}"

    def _parameter_count(self, bins: int) -> int:
        if self.tails in _TAILS:
            return 3 * bins - (self.tails == "linear")
        return 3 * bins + 1

    def _spline_parameters(self, raw: Tensor, bins: int, hidden: int | None) -> Tensor:
        """Return the op's parameters: logits over the root of the network's width, its slopes."""
        factor = 1.0 if hidden is None else hidden**-0.5
        if self.tails is None or isinstance(self.tails, str):
            if hidden is None:
                return raw
            factors = raw.new_ones(raw.size(-1))
            factors[: 2 * bins] = factor
            return raw * factors
        # Circular tails with a first slope of 1, which is then the last one too, are linear.
        linear = torch.tensor([tail == "linear" for tail in self.tails], device=raw.device)
        one = math.log(math.expm1(1 - self.min_derivative))
        edge = raw[..., 2 * bins : 2 * bins + 1]
        edge = torch.where(linear.view(-1, *[1] * (raw.dim() - 2)), one, edge)
        sizes, inner = raw[..., : 2 * bins], raw[..., 2 * bins + 1 : 3 * bins]
        return torch.cat([sizes * factor, edge, inner], -1)

    def _spline(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Run splines of ``x`` (N, C, ..) by ``params`` (N, C, .., P)."""
        x, params = promoted(x, params)
        bounds: Any = self.tail_bound
        tails = self.tails if isinstance(self.tails, str) else "circular"
        if self.tails is None:
            bounds, tails = (0.0, 1.0, 0.0, 1.0), "none"
        elif isinstance(bounds, Tensor):
            ends = bounds.to(x.dtype).expand(x.size(1))
            bounds = torch.stack([-ends, ends, -ends, ends])
        op = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
        return op(
            x,
            params,
            tails=tails,
            bounds=bounds,
            min_width=self.min_bin_width,
            min_height=self.min_bin_height,
            min_slope=self.min_derivative,
        )


class PiecewiseRationalQuadraticCDF(Splines):
    """Splines whose parameters are learned themselves.

    Args:
        shape: Of a sample.
        num_bins: Bins of each spline.
        tails: "linear", "circular", one of them for each feature, or None for splines on [0, 1].
        tail_bound: Splines act on [-tail_bound, tail_bound]; a tensor has one for each feature.
        identity_init: Whether the map begins as the identity.
        min_bin_width: Least width of a bin, as a share of the interval.
        min_bin_height: Least height of a bin, as a share of the interval.
        min_derivative: Least slope at a knot.

    Raises:
        ValueError: If the tails are not known.
    """

    unnormalized_widths: Tensor
    unnormalized_heights: Tensor
    unnormalized_derivatives: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        num_bins: int = 10,
        tails: Tails = None,
        tail_bound: float | Tensor = 1.0,
        identity_init: bool = True,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        self._set_splines(tails, tail_bound, (min_bin_width, min_bin_height, min_derivative))
        slopes = self._parameter_count(num_bins) - 2 * num_bins
        start = math.log(math.expm1(1 - min_derivative))
        for name, count, value in (
            ("widths", num_bins, 0.0),
            ("heights", num_bins, 0.0),
            ("derivatives", slopes, start),
        ):
            whole = (*shape, count)
            values = torch.full(whole, value) if identity_init else torch.rand(whole)
            self.register_parameter(f"unnormalized_{name}", nn.Parameter(values))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the map of the data and the log-determinant, (N,), nats."""
        return self._map(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        return self._map(inputs, inverse=True)

    def _map(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        widths = self.unnormalized_widths
        if x.shape[1:] != widths.shape[:-1]:
            raise ValueError(
                f"PiecewiseRationalQuadraticCDF: inputs must have samples of shape "
                f"{list(widths.shape[:-1])}, got {list(x.shape)}"
            )
        raw = torch.cat([widths, self.unnormalized_heights, self.unnormalized_derivatives], -1)
        params = self._spline_parameters(raw[None], widths.size(-1), None)
        return self._spline(x, params.expand(x.size(0), *params.shape[1:]), inverse=inverse)


class PiecewiseRationalQuadraticCoupling(Splines):
    """Spline coupling of the features of vectors or images.

    Features with ``mask <= 0`` are seen by the network, which sets the splines of the others, in
    the order of the parameters of :func:`flowops.ops.rational_quadratic_spline`; a list of tails
    takes those of tails "none". Where it has ``hidden_features`` or ``hidden_channels`` the logits
    of widths and heights are divided by their root.

    Args:
        mask: One-dimensional, one value a feature.
        transform_net_create_fn: Called with the numbers of features in and out; its result is
            called with the seen features and the context.
        num_bins: Bins of each spline.
        tails: See :class:`PiecewiseRationalQuadraticCDF`.
        tail_bound: See there.
        apply_unconditional_transform: Whether the seen features have splines too, learned ones.
        img_shape: Height and width of images, for the unconditional transform.
        min_bin_width: See :class:`PiecewiseRationalQuadraticCDF`.
        min_bin_height: See there.
        min_derivative: See there.

    Raises:
        ValueError: If an argument does not fit the others.
    """

    identity_features: Tensor
    transform_features: Tensor
    unconditional_transform: Any

    def __init__(
        self,
        mask: Tensor | Sequence[int],
        transform_net_create_fn: Callable[[int, int], nn.Module],
        num_bins: int = 10,
        tails: Tails = None,
        tail_bound: float | Tensor = 1.0,
        apply_unconditional_transform: bool = False,
        img_shape: Sequence[int] | None = None,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.dim() != 1 or not mask.numel():
            raise ValueError(
                "PiecewiseRationalQuadraticCoupling: mask must be one-dimensional and not empty, "
                f"got shape {list(mask.shape)}"
            )
        self.features = len(mask)
        self.num_bins = num_bins
        self.register_buffer("identity_features", torch.nonzero(mask <= 0)[:, 0])
        self.register_buffer("transform_features", torch.nonzero(mask > 0)[:, 0])
        least = (min_bin_width, min_bin_height, min_derivative)
        seen, moved = (
            (_part(tails, features), _part(tail_bound, features))
            for features in (self.identity_features, self.transform_features)
        )
        self._set_splines(*moved, least)
        outputs = len(self.transform_features) * self._parameter_count(num_bins)
        self.transform_net = transform_net_create_fn(len(self.identity_features), outputs)
        self.unconditional_transform = None
        if apply_unconditional_transform:
            shape = (len(self.identity_features), *(img_shape or ()))
            self.unconditional_transform = PiecewiseRationalQuadraticCDF(
                shape, num_bins, *seen, True, *least
            )

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the map of the data and the log-determinant, (N,), nats."""
        kept, moved = self._parts(inputs)
        moved, logdet = self._move(kept, moved, context, inverse=False)
        if self.unconditional_transform is not None:
            kept, more = self.unconditional_transform(kept, context)
            logdet = logdet + more
        return self._join(kept, moved), logdet

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        kept, moved = self._parts(inputs)
        more: Tensor | float = 0.0
        if self.unconditional_transform is not None:
            kept, more = self.unconditional_transform.inverse(kept, context)
        moved, logdet = self._move(kept, moved, context, inverse=True)
        return self._join(kept, moved), logdet + more

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() not in (2, 4) or x.size(1) != self.features:
            raise ValueError(
                f"PiecewiseRationalQuadraticCoupling: inputs must have shape [N, {self.features}] "
                f"or [N, {self.features}, H, W], got {list(x.shape)}"
            )
        return x.index_select(1, self.identity_features), x.index_select(1, self.transform_features)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        order = torch.cat([self.identity_features, self.transform_features]).argsort()
        return torch.cat(promoted(kept, moved), 1).index_select(1, order)

    def _move(
        self, kept: Tensor, moved: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        net: Any = self.transform_net
        raw = net(kept, context)
        count = self._parameter_count(self.num_bins)
        expected = (moved.size(0), moved.size(1) * count, *moved.shape[2:])
        if raw.shape != expected:
            raise ValueError(
                f"PiecewiseRationalQuadraticCoupling: transform_net must give shape "
                f"{list(expected)}, got {list(raw.shape)}"
            )
        hidden = getattr(net, "hidden_features", getattr(net, "hidden_channels", None))
        raw = raw.unflatten(1, (moved.size(1), count)).movedim(2, -1)
        return self._spline(
            moved, self._spline_parameters(raw, self.num_bins, hidden), inverse=inverse
        )


def _part(values: Any, features: Tensor) -> Any:
    """Return those of ``features`` where there is a value for each."""
    if isinstance(values, Tensor):
        return values[features]
    if isinstance(values, (list, tuple)):
        return [values[i] for i in features.tolist()]
    return values


def start_as_identity(net: Any, min_derivative: float = 1e-3) -> None:
    """Set the last layer so that all bins have one size and all slopes are 1."""
    nn.init.zeros_(net.final_layer.weight)
    nn.init.constant_(net.final_layer.bias, math.log(math.expm1(1 - min_derivative)))
