"""Where a non-finite number came from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def first_non_finite_layer(model: nn.Module, compute: Callable[[], object]) -> str | None:
    """Return which layer of ``model`` first turns finite inputs into NaN or inf.

    Args:
        model: Its submodules are watched; one is blamed before those that contain it.
        compute: Runs the model on the inputs in question; it may raise.

    Returns:
        For example ``transform.layers.3 (AffineCoupling) gave nan; its parameter amplitude is not
        finite``, or None when every layer's output is finite.
    """
    watch = _Watch(model)
    # A distribution or a decomposition may refuse the bad numbers; what was seen so far counts.
    with watch, torch.no_grad(), contextlib.suppress(ValueError, RuntimeError):
        compute()
    return watch.blamed


def first_non_finite_parameter(model: nn.Module, *, gradients: bool = False) -> str | None:
    """Return the first parameter that is not finite, or whose gradient is not; None if none."""
    for name, parameter in model.named_parameters():
        value = parameter.grad if gradients else parameter
        if value is not None and not _all_finite(value):
            return name
    return None


class _Watch:
    """Forward hooks on every module that remember the first bad output.

    A container may run a child without calling it (actnorm folded into a 1x1 convolution). Such
    children stand between two called siblings: when the second one's input is bad, those skipped
    are called one by one on the first one's output.
    """

    def __init__(self, model: nn.Module) -> None:
        self.blamed: str | None = None
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._lists = {
            id(child): (siblings, index)
            for siblings in model.modules()
            if isinstance(siblings, nn.ModuleList)
            for index, child in enumerate(siblings)
        }
        # By ModuleList: how many children are done, and the output of the last one.
        self._reached: dict[int, tuple[int, Tensor]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for module in self._model.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.blamed is not None:
            return
        if not _all_finite((args, kwargs)):
            self._retrace(module)
            return
        for child in module.children():
            if isinstance(child, nn.ModuleList) and args and isinstance(args[0], Tensor):
                self._reached[id(child)] = (0, args[0])

    def _retrace(self, module: nn.Module) -> None:
        """Call the siblings skipped right before ``module``; their own hooks find the bad one."""
        siblings, index = self._lists.get(id(module), (None, 0))
        if siblings is None or id(siblings) not in self._reached:
            return
        done, x = self._reached[id(siblings)]
        for skipped in list(siblings)[done:index]:
            x = next(leaf for leaf in tree_leaves(skipped(x)) if isinstance(leaf, Tensor))

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self.blamed is not None:
            return
        if _all_finite(output):
            siblings, index = self._lists.get(id(module), (None, 0))
            first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
            if siblings is not None and first is not None:
                self._reached[id(siblings)] = (index + 1, first)
        elif _all_finite((args, kwargs)):
            kind = "nan" if any(leaf.isnan().any() for leaf in _floats(output)) else "inf"
            name = self._names[module] or "the model"
            self.blamed = f"{name} ({type(module).__name__}) gave {kind}"
            bad = first_non_finite_parameter(module)
            if bad is not None:
                self.blamed += f"; its parameter {bad} is not finite"


def _floats(value: Any) -> list[Tensor]:
    leaves = tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _all_finite(value: Any) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in _floats(value))
