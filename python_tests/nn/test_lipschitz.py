"""Networks of bounded Lipschitz constant, against singular values of what they are written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops.nn import (
    LipschitzConvNet,
    LipschitzMLP,
    LipSwish,
    lipschitz_constant,
    settle_spectral_norms,
)
from flowops.testing import randomize_

BOUND = 0.8
SHAPES = {"mlp": (5,), "conv": (2, 4, 3)}


def _network(kind: str, steps: int = 100) -> nn.Module:
    torch.manual_seed(3)
    if kind == "mlp":
        network: nn.Module = LipschitzMLP(5, 5, hidden=(8, 7), lipschitz=BOUND)
    else:
        network = LipschitzConvNet(2, (4, 3), hidden=6, lipschitz=BOUND)
    randomize_(network.double(), std=1.0)
    for _ in range(steps):
        network(torch.zeros(1, *SHAPES[kind], dtype=torch.float64))
    return network


def _operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The largest singular value of a layer, written out column by column."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    columns = layer(basis) - layer(torch.zeros_like(basis[:1]))
    return torch.linalg.matrix_norm(columns.flatten(1), 2)


def _norms(kind: str, network: nn.Module) -> list[Tensor]:
    shapes = {"mlp": [(5,), (8,), (7,)], "conv": [(2, 4, 3), (6, 4, 3), (6, 4, 3)]}[kind]
    layers = [layer for layer in network.layers if not isinstance(layer, LipSwish)]
    return [_operator_norm(layer, shape) for layer, shape in zip(layers, shapes, strict=True)]


@pytest.mark.parametrize("kind", SHAPES)
def test_each_layer_has_its_share_of_the_bound(kind: str) -> None:
    for norm in _norms(kind, _network(kind).eval()):
        torch.testing.assert_close(norm.item(), BOUND ** (1 / 3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_jacobian_keeps_the_bound(kind: str) -> None:
    network = _network(kind).eval()
    for x in torch.randn(10, 1, *SHAPES[kind], dtype=torch.float64) * 3:
        jacobian = torch.autograd.functional.jacobian(network, x).view(x.numel(), -1)
        assert torch.linalg.matrix_norm(jacobian, 2) < BOUND * 1.001


@pytest.mark.parametrize("kind", SHAPES)
def test_lipschitz_constant_is_the_product_of_the_norms_and_moves_nothing(kind: str) -> None:
    network = _network(kind, steps=0).train()
    before = copy.deepcopy(network.state_dict())
    constant = lipschitz_constant(network)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(module.training for module in network.modules())
    network.eval()
    exact = torch.stack(_norms(kind, network)).prod().item()
    assert exact > BOUND * 1.01  # the vectors have not followed the weights: that is what shows
    torch.testing.assert_close(constant, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", SHAPES)
def test_settled_norms_are_the_bound_without_any_steps(kind: str) -> None:
    network = _network(kind, steps=0).eval()
    settle_spectral_norms(network)
    torch.testing.assert_close(lipschitz_constant(network), BOUND, rtol=1e-4, atol=0)


def test_lipschitz_constant_wants_a_spectral_norm() -> None:
    with pytest.raises(ValueError, match="lipschitz_constant: network must have layers"):
        lipschitz_constant(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", SHAPES)
def test_networks_begin_at_zero_and_learn(kind: str) -> None:
    network = LipschitzMLP(5, 5) if kind == "mlp" else LipschitzConvNet(2, (4, 3), hidden=4)
    out = network(torch.randn(3, *SHAPES[kind]))
    assert not out.any()
    (out + 1).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", SHAPES)
def test_networks_are_copied_and_loaded(kind: str) -> None:
    network = _network(kind).eval()
    x = torch.randn(2, *SHAPES[kind], dtype=torch.float64)
    fresh = _network(kind, steps=0).eval()
    fresh.load_state_dict(network.state_dict())
    for twin in (fresh, copy.deepcopy(network)):
        assert torch.equal(twin(x), network(x))


def test_other_activations_and_kernels() -> None:
    network = LipschitzConvNet(
        1, (5, 5), hidden=3, kernel_sizes=(5,), activation=nn.ELU, dtype=torch.float64
    )
    assert len(network.layers) == 1
    mlp = LipschitzMLP(2, 3, hidden=(4,), activation=nn.ELU)
    assert isinstance(mlp.layers[1], nn.ELU)
    assert mlp(torch.randn(0, 2)).shape == (0, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LipschitzMLP(0, 2), "LipschitzMLP: sizes must be at least 1"),
        (lambda: LipschitzMLP(2, 2, lipschitz=0.0), "LipschitzMLP: lipschitz must be positive"),
        (
            lambda: LipschitzConvNet(2, (4, 4), kernel_sizes=(3, 2)),
            "LipschitzConvNet: kernel_sizes must be odd",
        ),
        (lambda: LipschitzConvNet(2, (4, 4), hidden=0), "LipschitzConvNet: sizes must be"),
    ],
)
def test_errors_name_the_argument(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_lipswish_is_its_formula_with_slopes_below_1() -> None:
    activation = LipSwish().double()
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64).requires_grad_()
    y = activation(x)
    rate = softplus(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(y, x * torch.sigmoid(rate * x) / 1.1)
    slope = torch.autograd.grad(y.sum(), x)[0].abs().max()
    assert 0.999 < slope < 1


def test_lipswish_at_zero_and_its_second_derivatives() -> None:
    activation = LipSwish().double()
    x = torch.tensor([0.0, 1e-320, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    assert activation(x)[0] == 0
    torch.testing.assert_close(slope[0].item(), 0.5 / 1.1)
    beta = activation.beta.detach().requires_grad_()

    def call(x: Tensor, beta: Tensor) -> Tensor:
        return torch.func.functional_call(activation, {"beta": beta}, (x,))

    assert torch.autograd.gradcheck(call, (x, beta))
    assert torch.autograd.gradgradcheck(call, (x, beta))
