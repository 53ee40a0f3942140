"""Transforms and networks of zuko, by their names and arguments, on flowops kernels.

The transforms are those of ``torch.distributions`` and need no zuko; in zuko's lazy layers they are
the ``univariate=``, with the same ``shapes``. The lazy layers themselves are taken over by
:func:`flowops.accelerate`, which saves the splitting of parameters as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from flowops import ops
from flowops.compat._twins import Twin, full_name
from flowops.ops import ScaleMap

__all__ = ["CouplingTransform", "MonotonicAffineTransform", "MonotonicRQSTransform"]

Result = tuple[Tensor, Tensor]


class _Univariate(Transform):
    """What elements have in common: ``_run`` gives a map and its log-derivatives in one pass."""

    domain = constraints.real
    codomain = constraints.real
    bijective = True

    @property
    def sign(self) -> int:
        """Return 1: the maps increase."""
        return 1

    def _run(self, x: Tensor, *, inverse: bool, total: bool = False) -> Result:
        """Map ``x``; with ``total`` the log-derivatives are summed over the last dimension."""
        raise NotImplementedError

    def call_and_ladj(self, x: Tensor) -> Result:
        """Return the map of ``x`` and the log-derivative of each element, nats."""
        return self._run(x, inverse=False)

    def _call(self, x: Tensor) -> Tensor:
        return self._run(x, inverse=False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._run(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-derivative of each element, nats."""
        return self._run(x, inverse=False)[1]


class MonotonicAffineTransform(_Univariate):
    r"""The map :math:`f(x) = e^a x + b`, with a the soft-clipped ``scale``.

    .. math:: a = s / (1 + |s / \log(\text{slope})|)

    Args:
        shift: b, any shape that broadcasts with x.
        scale: s, likewise.
        slope: Least slope, between 0 and 1.
        cache_size: Of ``torch.distributions.Transform``.

    Raises:
        ValueError: If ``slope`` is not between 0 and 1.
    """

    def __init__(
        self, shift: Tensor, scale: Tensor, slope: float = 1e-3, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size=cache_size)
        self._params = torch.stack(torch.broadcast_tensors(shift, scale), -1)
        self._scale_map = _soft_clip(slope)

    @classmethod
    def of(cls, params: Tensor, slope: float = 1e-3) -> MonotonicAffineTransform:
        r"""Return the transform of parameters (\*, 2), shift and scale, without a copy."""
        made = cls.__new__(cls)
        Transform.__init__(made)
        made._params, made._scale_map = params, _soft_clip(slope)
        return made

    def _run(self, x: Tensor, *, inverse: bool, total: bool = False) -> Result:
        x, params, shape = _rows(x, self._params)
        # Rows of one element have the log-derivatives of elements.
        rows = (
            (x, params.flatten(1))
            if total
            else (x.reshape(x.numel(), 1), params.reshape(x.numel(), 2))
        )
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        y, logdet = op(*rows, scale=self._scale_map, layout="shift_scale_interleaved")
        return y.reshape(shape), logdet.reshape(shape[:-1] if total else shape)


class MonotonicRQSTransform(_Univariate):
    r"""A monotonic rational-quadratic spline on [-bound, bound], the identity outside.

    Slopes are :math:`e^{d}` of the soft-clipped ``derivatives``, bins the softmax of the
    soft-clipped logits.

    Args:
        widths: Logits of the bins' widths, (\*, K).
        heights: Logits of the bins' heights, (\*, K).
        derivatives: Raw slopes at the knots between, (\*, K - 1).
        bound: End of the domain.
        slope: Least slope, between 0 and 1.
        cache_size: Of ``torch.distributions.Transform``.

    Raises:
        ValueError: If shapes do not fit, or ``slope`` is not between 0 and 1.

    Source:
        Durkan et al., Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        widths: Tensor,
        heights: Tensor,
        derivatives: Tensor,
        bound: float = 5.0,
        slope: float = 1e-3,
        cache_size: int = 0,
    ) -> None:
        super().__init__(cache_size=cache_size)
        sizes = [t.size(-1) for t in (widths, heights, derivatives)]
        if sizes != [sizes[0], sizes[0], sizes[0] - 1]:
            raise ValueError(
                "MonotonicRQSTransform: widths, heights and derivatives must have last dimensions "
                f"K, K and K - 1, got {sizes}"
            )
        self._params = torch.cat(_broadcast(widths, heights, derivatives), -1)
        self._bound, self._slope = bound, slope

    @classmethod
    def of(cls, params: Tensor, bound: float = 5.0, slope: float = 1e-3) -> MonotonicRQSTransform:
        r"""Return the transform of parameters (\*, 3 K - 1), in order, without a copy."""
        made = cls.__new__(cls)
        Transform.__init__(made)
        made._params, made._bound, made._slope = params, bound, slope
        return made

    @property
    def bins(self) -> int:
        """How many bins the spline has."""
        return (self._params.size(-1) + 1) // 3

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bins={self.bins})"

    def _run(self, x: Tensor, *, inverse: bool, total: bool = False) -> Result:
        x, params, shape = _rows(x, self._params)
        op = ops.rational_quadratic_spline_inverse if inverse else ops.rational_quadratic_spline
        y, logdet = op(
            x,
            params,
            bounds=self._bound,
            slope_map="exp",
            min_width=0.0,
            min_height=0.0,
            soft_clip=self._slope,
            elementwise=not total,
        )
        return y.reshape(shape), logdet.reshape(shape[:-1] if total else shape)


class _Joint(Transform):
    """A univariate transform of vectors, whose log-determinant the kernel sums."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, base: _Univariate) -> None:
        super().__init__()
        self.base = base

    def call_and_ladj(self, x: Tensor) -> Result:
        return self.base._run(x, inverse=False, total=True)

    def _call(self, x: Tensor) -> Tensor:
        return self.base._run(x, inverse=False, total=True)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base._run(y, inverse=True, total=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


class CouplingTransform(Transform):
    """Part of a vector passes through and says how the rest is moved.

    Args:
        meta: Makes the transform of the rest, of vectors, from the part that passes through.
        mask: bool (D,), True for what passes through.
        cache_size: Of ``torch.distributions.Transform``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, meta: Callable[[Tensor], Transform], mask: Tensor, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.meta = meta
        self.idx_a, self.idx_b = mask.nonzero().squeeze(-1), (~mask).nonzero().squeeze(-1)
        self._order = torch.cat([self.idx_a, self.idx_b]).argsort()

    def call_and_ladj(self, x: Tensor) -> Result:
        """Return the map of ``x`` and its log-determinant, nats, one a vector."""
        kept, moved = self._split(x)
        transform: Any = self.meta(kept)
        moved, ladj = transform.call_and_ladj(moved)
        return self._merge(kept, moved), ladj

    def _split(self, x: Tensor) -> Result:
        return x.index_select(-1, self.idx_a), x.index_select(-1, self.idx_b)

    def _merge(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], -1).index_select(-1, self._order)

    def _call(self, x: Tensor) -> Tensor:
        kept, moved = self._split(x)
        transform: Any = self.meta(kept)
        return self._merge(kept, transform(moved))

    def _inverse(self, y: Tensor) -> Tensor:
        kept, moved = self._split(y)
        transform: Any = self.meta(kept).inv
        return self._merge(kept, transform(moved))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant, nats, one a vector."""
        (kept, moved), (_, moved_y) = self._split(x), self._split(y)
        return self.meta(kept).log_abs_det_jacobian(moved, moved_y)


def _soft_clip(slope: float) -> ScaleMap:
    if not 0 < slope < 1:
        raise ValueError(f"MonotonicAffineTransform: slope must be between 0 and 1, got {slope}")
    limit = -math.log(slope)
    return ScaleMap("softsign_exp", gain=1 / limit, limit=limit)


def _broadcast(*tensors: Tensor) -> list[Tensor]:
    """Broadcast all dimensions but the last."""
    shape = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return [t.expand(*shape, t.size(-1)) for t in tensors]


def _rows(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
    """Return x as (B, D) and parameters as (B, D, P), and the shape of the result."""
    shape = torch.broadcast_shapes(x.shape, params.shape[:-1])
    width = shape[-1] if shape else 1
    rows = math.prod(shape[:-1])
    x = x.expand(shape).reshape(rows, width)
    return x, params.expand(*shape, -1).reshape(rows, width, params.size(-1)), shape


_OURS: dict[str, Callable[..., _Univariate]] = {
    "zuko.transforms.MonotonicAffineTransform": MonotonicAffineTransform.of,
    "zuko.transforms.MonotonicRQSTransform": MonotonicRQSTransform.of,
    full_name(MonotonicAffineTransform): MonotonicAffineTransform.of,
    full_name(MonotonicRQSTransform): MonotonicRQSTransform.of,
}


def _univariate(given: Any) -> Callable[[Tensor], _Univariate] | None:
    """Return what makes our transform of whole parameters where zuko's is made of their parts."""
    options: dict[str, Any] = {}
    if isinstance(given, partial):
        if given.args:
            return None
        given, options = given.func, given.keywords
    known = _OURS.get(full_name(given)) if isinstance(given, type) else None
    return None if known is None else partial(known, **options)


class _Hyper(Twin):
    """A lazy layer of zuko that gives univariate transforms their parameters."""

    univariate: Callable[..., Transform]
    hyper: nn.Module
    total: int

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """See :class:`Twin`."""
        given: Any = peer.univariate
        if _univariate(given) is None:
            name = getattr(getattr(given, "func", given), "__name__", given)
            return f"its univariate transform is {name}, which flowops has not"
        return None

    def meta(self, c: Tensor | None, x: Tensor) -> Transform:
        """Return the transform of the elements that ``x`` and the context ``c`` determine."""
        if c is not None:
            x = torch.cat(_broadcast(x, c), -1)
        make = _univariate(self.univariate)
        if make is None:
            raise TypeError(f"{type(self).__name__}: univariate must be one that flowops has")
        return _Joint(make(self.hyper(x).unflatten(-1, (-1, self.total))))


class MaskedAutoregressiveTransform(_Hyper):
    """Twin of zuko's autoregressive layer; passes and masks are zuko's."""


class GeneralCouplingTransform(_Hyper):
    """Twin of zuko's coupling layer."""

    mask: Tensor

    def forward(self, c: Tensor | None = None) -> CouplingTransform:
        """Return the coupling under the context ``c``."""
        return CouplingTransform(partial(self.meta, c), self.mask)


class MLP(Twin):
    """Twin of zuko's networks of linear layers, masked or not, with ReLU between them."""

    whole = True

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """See :class:`Twin`."""
        layer: Any
        for i, layer in enumerate(peer.children()):
            kind = full_name(type(layer))
            if i % 2 and kind != "torch.nn.modules.activation.ReLU":
                return f"between its layers is {type(layer).__name__}, which is not ReLU"
            if not i % 2 and kind not in ("zuko.nn.Linear", "zuko.nn.MaskedLinear"):
                return f"it has a layer of class {type(layer).__name__}"
            if not i % 2 and (layer.weight.dim() != 2 or layer.bias is None):
                return "its linear layers are stacked or have no bias"
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Return the network of the last dimension of ``x``."""
        layers: list[Any] = [layer for i, layer in enumerate(self.children()) if not i % 2]
        weight = [
            layer.weight if getattr(layer, "mask", None) is None else layer.mask * layer.weight
            for layer in layers
        ]
        rows = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
        out = ops.mlp(rows, weight, [layer.bias for layer in layers])
        return out.reshape(*x.shape[:-1], out.size(-1))


#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {
    "zuko.flows.autoregressive.MaskedAutoregressiveTransform": MaskedAutoregressiveTransform,
    "zuko.flows.coupling.GeneralCouplingTransform": GeneralCouplingTransform,
    "zuko.nn.MLP": MLP,
    "zuko.nn.MaskedMLP": MLP,
}
