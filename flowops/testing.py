"""What the tests of flowops, and of code built on it, share: tolerances and Jacobian oracles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: ``(rtol, atol)`` by storage dtype, for one op against its float64 reference.
TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (2e-2, 2e-2),
}


def assert_close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Compare with the project's tolerance for results computed from ``dtype`` inputs.

    ``factor`` widens it, for sums over many terms; give the reason where it is used.
    """
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=rtol * factor, atol=atol * factor, equal_nan=True
    )


def jacobian_logdet(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log|det d function(x)[i] / d x[i]| per sample, in float64, from autograd alone.

    One sample at a time, so that a leak between samples shows as a wrong value.
    """
    values = []
    for row in x.double().split(1):
        jacobian = torch.autograd.functional.jacobian(function, row)
        values.append(torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel())).logabsdet)
    return torch.stack(values)
