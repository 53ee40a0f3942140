"""What FrEIA's modules have in common, and the bounded scales of its couplings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from flowops import ops
from flowops.compat._known import name_of
from flowops.compat._twins import Twin
from flowops.ops import ScaleMap

Dims = Iterable[tuple[int, ...]]
Result = tuple[tuple[Tensor], Tensor | float]
Clamp = Callable[[Tensor], Tensor]


class InvertibleModule(Twin):
    """Base of FrEIA's modules.

    Args:
        dims_in: Shape of a sample, in a list.
        dims_c: Shapes of the conditions.
    """

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None) -> None:
        super().__init__()
        self.dims_in = list(dims_in)
        self.dims_c = [] if dims_c is None else list(dims_c)

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the shapes of what comes out, which are those of what goes in.

        Raises:
            ValueError: If there is more than one.
        """
        if len(input_dims) != 1:
            raise ValueError(
                f"{type(self).__name__}: input_dims must hold one shape, got {input_dims}"
            )
        return input_dims


def condition_channels(name: str, dims_in: Sequence[tuple[int, ...]], dims_c: Dims) -> int:
    """Return the channels of all conditions.

    Raises:
        ValueError: If a condition has other pixels than the input.
    """
    conditions = [tuple(dims) for dims in dims_c]
    if any(dims[1:] != tuple(dims_in[0][1:]) for dims in conditions):
        raise ValueError(
            f"{name}: dims_c must have the pixels of dims_in, {list(dims_in)}, got {conditions}"
        )
    return sum(dims[0] for dims in conditions)


def atan_clamp(u: Tensor) -> Tensor:
    """Return ``0.636 arctan(u)``, which is between -1 and 1 but for rounding of the constant."""
    return 0.636 * torch.atan(u)


def sigmoid_clamp(u: Tensor) -> Tensor:
    """Return ``2 sigmoid(u) - 1``."""
    return 2.0 * (torch.sigmoid(u) - 0.5)


#: FrEIA's clamps, each with its kind, its rate and its limit.
CLAMPS: dict[str, tuple[Clamp, str, float, float]] = {
    "ATAN": (atan_clamp, "atan_exp", 1.0, 0.636),
    "TANH": (torch.tanh, "tanh_exp", 1.0, 1.0),
    "SIGMOID": (sigmoid_clamp, "tanh_exp", 0.5, 1.0),
}
_FUNCTIONS = {name: function for name, (function, *_) in CLAMPS.items()}


def clamp_scale(function: Clamp, clamp: float) -> ScaleMap | None:
    """Return the scale map ``exp(clamp * function(s))``, None for a function of the user's.

    FrEIA's own functions are lambdas without a name, so that they are known by what they return.
    """
    name = name_of(function, _FUNCTIONS)
    if name is None or clamp <= 0:
        return None
    _, kind, gain, limit = CLAMPS[name]
    return ScaleMap(kind, gain=gain, limit=limit * clamp)


def couple(
    x: Tensor, params: Tensor, scale: ScaleMap | str, rev: bool, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move ``x`` by [scales | shifts], or back."""
    op = ops.affine_coupling_inverse if rev else ops.affine_coupling
    return op(x, params, scale=scale, logdet=logdet)


def additive(x: Tensor, shift: Tensor, rev: bool) -> Tensor:
    """Move ``x`` by a shift alone, or back."""
    return x - shift if rev else x + shift
