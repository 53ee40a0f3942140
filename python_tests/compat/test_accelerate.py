"""flowops.accelerate and flowops.compat.patch, on a library made up for it."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from flowops import accelerate
from flowops.compat import _twins, patch


class Scale(nn.Module):
    """A layer of the library; it draws random numbers and counts its calls."""

    calls: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        return self.weight * x + torch.rand_like(x), {"logdet": self.weight.abs().log().sum()}


class Wrong(Scale):
    """A layer whose twin computes something else."""


class Stack(nn.Module):
    """A container, which has no twin, of layers that it may build itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers or [Scale(3), Scale(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return x


class ScaleTwin(_twins.Twin):
    """As Scale, otherwise."""

    runs = 0
    weight: nn.Parameter
    calls: Tensor

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        weight: Any = peer.weight
        return "it is too wide" if len(weight) > 8 else None

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        type(self).runs += 1
        self.calls += 1
        noise = torch.rand_like(x)
        return torch.addcmul(noise, self.weight, x), {
            "logdet": self.weight.square().log().sum() / 2
        }


class WrongTwin(ScaleTwin):
    """Right forwards, with a gradient that is not."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out, logdet = super().forward(x)
        return out.detach() + 2 * (out - out.detach()), logdet


class Broken(Scale):
    """A layer whose twin cannot even look at it."""


class BrokenTwin(ScaleTwin):
    """See Broken."""

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        raise AttributeError("of another release")


class OneSided(Scale):
    """A layer whose twin gives another shape."""


class OneSidedTwin(ScaleTwin):
    """The first row alone."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out, logdet = super().forward(x)
        return out[:1], logdet


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flowops.compat.madeup")
    names = {"Scale": ScaleTwin, "Wrong": WrongTwin, "OneSided": OneSidedTwin, "Broken": BrokenTwin}
    module.TWINS = {f"{__name__}.{name}": twin for name, twin in names.items()}
    monkeypatch.setitem(sys.modules, "flowops.compat.madeup", module)
    for owner in (_twins, sys.modules["flowops.compat._accelerate"]):
        monkeypatch.setattr(owner, "LIBRARIES", ("madeup",))
    _twins.tables.cache_clear()
    yield
    _twins.tables.cache_clear()
    _twins.foreign.cache_clear()


def make_model() -> Stack:
    return Stack(Scale(3), Scale(3))


def test_swaps_in_place_and_restores() -> None:
    model = make_model()
    held, state = model.layers[0], {k: v.data_ptr() for k, v in model.state_dict().items()}
    seen: list[str] = []
    held.register_forward_hook(lambda *_: seen.append("hook"))
    report = accelerate(model)
    assert [layer.name for layer in report.swapped] == ["layers.0", "layers.1"]
    assert [(layer.name, layer.reason) for layer in report.kept] == [
        ("", "flowops has no twin of this class")
    ]
    assert "swapped layers.1 (" in str(report)
    assert "kept    (the model) (" in str(report)
    assert model.layers[0] is held
    assert isinstance(held, Scale)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == state
    before = type(held).runs
    model(torch.ones(3))
    assert type(held).runs == before + 2  # of both layers, of one class
    assert seen == ["hook"]
    assert accelerate(model).swapped == []
    report.restore()
    assert type(held) is Scale
    assert report.swapped == []


def test_only_exact_classes_are_swapped() -> None:
    class Special(Scale):
        pass

    assert accelerate(Special(3)).swapped == []
    report = accelerate(Scale(9))
    assert [layer.reason for layer in report.kept] == ["it is too wide"]
    assert accelerate(nn.Linear(2, 2)).kept == []


def test_copies_and_pickles_stay_swapped() -> None:
    model = make_model()
    accelerate(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(again.layers[0], ScaleTwin)
        torch.manual_seed(0)
        expected = model(torch.ones(3))
        torch.manual_seed(0)
        assert torch.equal(again(torch.ones(3)), expected)


def test_verify_compares_with_the_same_random_numbers_and_changes_nothing() -> None:
    model, x = Scale(3), torch.randn(2, 3)
    random = torch.get_rng_state()
    report = accelerate(model, (x,), verify=True)
    assert report.errors.keys() == {
        "output 0", "output 1 logdet", "gradient of input 0", "gradient of weight",
    }  # fmt: skip
    assert max(report.errors.values()) < 1e-5
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("inference", [False, True])
def test_verify_refuses_a_wrong_twin_and_restores(inference: bool) -> None:
    model = Wrong(3)
    if inference:
        model.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match=r"accelerate: gradient of .* must be as before within"):
        accelerate(model, (torch.randn(2, 3),), verify=True)
    assert type(model) is Wrong


def test_an_error_on_the_way_restores() -> None:
    model = Stack(Scale(3), Broken(3))
    with pytest.raises(AttributeError, match="of another release"):
        accelerate(model)
    assert type(model.layers[0]) is Scale


def test_verify_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="must have the shapes of before, got others: output 0"):
        accelerate(OneSided(3), (torch.randn(2, 3),), verify=True)


def test_patch_swaps_what_is_built_inside() -> None:
    outside = Scale(3)
    with patch("madeup") as report:
        model = Stack()
        assert isinstance(model.layers[0], ScaleTwin)  # while still inside
        alone = Scale(3)
        wide = Scale(9)
        other = []
        thread = threading.Thread(target=lambda: other.append(Stack()))
        thread.start()
        thread.join()
        assert type(alone) is Scale
    assert isinstance(alone, ScaleTwin)
    assert type(wide) is Scale
    assert type(outside) is Scale
    assert type(other[0].layers[0]) is Scale
    assert len(report.swapped) == 3
    assert {layer.reason for layer in report.kept} >= {"it is too wide"}
    assert type(Stack().layers[0]) is Scale
    report.restore()
    assert type(alone) is Scale


def test_patch_ends_after_an_error_and_nests() -> None:
    hooks = len(registration._global_module_registration_hooks)

    def fail() -> None:
        with patch("madeup"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert type(Stack().layers[0]) is Scale
    assert len(registration._global_module_registration_hooks) == hooks
    with patch("madeup") as outer:
        with patch("madeup") as inner:
            Stack()
        model = Stack()
    assert (len(outer.swapped), len(inner.swapped)) == (2, 2)
    assert isinstance(model.layers[1], ScaleTwin)


def test_patch_of_an_unknown_library() -> None:
    message = r"libraries must be among madeup, got \('flax',\)"
    with pytest.raises(ValueError, match=message), patch("flax"):
        pass
