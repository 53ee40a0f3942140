"""What ReversibleSequential is for: memory that does not grow with depth; 16-bit conditioners."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from flowops.nn import (
    ActNorm,
    AffineCoupling,
    GlowConvNet,
    InvertibleConv1x1,
    ReversibleSequential,
    Sequential,
    Squeeze,
)
from flowops.nn.base import Bijector
from flowops.testing import randomize_

CHANNELS, SIDE, BATCH = 4, 4, 16
DEPTHS = (4, 16, 64)
STATE = CHANNELS * SIDE * SIDE * 4  # bytes of a sample between two layers


class DrawingNet(GlowConvNet):
    """A conditioner with dropout, whose random state must be kept too."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(super().forward(x, context), 0.1)


def _chain(kind: type[Sequential], depth: int, net: type[GlowConvNet] = GlowConvNet) -> Sequential:
    torch.manual_seed(0)
    layers: list[Bijector] = []
    for _ in range(depth):
        conditioner = net(CHANNELS // 2, CHANNELS, hidden=16)
        coupling = AffineCoupling(CHANNELS, conditioner, scale="sigmoid")
        layers += [ActNorm(CHANNELS), InvertibleConv1x1(CHANNELS), coupling]
    chain = kind(*layers)
    randomize_(chain, std=0.02)
    chain.initialize(torch.randn(256, CHANNELS, SIDE, SIDE))
    return chain


def _step(chain: Sequential, batch: int) -> None:
    z, logdet = chain(torch.randn(batch, CHANNELS, SIDE, SIDE))
    (z.square().sum() - logdet.sum()).backward()


def _saved_bytes(chain: Sequential, batch: int) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _ = chain(torch.randn(batch, CHANNELS, SIDE, SIDE))
        return sum(storages.values())


def _peak_bytes(chain: Sequential, batch: int) -> int:
    chain.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as profiler:
        _step(chain, batch)
    events = profiler.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in memory))


@pytest.mark.parametrize("net", [GlowConvNet, DrawingNet])
def test_what_is_saved_of_a_sample_is_the_output_alone(net: type[GlowConvNet]) -> None:
    for depth in DEPTHS:
        chain = _chain(ReversibleSequential, depth, net)
        grown = _saved_bytes(chain, 2 * BATCH) - _saved_bytes(chain, BATCH)
        assert grown == BATCH * STATE
    plain = _chain(Sequential, DEPTHS[0], net)
    grown = _saved_bytes(plain, 2 * BATCH) - _saved_bytes(plain, BATCH)
    assert grown > 10 * DEPTHS[0] * BATCH * STATE


def test_the_peak_of_a_training_step_does_not_grow_with_depth() -> None:
    def of_a_batch(kind: type[Sequential], depth: int) -> int:
        chain = _chain(kind, depth)
        _step(chain, BATCH)  # what is allocated once
        return _peak_bytes(chain, 2 * BATCH) - _peak_bytes(chain, BATCH)

    shallow, middle, deep = (of_a_batch(ReversibleSequential, depth) for depth in DEPTHS)
    assert shallow == middle == deep
    assert of_a_batch(Sequential, DEPTHS[1]) > 4 * deep


def test_random_states_are_kept_where_something_was_drawn() -> None:
    state = torch.get_rng_state().nbytes
    for net, kept in ((GlowConvNet, 0), (DrawingNet, DEPTHS[1])):
        chain = _chain(ReversibleSequential, DEPTHS[1], net)
        _step(chain, BATCH)
        with_states = _peak_bytes(chain, BATCH)
        chain.preserve_rng_state = False
        assert (with_states - _peak_bytes(chain, BATCH)) // state in range(kept, kept + 4)


class Seen(nn.Module):
    """Notes the dtype of a conditioner's output."""

    def __init__(self, net: nn.Module, dtypes: set[torch.dtype]) -> None:
        super().__init__()
        self.net = net
        self.dtypes = dtypes

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        out = self.net(x, context)
        self.dtypes.add(out.dtype)
        return out


def _gradient(
    chain: Sequential, x: Tensor, *, forward: bool, backward: bool, dtype: torch.dtype
) -> Tensor:
    """The gradient of all parameters, with autocast in the forward or the backward pass."""
    chain = copy.deepcopy(chain).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=forward):
        z, logdet = chain(x.to(dtype))
    assert z.dtype == logdet.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16, enabled=backward):
        (z.square().sum() / 2 - logdet.sum()).backward()
    return torch.cat([p.grad.flatten().double() for p in chain.parameters()])


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_sixteen_bit_conditioners_do_not_let_64_steps_drift() -> None:
    plain, reversible = (_chain(kind, 64) for kind in (Sequential, ReversibleSequential))
    x = torch.randn(8, CHANNELS, SIDE, SIDE)
    f32 = {"forward": False, "backward": False, "dtype": torch.float32}
    truth = _gradient(plain, x, **{**f32, "dtype": torch.float64})
    lower = {**f32, "forward": True}
    rounding = _error(_gradient(plain, x, **lower), truth)
    assert _error(_gradient(reversible, x, **lower), truth) < 1.2 * rounding
    assert _error(_gradient(reversible, x, **lower), _gradient(plain, x, **lower)) < rounding


def test_the_backward_pass_runs_under_the_autocast_of_the_forward_pass() -> None:
    chain = _chain(ReversibleSequential, 2)
    dtypes: set[torch.dtype] = set()
    chain[2].conditioner = Seen(chain[2].conditioner, dtypes)
    x = torch.randn(8, CHANNELS, SIDE, SIDE)
    options = {"dtype": torch.float32}
    plain = _gradient(chain, x, forward=False, backward=False, **options)
    inside = _gradient(chain, x, forward=False, backward=True, **options)
    assert torch.equal(inside, plain)
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert ReversibleSequential(Squeeze())(x.bfloat16())[0].dtype == torch.float32
        z, logdet = chain(x.bfloat16())
    assert z.dtype == torch.float32
    (z.sum() + logdet.sum()).backward()
    assert dtypes == {torch.bfloat16}
