"""Glow as rosinality/glow-pytorch has it, and the checkpoints of two other scripts.

Those repositories are sets of scripts to copy from. Here are rosinality's layers by their names,
arguments, results and state-dict keys: ``forward`` goes from the data to the latent, ``reverse``
returns no log-determinant. A :class:`Block` takes the weights of its 1x1 convolutions from one
kernel call and runs each with its actnorm in one product, so that hooks on these two do not run.

Checkpoints of y0ast/Glow-PyTorch and chaiyujin/glow-pytorch go to and from
:class:`flowops.models.Glow`, which has their architecture. rosinality's is another: its
convolutions see a frame of ones, its conditioners have no actnorm.
"""

from __future__ import annotations

from flowops.compat._twins import Twin
from flowops.compat.glow.checkpoints import load_chaiyujin, load_y0ast, to_chaiyujin, to_y0ast
from flowops.compat.glow.layers import (
    ActNorm,
    AffineCoupling,
    InvConv2d,
    InvConv2dLU,
    ZeroConv2d,
)
from flowops.compat.glow.model import Block, Flow, Glow

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Block",
    "Flow",
    "Glow",
    "InvConv2d",
    "InvConv2dLU",
    "ZeroConv2d",
    "load_chaiyujin",
    "load_y0ast",
    "to_chaiyujin",
    "to_y0ast",
]

#: Scripts have no names that their classes could be found by.
TWINS: dict[str, type[Twin]] = {}
