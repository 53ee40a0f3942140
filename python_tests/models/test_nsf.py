"""Neural spline flows reach the entropy of densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowops.distributions import Flow
from flowops.models import build


def normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


def draw(count: int) -> Tensor:
    """Draw two modes along x, and y around a sine of x: curved, and not one Gaussian."""
    x = 4 * torch.randint(2, (count,)) - 2 + 0.6 * torch.randn(count, dtype=torch.float64)
    return torch.stack([x, torch.sin(2 * x) + 0.4 * torch.randn_like(x)], 1)


def log_density(data: Tensor) -> Tensor:
    x, y = data.unbind(1)
    modes = torch.logaddexp(normal(x, -2.0, 0.6), normal(x, 2.0, 0.6)) - math.log(2)
    return modes + normal(y, torch.sin(2 * x), 0.4)


def train(model: Flow, steps: int) -> None:
    model.initialize(draw(2048).float())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -model.log_prob(draw(512).float()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_reaches_the_entropy_of_a_curved_density_with_two_modes(kind: str) -> None:
    model = build("nsf", (2,), preprocess="none", transforms=3, hidden=32, blocks=1, kind=kind)
    train(model, 500)
    data = draw(20_000)
    with torch.no_grad():
        # The mean is the model's cross-entropy less the density's entropy: at least 0.
        gap = log_density(data) - model.log_prob(data.float()).double()
    error = float(gap.std()) / math.sqrt(len(gap))
    assert -4 * error < float(gap.mean()) < 0.05 - 4 * error
    drawn = model.sample((20_000,)).double()
    # Samples of the model, judged by the density: few lie where there is none.
    assert abs(float(log_density(drawn).mean() - log_density(data).mean())) < 0.1
