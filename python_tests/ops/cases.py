"""What the tests of several ops share: dtypes, shapes, threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Vectors, images and volumes; several samples a tile, samples of several chunks, odd sizes.
SAMPLE_SHAPES = (
    (3, 5),
    (500, 63),
    (103, 5),
    (4, 700),
    (2, 3, 7),
    (2, 12, 8, 8),
    (2, 3, 83, 81),
    (2, 3, 2, 3, 2),
    (1, 1),
)


def same_for_any_threads(run: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """Assert that ``run`` gives the same bits on four threads as on one, and return them."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (4, 1):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    many, one = results
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))
    return many
