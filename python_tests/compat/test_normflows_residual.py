"""normflows' residual blocks: against normflows, and where it is wrong against definitions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flowops
from flowops.compat import normflows as ours
from flowops.compat._twins import find_twin, swap, unswap
from flowops.testing import jacobian_logdet

from .against_peer import pickled, swap_all

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "graph": {"reduce_memory": False},
    "truncated": {"n_power_series": 4},
    "truncated_graph": {"n_power_series": 4, "reduce_memory": False},
    "exact_trace": {"exact_trace": True},
    "exact_trace_truncated": {"exact_trace": True, "n_power_series": 3},
    "brute_force": {"brute_force": True},
    "poisson": {"n_dist": "poisson", "lamb": 1.5},
    "several": {"n_samples": 3, "geom_p": 0.3, "n_exact_terms": 4},
    "no_exact_terms": {"n_exact_terms": 0},
    "not_reversed": {"reverse": False},
}


def peers() -> Any:
    return pytest.importorskip("normflows").flows.residual


def network(features: int = 3, lipschitz: float = 0.5) -> nn.Module:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(features, 6), nn.ELU(), nn.Linear(6, features)).double()
    for layer in (net[0], net[2]):
        norm = torch.linalg.matrix_norm(layer.weight.detach(), 2)
        layer.weight.data.mul_(lipschitz**0.5 / norm)
    return net


def both(case: str, features: int = 3, lipschitz: float = 0.5) -> list[Any]:
    net = network(features, lipschitz)
    homes = (ours, peers())
    return [home.Residual(copy.deepcopy(net), **OPTIONS[case]).double() for home in homes]


def seed() -> None:
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002


def results(layer: Any, x: Tensor, *, inverse: bool, weight: Tensor | None = None) -> list[Any]:
    """Outputs and gradients of a loss that weighs the log-determinants by ``weight``, or alike."""
    seed()
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out, logdet = layer.inverse(x) if inverse else layer(x)
    weight = torch.full_like(logdet, 0.7) if weight is None else weight
    loss = (out * torch.linspace(-1, 2, out.numel()).to(out).view_as(out)).sum()
    (loss + (logdet * weight).sum()).backward()
    return [out.detach(), logdet.detach(), x.grad, *(p.grad for p in layer.parameters())]


def forward_of(layer: Any) -> bool:
    """Which direction is x + g(x)."""
    return layer.reverse


def assert_same(mine: Any, theirs: Any, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("case", OPTIONS)
def test_residual_equals_normflows(case: str, features: int, training: bool) -> None:
    if case == "brute_force" and features == 3:
        pytest.skip("for two dimensions")
    lipschitz = 0.5 if training else 0.98
    mine, peer = (layer.train(training) for layer in both(case, features, lipschitz))
    x = torch.randn(5, features, dtype=torch.float64)
    way = forward_of(peer)
    for _ in range(2):
        expected = results(peer, x, inverse=way)
        assert_same(results(mine, x, inverse=way), expected)
        assert_same(dict(mine.state_dict()), dict(peer.state_dict()))
    taken = copy.deepcopy(peer)
    assert swap_all(taken) == 2
    assert isinstance(taken, ours.Residual)
    assert isinstance(taken.iresblock, peers().iResBlock)
    for layer in (taken, copy.deepcopy(taken), pickled(taken)):
        assert_same(results(layer, x, inverse=way), expected)
    unswap(taken)
    mine.load_state_dict(peer.state_dict(), strict=True)
    single = results(mine.float(), x.float(), inverse=way)[:2]
    assert_same([t.double() for t in single], expected[:2], 1e-4)


@pytest.mark.parametrize("case", ["default", "graph", "exact_trace", "not_reversed"])
@pytest.mark.parametrize("training", [True, False])
def test_the_other_direction_is_that_of_normflows_to_its_error(case: str, training: bool) -> None:
    mine, peer = (layer.train(training) for layer in both(case))
    z = torch.randn(5, 3, dtype=torch.float64)
    way = not forward_of(peer)
    assert_same(results(mine, z, inverse=way), results(peer, z, inverse=way), 2e-2)
    with torch.no_grad():
        x = (mine.inverse if way else mine)(z)[0]
        assert_same(x + mine.iresblock.nnet(x), z)
        there = (peer.inverse if way else peer)(z)[0]
        assert (there + peer.iresblock.nnet(there) - z).abs().max() > 1e-7


def test_blocks_equal_normflows_where_forward_and_inverse_are_called_alone() -> None:
    net, x = network(), torch.randn(4, 3, dtype=torch.float64)
    start = torch.randn(4, 1, dtype=torch.float64)
    values = []
    for home in (ours, peers()):
        block = home.iResBlock(copy.deepcopy(net), neumann_grad=False, grad_in_forward=True)
        seed()
        y, total = block(x, start)
        assert total.shape == (4, 1)
        values.append([block(x), y, total])
        total.sum().backward()
        values[-1] += [p.grad for p in block.nnet.parameters() if p.grad is not None][:3]
    assert_same(*values)
    back, total_back = block.inverse(y, total)
    assert total_back.shape == (4, 1)
    assert block.inverse(y).shape == back.shape == x.shape


@pytest.mark.parametrize("memory", [True, False])
def test_each_sample_has_its_own_upstream_weight_unlike_normflows(memory: bool) -> None:
    # Without the gradients taken in the forward pass normflows weighs each sample rightly.
    x, weight = torch.randn(5, 3, dtype=torch.float64), torch.linspace(-1, 3, 5).double()
    mine, peer = both("default" if memory else "truncated_graph")
    right = copy.deepcopy(peer)
    right.iresblock.grad_in_forward = False
    expected = results(right, x, inverse=True, weight=weight)
    assert_same(results(mine, x, inverse=True, weight=weight), expected)
    if memory:
        wrong = results(peer, x, inverse=True, weight=weight)
        assert not torch.allclose(wrong[2], expected[2], rtol=1e-2)


def test_log_determinants_are_those_of_jacobians() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    mine = ours.Residual(network(2), brute_force=True).double()
    for call in (mine, mine.inverse):
        truth = jacobian_logdet(lambda v, call=call: call(v)[0], x)
        assert_same(call(x)[1], truth, 1e-9)


def test_evaluation_is_unbiased_in_more_dimensions() -> None:
    seed()
    mine, x = ours.Residual(network(3, 0.7)).eval(), torch.randn(1, 3, dtype=torch.float64)
    truth = jacobian_logdet(lambda v: mine.inverse(v)[0], x)
    with torch.no_grad():
        values = mine.inverse(x.expand(20_000, -1))[1]
    error = values.std() / len(values) ** 0.5
    assert (values.mean() - truth).abs() < 4 * error


def test_lipschitz_images_begin_as_in_normflows() -> None:
    x = torch.randn(3, 2, 5, 4)
    values = []
    for home, nets in ((ours, ours), (peers(), pytest.importorskip("normflows").nets)):
        seed()
        layer = home.Residual(nets.LipschitzCNN([2, 6, 6, 2], [3, 1, 3], init_zeros=False))
        values.append(results(layer, x, inverse=True))
        values[-1].append(dict(layer.state_dict()))
    assert_same(*values, 1e-4)


def test_a_normflows_model_is_accelerated_and_verified() -> None:
    nf = pytest.importorskip("normflows")
    seed()
    flows = []
    for _ in range(2):
        net = nf.nets.LipschitzMLP([2, 16, 16, 2], init_zeros=False, lipschitz_const=0.8)
        flows += [nf.flows.Residual(net, geom_p=0.1), nf.flows.ActNorm((2,))]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), flows)
    x = torch.randn(16, 2)
    model.forward_kld(x)
    report = flowops.accelerate(model, (x,), verify=True, call=lambda m, x: m.forward_kld(x))
    assert {layer.kind.rpartition(".")[2] for layer in report.kept} == {
        "NormalizingFlow",
        "DiagGaussian",
    }
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        loss = model.forward_kld(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        nf.utils.update_lipschitz(model, 5)
    model.eval()
    with torch.inference_mode():
        assert model.sample(7)[0].shape == (7, 2)
    report.restore()
    assert type(model.flows[0]) is nf.flows.Residual


def test_verify_runs_both_from_the_same_numbers_of_terms() -> None:
    layer = peers().Residual(network(3, 0.95), geom_p=0.05, exact_trace=True).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    report = flowops.accelerate(layer, (x,), verify=True, call=lambda m, x: m.inverse(x))
    assert max(report.errors.values()) < 1e-12


def test_verify_also_takes_images_that_no_batch_has_sized() -> None:
    nf = pytest.importorskip("normflows")
    net = nf.nets.LipschitzCNN([1, 3, 1], [3, 3])
    report = flowops.accelerate(net, (torch.randn(2, 1, 4, 4),), verify=True)
    assert report.swapped
    assert not net.net[1].initialized


def test_memory_does_not_hold_the_inverses_steps() -> None:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    mine, peer = both("default", lipschitz=0.9)
    z = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    sizes = []
    for layer in (mine.eval(), peer.eval()):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer.iresblock.inverse(z)
        sizes.append(len(kept))
    assert sizes[1] > 3 * sizes[0]


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="iResBlock: n_dist must be 'geometric' or 'poisson'"):
        ours.iResBlock(nn.Identity(), n_dist="uniform")
    expanding = nn.Linear(3, 3)
    expanding.weight.data = 2 * torch.eye(3)
    with pytest.raises(RuntimeError, match="iResBlock: 2 of 2 samples did not settle"):
        ours.iResBlock(expanding).inverse(torch.randn(2, 3))
    peer = peers().iResBlock(nn.Identity(), n_dist="uniform")
    assert "n_dist 'uniform'" in (find_twin(peer).refusal(peer) or "")  # type: ignore[union-attr]


def test_inputs_stay_as_they_are_and_may_be_empty() -> None:
    mine, _ = both("default")
    x = torch.randn(0, 3, dtype=torch.float64)
    for call in (mine, mine.inverse):
        out, logdet = call(x)
        assert out.shape == (0, 3)
        assert logdet.shape == (0,)
    x = torch.randn(2, 3, dtype=torch.float64)
    mine.eval().inverse(x)
    assert not x.requires_grad
    assert swap(peers().Residual(network()), ours.Residual)
