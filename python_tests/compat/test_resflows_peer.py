"""residual-flows' layers against its own package, resflows (September 2023)."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flowops
from flowops.compat import patch
from flowops.compat import residual_flows as ours
from flowops.compat._twins import find_twin, swap, tables, unswap

from .against_peer import pickled, swap_all

DTYPES = [torch.float64, torch.float32]
NORMS = [(1, 1), (1, 2), (2, math.inf), (math.inf, math.inf)]
Case = tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]


def peers() -> Any:
    homes = [pytest.importorskip(f"resflows.layers{place}") for place in ("", ".base")]
    return SimpleNamespace(**vars(homes[0]) | vars(homes[1]))


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002


def bound(draw: random.Random) -> dict[str, Any]:
    return {"bias": draw.random() < 0.5, "coeff": draw.choice([0.3, 0.97])}


def iterated(draw: random.Random) -> dict[str, Any]:
    tolerances = {"atol": 1e-3, "rtol": 1e-3}
    ends = draw.choice([{"n_iterations": 3}, {"n_iterations": 9} | tolerances, tolerances])
    return bound(draw) | ends


def closed(draw: random.Random) -> dict[str, Any]:
    norms = dict(zip(("domain", "codomain"), draw.choice(NORMS), strict=True))
    return bound(draw) | norms | {"local_constraint": draw.random() < 0.5}


def vectors(draw: random.Random) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    size = draw.randint(1, 6)
    return (size, draw.randint(1, 6)), (size,)


def images(draw: random.Random) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Sizes of which a stride leaves no row unread: there resflows itself fails."""
    channels, kernel, stride = draw.randint(1, 4), draw.choice([1, 3]), draw.choice([1, 2])
    size = (stride * draw.randint(1, 3) + 1, stride * draw.randint(1, 3) + 1)
    return (channels, draw.randint(1, 4), kernel, stride, kernel // 2), (channels, *size)


CONFIGURE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "SpectralNormLinear": (vectors, iterated),
    "SpectralNormConv2d": (images, iterated),
    "InducedNormLinear": (vectors, iterated),
    "InducedNormConv2d": (images, iterated),
    "LopLinear": (vectors, closed),
    "LopConv2d": (images, closed),
    "Swish": (lambda draw: ((), (draw.randint(1, 5),)), lambda draw: {}),
}


def configure(name: str, number: int) -> Case:
    draw = random.Random(f"{name} {number}")
    sizes, options = CONFIGURE[name]
    (args, shape), given = sizes(draw), options(draw)
    if name == "LopConv2d":
        given["bias"] = True  # which resflows has in any case
    return args, given, shape


def build(home: Any, name: str, case: Case, dtype: torch.dtype) -> Any:
    seed(4)
    layer = getattr(home, name)(*case[0], **case[1]).to(dtype)
    for p in layer.parameters():
        p.data.mul_(5)  # so that the bound is reached
    return layer


def evaluate(layer: nn.Module, x: Tensor, *start: Tensor, inverse: bool = False) -> dict[str, Any]:
    """Outputs and gradients; the log-determinants alike weighed, as resflows has to have them."""
    seed(9)
    leaves = [t.clone().requires_grad_() for t in (x, *start)]
    layer.zero_grad()
    # The block asks its input for a gradient, in place.
    out = (layer.inverse if inverse else layer)(*[t * 1 for t in leaves])  # type: ignore[operator]
    y, *total = out if isinstance(out, tuple) else (out,)
    loss = (y * torch.linspace(-1, 2, y.numel()).to(y).view_as(y)).sum()
    for value in total:
        loss = loss + 0.7 * value.sum()
    loss.backward()
    found: dict[str, Any] = {f"out {i}": t.detach() for i, t in enumerate((y, *total))}
    found |= {f"in {i}": t.grad for i, t in enumerate(leaves)}
    return found | {name: _or_zero(p) for name, p in layer.named_parameters()}


def _or_zero(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def assert_same(mine: Any, theirs: Any, dtype: torch.dtype, tolerance: float = 1e-11) -> None:
    limit = tolerance if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(mine, theirs, rtol=limit, atol=limit)


# resflows divides by a float32 number, in float64 too.
ROUNDED = 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", CONFIGURE)
def test_layers_equal_resflows_from_the_first_draw(
    name: str, number: int, dtype: torch.dtype
) -> None:
    case = configure(name, number)
    mine, peer = (build(home, name, case, dtype) for home in (ours, peers()))
    for size in (4, 1, 0):
        x = torch.randn(size, *case[2], dtype=dtype)
        assert_same(evaluate(mine, x), evaluate(peer, x), dtype, ROUNDED)
        assert_same(dict(mine.state_dict()), dict(peer.state_dict()), dtype, ROUNDED)
    if "n_iterations" in case[1]:
        for layer in (mine, peer):
            layer.compute_weight(update=True, n_iterations=4)
    mine.eval(), peer.eval()
    x = torch.randn(3, *case[2], dtype=dtype)
    assert_same(evaluate(mine, x), evaluate(peer, x), dtype, ROUNDED)
    assert repr(mine).split("(")[0] == repr(peer).split("(")[0]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", CONFIGURE)
def test_swapped_layers_equal_resflows_and_go_back(name: str, number: int) -> None:
    case, home = configure(name, number), peers()
    peer = build(home, name, case, torch.float64)
    x = torch.randn(4, *case[2], dtype=torch.float64)
    twin: Any = find_twin(peer)
    assert twin is getattr(ours, name)
    assert twin.refusal(peer) is None
    taken = copy.deepcopy(peer)
    swap(taken, twin)
    assert isinstance(taken, getattr(home, name))
    assert isinstance(taken, twin)
    for _ in range(2):  # the first batch, and another
        expected = evaluate(peer, x)
        for layer in (copy.deepcopy(taken), pickled(taken), taken):
            assert_same(evaluate(layer, x), expected, torch.float64, ROUNDED)
            assert_same(dict(layer.state_dict()), dict(peer.state_dict()), torch.float64, ROUNDED)
    assert type(unswap(taken)) is getattr(home, name)
    assert_same(evaluate(taken, x), evaluate(peer, x), torch.float64, ROUNDED)


@pytest.mark.parametrize("name", CONFIGURE)
def test_states_go_to_resflows_and_back(name: str) -> None:
    case, home = configure(name, 1), peers()
    mine, peer = (build(each, name, case, torch.float64) for each in (ours, home))
    x = torch.randn(4, *case[2], dtype=torch.float64)
    mine(x), peer(2 * x)
    for p in mine.parameters():
        p.data.add_(torch.rand_like(p))
    peer.load_state_dict(mine.state_dict(), strict=True)
    fresh = build(ours, name, case, torch.float64)
    swapped: Any = swap(build(home, name, case, torch.float64), type(fresh))
    for layer in (fresh, swapped):  # neither has seen a batch
        layer.load_state_dict(peer.state_dict(), strict=True)
        assert_same(evaluate(layer.eval(), x), evaluate(peer.eval(), x), torch.float64, ROUNDED)
    back = unswap(swapped)
    assert_same(evaluate(back.train(), x), evaluate(peer.train(), x), torch.float64, ROUNDED)


def conditioner(channels: int, params: int, *, image: bool) -> nn.Module:
    if image:
        return nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1), nn.ELU(), nn.Conv2d(5, params, 1)
        )
    return nn.Sequential(nn.Linear(channels, 5), nn.ELU(), nn.Linear(5, params))


COUPLINGS: dict[str, tuple[str, int, tuple[int, ...], dict[str, Any]]] = {
    "vectors": ("CouplingBlock", 6, (), {}),
    "swapped": ("CouplingBlock", 2, (), {"swap": True}),
    "images": ("CouplingBlock", 4, (3, 5), {}),
    "channel0": ("ChannelCouplingBlock", 4, (2, 3), {"mask_type": "channel0"}),
    "channel1": ("ChannelCouplingBlock", 6, (3, 1), {"mask_type": "channel1"}),
    "checkerboard0": ("MaskedCouplingBlock", 3, (4, 5), {"mask_type": "checkerboard0"}),
    "checkerboard1": ("MaskedCouplingBlock", 1, (3, 3), {"mask_type": "checkerboard1"}),
    "masked_channel0": ("MaskedCouplingBlock", 4, (2, 3), {"mask_type": "channel0"}),
    "masked_channel1": ("MaskedCouplingBlock", 2, (1, 3), {"mask_type": "channel1"}),
    "unmasked": ("MaskedCouplingBlock", 2, (3, 3), {"mask_type": None}),
}


def make_coupling(home: Any, case: str) -> Any:
    kind, dim, size, options = COUPLINGS[case]
    seed(2)
    masked = kind == "MaskedCouplingBlock"
    net = conditioner(dim if masked else dim // 2, 2 * dim if masked else dim, image=bool(size))
    return getattr(home, kind)(dim, net, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", COUPLINGS)
def test_couplings_equal_resflows_both_ways(case: str, dtype: torch.dtype) -> None:
    kind, dim, size, _ = COUPLINGS[case]
    mine, peer = (make_coupling(home, case).to(dtype) for home in (ours, peers()))
    for p in peer.parameters():
        p.data.mul_(3)
    mine.load_state_dict(peer.state_dict(), strict=True)
    peer.load_state_dict(mine.state_dict(), strict=True)
    taken = copy.deepcopy(peer)
    assert swap_all(taken) == 1
    assert isinstance(taken, getattr(ours, kind))
    assert isinstance(taken, getattr(peers(), kind))
    for rows in (4, 1):
        x = torch.randn(rows, dim, *size, dtype=dtype)
        start = torch.randn(rows, 1, dtype=dtype)
        for inverse in (False, True):
            expected = evaluate(peer, x, start, inverse=inverse)
            for layer in (mine, taken, copy.deepcopy(taken), pickled(taken)):
                assert_same(evaluate(layer, x, start, inverse=inverse), expected, dtype)
            alone = evaluate(peer, x, inverse=inverse)
            assert_same(evaluate(mine, x, inverse=inverse), alone, dtype)
    assert repr(mine) == repr(peer)
    assert type(unswap(taken)) is getattr(peers(), kind)


BLOCKS: dict[str, dict[str, Any]] = {
    "default": {},
    "memory": {"grad_in_forward": True},
    "graph": {"neumann_grad": False},
    "truncated": {"n_power_series": 4},
    "exact_trace": {"exact_trace": True},
    "brute_force": {"brute_force": True},
    "poisson": {"n_dist": "poisson", "lamb": 1.5},
    "several": {"n_samples": 3, "geom_p": 0.3, "n_exact_terms": 4},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_equal_resflows(
    case: str, features: int, training: bool, dtype: torch.dtype
) -> None:
    if case == "brute_force" and features == 3:
        pytest.skip("for two dimensions")
    seed(3)
    net = conditioner(features, features, image=False)
    for p in net.parameters():
        p.data.mul_(0.8)
    homes = (ours, peers())
    mine, peer = (home.iResBlock(copy.deepcopy(net), **BLOCKS[case]) for home in homes)
    mine, peer = mine.to(dtype).train(training), peer.to(dtype).train(training)
    x, start = torch.randn(5, features, dtype=dtype), torch.randn(5, 1, dtype=dtype)
    taken = copy.deepcopy(peer)
    assert swap_all(taken) == 1
    assert isinstance(taken, homes[1].iResBlock)
    expected = evaluate(peer, x, start)
    states = dict(peer.state_dict())
    for block in (mine, taken, copy.deepcopy(taken), pickled(taken)):
        assert_same(evaluate(block, x, start), expected, dtype)
        assert_same(dict(block.state_dict()), states, dtype)
    # Their inverse ends within some thousandths, ours at rounding.
    for block in (mine, taken):
        theirs = evaluate(peer, x, start, inverse=True)
        assert_same(evaluate(block, x, start, inverse=True), theirs, torch.float64, 2e-2)
    mine.load_state_dict(peer.state_dict(), strict=True)
    peer.load_state_dict(mine.state_dict(), strict=True)


@pytest.mark.parametrize("kind", ["SpectralNormConv2d", "InducedNormConv2d"])
@pytest.mark.parametrize("case", ["default", "memory", "graph"])
def test_blocks_of_images_equal_resflows_from_the_first_batch(case: str, kind: str) -> None:
    values = []
    for home in (ours, peers()):
        seed(6)
        layer, options = getattr(home, kind), {"n_iterations": 4}
        net = nn.Sequential(
            home.Swish(), layer(2, 3, 3, 1, 1, **options), layer(3, 2, 1, 1, 0, **options)
        )
        net[1].weight.data.mul_(6)
        block = home.iResBlock(net, **BLOCKS[case])
        x, start = torch.randn(3, 2, 5, 4), torch.zeros(3, 1)
        values.append([evaluate(block, x, start) for _ in range(2)])
        values[-1].append(dict(block.state_dict()))
    assert_same(*values, torch.float32)


def image_model(home: Any) -> nn.Module:
    seed(1)
    blocks = [
        home.iResBlock(
            nn.Sequential(
                home.Swish(),
                home.SpectralNormConv2d(4, 5, 3, 1, 1, n_iterations=4),
                home.LopConv2d(5, 4, 1, 1, 0, domain=2, codomain=math.inf),
            ),
            geom_p=0.2,
            n_dist="geometric",
        )
        for _ in range(2)
    ]
    return home.SequentialFlow([*blocks, make_coupling(home, "images")])


def test_a_resflows_model_is_accelerated_and_verified_before_its_first_batch() -> None:
    home = peers()
    model = image_model(home)
    x, start = torch.randn(3, 4, 5, 6), torch.zeros(3, 1)
    before = copy.deepcopy(model)
    report = flowops.accelerate(model, (x, start), verify=True)
    assert len(report.swapped) == 9
    assert [layer.kind.rpartition(".")[2] for layer in report.kept] == ["SequentialFlow"]
    assert not model.chain[0].nnet[1].initialized
    assert_same(evaluate(model, x, start), evaluate(before, x, start), torch.float32)
    report.restore()
    assert type(model.chain[0]) is home.iResBlock
    assert_same(evaluate(model, x, start), evaluate(before, x, start), torch.float32)


def test_patch_takes_what_resflows_builds() -> None:
    flow = pytest.importorskip("resflows.resflow")
    options: dict[str, Any] = {
        "n_blocks": [1, 1],
        "intermediate_dim": 6,
        "kernels": "3-1-3",
        "n_lipschitz_iters": 3,
        "sn_atol": None,
        "sn_rtol": None,
        "n_dist": "geometric",
        "activation_fn": "swish",
        "fc_idim": 8,
    }
    seed(8)
    peer = flow.ResidualFlow((3, 1, 8, 8), **options)
    seed(8)
    with patch("residual_flows") as report:
        mine = flow.ResidualFlow((3, 1, 8, 8), **options)
    kinds = {layer.kind.rpartition(".")[2] for layer in report.swapped}
    assert {"iResBlock", "InducedNormConv2d", "LopConv2d", "LopLinear", "Swish"} <= kinds
    x, start = torch.rand(3, 1, 8, 8), torch.zeros(3, 1)
    assert_same(evaluate(mine, x, start), evaluate(peer, x, start), torch.float32)


def test_what_of_resflows_is_left_alone_and_why() -> None:
    home = peers()
    learned = torch.tensor(0.0)
    for peer, reason in (
        (home.InducedNormLinear(3, 3, domain=1, codomain=2, n_iterations=2), "not Euclidean"),
        (
            home.InducedNormConv2d(3, 3, 3, 1, 1, domain=learned, codomain=learned),
            "not Euclidean",
        ),
        (home.LopLinear(3, 3, domain=1, codomain=math.inf), "positive weights alone"),
        (home.MaskedCouplingBlock(2, nn.Identity(), "stripes"), "got 'stripes'"),
        (home.iResBlock(nn.Identity(), n_dist="uniform"), "n_dist 'uniform'"),
    ):
        report = flowops.accelerate(peer)
        assert not report.swapped
        assert reason in report.kept[0].reason


def test_the_largest_entry_counts_whatever_its_sign_unlike_in_resflows() -> None:
    case: Case = ((3, 4), {"domain": 1, "codomain": math.inf}, (3,))
    mine, peer = (build(home, "LopLinear", case, torch.float64) for home in (ours, peers()))
    assert (peer.weight < -0.97).any()
    assert peer.compute_weight().abs().max() > 1
    assert mine.compute_weight().abs().max() <= 0.97 + 1e-12
    for layer in (mine, peer):
        layer.weight.data.abs_()
    assert_same(mine.compute_weight(), peer.compute_weight(), torch.float64)


def test_convolutions_have_no_bias_if_told_so_unlike_in_resflows() -> None:
    mine, peer = (home.LopConv2d(2, 3, 3, 1, 1, bias=False) for home in (ours, peers()))
    assert mine.bias is None
    assert peer.bias is not None
    x = torch.randn(2, 2, 5, 4)
    expected = peer(x)
    assert flowops.accelerate(peer).swapped
    assert_same(peer(x), expected, torch.float32)


def test_the_table_names_classes_that_resflows_has() -> None:
    home = peers()
    for full, twin in tables()["residual_flows"].items():
        peer = getattr(home, twin.__name__)
        assert f"{peer.__module__}.{peer.__qualname__}" == full
