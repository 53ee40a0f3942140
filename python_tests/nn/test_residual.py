"""InvertibleResidual: values, both gradients, and the fixed point that is its inverse."""

from __future__ import annotations

import copy
import gc
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowops.distributions import Flow, StandardNormal
from flowops.nn import (
    Exact,
    InvertibleResidual,
    LipschitzConvNet,
    LipschitzMLP,
    PowerSeries,
    Roulette,
    Sequential,
    lipschitz_constant,
)
from flowops.testing import jacobian_logdet, randomize_

Estimator = Exact | PowerSeries | Roulette


def _layer(
    features: int = 4, *, lipschitz: float = 0.6, seed: int = 0, **options: object
) -> InvertibleResidual:
    torch.manual_seed(seed)
    network = LipschitzMLP(features, features, hidden=(9, 8), lipschitz=lipschitz).double()
    randomize_(network, std=1.0)
    for _ in range(50):
        network(torch.zeros(1, features, dtype=torch.float64))
    return InvertibleResidual(network, **options)  # type: ignore[arg-type]


def _x(rows: int = 5, features: int = 4) -> Tensor:
    return torch.randn(rows, features, dtype=torch.float64) * 2


def _gradients(layer: InvertibleResidual, x: Tensor, *, inverse: bool = False) -> list[Tensor]:
    """Of outputs and log-determinants, each sample with a weight of its own."""
    torch.manual_seed(7)
    x = x.clone().requires_grad_()
    out, logdet = layer.inverse(x) if inverse else layer(x)
    weight = torch.linspace(-2, 3, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out * weight).sum() + (logdet * torch.linspace(-1, 2, len(x)).to(x)).sum()
    return list(torch.autograd.grad(loss, [x, *layer.parameters()], materialize_grads=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", [PowerSeries(6), Roulette(p=0.4), Roulette(probes=3)])
def test_neumann_gradient_is_the_series_own_in_one_dimension(
    estimator: PowerSeries | Roulette, training: bool
) -> None:
    # There random signs give the exact trace, and both gradients are the same sum. In training the
    # power iteration moves: the weights of the second evaluation must be those of the first.
    x = _x(features=1)
    layers = [
        _layer(1, logdet=estimator, eval_logdet=estimator, gradient=gradient).train(training)
        for gradient in ("neumann", "series")
    ]
    for _ in range(2):
        neumann, graph = (_gradients(layer, x) for layer in layers)
        assert all(g.any() for g in neumann)
        torch.testing.assert_close(neumann, graph, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layers[0].state_dict(), layers[1].state_dict())


@pytest.mark.parametrize("estimator", [PowerSeries(6, probes=2), Roulette(p=0.4)])
def test_values_do_not_depend_on_the_gradient_wanted(estimator: PowerSeries | Roulette) -> None:
    x, values = _x(), []
    for gradient in ("neumann", "series"):
        layer = _layer(eval_logdet=estimator, gradient=gradient).eval()
        for wanted in (True, False):
            torch.manual_seed(3)
            with torch.set_grad_enabled(wanted):
                values.append(layer(x)[1].detach())
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=0, atol=1e-12)


def test_default_evaluation_is_the_log_determinant_to_its_bound() -> None:
    layer, x = _layer(lipschitz=0.9).eval(), _x(1)
    exact = jacobian_logdet(lambda v: layer(v)[0], x)
    with torch.no_grad():
        values = layer(x.expand(4000, -1))[1]
    error = values.std() / len(values) ** 0.5
    assert layer.eval_logdet == PowerSeries(69)
    assert (values.mean() - exact).abs() < 4 * error + 4e-4


def test_each_forward_moves_the_power_iteration_once_and_backward_not() -> None:
    layer, x = _layer(logdet=Roulette(p=0.3), seed=1).train(), _x()
    randomize_(layer, std=1.0)
    alone = copy.deepcopy(layer.network)
    alone(x)
    layer(x)[1].sum().backward()
    torch.testing.assert_close(layer.network.state_dict(), alone.state_dict(), rtol=0, atol=0)
    alone(x)
    out, logdet = layer.inverse(x)
    (out.sum() + logdet.sum()).backward()
    torch.testing.assert_close(layer.network.state_dict(), alone.state_dict(), rtol=0, atol=0)


def test_leaving_training_settles_the_bound() -> None:
    layer = _layer().train()
    randomize_(layer, std=1.0)
    assert lipschitz_constant(layer.network) > 0.65
    state = copy.deepcopy(layer.eval().state_dict())
    torch.testing.assert_close(lipschitz_constant(layer.network), 0.6, rtol=1e-6, atol=0)
    randomize_(layer, std=1.0)
    found = copy.deepcopy(layer.state_dict())
    layer.eval()  # once more: nothing happens
    torch.testing.assert_close(layer.state_dict(), found, rtol=0, atol=0)
    fresh = _layer(seed=5).eval()
    fresh.load_state_dict(state)
    assert lipschitz_constant(fresh.network) < 0.601


def test_several_forwards_may_come_before_one_backward() -> None:
    layer, x = _layer(1, logdet=PowerSeries(5)).train(), _x(features=1)
    randomize_(layer, std=1.0)  # so that each forward has other weights
    rival = copy.deepcopy(layer)
    rival.gradient = "series"
    for each in (layer, rival):
        (each(x)[1].sum() + (2 * each(2 * x)[1]).sum()).backward()
    for p, q in zip(layer.parameters(), rival.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_backward_within_cached_weights_is_an_error_and_not_no_gradient() -> None:
    layer, x = _layer(logdet=PowerSeries(3)).train(), _x()
    with parametrize.cached():
        loss = layer(x)[1].sum()
        with pytest.raises(RuntimeError, match="must not run within"):
            loss.backward()
    loss.backward()
    assert layer.network.layers[0].parametrizations.weight.original.grad.any()


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _bytes_kept(layer: InvertibleResidual, x: Tensor) -> int:
    alive: WeakSet[_Kept] = WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        out = layer(x.clone().requires_grad_())
    gc.collect()
    size = sum(k.tensor.numel() * k.tensor.element_size() for k in alive)
    assert out[1].requires_grad
    return size


def test_memory_of_the_neumann_gradient_does_not_grow_with_the_terms() -> None:
    x = _x(50)

    def sizes(gradient: str) -> list[int]:
        layers = [_layer(logdet=PowerSeries(n), gradient=gradient).train() for n in (2, 20)]
        return [_bytes_kept(layer, x) for layer in layers]

    few, many = sizes("neumann")
    assert few == many > 0
    few, many = sizes("series")
    assert many > 5 * few


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_inverse_are_those_of_many_steps(training: bool) -> None:
    layer, z = _layer(lipschitz=0.8, logdet=Exact()).train(training), _x()
    unrolled = copy.deepcopy(layer).eval()
    assert not training or _layer(lipschitz=0.8).network.training

    def steps(z: Tensor) -> tuple[Tensor, Tensor]:
        x = z
        for _ in range(200):
            x = z - unrolled.network(x)
        return x, -unrolled(x)[1]

    if training:  # where a call moves the vectors first
        unrolled.train()
        unrolled.network(z)
        unrolled.eval()
    rival = copy.copy(unrolled)
    rival.inverse = steps  # type: ignore[method-assign]
    mine, theirs = _gradients(layer, z, inverse=True), _gradients(rival, z, inverse=True)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_inverse_are_not_held_to_their_size() -> None:
    layer, z = _layer(lipschitz=0.9, logdet=Exact()), _x().requires_grad_()
    x = layer.eval().inverse(z)[0]
    large, small = (torch.autograd.grad(x, z, s * torch.ones_like(x), True)[0] for s in (1, 1e-9))
    torch.testing.assert_close(small * 1e9, large, rtol=1e-9, atol=1e-9)
    assert not torch.autograd.grad(x, z, torch.zeros_like(x))[0].any()


def test_the_inverses_error_decays_with_its_bound() -> None:
    lipschitz, x = 0.8, _x(1)
    network = nn.Linear(4, 4, dtype=torch.float64)
    network.weight.data = lipschitz * torch.linalg.qr(_x(4))[0]  # as slow as it may be
    points: list[Tensor] = []
    with torch.no_grad():
        z = x + network(x)
        network.register_forward_pre_hook(lambda _, given: points.append(given[0].clone()))
        InvertibleResidual(network, lipschitz=lipschitz, logdet=Exact()).inverse(z)
    first = (points[1] - points[0]).norm()
    errors = [(point - x).norm() for point in points[:-1]]  # the last is the log-determinant's
    assert len(points) > 100
    assert errors[0] > 0.1
    for k, error in enumerate(errors):
        assert error <= lipschitz**k / (1 - lipschitz) * first + 1e-11
    assert errors[-1] < 1e-10


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-10)])
def test_inverse_is_exact_near_the_limit(dtype: torch.dtype, error: float) -> None:
    layer = _layer(lipschitz=0.98, logdet=Exact()).eval().to(dtype)
    x = 10 * _x(50).to(dtype)
    with torch.no_grad():
        back = layer.inverse(layer(x)[0])[0]
    torch.testing.assert_close(back, x, rtol=0, atol=error)


def test_a_sample_is_inverted_as_if_alone() -> None:
    layer, z = _layer(lipschitz=0.9, logdet=Exact()).eval(), _x(6)
    z[2] *= 1e3
    layer.tolerance = 1e-3  # coarse, so that a step more or less shows
    together = layer.inverse(z)[0]
    alone = torch.cat([layer.inverse(row)[0] for row in z.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("value", [3.0, -0.999, float("nan")])
def test_what_does_not_converge_is_an_error(value: float, steps: int) -> None:
    network = nn.Linear(2, 2, dtype=torch.float64)
    network.weight.data = value * torch.eye(2, dtype=torch.float64)
    layer = InvertibleResidual(network, lipschitz=0.9, logdet=Exact(), max_iterations=steps)
    with pytest.raises(RuntimeError, match="InvertibleResidual: 3 of 3 samples did not settle in"):
        layer.inverse(_x(3, 2))


def test_a_loaded_layer_has_the_same_inverse() -> None:
    layer, z = _layer(logdet=Exact()).eval(), _x()
    fresh = _layer(logdet=Exact(), seed=9).eval()
    assert not torch.allclose(fresh.inverse(z)[0], layer.inverse(z)[0])
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.inverse(z)[0], layer.inverse(z)[0])
    assert torch.equal(copy.deepcopy(layer).inverse(z)[1], layer.inverse(z)[1])


@pytest.mark.parametrize("estimator", [Exact(), PowerSeries(3), Roulette(exact_terms=0)])
def test_empty_batches_and_gradients_through_them(estimator: Estimator) -> None:
    layer = _layer(logdet=estimator).train()
    for call in (layer, layer.inverse):
        out, logdet = call(_x(0).requires_grad_())
        assert out.shape == (0, 4)
        assert logdet.shape == (0,)
        (out.sum() + logdet.sum()).backward()


def test_autocast_and_narrow_inputs_keep_all_digits() -> None:
    layer = _layer(logdet=Exact()).float().eval()
    x = _x().to(torch.bfloat16)
    z, logdet = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        z_narrow, logdet_narrow = layer(x)
        back = layer.inverse(z_narrow)[0]
        assert torch.equal(layer.initialize(x), z)
        estimate = InvertibleResidual(layer.network)(x)[1]
    estimate.sum().backward()
    assert z_narrow.dtype == logdet_narrow.dtype == estimate.dtype == torch.float32
    assert torch.equal(z_narrow, z)
    assert torch.equal(logdet_narrow, logdet)
    torch.testing.assert_close(back, x.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("estimator", [Exact(), PowerSeries(8), Roulette()])
def test_flow_learns_and_samples(estimator: Estimator) -> None:
    torch.manual_seed(0)
    layers = [InvertibleResidual(LipschitzMLP(2, 2), logdet=estimator) for _ in range(2)]
    flow = Flow(Sequential(*layers), StandardNormal(2), event_shape=(2,))
    scale = torch.tensor([1.5, 0.6])
    flow.initialize(torch.randn(256, 2) * scale)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        loss = -flow.log_prob(torch.randn(256, 2) * scale).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    entropy = 2.8379 + scale.log().sum().item()
    assert losses[0] > entropy + 0.2
    assert abs(sum(losses[-10:]) / 10 - entropy) < 0.1
    flow.eval()
    with torch.inference_mode():
        samples = flow.sample((500,))
    assert samples.std(0)[0] > 1.25
    assert samples.std(0)[1] < 0.8


def test_images_in_training() -> None:
    torch.manual_seed(0)
    network = randomize_(LipschitzConvNet(2, (5, 3), hidden=6), std=0.3)
    layer = InvertibleResidual(network)
    x = torch.randn(4, 2, 5, 3)
    z, logdet = layer(x)
    (z.square().sum() - logdet.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x, rtol=0, atol=1e-4)


def test_second_derivatives_are_the_series_or_an_error() -> None:
    x = _x(2).requires_grad_()
    layer = _layer(eval_logdet=PowerSeries(3)).eval()
    with pytest.raises(RuntimeError, match="InvertibleResidual: gradients must be taken without"):
        torch.autograd.grad(layer(x)[1].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="of the inverse must be taken without create_graph"):
        torch.autograd.grad(layer.inverse(x)[0].sum(), x, create_graph=True)
    layer.gradient = "series"

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return layer(x)[1]

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def test_frozen_layers_have_no_graph() -> None:
    layer = _layer().eval().requires_grad_(False)
    for call in (layer, layer.inverse):
        assert not any(out.requires_grad for out in call(_x()))
    x = _x().requires_grad_()
    assert layer(x)[1].requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lipschitz": 1.0}, "lipschitz must be between 0 and 1, got 1.0"),
        ({}, "lipschitz must be between 0 and 1, got None"),
        ({"lipschitz": 0.9, "gradient": "exact"}, "gradient must be 'neumann' or 'series'"),
        ({"lipschitz": 0.9, "tolerance": 0.0}, "tolerance must be positive"),
        ({"lipschitz": 0.9, "max_iterations": 0}, "max_iterations must be at least 1"),
        ({"lipschitz": 0.9, "logdet": Roulette(p=0.5)}, "p must be below 1 - lipschitz"),
        ({"lipschitz": 0.9, "eval_logdet": Roulette(p=0.5)}, "p must be below 1 - lipschitz"),
    ],
)
def test_errors_name_the_argument(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvertibleResidual(nn.Linear(2, 2), **options)  # type: ignore[arg-type]


def test_torch_compile_goes_around_the_layer() -> None:
    layer, x = _layer(logdet=Exact()).eval(), _x()
    compiled = torch.compile(lambda v: layer(2 * v)[1] + 1, backend="eager")
    torch.testing.assert_close(compiled(x), layer(2 * x)[1] + 1)
