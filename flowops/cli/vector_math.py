"""A cure for a race in MKL that would make equal runs differ."""

from __future__ import annotations

import torch

_FUNCTIONS = (
    torch.acos, torch.asin, torch.atan, torch.cos, torch.erf, torch.erfc, torch.erfinv, torch.exp,
    torch.log, torch.log10, torch.log2, torch.sin, torch.sqrt, torch.tan, torch.tanh, torch.trunc,
)  # fmt: skip


def resolve_vector_math() -> None:
    """Call each function that PyTorch leaves to MKL's vector math once, on one thread.

    MKL chooses a function's code on its first call. Where the threads of one tensor make that call
    together, one of them may run code of low accuracy (errors up to 4e-5 in ``log``) for its share:
    a resumed run then differs from an uninterrupted one, and nothing shows it
    (https://github.com/pytorch/pytorch/issues/188792). Costs about 10 ms a process.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for function in _FUNCTIONS:
            function(half)
