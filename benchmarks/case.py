"""What a benchmark case is: one workload, or one training step, and the ways to compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Function = Callable[..., Sequence[Tensor]]


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
    backward: bool = True
    tolerance: float = 1e-4
    first_compared: int = 0


@dataclass(frozen=True)
class StepCase:
    """One whole training step: gradients cleared, loss, backward pass, optimiser.

    Attributes:
        op: The model's stem.
        name: Sizes, as printed.
        rivals: Packages with models of the same kind; those not installed are left out.
        steps: Called with the rivals installed, and whether to add ours compiled; makes the steps
            by name, ``"ours"`` among them. Each does one step and returns its loss.
    """

    op: str
    name: str
    rivals: tuple[str, ...]
    steps: Callable[[Sequence[str], bool], dict[str, Callable[[], Tensor]]]
