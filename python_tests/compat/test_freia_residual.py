"""FrEIA's residual layer: against FrEIA, and where it is wrong against definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from flowops import accelerate
from flowops.compat import freia as ours
from flowops.compat._twins import Joined
from flowops.testing import jacobian_logdet

SHAPES = {"vector": (3,), "image": (2, 4, 3)}


@pytest.fixture
def freia() -> Any:
    return pytest.importorskip("FrEIA").modules


def build(home: Any, shape: str, **options: Any) -> Any:
    torch.manual_seed(2)
    layer = home.IResNetLayer([SHAPES[shape]], **options).double()
    for p in layer.parameters():
        p.data.mul_(3)
    return layer


def batch(shape: str, size: int = 4) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(size, *SHAPES[shape], dtype=torch.float64)


def contract(layer: Any) -> Any:
    """A layer whose norms are small enough whatever is done to measure them."""
    for step in layer.layers:
        step.weight.data.mul_(0.1)
    return layer


@pytest.mark.parametrize("options", [{}, {"hutchinson_samples": 3, "jacobian_iterations": 5}])
@pytest.mark.parametrize("shape", SHAPES)
def test_residual_layers_are_those_of_FrEIA(
    freia: Any, shape: str, options: dict[str, Any]
) -> None:
    peer, mine = (contract(build(home, shape, **options)) for home in (freia, ours))
    assert mine.state_dict().keys() == peer.state_dict().keys()
    mine.load_state_dict(peer.state_dict())
    taken = copy.deepcopy(peer)
    accelerate(taken)
    assert isinstance(taken, Joined)
    assert isinstance(taken, freia.IResNetLayer)
    x = batch(shape)
    torch.manual_seed(3)
    (z,), logdet = peer([x.clone()])
    for layer in (mine, taken, copy.deepcopy(taken)):
        torch.manual_seed(3)
        (out,), total = layer([x])
        torch.testing.assert_close(out, z)
        torch.testing.assert_close(total, logdet)
        torch.testing.assert_close(layer([z], rev=True, jac=False)[0][0], x)
        assert layer([x], jac=False)[1] is None
        assert layer.output_dims([SHAPES[shape]]) == [SHAPES[shape]]
    assert not x.requires_grad
    back = peer([z.detach()], rev=True, jac=False)[0][0]
    torch.testing.assert_close(mine([z], rev=True, jac=False)[0][0], back)


def test_corrections_of_vectors_are_those_of_FrEIA(freia: Any) -> None:
    peer, mine = (build(home, "vector", internal_size=20) for home in (freia, ours))
    mine.load_state_dict(peer.state_dict())
    before = copy.deepcopy(mine.state_dict())
    for layer in (peer, mine):
        torch.manual_seed(4)
        layer.float().lipschitz_correction()  # FrEIA draws in float32
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value)
    assert not torch.equal(
        mine.state_dict()["residual.0.weight"].double(), before["residual.0.weight"]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_corrections_bound_the_layers_as_they_are_used(shape: str) -> None:
    layer = build(ours, shape, lipschitz_iterations=100, spectral_norm_max=0.7)
    layer.lipschitz_correction()
    for step in layer.layers:
        size = (step.weight.size(1), *SHAPES[shape][1:])
        basis = torch.eye(torch.Size(size).numel(), dtype=torch.float64).view(-1, *size)
        columns = step(basis) - step(torch.zeros_like(basis))
        norm = torch.linalg.matrix_norm(columns.flatten(1), 2)
        assert norm < 0.7 * 1.001


@pytest.mark.parametrize("rev", [False, True])
def test_log_jacobians_are_those_of_the_direction(rev: bool) -> None:
    layer = contract(build(ours, "vector", jacobian_iterations=40))
    x = batch("vector", 2)
    truth = jacobian_logdet(lambda v: layer([v], rev=rev, jac=False)[0][0], x)
    drawn = layer([x.repeat(20_000, 1)], rev=rev)[1].detach().view(-1, 2)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - truth).abs() < 4 * error + 1e-9).all()


def test_log_jacobians_have_gradients() -> None:
    layer = contract(build(ours, "vector", jacobian_iterations=40, hutchinson_samples=2))
    x = batch("vector", 3).requires_grad_()
    weight, upstream = layer.layers[0].weight, torch.tensor([1.0, -2, 3]).double()
    logdet = layer([x.repeat(10_000, 1)])[1].view(-1, 3).mean(0)
    got = torch.autograd.grad(logdet @ upstream, weight)[0]
    total = x.new_zeros(())
    for row, scale in zip(x.split(1), (1.0, -2.0, 3.0), strict=True):
        j = torch.autograd.functional.jacobian(layer.residual, row, create_graph=True).view(3, 3)
        total = total + scale * torch.logdet(j + torch.eye(3))
    exact = torch.autograd.grad(total, weight)[0]
    torch.testing.assert_close(got, exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_residual_layers_train_in_FrEIAs_sequence() -> None:
    inn = pytest.importorskip("FrEIA").framework.SequenceINN(3)
    for _ in range(2):
        inn.append(ours.IResNetLayer, internal_size=12)
    inn.double()
    x = batch("vector", 6)
    for _ in range(3):
        z, logdet = inn(x)
        (0.5 * z.square().sum() - logdet.sum()).backward()
        for layer in inn.module_list:
            layer.lipschitz_correction()
    assert all(p.grad is not None and p.grad.any() for p in inn.parameters())
    back, _ = inn(inn(x)[0], rev=True)
    torch.testing.assert_close(back, x)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"spectral_norm_max must be in \(0, 1\], got 1.5"):
        ours.IResNetLayer([(3,)], spectral_norm_max=1.5)
    layer = build(ours, "vector")
    for step in layer.layers:
        step.weight.data = 3 * torch.eye(*step.weight.shape).double()
        step.bias.data.fill_(1.0)
    with pytest.raises(RuntimeError, match=r"IResNetLayer: .* did not settle"):
        layer([-batch("vector").abs()], rev=True)
