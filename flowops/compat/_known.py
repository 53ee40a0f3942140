"""Functions that have no name to know them by, as lambdas, known by what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
_names: WeakKeyDictionary[Function, dict[tuple[str, ...], str | None]] = WeakKeyDictionary()


def name_of(function: Function, known: Mapping[str, Function]) -> str | None:
    """Return which of the element-wise functions ``known`` this is, or None.

    It is called once, on float64 numbers on the CPU.
    """
    names, key = _names.setdefault(function, {}), tuple(known)
    if key not in names:
        points = torch.linspace(-6, 6, 25, dtype=torch.float64)
        values = function(points.clone())
        same = (name for name, f in known.items() if torch.allclose(f(points), values, 1e-14))
        names[key] = next(same, None)
    return names[key]
