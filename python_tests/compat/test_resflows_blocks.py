"""residual-flows' blocks and models against its own package, resflows (September 2023)."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import flowops
from flowops.compat import patch
from flowops.compat import residual_flows as ours

from .against_peer import pickled, swap_all
from .resflows_cases import (
    DTYPES,
    assert_same,
    conditioner,
    evaluate,
    make_coupling,
    peers,
    seed,
)

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
    assert model.state_dict().keys() == before.state_dict().keys()
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
