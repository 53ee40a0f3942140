"""Rational-quadratic splines: nflows' functions, and what its layers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from flowops import ops
from flowops.compat.nflows._base import Transform

DEFAULT_MIN_BIN_WIDTH = 1e-3
DEFAULT_MIN_BIN_HEIGHT = 1e-3
DEFAULT_MIN_DERIVATIVE = 1e-3


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = DEFAULT_MIN_BIN_WIDTH,
    min_bin_height: float = DEFAULT_MIN_BIN_HEIGHT,
    min_derivative: float = DEFAULT_MIN_DERIVATIVE,
    enable_identity_init: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Splines of [left, right] onto [bottom, top], element by element.

    Outside of the domain the map goes on along straight lines, where nflows copies to the host to
    raise ``InputOutsideDomain``: what rounding put beyond an end does not stop a training.

    Args:
        inputs: Data, any shape.
        unnormalized_widths: K logits an element, shape (\*inputs, K).
        unnormalized_heights: K logits an element.
        unnormalized_derivatives: K + 1 raw slopes an element.
        inverse: Whether to invert.
        left: Start of the domain.
        right: Its end.
        bottom: Start of the range.
        top: Its end.
        min_bin_width: Least width of a bin, as a share of the domain; below 1 / K.
        min_bin_height: Least height, as a share of the range.
        min_derivative: Least slope at a knot.
        enable_identity_init: Scale the softplus of slopes so that raw zeros give slopes of 1.

    Returns:
        The map of ``inputs``, and the log of its slope at each element, nats.

    Raises:
        ValueError: If an argument does not fit the others.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """
    params = _joined_params(
        unnormalized_widths, unnormalized_heights, unnormalized_derivatives, extra=1
    )
    return _elementwise(
        inputs,
        params,
        inverse,
        tails="none",
        bounds=(left, right, bottom, top),
        min_width=min_bin_width,
        min_height=min_bin_height,
        min_slope=min_derivative,
        beta=_beta(min_derivative, enable_identity_init),
    )


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = DEFAULT_MIN_BIN_WIDTH,
    min_bin_height: float = DEFAULT_MIN_BIN_HEIGHT,
    min_derivative: float = DEFAULT_MIN_DERIVATIVE,
    enable_identity_init: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Splines of [-tail_bound, tail_bound] onto itself, the identity outside.

    As :func:`rational_quadratic_spline`, with K - 1 raw slopes an element: those at the ends are 1.
    With ``enable_identity_init`` they are what nflows makes of them, above 1, and the slope jumps
    there.

    Args:
        inputs: Data, any shape.
        unnormalized_widths: K logits an element, shape (\*inputs, K).
        unnormalized_heights: K logits an element.
        unnormalized_derivatives: K - 1 raw slopes an element.
        inverse: Whether to invert.
        tails: "linear".
        tail_bound: See above.
        min_bin_width: Least width of a bin, as a share of the domain; below 1 / K.
        min_bin_height: Least height, as a share of the range.
        min_derivative: Least slope at a knot.
        enable_identity_init: Scale the softplus of slopes so that raw zeros give slopes of 1.

    Returns:
        The map of ``inputs``, and the log of its slope at each element, nats.

    Raises:
        ValueError: If an argument does not fit the others.
    """
    if tails != "linear":
        raise ValueError(
            f"unconstrained_rational_quadratic_spline: tails must be 'linear', got {tails!r}"
        )
    params = _joined_params(
        unnormalized_widths, unnormalized_heights, unnormalized_derivatives, extra=-1
    )
    options: dict[str, Any] = {
        "bounds": float(tail_bound),
        "min_width": min_bin_width,
        "min_height": min_bin_height,
        "min_slope": min_derivative,
    }
    if not enable_identity_init:
        return _elementwise(inputs, params, inverse, tails="linear", **options)
    # nflows pads with the raw slope that is 1 without the scaled softplus.
    edge = params.new_full((*params.shape[:-1], 1), math.log(math.expm1(1 - min_derivative)))
    bins = unnormalized_widths.size(-1)
    params = torch.cat([params[..., : 2 * bins], edge, params[..., 2 * bins :], edge], -1)
    options["beta"] = _beta(min_derivative, True)
    outputs, logabsdet = _elementwise(inputs, params, inverse, tails="none", **options)
    outside = inputs.abs() > tail_bound
    return torch.where(outside, inputs, outputs), logabsdet.masked_fill(outside, 0)


def _joined_params(widths: Tensor, heights: Tensor, slopes: Tensor, extra: int) -> Tensor:
    bins = widths.size(-1)
    for name, given, size in (("heights", heights, bins), ("derivatives", slopes, bins + extra)):
        if given.shape != (*widths.shape[:-1], size):
            raise ValueError(
                f"rational_quadratic_spline: unnormalized_{name} must have shape "
                f"{(*widths.shape[:-1], size)}, for {bins} widths, got {tuple(given.shape)}"
            )
    return torch.cat([widths, heights, slopes], -1)


def _beta(min_slope: float, identity: bool) -> float:
    return math.log(2) / (1 - min_slope) if identity else 1.0


def _elementwise(
    inputs: Tensor, params: Tensor, inverse: bool, **options: Any
) -> tuple[Tensor, Tensor]:
    op = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
    if inputs.dim() > 1:
        return op(inputs, params, elementwise=True, **options)
    column = params.reshape(-1, 1, params.size(-1))
    outputs, logabsdet = op(inputs.reshape(-1, 1), column, elementwise=True, **options)
    return outputs.reshape(inputs.shape), logabsdet.reshape(inputs.shape)


class SplineTransform(Transform):
    """What the spline layers share: their options, by nflows' names, and the call of the op."""

    num_bins: int
    tails: str | None
    tail_bound: float
    min_bin_width: float
    min_bin_height: float
    min_derivative: float

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """See :class:`Twin`."""
        layer: Any = peer
        if layer.tails not in (None, "linear"):
            return f"tails {layer.tails!r} are unknown"
        own = getattr(layer, "unnormalized_widths", None)
        bins = layer.num_bins if own is None else own.size(-1)
        full = bins * max(layer.min_bin_width, layer.min_bin_height) >= 1
        return "the least bins or slopes fill all" if full or layer.min_derivative >= 1 else None

    def _set_options(
        self,
        tails: str | None,
        tail_bound: float,
        min_bin_width: float,
        min_bin_height: float,
        min_derivative: float,
    ) -> None:
        if tails not in (None, "linear"):
            name = type(self).__name__
            raise ValueError(f"{name}: tails must be None or 'linear', got {tails!r}")
        self.tails = tails
        self.tail_bound = tail_bound
        self.min_bin_width = min_bin_width
        self.min_bin_height = min_bin_height
        self.min_derivative = min_derivative

    def _slopes_beyond_bins(self) -> int:
        return -1 if self.tails == "linear" else 1

    def _spline(
        self, inputs: Tensor, params: Tensor, inverse: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map ``inputs`` by ``params``, which have one more dimension, at the end."""
        op = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
        linear = self.tails == "linear"
        return op(
            inputs,
            params,
            tails="linear" if linear else "none",
            bounds=float(self.tail_bound) if linear else (0.0, 1.0, 0.0, 1.0),
            min_width=self.min_bin_width,
            min_height=self.min_bin_height,
            min_slope=self.min_derivative,
            logdet=logdet,
        )

    def _scaled_logits(self, params: Tensor, width: int | None) -> Tensor:
        """Divide the logits of bins by the root of the width of the network, where it is known."""
        if width is None:
            return params
        logits = params.new_full((2 * self.num_bins,), 1 / math.sqrt(width))
        slopes = self.num_bins + self._slopes_beyond_bins()
        return params * pad(logits, (0, slopes), value=1.0)


class PiecewiseRationalQuadraticCDF(SplineTransform):
    """Splines whose parameters are the layer's own, one spline for each feature.

    Args:
        shape: Of one sample, (C,) or (C, H, W); a number for vectors.
        num_bins: Pieces of a spline, K.
        tails: "linear": the identity outside of [-tail_bound, tail_bound]. None: splines of [0, 1].
        tail_bound: See ``tails``.
        identity_init: Begin as the identity, rather than at random.
        min_bin_width: Least width of a bin, as a share of the domain.
        min_bin_height: Least height of a bin.
        min_derivative: Least slope at a knot.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        identity_init: bool = False,
        min_bin_width: float = DEFAULT_MIN_BIN_WIDTH,
        min_bin_height: float = DEFAULT_MIN_BIN_HEIGHT,
        min_derivative: float = DEFAULT_MIN_DERIVATIVE,
    ) -> None:
        super().__init__()
        self._set_options(tails, tail_bound, min_bin_width, min_bin_height, min_derivative)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        slopes = num_bins + self._slopes_beyond_bins()
        sizes = {"widths": num_bins, "heights": num_bins, "derivatives": slopes}
        for name, size in sizes.items():
            start = torch.zeros(*shape, size) if identity_init else torch.rand(*shape, size)
            self.register_parameter(f"unnormalized_{name}", nn.Parameter(start))
        if identity_init:
            flat = math.log(math.expm1(1 - min_derivative))
            nn.init.constant_(self.unnormalized_derivatives, flat)  # pyright: ignore[reportArgumentType]

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._shared_spline(inputs, False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._shared_spline(inputs, True)

    def _shared_spline(self, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        names = ("widths", "heights", "derivatives")
        params = torch.cat([getattr(self, f"unnormalized_{name}") for name in names], -1)
        return self._spline(inputs, params.expand(inputs.size(0), *params.shape), inverse)
