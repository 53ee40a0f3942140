"""Data-dependent initialisation happens once, explicitly, and survives; see flowops.nn.ActNorm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from flowops.nn import ActNorm, BatchNorm, DiagonalScale, GatedResNet, GlowConvNet
from flowops.testing import randomize_


def _data() -> torch.Tensor:
    scale = torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1)
    return torch.randn(50, 3, 4, 5) * scale + torch.tensor([100.0, 0.0, -3.0]).view(3, 1, 1)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_initialize_normalises_the_first_batch(factor: float) -> None:
    layer = ActNorm(3, log_scale_factor=factor)
    x = _data().double()
    z = layer.double().initialize(x)
    std, mean = torch.std_mean(z, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)
    assert torch.equal(layer(x)[0], z)


def test_initialize_happens_once() -> None:
    layer = ActNorm(3)
    layer.initialize(_data())
    before = copy.deepcopy(layer.state_dict())
    layer.initialize(_data() + 7)
    layer.eval()
    layer.initialize(_data() + 7)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_calls_never_initialize() -> None:
    layer = ActNorm(3)
    x = _data()
    assert torch.equal(layer(x)[0], x)
    assert torch.equal(layer.inverse(x)[0], x)
    assert not layer.initialized


def test_loaded_state_is_not_initialized_again() -> None:
    layer = ActNorm(3)
    layer.initialize(_data())
    fresh = ActNorm(3)
    fresh.load_state_dict(layer.state_dict())
    x = _data() * 2
    assert torch.equal(fresh.initialize(x), layer(x)[0])
    fresh.reset_parameters()
    assert not fresh.initialized


def test_initialize_in_evaluation_is_refused() -> None:
    layer = ActNorm(3).eval()
    with pytest.raises(RuntimeError, match="ActNorm: initialize must be called in training mode"):
        layer.initialize(_data())


def test_initialize_of_an_empty_batch_is_refused() -> None:
    layer = ActNorm(3)
    with pytest.raises(ValueError, match=r"at least one sample, got shape \(0, 3, 4, 5\)"):
        layer.initialize(_data()[:0])
    assert not layer.initialized


def _initialize_rank(rank: int, world: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.manual_seed(0)
    layer = ActNorm(3)
    # Ranks with shares of unequal size, one of them empty.
    layer.initialize(_data().tensor_split([30, 30])[rank])
    torch.save(layer.state_dict(), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_initialize_takes_the_statistics_of_all_ranks(tmp_path: Path) -> None:
    mp.spawn(_initialize_rank, (3, str(tmp_path / "store"), str(tmp_path)), nprocs=3)
    torch.manual_seed(0)
    alone = ActNorm(3)
    alone.initialize(_data())
    for rank in range(3):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [GlowConvNet(3, 4, hidden=6), GatedResNet(3, 4, hidden=6)])
def test_conditioners_initialize_in_order(network: torch.nn.Module) -> None:
    x = _data()
    out = network.initialize(x)
    assert torch.equal(out, network(x))
    hidden = network.first(network._with_mask(x) if isinstance(network, GatedResNet) else x)
    std, mean = torch.std_mean(hidden, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)
    assert all(bool(b) for n, b in network.named_buffers() if n.endswith("initialized"))


def test_batch_norm_normalises_and_tracks() -> None:
    layer = BatchNorm(3, momentum=1.0)
    x = _data()
    z, logdet = layer(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    expected = -0.5 * 20 * torch.log(x.var((0, 2, 3), correction=0) + layer.eps).sum()
    torch.testing.assert_close(logdet, expected.expand(50), rtol=1e-5, atol=1e-3)
    layer.eval()
    torch.testing.assert_close(layer(x)[0], z)
    torch.testing.assert_close(layer.inverse(z)[0], x, rtol=1e-4, atol=1e-4)


def test_batch_norm_differentiates_its_statistics() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: BatchNorm(3).double()(x), (x,))


def test_batch_norm_initialize_leaves_running_statistics() -> None:
    layer = randomize_(BatchNorm(3))
    before = copy.deepcopy(layer.state_dict())
    layer.initialize(_data())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ActNorm(0), "ActNorm: channels must be at least 1, got 0"),
        (
            lambda: ActNorm(2, log_scale_factor=0),
            "ActNorm: log_scale_factor must be above 0, got 0",
        ),
        (lambda: ActNorm(2, eps=-1), "ActNorm: eps must be at least 0, got -1"),
        (lambda: DiagonalScale(0), "DiagonalScale: channels must be at least 1, got 0"),
        (lambda: BatchNorm(0), "BatchNorm: channels must be at least 1, got 0"),
        (lambda: BatchNorm(2, eps=0), "BatchNorm: eps must be above 0, got 0"),
        (lambda: BatchNorm(2, momentum=2), r"BatchNorm: momentum must be in \(0, 1\], got 2"),
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
