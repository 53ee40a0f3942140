"""Fixed points of contractions, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Maps the current points of all samples, and the indices of those that have not settled, to the
#: next points of the latter.
Step = Callable[[Tensor, Tensor | slice], Tensor]


@torch.no_grad()
def fixed_point(
    name: str,
    step: Step,
    start: Tensor,
    scale: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Iterate ``step`` until each sample has moved by ``tolerance`` times its size, or less.

    Sizes are largest absolute values, of the point or ``scale``, ``(B,)``, whichever is more. A
    sample that has settled is not touched again, so that it does not depend on its batch.

    Raises:
        RuntimeError: If a sample has not settled after ``max_iterations``.
    """
    x = start.clone()
    if not len(x):
        return x
    left, moved = torch.arange(len(x), device=x.device), scale
    rows: Tensor | slice = slice(None)  # while all are left, which needs no copies
    for _ in range(max_iterations):
        new = step(x, rows)
        moved = sizes(new - x[rows])
        # Infinity is no larger than its own share, and a NaN not larger than anything.
        settled = (moved <= tolerance * torch.maximum(scale[rows], sizes(new))) & moved.isfinite()
        x[rows] = new
        before, left = len(left), left[~settled]
        if not len(left):
            return x
        if len(left) < before:
            rows = left
    raise RuntimeError(
        f"{name}: {len(left)} of {len(x)} samples did not settle in {max_iterations} iterations, "
        f"the last of which moved one by {moved.max().item():.1e}; the Lipschitz constant of the "
        "network must be below 1"
    )


def sizes(x: Tensor) -> Tensor:
    """Return the largest absolute value of each sample, ``(B,)``."""
    return torch.linalg.vector_norm(x.flatten(1), torch.inf, 1)
