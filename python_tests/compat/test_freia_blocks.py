"""flowops.compat.freia against FrEIA: couplings, the all-in-one block, and networks taken over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowops import accelerate
from flowops.compat import freia as ours
from flowops.compat._twins import Joined
from flowops.compat.freia.base import clamp_scale
from flowops.testing import jacobian_logdet

DTYPES = (torch.float32, torch.float64)
DIMS = [(5,), (4, 7), (4, 3, 5), (1, 6)]


def cubic(u: Tensor) -> Tensor:
    """A clamp of the user's own."""
    return torch.tanh(u.pow(3))


class Net(nn.Module):
    """Channels mixed at each pixel, for any number of pixels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nc...->no...", self.weight, x).sin()


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "GLOWCouplingBlock": [
        {}, {"clamp": 0.7, "clamp_activation": "TANH"}, {"clamp_activation": "SIGMOID"},
        {"clamp_activation": cubic}, {"split_len": 1}, {"split_len": 0.7},
    ],
    "GINCouplingBlock": [{}, {"clamp": 1.3, "clamp_activation": "TANH", "split_len": 0.6}],
    "RNVPCouplingBlock": [{}, {"clamp": 0.7, "clamp_activation": "SIGMOID"}],
    "NICECouplingBlock": [{}, {"split_len": 1}],
    "AffineCouplingOneSided": [{}, {"clamp": 3.0, "clamp_activation": "TANH"}],
    "ConditionalAffineTransform": [{}, {"clamp": 0.4}],
    "AllInOneBlock": [
        {}, {"affine_clamping": 0.6, "global_affine_type": "SIGMOID", "global_affine_init": 0.7},
        {"gin_block": True}, {"permute_soft": True, "global_affine_type": "EXP"},
        {"learned_householder_permutation": 3, "reverse_permutation": True},
        {"reverse_permutation": True},
    ],
}  # fmt: skip
CASES = [(name, i) for name, options in OPTIONS.items() for i in range(len(options))]


@pytest.fixture
def freia() -> Any:
    return pytest.importorskip("FrEIA.modules")


def build(module: Any, name: str, case: int, dims: tuple[int, ...], conditional: bool) -> Any:
    """Return a block whose parameters are random, the same for either library."""
    torch.manual_seed(case)
    np.random.seed(case)  # noqa: NPY002
    dims_c = [(2, *dims[1:])] if conditional or name == "ConditionalAffineTransform" else []
    options: dict[str, Any] = OPTIONS[name][case]
    block = getattr(module, name)([dims], dims_c, subnet_constructor=Net, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 2)
    return block


def inputs(dims: tuple[int, ...], block: Any, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    conditions = [torch.randn(3, *d, dtype=dtype) for d in block.dims_c]
    return torch.randn(3, *dims, dtype=dtype), conditions


def call(block: Any, x: Tensor, *c: Tensor, rev: bool = False) -> tuple[Tensor, Any]:
    (out,), logdet = block([x], list(c), rev=rev)
    return out, logdet


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_blocks_are_those_of_FrEIA(
    freia: Any, name: str, case: int, dims: tuple[int, ...], dtype: torch.dtype
) -> None:
    if dims[0] == 1 and name != "ConditionalAffineTransform":
        pytest.skip("one channel has no parts")
    for conditional in (False, True):
        peer = build(freia, name, case, dims, conditional).to(dtype)
        mine = build(ours, name, case, dims, conditional).to(dtype)
        mine.load_state_dict(peer.state_dict())
        peer.load_state_dict(mine.state_dict())
        x, c = inputs(dims, peer, dtype)
        bound = 1e-9 if dtype == torch.float64 else 2e-4
        for rev in (False, True):
            results = []
            for block in (mine, peer):
                leaves = [t.clone().requires_grad_() for t in (x, *c)]
                leaves += [p for p in block.parameters() if p.requires_grad]
                out, logdet = call(block, *leaves[: 1 + len(c)], rev=rev)
                loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
                if isinstance(logdet, Tensor):
                    loss = loss + (logdet * torch.arange(3.0)).sum()
                grads = torch.autograd.grad(loss, leaves, allow_unused=True)
                results.append((out, logdet, [g for g in grads if g is not None]))
            torch.testing.assert_close(results[0], results[1], rtol=bound, atol=bound)


@torch.no_grad()
@pytest.mark.parametrize(("name", "case"), CASES)
def test_logdet_is_that_of_the_jacobian(name: str, case: int) -> None:
    block = build(ours, name, case, (4, 2, 1), True).double()
    x, c = inputs((4, 2, 1), block, torch.float64)
    x, c = x[:1], [t[:1] for t in c]
    for rev in (False, True):
        logdet = call(block, x, *c, rev=rev)[1]
        move = partial(call, rev=rev)
        expected = jacobian_logdet(lambda row, move=move: move(block, row, *c)[0], x)
        # A soft permutation is a rotation but for the rounding of float32.
        torch.testing.assert_close(expected, torch.zeros_like(expected) + logdet, rtol=0, atol=2e-6)
    z, logdet = call(block, x, *c)
    back, logdet_back = call(block, z, *c, rev=True)
    torch.testing.assert_close(back, x, rtol=0, atol=5e-6)
    assert abs(float(logdet + logdet_back)) < 2e-6


def flow_of(module: Any, networks: Any) -> nn.Module:
    flow = networks.SequenceINN(6)
    for name in ("AllInOneBlock", "GLOWCouplingBlock", "GINCouplingBlock"):
        flow.append(getattr(module, name), cond=0, cond_shape=(2,), subnet_constructor=Net)
    return flow


def test_networks_of_FrEIA_are_taken_over(freia: Any) -> None:
    networks = pytest.importorskip("FrEIA.framework")
    flow = flow_of(freia, networks)
    flow.append(freia.PermuteRandom)
    flow = flow.double()
    x, c = torch.randn(5, 6).double(), torch.randn(5, 2).double()
    for rev in (False, True):
        report = accelerate(flow, (x, c), verify=True, call=lambda f, x, c, r=rev: f(x, [c], rev=r))
        assert len(report.swapped) == 3
        assert any("PermuteRandom" in layer.kind for layer in report.kept)
        assert isinstance(flow.module_list[0], Joined)
        assert isinstance(flow.module_list[0], freia.AllInOneBlock)
        expected = flow(x, [c], rev=rev)
        torch.testing.assert_close(copy.deepcopy(flow)(x, [c], rev=rev), expected)
        report.restore()
        assert type(flow.module_list[0]) is freia.AllInOneBlock


def test_our_blocks_serve_the_networks_of_FrEIA() -> None:
    networks = pytest.importorskip("FrEIA.framework")
    flow = flow_of(ours, networks).double()
    x, c = torch.randn(5, 6).double(), torch.randn(5, 2).double()
    z, logdet = flow(x, [c])
    back, logdet_back = flow(z, [c], rev=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet_back, -logdet)


def test_checkpoints_of_either_FrEIA_load(freia: Any) -> None:
    peer = build(freia, "AllInOneBlock", 0, (6, 2, 2), False)
    state = peer.state_dict()
    order = state["w_perm"].flatten(1).argmax(1)
    after = state | {"w_perm": order, "w_perm_inv": order.argsort()}
    x = torch.randn(3, 6, 2, 2)
    for given in (state, after):
        mine = build(ours, "AllInOneBlock", 0, (6, 2, 2), False)
        mine.w_perm.data = mine.w_perm.flip(0)
        mine.load_state_dict(given)
        torch.testing.assert_close(call(mine, x), call(peer, x), rtol=1e-4, atol=1e-5)


def test_exponent_of_FrEIA_after_0_2() -> None:
    """c tanh(0.1 s / c) is linear where 0.1 s is small against c, whatever c is."""
    block = ours.AllInOneBlock([(2,)], (), Net, affine_clamping=5.0, freia="HEAD")
    x = torch.randn(4, 2)
    raw = 0.1 * block.subnet(x[:, :1])
    logdet = call(block, x)[1]
    expected = 5 * torch.tanh(raw[:, :1] / 5).sum(1) + block._global_scale()[1]
    torch.testing.assert_close(logdet, expected)
    assert (block._global_scale()[0] - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["ATAN", "TANH", "SIGMOID"])
def test_lambdas_of_FrEIA_are_known_by_their_values(freia: Any, name: str) -> None:
    block = freia.GLOWCouplingBlock([(4,)], [], Net, clamp_activation=name)
    mine = ours.GLOWCouplingBlock([(4,)], [], Net, clamp_activation=name)
    assert clamp_scale(block.f_clamp, 2.0) == clamp_scale(mine.f_clamp, 2.0) is not None
    assert clamp_scale(cubic, 2.0) is None


class Counting(nn.Module):
    """A clamp that changes with every call."""

    calls = 0

    def forward(self, u: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(u)


def rows_alone(u: Tensor) -> Tensor:
    if u.dim() != 2:
        raise RuntimeError("not rows")
    return torch.tanh(u)


def test_clamps_that_cannot_be_tried() -> None:
    x, counting = torch.randn(3, 4), Counting()
    plain = build(ours, "GLOWCouplingBlock", 1, (4,), False)
    for clamp in (counting, rows_alone):
        block = ours.GLOWCouplingBlock([(4,)], [], Net, clamp=0.7, clamp_activation=clamp)
        block.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(call(block, x), call(plain, x))
    assert counting.calls == 2


def test_empty_batch() -> None:
    for name, case in CASES:
        block = build(ours, name, case, (4, 3), False)
        out, _ = call(block, torch.zeros(0, 4, 3), *[torch.zeros(0, *d) for d in block.dims_c])
        assert out.shape == (0, 4, 3)


Build = Callable[[], Any]
BAD: list[tuple[Build, str]] = [
    (lambda: ours.GLOWCouplingBlock([(4,)], [(2, 3)], Net), "dims_c must have the pixels"),
    (lambda: ours.GLOWCouplingBlock([(4,)], [], Net, split_len=5), "split_len must be from 0 to 4"),
    (lambda: ours.GLOWCouplingBlock([(4,)], [], Net, split_len=1.5), "split_len must be .* 1, got"),
    (lambda: ours.GLOWCouplingBlock([(4,)], [], Net, clamp_activation="X"), "clamp_activation"),
    (lambda: ours.RNVPCouplingBlock([(4,)]), "subnet_constructor must be a function"),
    (lambda: ours.ConditionalAffineTransform([(4,)], [], Net), "dims_c must hold a condition"),
    (lambda: ours.AllInOneBlock([(4,)], [], Net, global_affine_type="X"), "global_affine_type"),
    (lambda: ours.AllInOneBlock([(4, 1, 1, 1, 1)], [], Net), "dims_in must have up to 4"),
    (lambda: ours.AllInOneBlock([(4,)], [], Net, freia="1"), "freia must be '0.2' or 'HEAD'"),
    (lambda: call(build(ours, "AllInOneBlock", 0, (4,), False), torch.zeros(2, 5)), "4 channels"),
    (lambda: call(build(ours, "NICECouplingBlock", 0, (4,), False), torch.zeros(2, 5)), "4 chann"),
    (lambda: build(ours, "NICECouplingBlock", 0, (4,), False).output_dims([(4,), (2,)]), "one sh"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "message"), BAD)
def test_bad_input(run: Build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()
