"""fla's linear attention, functions and layer, without Triton and on the CPU too."""

from flowops.compat._twins import Twin
from flowops.compat.fla.layer import LinearAttention
from flowops.compat.fla.ops import (
    chunk_linear_attn,
    fused_chunk_linear_attn,
    fused_recurrent_linear_attn,
)

__all__ = [
    "LinearAttention",
    "chunk_linear_attn",
    "fused_chunk_linear_attn",
    "fused_recurrent_linear_attn",
]

#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {"fla.layers.linear_attn.LinearAttention": LinearAttention}
