"""What the layers of this package share."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from flowops.compat._twins import Twin, find_twin


def promoted(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in the dtype that their sum would have."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]


def hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see each call of ``module``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def may_skip(module: nn.Module, twin: type[Twin]) -> bool:
    """Whether the layer above may do the work of ``module``, ours or a peer's, in its own call."""
    return (type(module) is twin or find_twin(module) is twin) and not hooked(module)


def zeros_like_batch(z: Tensor) -> Tensor:
    """Return a log-determinant of zero, (N,), float32 or wider."""
    return z.new_zeros(z.size(0), dtype=torch.promote_types(z.dtype, torch.float32))
