"""What a benchmark case is: one workload, or one model, and the ways to compute it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[..., Sequence[Tensor]]


def identity(*inputs: Tensor) -> Sequence[Tensor]:
    return inputs


@dataclass(frozen=True)
class Rival:
    """An installed package's own way to compute a case.

    Attributes:
        package: The name under which it is imported; the rival is left out where it is missing.
        load: Imports the package and returns its function of the case's inputs.
        adapt: Gives the inputs as this package takes them (another sign or order of parameters),
            outside of what is timed.
        differs: Why its outputs are not those of ``eager``: then they are not compared.
        devices: Where it runs.
    """

    package: str
    load: Callable[[], Function]
    adapt: Function = identity
    differs: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        op: The op's stem.
        name: Shape, dtype and layout, as printed.
        inputs: Makes the input tensors; those of floating point get gradients in forward+backward.
        eager: The workload as code without flowops writes it; it is also run under
            ``torch.compile``.
        ours: The workload through flowops.
        traffic: Bytes that the forward pass must move at the least, for the comparison with a copy.
        flops: Multiplications and additions of the forward pass, where they and not the memory
            are the limit, for the comparison with a matrix product.
        rivals: Packages that have the workload too.
        backward: Whether forward+backward is timed too.
        tolerance: Largest difference from ``eager`` in float64, relative to its largest element.
        first_compared: The outputs before this one hold random numbers and are not compared.
    """

    op: str
    name: str
    inputs: Callable[[], list[Tensor]]
    eager: Function
    ours: Function
    traffic: int
    flops: int = 0
    rivals: tuple[Rival, ...] = ()
    backward: bool = True
    tolerance: float = 1e-4
    first_compared: int = 0


@dataclass(frozen=True)
class Model:
    """One way to write a model, ready to train.

    Attributes:
        module: Holds the parameters.
        loss: Of the case's data.
        sample: Draws from the model.
    """

    module: nn.Module
    loss: Callable[..., Tensor]
    sample: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class ModelCase:
    """Training steps of a model, and samples from it.

    Attributes:
        op: The model's stem.
        name: Sizes, as printed.
        data: Makes one batch, a tensor first.
        models: Name to a function that builds the model for a batch, ``"ours"`` among them. The
            others are named after the package that they need, or ``"eager"``.
        compiled: The models that are also run under ``torch.compile``.
        autocast: Runs the loss in bfloat16.
    """

    op: str
    name: str
    data: Callable[[], tuple[Any, ...]]
    models: Mapping[str, Callable[..., Model]]
    compiled: tuple[str, ...] = ("eager", "ours")
    autocast: bool = False


@dataclass(frozen=True)
class Sweep:
    """How the cost of a case grows with one of its sizes.

    Attributes:
        op: The op's or model's stem.
        axis: What grows, as printed.
        sizes: Its values, from small to large.
        case_of: The case of one size.
    """

    op: str
    axis: str
    sizes: tuple[int, ...]
    case_of: Callable[[int], Case | ModelCase] = field(repr=False)


def installed(names: Iterable[str]) -> list[str]:
    """Those that are no packages, like ``"ours"``, and the packages that can be imported."""
    return [n for n in names if n in ("ours", "eager") or importlib.util.find_spec(n) is not None]


def recording(function: Function, inputs: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """A call of ``function`` that records a graph for all inputs of floating point."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    return lambda: function(*leaves)


def with_backward(function: Function, inputs: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """A call of ``function`` and of its gradients under fixed weights."""
    moved = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    leaves = [t for t in moved if t.requires_grad]
    weights = [torch.randn_like(out) for out in function(*inputs)]

    def call() -> Sequence[Tensor]:
        return torch.autograd.grad(function(*moved), leaves, weights)

    return call
