"""Twins of zuko's lazy layers, and of its networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from flowops import ops
from flowops.compat._twins import Twin, full_name
from flowops.compat.zuko.transforms import (
    CouplingTransform,
    Joint,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
    Univariate,
    broadcast_batches,
)

_OURS: dict[str, Callable[..., Univariate]] = {
    "zuko.transforms.MonotonicAffineTransform": MonotonicAffineTransform.of,
    "zuko.transforms.MonotonicRQSTransform": MonotonicRQSTransform.of,
    full_name(MonotonicAffineTransform): MonotonicAffineTransform.of,
    full_name(MonotonicRQSTransform): MonotonicRQSTransform.of,
}


def _univariate(given: Any) -> Callable[[Tensor], Univariate] | None:
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
            x = torch.cat(broadcast_batches(x, c), -1)
        make = _univariate(self.univariate)
        if make is None:
            raise TypeError(f"{type(self).__name__}: univariate must be one that flowops has")
        return Joint(make(self.hyper(x).unflatten(-1, (-1, self.total))))


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
