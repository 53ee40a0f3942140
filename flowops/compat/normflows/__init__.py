"""Layers of normflows, by their names and arguments, on flowops kernels.

They have normflows' state-dict keys and its direction: ``forward`` goes from the latent to the
data. None of them needs normflows.
"""

from __future__ import annotations

from flowops.compat._peer import own_names_of
from flowops.compat._twins import Twin
from flowops.compat.normflows.affine import (
    ActNorm,
    AffineConstFlow,
    AffineCoupling,
    AffineCouplingBlock,
    MaskedAffineFlow,
)
from flowops.compat.normflows.autoregressive import (
    MaskedAffineAutoregressive,
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
from flowops.compat.normflows.glow import GlowBlock
from flowops.compat.normflows.lipschitz import (
    InducedNormConv2d,
    InducedNormLinear,
    LipschitzCNN,
    LipschitzMLP,
    Swish,
    update_lipschitz,
)
from flowops.compat.normflows.mixing import Invertible1x1Conv, InvertibleAffine, LULinearPermute
from flowops.compat.normflows.reshape import Merge, Split, Squeeze
from flowops.compat.normflows.residual import Residual, iResBlock
from flowops.compat.normflows.splines import (
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCoupling,
)
from flowops.compat.normflows.wrapper import (
    AutoregressiveRationalQuadraticSpline,
    CircularAutoregressiveRationalQuadraticSpline,
    CircularCoupledRationalQuadraticSpline,
    CoupledRationalQuadraticSpline,
)

__all__ = [
    "ActNorm",
    "AffineConstFlow",
    "AffineCoupling",
    "AffineCouplingBlock",
    "AutoregressiveRationalQuadraticSpline",
    "CircularAutoregressiveRationalQuadraticSpline",
    "CircularCoupledRationalQuadraticSpline",
    "CoupledRationalQuadraticSpline",
    "GlowBlock",
    "InducedNormConv2d",
    "InducedNormLinear",
    "Invertible1x1Conv",
    "InvertibleAffine",
    "LULinearPermute",
    "LipschitzCNN",
    "LipschitzMLP",
    "MaskedAffineAutoregressive",
    "MaskedAffineFlow",
    "Merge",
    "Residual",
    "Split",
    "Squeeze",
    "Swish",
    "iResBlock",
    "update_lipschitz",
]

_AFFINE, _SPLINE = "normflows.flows.affine", "normflows.flows.neural_spline"

TWINS: dict[str, type[Twin]] = {
    f"{_AFFINE}.autoregressive.MaskedAffineAutoregressive": MaskedAffineAutoregressive,
    f"{_AFFINE}.coupling.AffineConstFlow": AffineConstFlow,
    f"{_AFFINE}.coupling.AffineCoupling": AffineCoupling,
    f"{_AFFINE}.coupling.AffineCouplingBlock": AffineCouplingBlock,
    f"{_AFFINE}.coupling.MaskedAffineFlow": MaskedAffineFlow,
    f"{_AFFINE}.glow.GlowBlock": GlowBlock,
    "normflows.flows.mixing.Invertible1x1Conv": Invertible1x1Conv,
    "normflows.flows.mixing.InvertibleAffine": InvertibleAffine,
    "normflows.flows.mixing.LULinearPermute": LULinearPermute,
    f"{_SPLINE}.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive": (
        MaskedPiecewiseRationalQuadraticAutoregressive
    ),
    f"{_SPLINE}.coupling.PiecewiseRationalQuadraticCDF": PiecewiseRationalQuadraticCDF,
    f"{_SPLINE}.coupling.PiecewiseRationalQuadraticCoupling": PiecewiseRationalQuadraticCoupling,
    f"{_SPLINE}.wrapper.AutoregressiveRationalQuadraticSpline": (
        AutoregressiveRationalQuadraticSpline
    ),
    f"{_SPLINE}.wrapper.CircularAutoregressiveRationalQuadraticSpline": (
        CircularAutoregressiveRationalQuadraticSpline
    ),
    f"{_SPLINE}.wrapper.CircularCoupledRationalQuadraticSpline": (
        CircularCoupledRationalQuadraticSpline
    ),
    f"{_SPLINE}.wrapper.CoupledRationalQuadraticSpline": CoupledRationalQuadraticSpline,
    "normflows.flows.normalization.ActNorm": ActNorm,
    "normflows.flows.reshape.Merge": Merge,
    "normflows.flows.reshape.Split": Split,
    "normflows.flows.reshape.Squeeze": Squeeze,
    "normflows.flows.residual.Residual": Residual,
    "normflows.flows.residual.iResBlock": iResBlock,
    **{
        f"normflows.nets.lipschitz.{twin.__name__}": twin
        for twin in (InducedNormConv2d, InducedNormLinear, LipschitzCNN, LipschitzMLP, Swish)
    },
}

__getattr__ = own_names_of(
    "normflows",
    __name__,
    "normflows",
    "normflows.flows",
    "normflows.distributions",
    "normflows.nets",
)
