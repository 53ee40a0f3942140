"""residual-flows' layers against its own package, resflows (September 2023)."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import flowops
from flowops.compat import residual_flows as ours
from flowops.compat._twins import find_twin, swap, tables, unswap

from .against_peer import pickled, swap_all
from .resflows_cases import COUPLINGS, DTYPES, assert_same, evaluate, make_coupling, peers, seed

NORMS = [(1, 1), (1, 2), (2, math.inf), (math.inf, math.inf)]
Case = tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]


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
