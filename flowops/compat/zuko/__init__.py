"""Transforms and networks of zuko, by their names and arguments, on flowops kernels.

The transforms are those of ``torch.distributions`` and need no zuko; in zuko's lazy layers they are
the ``univariate=``, with the same ``shapes``. The lazy layers themselves are taken over by
:func:`flowops.accelerate`, which saves the splitting of parameters as well.
"""

from flowops.compat._peer import own_names_of
from flowops.compat._twins import Twin
from flowops.compat.zuko.lazy import MLP, GeneralCouplingTransform, MaskedAutoregressiveTransform
from flowops.compat.zuko.transforms import (
    CouplingTransform,
    LULinearTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
)

__all__ = [
    "CouplingTransform",
    "LULinearTransform",
    "MonotonicAffineTransform",
    "MonotonicRQSTransform",
]

#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {
    "zuko.flows.autoregressive.MaskedAutoregressiveTransform": MaskedAutoregressiveTransform,
    "zuko.flows.coupling.GeneralCouplingTransform": GeneralCouplingTransform,
    "zuko.nn.MLP": MLP,
    "zuko.nn.MaskedMLP": MLP,
}

__getattr__ = own_names_of(
    "zuko",
    __name__,
    "zuko.flows",
    "zuko.transforms",
    "zuko.distributions",
    "zuko.nn",
)
