"""Runs of a model before and after a change that should change nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.05
# An output, or a gradient, this much smaller than the largest one is held to that one's rounding.
_SMALL = 1e-3


def run(model: nn.Module, inputs: tuple[Any, ...], call: Callable[..., Any]) -> dict[str, Tensor]:
    """Return outputs and gradients by name; random numbers and buffers are as before then."""
    given = [_leaf(value) for value in inputs]
    leaves = {f"input {i}": v for i, v in enumerate(given) if _differentiable(v)}
    leaves |= {name: p for name, p in model.named_parameters() if p.requires_grad}
    with _unchanged(model), torch.enable_grad():
        outputs = dict(_tensors(call(model, *given), "output"))
        ends = [out for out in outputs.values() if out.requires_grad]
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(end.shape, generator=generator).to(end) for end in ends]
        grads: Any = [None] * len(leaves)
        if ends and leaves:
            grads = torch.autograd.grad(ends, list(leaves.values()), weights, allow_unused=True)
    found = {
        f"gradient of {name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }
    return {name: value.detach().clone() for name, value in (outputs | found).items()}


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return how far each tensor is from what it was, as a share of its norm.

    Of norms, since a ReLU near its edge may change one element's gradient by rounding alone.
    """
    shapes, now = ({n: tuple(t.shape) for n, t in run.items()} for run in (before, after))
    if shapes != now:
        other = ", ".join(n for n in sorted(shapes | now) if shapes.get(n) != now.get(n))
        raise ValueError(f"accelerate: outputs must have the shapes of before, got others: {other}")
    sizes = {name: _norm(value) for name, value in before.items()}
    kinds = {name: name.partition(" ")[0] for name in before}
    largest: dict[str, float] = {}
    for name, size in sizes.items():
        largest[kinds[name]] = max(size, largest.get(kinds[name], 0.0))
    return {
        name: _norm(after[name].double() - value.double())
        / max(sizes[name], _SMALL * largest[kinds[name]], 1e-30)
        for name, value in before.items()
    }


def check(
    before: dict[str, Tensor], after: dict[str, Tensor], tolerance: float | None
) -> dict[str, float]:
    """Return :func:`differences`.

    Raises:
        ValueError: If one is beyond its tolerance.
    """
    errors = differences(before, after)
    for name, error in errors.items():
        limit = tolerance or _TOLERANCE.get(before[name].dtype, _HALF_TOLERANCE)
        if not error <= limit:
            raise ValueError(
                f"accelerate: {name} must be as before within {limit:g} of its norm, "
                f"got {error:.2g}"
            )
    return errors


def _differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaf(value: Any) -> Any:
    return value.detach().clone().requires_grad_() if _differentiable(value) else value


def _norm(value: Tensor) -> float:
    """Return the Euclidean norm, NaN where there is one."""
    return value.double().norm().item()


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside of tuples, lists and dictionaries, each with where it was."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name} {i}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name} {key}")


@contextmanager
def _unchanged(model: nn.Module) -> Generator[None]:
    """Give back random state, parameters, buffers and flags, which the first run may set."""
    modules = list(model.modules())
    buffers = [(module, dict(module._buffers)) for module in modules]
    flags = [(m, {n: v for n, v in vars(m).items() if isinstance(v, bool)}) for m in modules]
    held = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in held]
    drawn = np.random.get_state()  # noqa: NPY002  (normflows' residual blocks draw from it)
    with torch.random.fork_rng({t.device for t in held if t.device.type == "cuda"}):
        try:
            yield
        finally:
            np.random.set_state(drawn)  # noqa: NPY002
            with torch.no_grad():
                for tensor, copy in zip(held, copies, strict=True):
                    if tensor.shape != copy.shape:  # a buffer that the first batch gave its size
                        tensor.resize_(copy.shape)
                    tensor.copy_(copy)
            for module, found in buffers:
                module._buffers.clear()
                module._buffers.update(found)
            for module, values in flags:
                vars(module).update(values)
