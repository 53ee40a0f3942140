"""What the tests of several ops share: dtypes, shapes, threads, what autograd keeps and gives."""

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


def kernel_and_composed(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], *, materialize_grads: bool = False
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the gradients of the backward kernel, and those for gradients of gradients."""
    weights = [torch.randn_like(t) for t in outputs]
    kernel, composed = (
        torch.autograd.grad(
            outputs,
            inputs,
            weights,
            retain_graph=True,
            create_graph=create,
            materialize_grads=materialize_grads,
        )
        for create in (False, True)
    )
    return kernel, composed


def saved_bytes(run: Callable[[], object], *leaves: Tensor) -> int:
    """Return the bytes that ``run`` keeps for its backward pass, beside ``leaves``."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    known = {t.data_ptr() for t in leaves}
    return sum(t.nbytes for t in saved if t.data_ptr() not in known)
