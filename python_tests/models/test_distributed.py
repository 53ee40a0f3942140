"""Glow under DistributedDataParallel: two processes do what one does on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowops.distributions import Flow
from flowops.models import build

RANKS = 2


class Loss(nn.Module):
    """Data parallel modules run ``forward`` alone, so the loss is in it."""

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return -self.model.log_prob(x).mean()


def _model(memory: str) -> Flow:
    torch.manual_seed(0)
    return build("glow", (1, 8, 8), steps=2, hidden=8, memory=memory).double()


def _gradients(model: Flow) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def _train_step(rank: int, folder: Path, batch: Tensor, first: int, memory: str) -> None:
    """One process: the first rank initialises from ``first`` samples, the other from the rest."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    try:
        model = _model(memory)
        model.initialize(batch[:first] if rank == 0 else batch[first:])
        state = {name: value.clone() for name, value in model.state_dict().items()}
        parallel = DistributedDataParallel(Loss(model))
        parallel(batch.chunk(RANKS)[rank]).backward()
        torch.save((state, _gradients(model)), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
@pytest.mark.parametrize(
    ("first", "memory"),
    [(4, "plain"), (12, "plain"), (4, "reversible")],
    ids=["uneven shares", "a rank without samples", "activations rebuilt"],
)
def test_two_processes_equal_one(first: int, memory: str, tmp_path: Path) -> None:
    brightness = torch.linspace(0.1, 1, 12, dtype=torch.float64).view(12, 1, 1, 1)
    batch = brightness * torch.rand(12, 1, 8, 8, dtype=torch.float64)
    torch.multiprocessing.spawn(_train_step, (tmp_path, batch, first, memory), nprocs=RANKS)
    (state, gradients), (other_state, other_gradients) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)
    )
    torch.testing.assert_close(other_state, state, rtol=0, atol=0)
    torch.testing.assert_close(other_gradients, gradients, rtol=0, atol=0)
    model = _model("plain")
    model.initialize(batch)
    torch.testing.assert_close(state, dict(model.state_dict()))
    Loss(model)(batch).backward()
    torch.testing.assert_close(gradients, _gradients(model))
