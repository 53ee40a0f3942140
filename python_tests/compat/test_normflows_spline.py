"""normflows' neural spline flows: against normflows, and the Jacobian."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import normflows as ours
from flowops.compat.normflows import nets, splines
from flowops.testing import jacobian_logdet, randomize_

from .against_peer import check_against_peer, pickled, swap_all

# Networks and steep splines turn a difference of rounding into a larger one.
NETWORK: dict[str, Any] = {"factor": 20.0, "tolerance": 2e-9}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(12)


def peers() -> Any:
    return pytest.importorskip("normflows").flows


def both(name: str, *args: Any, **options: Any) -> list[Any]:
    """The layer of ours and normflows', the latter with random parameters."""
    mine = getattr(ours, name)(*args, **options)
    options.pop("init_identity", None)
    peer = getattr(peers(), name)(*args, **options)
    return [mine, randomize_(peer, std=0.4)]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


COUPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "reversed": {"reverse_mask": True, "tail_bound": 1.0},
    "circular": {"tails": "circular", "num_bins": 3},
    "context": {"num_context_channels": 2},
    "activation": {"activation": nn.Tanh},
    "dropout_in_eval": {"dropout_probability": 0.5},
}


@pytest.mark.parametrize("case", COUPLED)
def test_coupled_spline_equals_normflows(case: str) -> None:
    mine, peer = both("CoupledRationalQuadraticSpline", 5, 2, 16, **COUPLED[case])
    context = randn(6, 2) if case == "context" else None
    check_against_peer(mine.eval(), peer.eval(), 2 * randn(6, 5), context, **NETWORK)


def test_coupled_spline_on_the_unit_interval_equals_normflows() -> None:
    mine, peer = both("CoupledRationalQuadraticSpline", 4, 1, 8, tails=None)
    check_against_peer(mine, peer, torch.rand(6, 4, dtype=torch.float64), **NETWORK)


def inside(bound: float | Tensor) -> Tensor:
    """Points within the intervals: elsewhere normflows' lists of tails lose them, see below."""
    return (2 * torch.rand(6, 4, dtype=torch.float64) - 1) * bound


CIRCULAR: dict[str, dict[str, Any]] = {
    "some": {"ind_circ": [0, 3]},
    "none": {"ind_circ": []},
    "moved": {"ind_circ": [1, 3], "num_context_channels": 2},
    "reversed": {"ind_circ": [0, 1], "reverse_mask": True},
    "bounds": {"ind_circ": [0, 1], "tail_bound": torch.tensor([math.pi, 2.0, 3.0, 1.0])},
    "mask": {"ind_circ": [1], "mask": torch.tensor([0, 0, 1, 1])},
}


@pytest.mark.parametrize("case", CIRCULAR)
def test_circular_coupled_spline_equals_normflows(case: str) -> None:
    mine, peer = both("CircularCoupledRationalQuadraticSpline", 4, 1, 16, **CIRCULAR[case])
    context = randn(6, 2) if case == "moved" else None
    check_against_peer(
        mine, peer, inside(CIRCULAR[case].get("tail_bound", 3.0)), context, **NETWORK
    )


AUTOREGRESSIVE: dict[str, dict[str, Any]] = {
    "plain": {},
    "permuted": {"permute_mask": True, "num_bins": 3, "tail_bound": 2},
    "context": {"num_context_channels": 2},
    "activation": {"activation": nn.Tanh},
}


@pytest.mark.parametrize("size", [0, 6])
@pytest.mark.parametrize("case", AUTOREGRESSIVE)
def test_autoregressive_spline_equals_normflows(case: str, size: int) -> None:
    mine, peer = both("AutoregressiveRationalQuadraticSpline", 4, 2, 16, **AUTOREGRESSIVE[case])
    context = randn(size, 2) if case == "context" else None
    check_against_peer(mine, peer, 2 * randn(size, 4), context, **NETWORK)


@pytest.mark.parametrize("bound", [3.0, torch.tensor([math.pi, 2.0, 3.0, 1.0])], ids=str)
@pytest.mark.parametrize("circular", [[0, 3], [0, 1, 2, 3], [2]], ids=str)
def test_circular_autoregressive_spline_equals_normflows(
    circular: list[int], bound: float | Tensor
) -> None:
    mine, peer = both(
        "CircularAutoregressiveRationalQuadraticSpline", 4, 1, 16, circular, tail_bound=bound
    )
    check_against_peer(mine, peer, inside(bound), **NETWORK)


@pytest.mark.parametrize("context", [None, 2])
def test_masked_affine_autoregressive_equals_normflows(context: int | None) -> None:
    mine, peer = both("MaskedAffineAutoregressive", 4, 16, context)
    check_against_peer(
        mine, peer, randn(6, 4), None if context is None else randn(6, context), **NETWORK
    )


def image_network(inputs: int, outputs: int) -> nn.Module:
    home = pytest.importorskip("normflows").nets.resnet
    return home.ConvResidualNet(inputs, outputs, hidden_channels=8, num_blocks=1)


@pytest.mark.parametrize("tails", ["linear", "circular", None])
def test_spline_coupling_of_images_equals_normflows(tails: str | None) -> None:
    home = peers().neural_spline.coupling
    mask = torch.tensor([1, 0, 1, 0, 0])
    options: dict[str, Any] = {
        "num_bins": 4,
        "tails": tails,
        "apply_unconditional_transform": True,
        "img_shape": [4, 2],
    }
    mine = splines.PiecewiseRationalQuadraticCoupling(mask, image_network, **options)
    peer = home.PiecewiseRationalQuadraticCoupling(mask, image_network, **options)
    z = torch.rand(3, 5, 4, 2, dtype=torch.float64)
    check_against_peer(mine, randomize_(peer), z, **NETWORK)


@pytest.mark.parametrize("tails", ["linear", None, ["linear", "circular", "linear"]], ids=str)
def test_spline_cdf_equals_normflows(tails: Any) -> None:
    home = peers().neural_spline.coupling
    peer = randomize_(home.PiecewiseRationalQuadraticCDF([3], 4, tails), std=0.7)
    mine = splines.PiecewiseRationalQuadraticCDF([3], 4, tails)
    check_against_peer(mine, peer, torch.rand(6, 3, dtype=torch.float64))


def test_dropout_of_a_network_in_training_is_applied() -> None:
    net = randomize_(nets.ResidualNet(3, 4, 64, dropout_probability=0.5))
    x = torch.randn(5, 3)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_spline_flow_of_normflows_swapped_whole_gives_the_same() -> None:
    nf = pytest.importorskip("normflows")
    flows: list[Any] = []
    for _ in range(2):
        flows += [nf.flows.CoupledRationalQuadraticSpline(4, 2, 16), nf.flows.LULinearPermute(4)]
    flows.append(nf.flows.CircularAutoregressiveRationalQuadraticSpline(4, 1, 16, [1]))
    model = randomize_(nf.NormalizingFlow(nf.distributions.DiagGaussian(4), flows)).double()
    x = inside(1.0)
    expected = model.log_prob(x)
    assert swap_all(model) == 2 * 4 + 2
    for taken in (model, pickled(model)):
        torch.testing.assert_close(taken.log_prob(x), expected, rtol=1e-11, atol=1e-11)


LAYERS: dict[str, Any] = {
    "coupled": lambda: ours.CoupledRationalQuadraticSpline(4, 1, 8),
    "circular": lambda: ours.CircularCoupledRationalQuadraticSpline(4, 1, 8, [0, 1]),
    "autoregressive": lambda: ours.AutoregressiveRationalQuadraticSpline(4, 1, 8),
    "circular_autoregressive": lambda: ours.CircularAutoregressiveRationalQuadraticSpline(
        4, 1, 8, [0, 1]
    ),
    "affine": lambda: ours.MaskedAffineAutoregressive(4, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_logdet_is_that_of_the_jacobian_and_inverse_inverts(name: str) -> None:
    layer, z = randomize_(LAYERS[name]().double(), std=0.4), randn(4, 4)
    out, logdet = layer(z)
    torch.testing.assert_close(logdet, jacobian_logdet(lambda x: layer(x)[0], z))
    back, opposite = layer.inverse(out)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(opposite, -logdet)


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch(name: str) -> None:
    layer = LAYERS[name]()
    for function in (layer, layer.inverse):
        out, logdet = function(torch.ones(0, 4, requires_grad=True))
        assert (out.shape, logdet.shape) == ((0, 4), (0,))
        (out.sum() + logdet.sum()).backward()


def test_points_outside_of_listed_tails_stay_unlike_in_normflows() -> None:
    mine, peer = both("CircularCoupledRationalQuadraticSpline", 4, 1, 8, [1])
    mine.load_state_dict(peer.state_dict())
    z = torch.tensor([[5.0, -4.0, 6.0, 7.0]])
    assert torch.equal(peer(z)[0], torch.zeros(1, 4))
    for function in (mine, mine.inverse):
        out, logdet = function(z)
        assert torch.equal(out, z)
        assert logdet == 0


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "affine"])
def test_starts_as_the_identity(name: str) -> None:
    # A periodic feature's network sees it, but its last layer is constant.
    layer, z = LAYERS[name]().double(), randn(4, 4)
    out, logdet = layer(z)
    torch.testing.assert_close(out, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logdet, torch.zeros_like(logdet), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("inverse", [False, True])
def test_compiles_whole(name: str, inverse: bool) -> None:
    layer, z = randomize_(LAYERS[name]()), torch.randn(4, 4)
    function = layer.inverse if inverse else layer.forward
    expected = function(z)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, value in zip(compiled(z), expected, strict=True):
        torch.testing.assert_close(actual, value)


def test_a_circle_of_its_own_size_is_periodic() -> None:
    bound = torch.tensor([2.0, 5.0, 1.0, 3.0])
    layer = randomize_(
        ours.CircularCoupledRationalQuadraticSpline(4, 1, 8, [2], tail_bound=bound), std=0.4
    ).double()
    z = 0.1 * randn(3, 4)
    ends = [z.clone(), z.clone()]
    for end, value in zip(ends, (-1.0, 1.0), strict=True):
        end[:, 2] = value
    left, right = (layer.inverse(end)[0][:, [0, 1, 3]] for end in ends)
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.CoupledRationalQuadraticSpline(4, 1, 8, tails="cubic"), "tails must be"),
        (lambda: ours.CoupledRationalQuadraticSpline(4, 1, 8)(torch.ones(2, 3)), r"\[N, 4\]"),
        (lambda: splines.PiecewiseRationalQuadraticCDF([3])(torch.ones(2, 4)), r"shape \[3\]"),
        (
            lambda: splines.PiecewiseRationalQuadraticCoupling(
                torch.ones(2, 2), lambda *_: nn.Identity()
            ),
            "one-dimensional",
        ),
        (
            lambda: splines.PiecewiseRationalQuadraticCoupling(
                [1, 0], lambda i, o: nn.Bilinear(i, 1, 3), tails="linear"
            )(torch.ones(2, 2), torch.ones(2, 1)),
            r"must give shape \[2, 29\]",
        ),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_tails_of_normflows_are_left_alone() -> None:
    home = peers().neural_spline.coupling
    peer = home.PiecewiseRationalQuadraticCDF([3], 4, "cubic")
    assert "tails" in (splines.PiecewiseRationalQuadraticCDF.refusal(peer) or "")
