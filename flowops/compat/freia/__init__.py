"""Modules of FrEIA, by their names and arguments, on flowops kernels.

All are called as there: ``module([x], c=[], rev=False, jac=True) -> ((z,), log_jac)``, log_jac in
nats, of the direction evaluated. They work in FrEIA's ``SequenceINN`` and ``GraphINN``.
"""

from flowops.compat._peer import own_names_of
from flowops.compat._twins import Twin
from flowops.compat.freia.all_in_one import AllInOneBlock
from flowops.compat.freia.base import InvertibleModule
from flowops.compat.freia.coupling import (
    AffineCouplingOneSided,
    ConditionalAffineTransform,
    GINCouplingBlock,
    GLOWCouplingBlock,
    NICECouplingBlock,
    RNVPCouplingBlock,
)
from flowops.compat.freia.normalization import ActNorm, Fixed1x1Conv
from flowops.compat.freia.residual import IResNetLayer
from flowops.compat.freia.spline import rational_quadratic_spline
from flowops.compat.freia.spline_blocks import (
    BinnedSplineBase,
    ElementwiseRationalQuadraticSpline,
    RationalQuadraticSpline,
)

__all__ = [
    "ActNorm",
    "AffineCouplingOneSided",
    "AllInOneBlock",
    "ConditionalAffineTransform",
    "ElementwiseRationalQuadraticSpline",
    "Fixed1x1Conv",
    "GINCouplingBlock",
    "GLOWCouplingBlock",
    "IResNetLayer",
    "InvertibleModule",
    "NICECouplingBlock",
    "RNVPCouplingBlock",
    "RationalQuadraticSpline",
    "rational_quadratic_spline",
]

#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {
    "FrEIA.modules.all_in_one_block.AllInOneBlock": AllInOneBlock,
    "FrEIA.modules.fixed_transforms.Fixed1x1Conv": Fixed1x1Conv,
    "FrEIA.modules.invertible_resnet.ActNorm": ActNorm,
    "FrEIA.modules.invertible_resnet.IResNetLayer": IResNetLayer,
    "FrEIA.modules.splines.binned.BinnedSplineBase": BinnedSplineBase,
    "FrEIA.modules.splines.rational_quadratic.ElementwiseRationalQuadraticSpline": (
        ElementwiseRationalQuadraticSpline
    ),
    "FrEIA.modules.splines.rational_quadratic.RationalQuadraticSpline": RationalQuadraticSpline,
    **{
        f"FrEIA.modules.coupling_layers.{twin.__name__}": twin
        for twin in (
            AffineCouplingOneSided,
            ConditionalAffineTransform,
            GINCouplingBlock,
            GLOWCouplingBlock,
            NICECouplingBlock,
            RNVPCouplingBlock,
        )
    },
}

__getattr__ = own_names_of("FrEIA", __name__, "FrEIA.modules", "FrEIA.framework")
