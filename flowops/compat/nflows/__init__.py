"""Layers of nflows, by their names and arguments, on flowops kernels.

They load nflows' checkpoints, of PyPI's 0.14 and of the repository after it, and work in its
``CompositeTransform`` and ``Flow`` as they are.
"""

from __future__ import annotations

from flowops.compat._peer import own_names_of
from flowops.compat._twins import Twin
from flowops.compat.nflows._autoregressive import (
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
)
from flowops.compat.nflows._composite import (
    CompositeTransform,
    InverseTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
)
from flowops.compat.nflows._coupling import (
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from flowops.compat.nflows._householder import HouseholderSequence, QRLinear, SVDLinear
from flowops.compat.nflows._linear import LULinear, NaiveLinear, OneByOneConvolution
from flowops.compat.nflows._normalization import ActNorm, BatchNorm, InverseNotAvailable
from flowops.compat.nflows._permutations import (
    Permutation,
    RandomPermutation,
    ReversePermutation,
)
from flowops.compat.nflows._splines import (
    PiecewiseRationalQuadraticCDF,
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)

__all__ = [
    "TWINS",
    "ActNorm",
    "AdditiveCouplingTransform",
    "AffineCouplingTransform",
    "BatchNorm",
    "CompositeTransform",
    "HouseholderSequence",
    "InverseNotAvailable",
    "InverseTransform",
    "LULinear",
    "MaskedAffineAutoregressiveTransform",
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
    "MultiscaleCompositeTransform",
    "NaiveLinear",
    "OneByOneConvolution",
    "Permutation",
    "PiecewiseRationalQuadraticCDF",
    "PiecewiseRationalQuadraticCouplingTransform",
    "QRLinear",
    "RandomPermutation",
    "ReversePermutation",
    "SVDLinear",
    "SqueezeTransform",
    "rational_quadratic_spline",
    "unconstrained_rational_quadratic_spline",
]

_MODULES: dict[str, tuple[type[Twin], ...]] = {
    "autoregressive": (
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    ),
    "base": (CompositeTransform, InverseTransform, MultiscaleCompositeTransform),
    "conv": (OneByOneConvolution,),
    "coupling": (
        AdditiveCouplingTransform,
        AffineCouplingTransform,
        PiecewiseRationalQuadraticCouplingTransform,
    ),
    "linear": (NaiveLinear,),
    "lu": (LULinear,),
    "nonlinearities": (PiecewiseRationalQuadraticCDF,),
    "normalization": (ActNorm, BatchNorm),
    "orthogonal": (HouseholderSequence,),
    "permutations": (Permutation, RandomPermutation, ReversePermutation),
    "qr": (QRLinear,),
    "reshape": (SqueezeTransform,),
    "svd": (SVDLinear,),
}

TWINS: dict[str, type[Twin]] = {
    f"nflows.transforms.{module}.{twin.__name__}": twin
    for module, twins in _MODULES.items()
    for twin in twins
}

__getattr__ = own_names_of(
    "nflows",
    __name__,
    "nflows.transforms",
    "nflows.flows",
    "nflows.distributions",
    "nflows.nn.nets",
)
