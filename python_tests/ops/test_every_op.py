"""What holds for every op that is registered: opcheck; strides, garbage and NaN do no harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.cases import kernel_and_composed
from ops.samples import SAMPLES
from torch import Tensor

OPS = sorted(
    name.removeprefix("flowops::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("flowops::")
)
WITH_BACKWARD = [op for op in OPS if f"{op}_backward" in OPS]

# Choices of shapes and options that hypothesis makes, and makes simpler where a test fails.
CHOICES = st.randoms(use_true_random=False)
many = settings(max_examples=25, deadline=None, derandomize=True)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def arguments_of(op: str, rng: random.Random, device: torch.device) -> list[Any]:
    torch.manual_seed(rng.getrandbits(32))
    return map_tensors(lambda t: t.to(device), SAMPLES[op](rng))


def as_leaf(t: Tensor) -> Tensor:
    return t.double().requires_grad_() if t.dtype in (torch.float32, torch.uint8) else t


def run(op: str, arguments: list[Any]) -> list[Tensor]:
    return list(tensors_in(getattr(torch.ops.flowops, op)(*arguments)))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN, or the largest integer, until somebody writes to them."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def restrided(rng: random.Random) -> Callable[[Tensor], Tensor]:
    """Gives the same values in another order in memory, with gaps full of NaN and an offset."""

    def move(t: Tensor) -> Tensor:
        if not t.is_floating_point() or t.dim() == 0:
            return t
        order = rng.sample(range(t.dim()), t.dim())
        steps = [rng.randint(1, 2) for _ in order]
        size = [t.size(d) * step + 1 for d, step in zip(order, steps, strict=True)]
        view = torch.full(size, float("nan"), dtype=t.dtype, device=t.device)
        for place, (d, step) in enumerate(zip(order, steps, strict=True)):
            every = (slice(None),) * place + (slice(1, 1 + t.size(d) * step, step),)
            view = view[every]
        view = view.permute(*(order.index(d) for d in range(t.dim())))
        return view.copy_(t)

    return move


def test_no_op_is_forgotten() -> None:
    assert sorted(SAMPLES) == OPS


@pytest.mark.parametrize("op", OPS)
@settings(many, max_examples=4)
@given(rng=CHOICES)
def test_opcheck(op: str, rng: random.Random, device: torch.device) -> None:
    torch.library.opcheck(getattr(torch.ops.flowops, op), tuple(arguments_of(op, rng, device)))


@pytest.mark.parametrize("op", OPS)
@many
@given(rng=CHOICES)
def test_all_outputs_are_written(op: str, rng: random.Random, device: torch.device) -> None:
    arguments = arguments_of(op, rng, device)
    with poisoned_memory():
        assert all(output.isfinite().all() for output in run(op, arguments))


@pytest.mark.parametrize("op", [op for op in OPS if op != "random_key"])
@many
@given(rng=CHOICES)
def test_strides_do_not_matter(op: str, rng: random.Random, device: torch.device) -> None:
    arguments = arguments_of(op, rng, device)
    moved = map_tensors(restrided(rng), arguments)
    with poisoned_memory():
        for want, got in zip(run(op, arguments), run(op, moved), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "op", [op for op in OPS if op not in ("random_key", "gaussian_noise", "uniform_noise")]
)
@many
@given(rng=CHOICES)
def test_nan_gives_nan(op: str, rng: random.Random, device: torch.device) -> None:
    arguments = arguments_of(op, rng, device)
    floats = [t for t in tensors_in(arguments) if t.is_floating_point()]
    for t in floats:
        t.fill_(float("nan"))
    outputs = run(op, arguments)
    if floats and floats[0].numel() and any(t.numel() for t in outputs):
        assert any(t.isnan().any() for t in outputs)


@pytest.mark.parametrize("op", WITH_BACKWARD)
@many
@given(rng=CHOICES)
def test_gradient_for_gradients_is_that_of_the_kernel(
    op: str, rng: random.Random, device: torch.device
) -> None:
    # gradgradcheck does not see a composed gradient that is wrong but differentiated rightly.
    arguments = map_tensors(as_leaf, arguments_of(op, rng, device))
    leaves = [t for t in tensors_in(arguments) if t.requires_grad]
    outputs = [t for t in run(op, arguments) if t.requires_grad]
    kernel, composed = kernel_and_composed(outputs, leaves, materialize_grads=True)
    for got, want in zip(composed, kernel, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
