"""flowops.compat.freia against FrEIA: actnorm, fixed convolutions, and the blocks of splines.

The splines came after FrEIA 0.2: their comparison runs where a newer one is installed.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from compat.test_freia_blocks import Net
from flowops import accelerate
from flowops.compat import freia as ours
from flowops.compat._twins import Joined
from flowops.testing import jacobian_logdet

SPLINES: list[dict[str, Any]] = [
    {},
    {"bins": 4, "min_bin_sizes": (0.05, 0.2), "default_domain": (-1.0, 2.0, 0.0, 8.0)},
    {"bins": 3, "identity_tails": True, "domain_clamping": 5.0},
    {"bins": 1, "domain_clamping": 4.0},
]
BLOCKS = ("RationalQuadraticSpline", "ElementwiseRationalQuadraticSpline")


@pytest.fixture
def freia() -> Any:
    return pytest.importorskip("FrEIA.modules")


def call(block: Any, x: Tensor, *c: Tensor, rev: bool = False) -> tuple[Tensor, Any]:
    (out,), logdet = block([x], list(c), rev=rev) if c else block([x], rev=rev)
    return out, logdet


def randomise(module: Any) -> Any:
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    return module.double()


def assert_same(a: Any, b: Any, x: Tensor, *c: Tensor) -> None:
    """Outputs, log-dets and gradients of both directions."""
    for rev in (False, True):
        results = []
        for block in (a, b):
            leaves = [t.clone().requires_grad_() for t in (x, *c)]
            leaves += [p for p in block.parameters() if p.requires_grad]
            out, logdet = call(block, *leaves[: 1 + len(c)], rev=rev)
            loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + logdet.sum()
            results.append((out, loss, torch.autograd.grad(loss, leaves, allow_unused=True)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dims", [(3,), (3, 5), (3, 4, 4)])
def test_actnorm_is_that_of_FrEIA(freia: Any, dims: tuple[int, ...]) -> None:
    peer, mine = freia.ActNorm([dims]).double(), ours.ActNorm([dims]).double()
    batch = 3 + 2 * torch.randn(9, *dims).double()
    torch.testing.assert_close(call(mine, batch), call(peer, batch))
    x = torch.randn(4, *dims).double()
    randomise(peer)
    fresh = ours.ActNorm([dims]).double()
    fresh.load_state_dict(peer.state_dict())
    assert_same(fresh, peer, x)
    if hasattr(peer, "scale") and "scale" in peer.state_dict():
        peer.load_state_dict(fresh.state_dict())
    new = freia.ActNorm([dims]).double()
    kept = copy.deepcopy(new)
    assert len(accelerate(new).swapped) == 1
    torch.testing.assert_close(call(new, batch), call(kept, batch))
    assert_same(new, kept, x)


def test_actnorm_takes_the_names_of_either_release() -> None:
    old, new = ours.ActNorm([(3, 2)]), ours.ActNorm([(3, 2)])
    log_scale, loc = torch.randn(1, 3, 1), torch.randn(1, 3, 1)
    new.load_state_dict({"log_scale": log_scale, "loc": loc, "is_initialized": torch.tensor(True)})
    x = torch.randn(5, 3, 2)
    z, logdet = call(new, x)
    torch.testing.assert_close(z, (x - loc) / log_scale.exp())
    torch.testing.assert_close(logdet, -2 * log_scale.sum().expand(5))
    old.load_state_dict(new.state_dict())
    torch.testing.assert_close(call(old, x)[0], z)


def test_actnorm_begins_with_data_given_or_the_first() -> None:
    data = 5 + 3 * torch.randn(50, 2, 4)
    for norm in (ours.ActNorm([(2, 4)], init_data=data), ours.ActNorm([(2, 4)])):
        z, _ = call(norm, data)
        torch.testing.assert_close(z.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std((0, 2)), torch.ones(2))
        again, _ = call(norm, 2 * data)
        assert again.std() > 1.5
    with pytest.raises(ValueError, match="must vary in every channel"):
        call(ours.ActNorm([(2,)]), torch.ones(4, 2))


def test_fixed_convolution_is_that_of_FrEIA(freia: Any) -> None:
    matrix = torch.randn(3, 3)
    peer, mine = (m.Fixed1x1Conv([(3, 4, 4)], M=matrix).double() for m in (freia, ours))
    mine.load_state_dict(peer.state_dict())
    peer.load_state_dict(mine.state_dict())
    x = torch.randn(2, 3, 4, 4).double()
    for rev in (False, True):
        torch.testing.assert_close(call(mine, x, rev=rev), call(peer, x, rev=rev))
    kept = copy.deepcopy(peer)
    accelerate(peer)
    assert isinstance(peer, Joined)
    torch.testing.assert_close(call(peer, x), call(kept, x))
    for bad in (None, torch.ones(3, 2)):
        with pytest.raises(ValueError, match="M must have shape"):
            ours.Fixed1x1Conv([(3, 4, 4)], M=bad)


def build(module: Any, name: str, options: dict[str, Any], conditional: bool) -> Any:
    torch.manual_seed(0)
    dims_c = [(2, 3)] if conditional else []
    block = getattr(module, name)([(4, 3)], dims_c, subnet_constructor=Net, **options)
    return randomise(block)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("options", SPLINES)
@pytest.mark.parametrize("name", BLOCKS)
def test_splines_are_those_of_FrEIA(
    freia: Any, name: str, options: dict[str, Any], conditional: bool
) -> None:
    if not hasattr(freia, name):
        pytest.skip("FrEIA 0.2 has no splines")
    if conditional and name == BLOCKS[1]:
        pytest.skip("FrEIA takes these conditions in float32")
    peer, mine = (build(module, name, options, conditional) for module in (freia, ours))
    mine.load_state_dict(peer.state_dict())
    peer.load_state_dict(mine.state_dict())
    x, c = 3 * torch.randn(5, 4, 3).double(), [torch.randn(5, *d).double() for d in peer.dims_c]
    assert_same(mine, peer, x, *c)
    taken = copy.deepcopy(peer)
    report = accelerate(taken)
    assert len(report.swapped) == 1 + (name == BLOCKS[0])
    assert_same(taken, peer, x, *c)


@pytest.mark.parametrize("options", SPLINES)
@pytest.mark.parametrize("name", BLOCKS)
def test_splines_invert_and_have_the_logdet_of_their_jacobian(
    name: str, options: dict[str, Any]
) -> None:
    block = build(ours, name, options, True)
    x, c = 2 * torch.randn(1, 4, 3).double(), torch.randn(1, 2, 3).double()
    z, logdet = call(block, x, c)
    expected = jacobian_logdet(lambda row: call(block, row, c)[0], x)
    torch.testing.assert_close(logdet, expected)
    back, logdet_back = call(block, z, c, rev=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet_back, -logdet)


def test_options_of_splines_come_from_checkpoints() -> None:
    first = build(ours, BLOCKS[0], SPLINES[1], False)
    second = build(ours, BLOCKS[0], SPLINES[1] | {"default_domain": (-9.0, 9.0, -9.0, 9.0)}, False)
    x = torch.randn(3, 4, 3).double()
    assert not torch.allclose(call(first, x)[0], call(second, x)[0])
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(call(second, x), call(first, x))
    with pytest.raises(ValueError, match="bins must be at least 1 and fit the domain"):
        build(ours, BLOCKS[0], {"bins": 100}, False)
