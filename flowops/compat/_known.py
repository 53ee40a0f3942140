"""Functions that have no name to know them by, as lambdas, known by what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
_names: WeakKeyDictionary[Function, dict[tuple[str, ...], str | None]] = WeakKeyDictionary()


def name_of(function: Function, known: Mapping[str, Function]) -> str | None:
    """Return which of the element-wise functions ``known`` this is, or None.

    It is called once, on float64 numbers on the CPU. Modules are not, since a call may change them,
    and what refuses such numbers is none of those known.
    """
    if isinstance(function, nn.Module):
        return None
    names, key = _names.setdefault(function, {}), tuple(known)
    if key not in names:
        names[key] = _compare(function, known)
    return names[key]


def _compare(function: Function, known: Mapping[str, Function]) -> str | None:
    points = torch.linspace(-6, 6, 25, dtype=torch.float64)
    try:
        values = function(points.clone())
    except Exception:  # the user's function, of which nothing is known
        return None
    if values.shape != points.shape or values.dtype != points.dtype:
        return None
    return next(
        (name for name, f in known.items() if torch.allclose(f(points), values, 1e-14)), None
    )
