"""Every model learns real images: scikit-learn's digits, better than a full-covariance Gaussian."""

from __future__ import annotations

import pytest
import torch

from flowops.distributions import Flow
from flowops.losses import bits_per_dim
from flowops.models import build
from flowops.nn import Logit, dequantize

LEVELS = 17
ALPHA = 1e-3


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images = torch.from_numpy(load_digits().images).float()[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1500]], images[order[1500:]]


def _gaussian_bits(train: torch.Tensor, test: torch.Tensor) -> float:
    logit = Logit(ALPHA)
    fit = logit(dequantize(train.double().repeat(4, 1, 1, 1), LEVELS))[0].flatten(1)
    gaussian = torch.distributions.MultivariateNormal(fit.mean(0), fit.T.cov())
    z, logdet = logit(dequantize(test.double(), LEVELS))
    return bits_per_dim(gaussian.log_prob(z.flatten(1)) + logdet, 64, LEVELS).mean().item()


def _train(model: Flow, train: torch.Tensor, steps: int) -> None:
    model.initialize(dequantize(train[:512], LEVELS))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        loss = bits_per_dim(model.log_prob(dequantize(batch, LEVELS)), 64, LEVELS).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("nice", {"hidden": 256, "depth": 2}, 1500),
        ("realnvp", {"hidden": 16, "blocks": 1}, 300),
        ("glow", {"hidden": 48, "steps": 4}, 400),
        ("nsf", {"hidden": 64, "transforms": 3, "blocks": 1, "bound": 5.0}, 400),
    ],
)
def test_beats_the_gaussian_on_held_out_digits(
    name: str, options: dict[str, object], steps: int
) -> None:
    train, test = _digits()
    model = build(name, (1, 8, 8), alpha=ALPHA, preprocess="logit", **options)
    _train(model, train, steps)
    model.eval()
    with torch.no_grad():
        log_prob = model.log_prob(dequantize(test, LEVELS))
    bits = bits_per_dim(log_prob, 64, LEVELS).mean().item()
    gaussian = _gaussian_bits(train, test)
    # Far below any trained model would be a wrong constant, not a good model.
    assert 1.5 < bits < gaussian - 0.03, f"{bits:.3f} bits/dim, the Gaussian {gaussian:.3f}"
