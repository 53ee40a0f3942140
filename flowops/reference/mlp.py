"""Pure-PyTorch twin of :mod:`flowops.ops.mlp`: the executable specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


def mlp(
    x: Tensor, weight: Sequence[Tensor], bias: Sequence[Tensor], *, residual: bool = False
) -> Tensor:
    """See :func:`flowops.ops.mlp`."""
    outputs: list[Tensor] = []
    for i, (w, b) in enumerate(zip(weight, bias, strict=True)):
        p = linear(torch.relu(outputs[-1]) if i else x, w, b)
        outputs.append(p + outputs[i - 2] if residual and i and i % 2 == 0 else p)
    return outputs[-1]
