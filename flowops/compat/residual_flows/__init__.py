"""Layers of rtqichen/residual-flows, by their names, arguments, keys and draws.

``iResBlock(nnet, ...)(x, logpx)`` gives ``x + nnet(x)`` and ``logpx`` *less* the log-determinant,
(N, 1), nats. The blocks and induced-norm layers are those of :mod:`flowops.compat.normflows`, which
says where they differ on purpose; induced norms other than Euclidean ones, and learned norms, are
not covered. The repository's newest commit calls its package ``resflows``, the name by which
:func:`flowops.accelerate` knows the layers; before, the folder was called ``lib``.
"""

from __future__ import annotations

from flowops.compat._peer import own_names_of
from flowops.compat._twins import Twin
from flowops.compat.normflows.lipschitz import InducedNormConv2d, InducedNormLinear, Swish
from flowops.compat.normflows.residual import iResBlock
from flowops.compat.residual_flows.coupling import (
    ChannelCouplingBlock,
    CouplingBlock,
    MaskedCouplingBlock,
)
from flowops.compat.residual_flows.lop import LopConv2d, LopLinear
from flowops.compat.residual_flows.spectral import SpectralNormConv2d, SpectralNormLinear

__all__ = [
    "ChannelCouplingBlock",
    "CouplingBlock",
    "InducedNormConv2d",
    "InducedNormLinear",
    "LopConv2d",
    "LopLinear",
    "MaskedCouplingBlock",
    "SpectralNormConv2d",
    "SpectralNormLinear",
    "Swish",
    "iResBlock",
]

_PLACES: dict[str, tuple[type[Twin], ...]] = {
    "iresblock": (iResBlock,),
    "coupling": (CouplingBlock, ChannelCouplingBlock, MaskedCouplingBlock),
    "base.activations": (Swish,),
    "base.lipschitz": (SpectralNormLinear, SpectralNormConv2d, LopLinear, LopConv2d),
    "base.mixed_lipschitz": (InducedNormLinear, InducedNormConv2d),
}

TWINS: dict[str, type[Twin]] = {
    f"resflows.layers.{place}.{twin.__name__}": twin
    for place, twins in _PLACES.items()
    for twin in twins
}

__getattr__ = own_names_of("resflows", __name__, "resflows.layers", "resflows.layers.base")
