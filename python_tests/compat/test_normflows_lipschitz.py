"""normflows' Lipschitz networks: against normflows, and singular values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import normflows as ours
from flowops.compat._twins import find_twin, swap, unswap

Make = Callable[[Any], nn.Module]

NETS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mlp": (lambda nets: nets.LipschitzMLP([3, 8, 8, 3]), (3,)),
    "mlp_without_zeros": (lambda nets: nets.LipschitzMLP([3, 5, 3], 0.7, 3, None, False), (3,)),
    "mlp_tolerance": (lambda nets: nets.LipschitzMLP([3, 8, 3], 0.5, None, 1e-4), (3,)),
    "cnn": (lambda nets: nets.LipschitzCNN([2, 6, 6, 2], [3, 1, 3]), (2, 5, 4)),
    "cnn_tolerance": (
        lambda nets: nets.LipschitzCNN([2, 3, 2], [3, 5], 0.6, None, 1e-3),
        (2, 5, 4),
    ),
    "linear": (lambda nets: nets.InducedNormLinear(4, 2, bias=False, n_iterations=2), (4,)),
    "conv": (lambda nets: nets.InducedNormConv2d(2, 3, 3, 2, 1, False, n_iterations=4), (2, 7, 5)),
    "swish": (lambda nets: nets.Swish(), (3,)),
}


def nets() -> Any:
    return pytest.importorskip("normflows").nets.lipschitz


def both(case: str) -> list[nn.Module]:
    pair = []
    for home in (ours, nets()):
        torch.manual_seed(5)
        pair.append(NETS[case][0](home).double())
    return pair


def batch(case: str, size: int = 4) -> Tensor:
    return torch.randn(size, *NETS[case][1], dtype=torch.float64)


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    x = x.clone().requires_grad_()
    net.zero_grad()
    out = net(x)
    (out * torch.linspace(-1, 2, out.numel()).to(out).view_as(out)).sum().backward()
    values = {"out": out.detach(), "x": x.grad}
    return values | {name: p.grad.clone() for name, p in net.named_parameters()}


def assert_same(mine: Any, theirs: Any) -> None:
    """To rounding of float32: normflows divides by a float32 number, in float64 too."""
    torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", NETS)
def test_lipschitz_nets_equal_normflows_from_the_first_draw(case: str) -> None:
    mine, peer = both(case)
    for p in (*mine.parameters(), *peer.parameters()):
        p.data.mul_(5)  # so that the bound is reached
    for size in (4, 1, 0):
        x = batch(case, size)
        assert_same(results(mine, x), results(peer, x))
        assert_same(dict(mine.state_dict()), dict(peer.state_dict()))
    for n in (1, 3, 40):
        ours.update_lipschitz(mine, n)
        pytest.importorskip("normflows").utils.update_lipschitz(peer, n)
        assert_same(dict(mine.state_dict()), dict(peer.state_dict()))
    x = batch(case)
    assert_same(results(mine, x), results(peer, x))


@pytest.mark.parametrize("case", NETS)
def test_swapped_nets_equal_normflows(case: str) -> None:
    _, peer = both(case)
    x = batch(case)
    expected = results(peer, x)
    taken = copy.deepcopy(peer)
    for module in list(taken.modules()):
        twin = find_twin(module)
        if twin is not None:
            assert twin.refusal(module) is None
            swap(module, twin)
    assert isinstance(taken, type(peer))
    assert isinstance(taken, find_twin(peer))  # type: ignore[arg-type]
    assert_same(results(taken, x), expected)
    pytest.importorskip("normflows").utils.update_lipschitz(taken, 7)
    ours.update_lipschitz(peer, 7)  # which is not ours
    assert_same(dict(taken.state_dict()), dict(peer.state_dict()))
    single = taken.float()(x.float())
    torch.testing.assert_close(single.double(), peer(x), rtol=1e-4, atol=1e-5)
    unswap(taken)  # type: ignore[arg-type]
    assert type(taken) is type(peer)


@pytest.mark.parametrize("case", NETS)
def test_states_go_to_normflows_and_back(case: str) -> None:
    mine, peer = both(case)
    x = batch(case)
    mine(x), peer(x)
    peer.load_state_dict(mine.state_dict(), strict=True)
    fresh = NETS[case][0](ours).double()
    fresh.load_state_dict(peer.state_dict(), strict=True)  # which has seen no batch
    assert_same(fresh(x), peer(x))
    assert_same(dict(fresh.state_dict()), dict(peer.state_dict()))


def test_an_update_with_a_tolerance_ends_as_in_normflows() -> None:
    for name, arguments in (("InducedNormLinear", (9, 7)), ("InducedNormConv2d", (3, 4, 3, 1, 1))):
        pair = []
        for home in (ours, nets()):
            torch.manual_seed(1)
            layer = getattr(home, name)(*arguments, atol=3e-3, rtol=3e-3).double()
            layer(
                torch.zeros(1, 3, 4, 4).double() if "Conv" in name else torch.zeros(1, 9).double()
            )
            layer.weight.data.add_(torch.randn_like(layer.weight))
            layer.compute_weight()
            pair.append(layer)
        assert_same(pair[0].u, pair[1].u)
        assert_same(pair[0].compute_one_iter(), pair[1].compute_one_iter())


def test_an_explicit_tolerance_is_taken_where_normflows_takes_the_other() -> None:
    layer = ours.InducedNormLinear(9, 7, n_iterations=None, atol=1e-3, rtol=1e-3).double()
    layer.weight.data.add_(torch.randn_like(layer.weight))
    first = nn.functional.normalize(layer.weight.detach() @ layer.v, dim=0)
    layer.compute_weight(atol=1e-9, rtol=1e9)  # in normflows rtol is 1e-9 then
    assert_same(layer.u, first)


def test_the_norm_of_images_is_bounded() -> None:
    layer = ours.InducedNormConv2d(2, 3, 3, 2, 1, bias=False, coeff=0.4, n_iterations=5).double()
    size = (2, 6, 5)  # of which a stride leaves a row unread
    layer(torch.zeros(1, *size).double())
    layer.weight.data.mul_(10)
    ours.update_lipschitz(layer, 500)
    basis = torch.eye(60, dtype=torch.float64).view(60, *size)
    norm = torch.linalg.matrix_norm(layer(basis).flatten(1), 2).item()
    assert norm == pytest.approx(0.4, rel=1e-6)


def test_other_norms_are_refused() -> None:
    home = nets()
    for peer in (
        home.InducedNormLinear(3, 3, domain=1, codomain=2, n_iterations=2),
        home.InducedNormConv2d(3, 3, 3, 1, 1, domain=torch.tensor(0.0), codomain=torch.tensor(0.0)),
    ):
        assert "not Euclidean" in (find_twin(peer).refusal(peer) or "")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="InducedNormLinear: domain and codomain must be 2, got 1"):
        ours.InducedNormLinear(3, 3, domain=1)
    with pytest.raises(ValueError, match="InducedNormConv2d: domain and codomain must be 2"):
        ours.InducedNormConv2d(3, 3, 3, 1, 1, codomain=torch.tensor(2.0))
    with pytest.raises(ValueError, match="InducedNormLinear: n_iterations, or atol and rtol"):
        ours.InducedNormLinear(3, 3).compute_weight()
