"""EMA: its closed form, what it leaves alone, swapping, state."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from flowops.utils import EMA


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()


def train(model: nn.Module, steps: int, average: EMA | None = None) -> None:
    """Few steps on fixed batches, ``average`` following."""
    source = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        x = torch.randn(8, 3, dtype=torch.float64, generator=source)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("steps", [0, 1, 37])
def test_constant_gradient_has_a_closed_form(decay: float, steps: int) -> None:
    """theta_t = theta_0 - t eta: the average lags behind by a geometric sum."""
    start, eta = 1.7, 0.03
    model = Scalar(start)
    average = EMA(model, decay)
    average.update_parameters(model)
    for t in range(1, steps + 1):
        model.theta.data.fill_(start - t * eta)
        average.update_parameters(model)
    expected = start - eta * (steps - decay * (1 - decay**steps) / (1 - decay))
    assert abs(average.module.theta.item() - expected) < 1e-12


def test_first_update_copies() -> None:
    model = Scalar(1.0)
    average = EMA(model, 0.9)
    model.theta.data.fill_(5.0)
    average.update_parameters(model)
    assert average.module.theta.item() == 5.0


def test_warm_up_is_the_smaller_decay() -> None:
    model = Scalar(0.0)
    average = EMA(model, 0.5, warm_up=True)
    expected = 0.0
    for n in range(20):
        value = float(n**2)
        model.theta.data.fill_(value)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * value
        assert abs(average.module.theta.item() - expected) < 1e-12


def test_training_does_not_notice() -> None:
    alone, followed = network(), network()
    followed.load_state_dict(alone.state_dict())
    train(alone, 10)
    train(followed, 10, EMA(followed, 0.9))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, followed.state_dict()[name]), name


def test_buffers_are_copied() -> None:
    model = network()
    average = EMA(model, 0.9)
    train(model, 7, average)
    for got, wanted in zip(average.module.buffers(), model.buffers(), strict=True):
        assert torch.equal(got, wanted)
    assert not torch.equal(average.module[0].weight, model[0].weight)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_swapped_and_come_back(fails: bool) -> None:
    model = network()
    average = EMA(model, 0.9)
    train(model, 7, average)
    train(model, 1)  # buffers of the model have moved on, too
    model[0].weight.data[0, 0] = float("nan")
    tensors = {name: value.data_ptr() for name, value in model.state_dict().items()}
    raw = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = {name: value.clone() for name, value in average.module.state_dict().items()}
    x = torch.randn(4, 3, dtype=torch.float64)

    def look() -> None:
        with average.applied_to(model):
            assert torch.equal(model.eval()(x), average.module.eval()(x))
            model.train()(x).sum().backward()  # moves running statistics
            model[0].bias.data.zero_()
            if fails:
                raise RuntimeError("inside")

    if fails:
        with pytest.raises(RuntimeError, match="inside"):
            look()
    else:
        look()
    for name, value in model.state_dict().items():
        assert torch.equal(value.view(torch.int64), raw[name].view(torch.int64)), name
        assert value.data_ptr() == tensors[name]
    for name, value in average.module.state_dict().items():
        assert torch.equal(value, averaged[name]), name


def test_applied_to_another_model_leaves_it_as_it_was() -> None:
    average, other = EMA(network()), nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 1)).double()
    raw = copy.deepcopy(other.state_dict())
    with pytest.raises((ValueError, RuntimeError)), average.applied_to(other):
        pass
    for name, value in other.state_dict().items():
        assert torch.equal(value, raw[name]), name


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_goes_on_where_it_was(way: str) -> None:
    model = network()
    average = EMA(model, 0.9, warm_up=True)
    train(model, 4, average)
    if way == "state_dict":
        other = EMA(network(), 0.9, warm_up=True)
        other.load_state_dict(average.state_dict())
    else:
        other = copy.deepcopy(average) if way == "deepcopy" else pickle.loads(pickle.dumps(average))
    train(model, 1)
    for one in (average, other):
        one.update_parameters(model)
    assert other.n_averaged == 5
    assert torch.equal(average.module[0].weight, other.module[0].weight)
    average.decay = 0.1  # the copy has its own
    assert other.decay == 0.9
    assert set(average.state_dict()) == {
        "n_averaged",
        *(f"module.{name}" for name in model.state_dict()),
    }


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match=r"EMA: decay must be in \[0, 1\), got"):
        EMA(Scalar(0.0), decay)
