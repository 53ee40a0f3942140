"""zuko's transforms, which are those of ``torch.distributions`` and need no zuko."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from flowops import ops
from flowops.ops import ScaleMap

Result = tuple[Tensor, Tensor]


class Univariate(Transform):
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


class MonotonicAffineTransform(Univariate):
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


class MonotonicRQSTransform(Univariate):
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
        self._params = torch.cat(broadcast_batches(widths, heights, derivatives), -1)
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


class Joint(Transform):
    """A univariate transform of vectors, whose log-determinant the kernel sums."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, base: Univariate) -> None:
        super().__init__()
        self.base = base

    def call_and_ladj(self, x: Tensor) -> Result:
        """Return the map of ``x`` and its log-determinant, nats, one a vector."""
        return self.base._run(x, inverse=False, total=True)

    def _call(self, x: Tensor) -> Tensor:
        return self.base._run(x, inverse=False, total=True)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base._run(y, inverse=True, total=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant, nats, one a vector."""
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


class LULinearTransform(Transform):
    r"""The product :math:`f(x) = L U x`.

    Args:
        LU: (D, D): L is its lower triangle with the diagonal, U its upper one with ones there.
        cache_size: Of ``torch.distributions.Transform``.

    Raises:
        ValueError: If ``LU`` is not a square matrix.

    Numerics:
        Both directions are products with a matrix that one call of the kernel makes, the inverse
        solved in float64 on the CPU.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, LU: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        if LU.dim() != 2 or LU.size(0) != LU.size(1):
            raise ValueError(f"LULinearTransform: LU must have shape [D, D], got {list(LU.shape)}")
        self._LU = LU

    def call_and_ladj(self, x: Tensor) -> Result:
        """Return the product and its log-determinant, nats, one a vector."""
        return self._multiply(x, inverse=False)

    def _multiply(self, x: Tensor, *, inverse: bool) -> Result:
        # The kernel's L has the ones: it is given the transpose, U^T L^T.
        turned, diagonal = self._LU.t(), self._LU.diagonal()
        order = torch.arange(len(diagonal), device=diagonal.device)
        (weight,), _, logdet = ops.invertible_conv1x1_lu(
            [turned], [turned], [diagonal.abs().log()], [diagonal.sign()], [order], inverse=inverse
        )
        rows = x.reshape(math.prod(x.shape[:-1]), len(diagonal))
        y = ops.invertible_conv1x1(rows, weight.t())
        return y.reshape(x.shape), logdet[0].expand(x.shape[:-1])

    def _call(self, x: Tensor) -> Tensor:
        return self._multiply(x, inverse=False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._multiply(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant, nats, one a vector."""
        return self._LU.diagonal().abs().log().sum().expand(x.shape[:-1])


def _soft_clip(slope: float) -> ScaleMap:
    if not 0 < slope < 1:
        raise ValueError(f"MonotonicAffineTransform: slope must be between 0 and 1, got {slope}")
    limit = -math.log(slope)
    return ScaleMap("softsign_exp", gain=1 / limit, limit=limit)


def broadcast_batches(*tensors: Tensor) -> list[Tensor]:
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
