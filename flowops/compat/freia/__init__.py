"""Modules of FrEIA, by their names and arguments, on flowops kernels.

All are called as there: ``module([x], c=[], rev=False, jac=True) -> ((z,), log_jac)``, log_jac in
nats, of the direction evaluated. They work in FrEIA's ``SequenceINN`` and ``GraphINN``.
"""

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
from flowops.compat.freia.spline import rational_quadratic_spline

__all__ = [
    "AffineCouplingOneSided",
    "AllInOneBlock",
    "ConditionalAffineTransform",
    "GINCouplingBlock",
    "GLOWCouplingBlock",
    "InvertibleModule",
    "NICECouplingBlock",
    "RNVPCouplingBlock",
    "rational_quadratic_spline",
]

#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {
    "FrEIA.modules.all_in_one_block.AllInOneBlock": AllInOneBlock,
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
