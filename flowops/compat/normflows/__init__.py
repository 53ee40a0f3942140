"""Layers of normflows, by their names and arguments, on flowops kernels.

They have normflows' state-dict keys and its direction: ``forward`` goes from the latent to the
data. None of them needs normflows.
"""

from __future__ import annotations

from flowops.compat._twins import Twin
from flowops.compat.normflows.affine import (
    ActNorm,
    AffineConstFlow,
    AffineCoupling,
    AffineCouplingBlock,
    MaskedAffineFlow,
)
from flowops.compat.normflows.glow import GlowBlock
from flowops.compat.normflows.mixing import Invertible1x1Conv, InvertibleAffine, LULinearPermute
from flowops.compat.normflows.reshape import Merge, Split, Squeeze

__all__ = [
    "ActNorm",
    "AffineConstFlow",
    "AffineCoupling",
    "AffineCouplingBlock",
    "GlowBlock",
    "Invertible1x1Conv",
    "InvertibleAffine",
    "LULinearPermute",
    "MaskedAffineFlow",
    "Merge",
    "Split",
    "Squeeze",
]

TWINS: dict[str, type[Twin]] = {
    "normflows.flows.affine.coupling.AffineConstFlow": AffineConstFlow,
    "normflows.flows.affine.coupling.AffineCoupling": AffineCoupling,
    "normflows.flows.affine.coupling.AffineCouplingBlock": AffineCouplingBlock,
    "normflows.flows.affine.coupling.MaskedAffineFlow": MaskedAffineFlow,
    "normflows.flows.affine.glow.GlowBlock": GlowBlock,
    "normflows.flows.mixing.Invertible1x1Conv": Invertible1x1Conv,
    "normflows.flows.mixing.InvertibleAffine": InvertibleAffine,
    "normflows.flows.mixing.LULinearPermute": LULinearPermute,
    "normflows.flows.normalization.ActNorm": ActNorm,
    "normflows.flows.reshape.Merge": Merge,
    "normflows.flows.reshape.Split": Split,
    "normflows.flows.reshape.Squeeze": Squeeze,
}
