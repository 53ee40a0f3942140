"""The typed binding of the ops: what torch.ops shows to others, it shows too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from flowops import _library, ops


class Subclass(torch.Tensor):
    pass


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def actnorm(x: Tensor) -> tuple[Tensor, Tensor]:
    return ops.actnorm(x, torch.zeros(3), torch.zeros(3))


def test_plain_tensors_take_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("torch.ops was called")

    monkeypatch.setattr(type(torch.ops.flowops.actnorm.default), "__call__", refuse)
    assert actnorm(torch.ones(2, 3))[0].sum() == 6


def test_function_modes_and_subclasses_see_the_op() -> None:
    with Recorder() as recorder:
        actnorm(torch.ones(2, 3))
    assert "flowops.actnorm.default" in recorder.seen
    assert isinstance(actnorm(torch.ones(2, 3).as_subclass(Subclass))[0], Subclass)
    weight = torch.eye(3).as_subclass(Subclass)
    assert isinstance(ops.invertible_conv1x1_full([weight])[0][0], Subclass)


def test_dispatch_modes_see_the_op() -> None:
    with FakeTensorMode():
        assert isinstance(actnorm(torch.ones(2, 3))[0], FakeTensor)


def test_wrong_types_are_named_as_torch_names_them() -> None:
    with pytest.raises(RuntimeError, match="Expected a value of type 'Tensor' for argument 'x'"):
        actnorm("x")  # type: ignore[arg-type]


def test_every_binding_is_an_op() -> None:
    names = set(vars(_library._native)) - {"build_info", "capabilities"}
    for name in names:
        if not name.startswith("__"):
            assert hasattr(torch.ops.flowops, name)
