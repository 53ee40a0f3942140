"""When a public function runs its kernel, and when its pure-PyTorch twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from flowops import _library


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD runs, which C++ Functions refuse."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return (
        functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0
    )


def typed_call(name: str) -> Callable[..., Any]:
    """Return the op ``flowops::name`` for calls with every argument in its place.

    Plain tensors go through a typed binding, which costs half of what ``torch.ops`` does; calls
    that are compiled, or that a ``__torch_function__`` wants to see, through ``torch.ops``.
    """
    boxed, native = getattr(torch.ops.flowops, name).default, getattr(_library._native, name)
    expected = boxed._schema.arguments
    lists = [i for i, argument in enumerate(expected) if str(argument.type) == "List[Tensor]"]

    def overridden(arguments: tuple[Any, ...]) -> bool:
        return has_torch_function(arguments) or (
            bool(lists) and any(has_torch_function(arguments[i]) for i in lists)
        )

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or overridden(arguments):
            return boxed(*arguments)
        try:
            return native(*arguments)
        except TypeError:  # the message of torch.ops names the argument
            return boxed(*arguments)

    return call


def index_of(op: str, argument: str, value: str, choices: tuple[str, ...]) -> int:
    """Return the number by which the kernels know the choice ``value``.

    Raises:
        ValueError: If ``value`` is not among ``choices``.
    """
    try:
        return choices.index(value)
    except ValueError:
        expected = ", ".join(map(repr, choices))
        message = f"{op}: {argument} must be one of {expected}, got {value!r}"
        raise ValueError(message) from None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of log-determinants: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _channels_inner(x: Tensor) -> bool:
    """Mirror ``channels_inner`` of csrc/common/layout.h for more than one pixel."""
    if x.size(1) <= 1 or x.stride(1) != 1:
        return False
    stride, span = None, 0
    for d in range(x.dim() - 1, 1, -1):
        if x.size(d) == 1:
            continue
        if stride is None:
            stride = x.stride(d)
        elif x.stride(d) != span:
            return False
        span = x.stride(d) * x.size(d)
    return stride != 1


def empty_like_layout(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Mirror ``empty_like_layout`` of csrc/common/layout.h: dense, channels as in ``x``."""
    if all(size == 1 for size in x.shape[2:]) or not _channels_inner(x):
        return x.new_empty(x.shape, dtype=dtype)
    return x.new_empty(x.size(0), *x.shape[2:], x.size(1), dtype=dtype).movedim(-1, 1)
