"""residual-flows' layers: against definitions, and normflows' copies of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flowops.compat import residual_flows as ours
from flowops.compat._verify import run
from flowops.testing import jacobian_logdet


def image_norm(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """The norm of a convolution without bias, written out column by column."""
    basis = torch.eye(torch.Size(size).numel(), dtype=torch.float64).view(-1, *size)
    return torch.linalg.matrix_norm(layer.eval()(basis).flatten(1), 2)


def conv(**options: Any) -> Any:
    torch.manual_seed(3)
    given = {"out_channels": 3, "kernel_size": 3, "stride": 1, "padding": 1}
    given |= {"bias": False, "n_iterations": 5}
    return ours.SpectralNormConv2d(2, **(given | options)).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 1, "padding": 0},
        {"stride": 2, "coeff": 0.5},
        {"n_iterations": None, "atol": 1e-6, "rtol": 1e-6},
    ],
)
def test_spectral_norm_bounds_images_after_a_few_calls(options: dict[str, Any]) -> None:
    layer, size = conv(**options), (2, 6, 5)
    layer.weight.data.mul_(10)
    for _ in range(60):
        layer(torch.randn(1, *size).double())
    torch.testing.assert_close(image_norm(layer, size).item(), layer.coeff, rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.scale, (layer.u @ layer._map(layer.v)).detach())


def test_spectral_norm_iterates_v_first_and_in_training_only() -> None:
    layer = ours.SpectralNormLinear(4, 3, n_iterations=1).double()
    layer.weight.data = torch.randn(3, 4).double()
    u = layer.u.clone()
    layer(torch.randn(2, 4).double())
    v = normalize(layer.weight.detach().t() @ u, dim=0)
    torch.testing.assert_close(layer.v, v)
    torch.testing.assert_close(layer.u, normalize(layer.weight.detach() @ v, dim=0))
    before = copy.deepcopy(layer.state_dict())
    layer.eval()(torch.randn(2, 4).double())
    for name in "uv":
        torch.testing.assert_close(layer.state_dict()[name], before[name], rtol=0, atol=0)


def test_a_tolerance_ends_given_iterations_too() -> None:
    layer = ours.SpectralNormLinear(4, 3, n_iterations=50, atol=1e9, rtol=1e9).double()
    layer.weight.data = torch.randn(3, 4).double()
    u = layer.u.clone()
    layer(torch.randn(2, 4).double())
    once = normalize(layer.weight.detach().t() @ u, dim=0)
    torch.testing.assert_close(layer.v, once)


def test_keys_and_states() -> None:
    layer, x = conv(bias=True), torch.randn(2, 2, 6, 5).double()
    assert set(layer.state_dict()) == {"weight", "bias", "scale", "spatial_dims"}
    layer(x)
    assert set(layer.state_dict()) == {"weight", "bias", "scale", "spatial_dims", "u", "v"}
    assert layer.u.shape == (90,)
    assert layer.v.shape == (60,)
    layer.eval()
    fresh = conv(bias=True).eval()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(fresh)(x), layer(x), rtol=0, atol=0)
    linear = ours.SpectralNormLinear(4, 3, n_iterations=2)
    assert set(linear.state_dict()) == {"weight", "bias", "scale", "u", "v"}
    assert "coeff=0.97" in repr(layer)
    assert "coeff=0.97" in repr(linear)


def test_the_first_call_in_evaluation_is_bounded_too() -> None:
    layer = conv(n_iterations=200).eval()
    layer.weight.data.mul_(10)
    layer(torch.zeros(1, 2, 6, 5).double())
    assert image_norm(layer, (2, 6, 5)) < 0.975


def test_without_iterations_or_tolerance_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="SpectralNormConv2d: n_iterations, or atol and rtol"):
        conv(n_iterations=None)(torch.randn(1, 2, 6, 5).double())


def test_weights_before_any_batch_are_those_of_one_pixel() -> None:
    layer = conv()
    layer.compute_weight(update=True, n_iterations=100)
    assert layer.u.shape == (3,)
    centre = layer.weight.detach()[:, :, 1, 1]
    torch.testing.assert_close(layer.scale, torch.linalg.matrix_norm(centre, 2))


@pytest.mark.parametrize("memory", [True, False])
def test_the_first_batch_of_a_block_iterates_once(memory: bool) -> None:
    x = torch.randn(2, 2, 6, 5).double()
    alone, within = (conv(out_channels=2, n_iterations=1) for _ in range(2))
    block = ours.iResBlock(within, grad_in_forward=memory)
    torch.manual_seed(7)
    torch.randn_like(x)
    alone(x)
    torch.manual_seed(7)
    block(x, torch.zeros(2, 1))
    torch.testing.assert_close(within.u, alone.u, rtol=0, atol=0)
    alone(x), within(x)
    torch.testing.assert_close(within.u, alone.u, rtol=0, atol=0)


def test_verification_gives_back_what_a_first_batch_made() -> None:
    layer, x = conv(), torch.randn(2, 2, 6, 5).double()
    torch.manual_seed(7)
    first = run(layer, (x,), lambda model, x: model(x))
    assert not layer.initialized
    assert layer.u is None
    second = run(layer, (x,), lambda model, x: model(x))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_blocks_of_spectral_norms_train_and_invert(memory: bool, training: bool) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        conv(bias=True), nn.ELU(), ours.SpectralNormConv2d(3, 2, 3, 1, 1, n_iterations=5)
    )
    block = ours.iResBlock(net.double(), exact_trace=False, grad_in_forward=memory).train(training)
    x = torch.randn(4, 2, 6, 5).double().requires_grad_()
    y, logpx = block(x, torch.zeros(4, 1).double())
    assert logpx.shape == (4, 1)
    (y.sum() + logpx.sum()).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    block.eval()
    with torch.no_grad():
        back = block.inverse(block(x))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


def test_log_determinants_are_subtracted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ours.SpectralNormLinear(2, 5, n_iterations=5), nn.Tanh()).append(
        ours.InducedNormLinear(5, 2, n_iterations=5)
    )
    block = ours.iResBlock(net.double()).eval()
    x, start = torch.randn(3, 2).double(), torch.randn(3, 1).double()
    truth = jacobian_logdet(lambda v: block(v), x)
    y, logpx = block(x, start)
    torch.testing.assert_close(logpx, start - truth[:, None])
    torch.testing.assert_close(block.inverse(y, logpx)[1], start)


def test_blocks_are_those_of_normflows() -> None:
    residual = pytest.importorskip("normflows").flows.residual
    torch.manual_seed(0)
    net = nn.Sequential(ours.InducedNormLinear(3, 5, n_iterations=5), nn.ELU(), nn.Linear(5, 3))
    mine, peer = (home.iResBlock(net, n_power_series=5) for home in (ours, residual))
    x, start = torch.randn(4, 3), torch.zeros(4, 1)
    values = []
    for block in (mine, peer):
        torch.manual_seed(5)
        values.append([t.detach() for t in block(x, start)])
    torch.testing.assert_close(*values)
    assert mine.state_dict().keys() == peer.state_dict().keys()
