"""spectral_norm_model under DistributedDataParallel: two processes do what one does on all data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowops.nn.utils import spectral_norm_model

RANKS = 2


def _model() -> nn.Module:
    torch.manual_seed(0)
    return spectral_norm_model(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ELU(), nn.Flatten(), nn.Linear(144, 1))
    ).double()


def _two_passes(model: nn.Module, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Two forward passes, then one backward pass, as a GAN's critic is trained."""
    for _ in range(2):
        (model(real).square().mean() - model(fake).mean()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def _train_step(rank: int, folder: Path, real: Tensor, fake: Tensor) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        model = _model()
        share = [t.chunk(RANKS)[rank] for t in (real, fake)]
        _two_passes(DistributedDataParallel(model), *share)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save((model.state_dict(), gradients), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    real, fake = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64).unbind()
    torch.multiprocessing.spawn(_train_step, (tmp_path, real, fake), nprocs=RANKS)
    (state, gradients), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    torch.testing.assert_close(other, (state, gradients), rtol=0, atol=0)
    model = _model()
    wanted = _two_passes(model, real, fake)
    torch.testing.assert_close(state, dict(model.state_dict()))
    torch.testing.assert_close(gradients, wanted)
