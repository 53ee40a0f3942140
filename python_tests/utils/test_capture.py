"""capture: what it collects, what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowops.nn import ActNorm, Sequential
from flowops.utils import capture


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)
        self.same = self.cell
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.tanh(self.cell(x))
        return x


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))


def test_outputs_by_name() -> None:
    model, x = network(), torch.randn(4, 2)
    with capture(model, ["0", "1.0"]) as outputs:
        y = model(x)
    assert set(outputs) == {"0", "1.0"}
    (first,), (second,) = outputs["0"], outputs["1.0"]
    assert torch.equal(first, model[0](x))
    assert torch.equal(second, first.tanh())
    assert torch.equal(model[1][1](second), y)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [("*", {"0", "1", "1.0", "1.1"}), ("1.*", {"1.0", "1.1"}), (["?", "1.1"], {"0", "1", "1.1"})],
)
def test_patterns(patterns: str | list[str], found: set[str]) -> None:
    with capture(network(), patterns) as outputs:
        pass
    assert outputs == {name: [] for name in found}


def test_each_call_is_kept() -> None:
    model, x = Recurrent(), torch.randn(2, 3)
    with capture(model, "*") as outputs:
        model(x)
        model(2 * x)
    assert [len(outputs[name]) for name in ("cell", "same", "unused")] == [8, 8, 0]
    assert torch.equal(outputs["cell"][4], model.cell(2 * x))


def test_detach_reaches_into_tuples() -> None:
    model, x = Sequential(ActNorm(3), ActNorm(3)), torch.randn(5, 3)
    with (
        capture(model, "layers.*") as attached,
        capture(model, "layers.*", detach=True) as detached,
    ):
        model(x)
    for name in ("layers.0", "layers.1"):
        for with_graph, without in zip(attached[name][0], detached[name][0], strict=True):
            assert with_graph.requires_grad
            assert not without.requires_grad
            assert torch.equal(with_graph, without)


def test_gradients_flow_through_what_was_captured() -> None:
    model, x = network(), torch.randn(4, 2)
    with capture(model, "0") as outputs:
        model(x)
    outputs["0"][0].sum().backward()
    torch.testing.assert_close(model[0].weight.grad, x.sum(0).expand(3, 2))


def test_hooks_are_gone() -> None:
    model = network()
    with capture(model, "*") as outputs:
        assert hooks(model) == 4
        model(torch.zeros(1, 2))
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), capture(model, "*"):
        model(torch.zeros(1, 7))
    assert hooks(model) == 0
    model(torch.zeros(1, 2))
    assert len(outputs["0"]) == 1


@pytest.mark.parametrize(("names", "bad"), [("2", "2"), (["0", "1.*", "x*"], "x[*]"), ("", "")])
def test_unknown_names(names: str | list[str], bad: str) -> None:
    model = network()
    message = rf"capture: names .* of Sequential \(0, 1, 1.0, 1.1\), got '{bad}'"
    with pytest.raises(ValueError, match=message), capture(model, names):
        pytest.fail("entered")
    assert hooks(model) == 0
