"""Neural spline flows reach the entropy of densities that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowops.distributions import Flow
from flowops.models import build

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - math.log(std) - _HALF_LOG_2PI


def draw(count: int) -> Tensor:
    """Draw two modes along x, and y around a sine of x: curved, and not one Gaussian."""
    x = 4 * torch.randint(2, (count,)) - 2 + 0.6 * torch.randn(count, dtype=torch.float64)
    return torch.stack([x, torch.sin(2 * x) + 0.4 * torch.randn_like(x)], 1)


def log_density(data: Tensor) -> Tensor:
    x, y = data.unbind(1)
    modes = torch.logaddexp(normal(x, -2.0, 0.6), normal(x, 2.0, 0.6)) - math.log(2)
    return modes + normal(y, torch.sin(2 * x), 0.4)


def train(model: Flow, steps: int, draw: Callable[[int], Tensor]) -> None:
    model.initialize(draw(2048).float())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
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
    train(model, 500, draw)
    data = draw(20_000)
    with torch.no_grad():
        # The mean is the model's cross-entropy less the density's entropy: at least 0.
        gap = log_density(data) - model.log_prob(data.float()).double()
    error = float(gap.std()) / math.sqrt(len(gap))
    assert -4 * error < float(gap.mean()) < 0.05 - 4 * error
    drawn = model.sample((20_000,)).double()
    # Samples of the model, judged by the density: few lie where there is none.
    assert abs(float(log_density(drawn).mean() - log_density(data).mean())) < 0.1


class Wave:
    """32 steps y of a Gaussian process, seen as ``x = y + sin(1.5 y) / 2``.

    Each feature is all but uniform on [-2.2, 2.2], with thin tails, and depends on the one before
    along a curve. The entropy is that of the process, and the mean log-slope of the wave under a
    standard normal y, by quadrature.
    """

    features = 32

    def __init__(self, correlation: float = 0.8) -> None:
        steps = torch.arange(self.features, dtype=torch.float64)
        covariance = correlation ** (steps[:, None] - steps).abs()
        self.root = torch.linalg.cholesky(covariance)
        self.constant = float(self.root.diagonal().log().sum()) + self.features * _HALF_LOG_2PI
        y = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
        slope = torch.trapezoid(normal(y, 0, 1).exp() * self.log_slope(y), y)
        self.entropy = self.constant + self.features * (0.5 + float(slope))

    def log_slope(self, y: Tensor) -> Tensor:
        return torch.log(1 + 0.75 * torch.cos(1.5 * y))

    def draw(self, count: int) -> Tensor:
        return self.draw_with_log_density(count)[0]

    def draw_with_log_density(self, count: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(count, self.features, dtype=torch.float64)
        y = noise @ self.root.T
        log_density = -0.5 * noise.square().sum(1) - self.constant - self.log_slope(y).sum(1)
        return y + torch.sin(1.5 * y) / 2, log_density


@pytest.mark.slow
def test_reaches_the_entropy_of_a_density_of_32_dimensions() -> None:
    density = Wave()
    model = build(
        "nsf", (density.features,), preprocess="none", kind="autoregressive", transforms=2,
        hidden=32, blocks=1, bins=12,
    )  # fmt: skip
    train(model, 5000, density.draw)
    held_out, gaps = [], []
    with torch.no_grad():
        for _ in range(20):
            x, log_density = density.draw_with_log_density(20_000)
            held_out.append(-model.log_prob(x.float()).double())
            gaps.append(log_density + held_out[-1])
    loss, gap = torch.cat(held_out), torch.cat(gaps)
    # Less noisy than the loss itself, and never negative: the divergence from the density.
    error = float(gap.std()) / math.sqrt(len(gap))
    assert -4 * error < float(gap.mean()) < 0.05 - 4 * error
    assert abs(float(loss.mean()) - density.entropy) < 0.05
    # The best Gaussian is far off, so it is the splines that bring it there.
    gaussian = torch.logdet(torch.cov(density.draw(100_000).T)) / 2
    gaussian += density.features * (_HALF_LOG_2PI + 0.5)
    assert float(gaussian) - density.entropy > 4
