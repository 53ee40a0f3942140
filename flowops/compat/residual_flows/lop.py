"""Layers bounded in operator norms that have a closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from flowops.compat._twins import Twin

# By the exponents of domain and codomain: the dimension of the weight that keeps its vectors
# apart, inputs being 1 and outputs 0, and the exponent of the vectors' norm.
_CLOSED_FORMS = {
    (1, 1): (1, 1),
    (1, 2): (1, 2),
    (1, math.inf): (1, math.inf),
    (2, math.inf): (0, 2),
    (math.inf, math.inf): (0, 1),
}


class _Lop(Twin):
    """What the two layers share."""

    weight: Any
    bias: Any
    scale: Tensor
    coeff: float
    domain: float
    codomain: float
    local_constraint: bool
    max_across_dim: int
    norm_type: float

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`TwinBase`."""
        if peer.norm_type != math.inf:
            return None
        return "of domain 1 and codomain inf it bounds the positive weights alone, flowops all"

    def _set_up(self, coeff: float, domain: float, codomain: float, local_constraint: bool) -> None:
        if (domain, codomain) not in _CLOSED_FORMS:
            known = ", ".join(str(pair) for pair in _CLOSED_FORMS)
            raise ValueError(
                f"{type(self).__name__}: (domain, codomain) must be one of {known}, "
                f"got ({domain}, {codomain})"
            )
        self.coeff = coeff
        self.domain = domain
        self.codomain = codomain
        self.local_constraint = local_constraint
        self.max_across_dim, self.norm_type = _CLOSED_FORMS[domain, codomain]
        self.register_buffer("scale", torch.tensor(0.0))

    def compute_weight(self) -> Tensor:
        """Return the weight that is used; ``scale`` is the norm of what it is made of."""
        rest = [axis for axis in range(self.weight.dim()) if axis != self.max_across_dim]
        scale = torch.linalg.vector_norm(self.weight, self.norm_type, rest, keepdim=True)
        if not self.local_constraint:
            scale = scale.max()
        with torch.no_grad():
            self.scale.copy_(scale.max())
        return self.weight / (scale / self.coeff).clamp(min=1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"{super().extra_repr()}, coeff={self.coeff}, domain={self.domain}, "
            f"codomain={self.codomain}, local={self.local_constraint}"
        )


class LopLinear(_Lop, nn.Linear):
    r"""Fully connected layer with the operator norm of its weight bounded by ``coeff``.

    The norm from :math:`\ell_p` to :math:`\ell_q` is the largest :math:`\ell_q` norm of a column
    for p = 1, and the largest norm of a row, in the exponent dual to p, for q = inf.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether there is one.
        coeff: The bound c.
        domain: p, with ``codomain`` one of the pairs (1, 1), (1, 2), (1, inf), (2, inf),
            (inf, inf).
        codomain: q.
        local_constraint: Divide each row or column by its own :math:`\max(1, n / c)`, n being its
            norm, rather than all by that of the largest.

    Raises:
        ValueError: If the norms are none of these.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        coeff: float = 0.97,
        domain: float = math.inf,
        codomain: float = math.inf,
        local_constraint: bool = True,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._set_up(coeff, domain, codomain, local_constraint)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_features) to (N, out_features)."""
        return linear(input, self.compute_weight(), self.bias)


class LopConv2d(_Lop, nn.Conv2d):
    r"""Convolution with its operator norm, as a map of images, bounded by ``coeff``.

    See :class:`LopLinear`; the norm of the kernel of an input, or output, channel is that of a
    column, or row, so that strides and margins make the map's norm at most smaller.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Height and width of the kernel, or both.
        stride: Likewise.
        padding: Likewise.
        bias: Whether there is one.
        coeff: The bound c.
        domain: See :class:`LopLinear`.
        codomain: See there.
        local_constraint: See there.

    Raises:
        ValueError: If the norms are none of these.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        bias: bool = True,
        coeff: float = 0.97,
        domain: float = math.inf,
        codomain: float = math.inf,
        local_constraint: bool = True,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self._set_up(coeff, domain, codomain, local_constraint)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return conv2d(input, self.compute_weight(), self.bias, self.stride, self.padding)
