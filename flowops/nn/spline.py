"""Spline layers: coupling and masked autoregressive."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.nn.base import Bijector
from flowops.nn.coupling import Coupling
from flowops.nn.masked import MADE

_TAILS = ("linear", "circular", "none")


def spline_parameters(bins: int, tails: str = "linear") -> int:
    """Return how many parameters a spline of ``bins`` bins takes: 3K - 1, 3K or 3K + 1.

    Args:
        bins: number of bins, K.
        tails: ``"linear"``, ``"circular"`` or ``"none"``.

    Raises:
        ValueError: if an argument is out of range.
    """
    if bins < 1:
        raise ValueError(f"spline_parameters: bins must be at least 1, got {bins}")
    if tails not in _TAILS:
        raise ValueError(
            f"spline_parameters: tails must be one of {', '.join(_TAILS)}, got {tails!r}"
        )
    return 3 * bins + _TAILS.index(tails) - 1


class _SplineOptions:
    """What both layers pass to the op; zeros from a conditioner make the identity."""

    def __init__(
        self, bins: int, bound: float, tails: str, min_width: float, min_height: float,
        min_slope: float,
    ) -> None:  # fmt: skip
        self.bins = bins
        self.count = spline_parameters(bins, tails)
        self.options: dict[str, Any] = {
            "tails": tails,
            "bounds": float(bound),
            "min_width": min_width,
            "min_height": min_height,
            "min_slope": min_slope,
            "beta": math.log(2) / (1 - min_slope),
        }

    def __str__(self) -> str:
        return f"bins={self.bins}, bound={self.options['bounds']}, tails={self.options['tails']!r}"


class RationalQuadraticSpline(Coupling):
    """Spline coupling: part of ``x`` passes through and sets the splines of the rest.

    See :func:`flowops.ops.rational_quadratic_spline`. Without a mask the first (or second)
    channels are kept and seen by the conditioner, which maps ``(B, kept, *S)`` to
    ``(B, moved * P, *S)``, channel by channel, P being ``spline_parameters(bins, tails)``. With a
    mask it maps ``x * mask``, ``(B, C, *S)``, to ``(B, C * P, *S)``. Where it gives zeros the layer
    is the identity.

    Args:
        channels: size of dimension 1.
        conditioner: any module called as ``conditioner(kept, context)``. Where it has a method
            ``initialize``, data-dependent initialisation calls that instead.
        keep: which channels pass through, ``"first"`` or ``"second"``; ignored with a mask.
        kept_channels: how many; default ``channels // 2``.
        mask: bool, broadcastable to ``(channels, *S)``, True = kept.
        bins: pieces of a spline, K.
        bound: splines act on [-bound, bound].
        tails: outside of it: ``"linear"``, ``"circular"`` or ``"none"``.
        min_width: least width of a bin, as a share of the domain.
        min_height: least height of a bin, as a share of the domain.
        min_slope: least slope at a knot.
        device: of the mask.

    Raises:
        ValueError: if an argument is out of range.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        channels: int,
        conditioner: nn.Module,
        *,
        keep: str = "first",
        kept_channels: int | None = None,
        mask: Tensor | None = None,
        bins: int = 8,
        bound: float = 3.0,
        tails: str = "linear",
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            channels,
            conditioner,
            keep=keep,
            kept_channels=kept_channels,
            mask=mask,
            device=device,
        )
        self._spline = _SplineOptions(bins, bound, tails, min_width, min_height, min_slope)

    def _move(
        self, moved: Tensor, raw: Tensor, logdet: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        op = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
        params = raw.unflatten(1, (self.moved_channels, self._spline.count)).movedim(2, -1)
        if self.mask is None:
            return op(moved, params, logdet=logdet, **self._spline.options)
        z, each = op(moved, params, elementwise=True, **self._spline.options)
        total = each.masked_fill(self.mask, 0).flatten(1).sum(1)
        return torch.where(self.mask, moved, z), total if logdet is None else logdet + total

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, {self._part()}, {self._spline}"


class AutoregressiveSpline(Bijector):
    """Masked autoregressive splines of vectors: the spline of each feature depends on those before.

    See :func:`flowops.ops.rational_quadratic_spline`, and :class:`MADE` for the network and
    ``passes``. ``forward`` is one pass of the network; ``inverse`` takes as many as ``passes``
    says, and its gradient goes through all of them.

    Args:
        features: size of the vectors.
        hidden: width of the network.
        blocks: residual blocks of the network.
        context_features: size of the context vector; 0 for none.
        order: int64, shape ``(features,)``: the place of each feature in the order in which they
            are made; default as they come.
        passes: number of groups that are made one after the other, from 1 to ``features``, the
            default; with 2 the layer is a coupling.
        bins: pieces of a spline, K.
        bound: splines act on [-bound, bound].
        tails: outside of it: ``"linear"``, ``"circular"`` or ``"none"``.
        min_width: least width of a bin, as a share of the domain.
        min_height: least height of a bin, as a share of the domain.
        min_slope: least slope at a knot.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019, arXiv:1906.04032.
    """

    reversible = False  # the inverse takes as many passes of the network as there are groups

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        context_features: int = 0,
        order: Tensor | None = None,
        passes: int | None = None,
        bins: int = 8,
        bound: float = 3.0,
        tails: str = "linear",
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self._spline = _SplineOptions(bins, bound, tails, min_width, min_height, min_slope)
        self.conditioner = MADE(
            features,
            self._spline.count,
            hidden=hidden,
            blocks=blocks,
            context_features=context_features,
            order=order,
            passes=passes,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        params = self.conditioner(x, context)
        return ops.rational_quadratic_spline(x, params, logdet=logdet, **self._spline.options)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        undo, options = ops.rational_quadratic_spline_inverse, self._spline.options
        x = torch.zeros_like(z)
        # Each pass makes one more group right, from what the passes before it made.
        for _ in range(self.conditioner.passes - 1):
            x = undo(z, self.conditioner(x, context), **options)[0]
        return undo(z, self.conditioner(x, context), logdet=logdet, **options)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.features}, passes={self.conditioner.passes}, {self._spline}"
