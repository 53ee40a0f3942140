"""Flows as torch distributions, and the base densities."""

from __future__ import annotations

import pytest
import torch

from flowops.distributions import StandardLogistic, StandardNormal
from flowops.models import build
from flowops.testing import randomize_


@pytest.mark.parametrize("base", [StandardNormal(3), StandardLogistic(3)])
def test_base_densities_agree_with_torch(base: StandardNormal | StandardLogistic) -> None:
    like = torch.empty(0, dtype=torch.float64)
    z = base.sample(like, 1000, torch.Generator().manual_seed(0))
    assert z.shape == (1000, 3)
    assert z.dtype == torch.float64
    torch.testing.assert_close(base.log_prob(z), base.distribution(like).log_prob(z))


def test_logistic_samples_have_the_logistic_variance() -> None:
    z = StandardLogistic(2).sample(torch.empty(0), 200_000, torch.Generator().manual_seed(0))
    assert z.isfinite().all()
    torch.testing.assert_close(z.var(), torch.tensor(torch.pi**2 / 3), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["nice", "realnvp", "glow", "nsf"])
def test_transformed_distribution(name: str) -> None:
    # Centred, for where a logit saturates its input does not determine its output to rounding.
    model = build(name, (1, 4, 4), hidden=4, preprocess="center")
    randomize_(model.double()).eval()
    distribution = model.distribution()
    assert distribution.batch_shape == ()
    assert distribution.event_shape == (1, 4, 4)
    x = distribution.rsample((2, 3))
    assert x.shape == (2, 3, 1, 4, 4)
    torch.testing.assert_close(distribution.log_prob(x), model.log_prob(x))
    torch.testing.assert_close(distribution.log_prob(x[0, 0].clone()), model.log_prob(x[0, 0]))


def test_transformed_distribution_with_context() -> None:
    model = randomize_(build("glow", (1, 4, 4), hidden=4, steps=1, classes=2)).double()
    label = torch.tensor(1)
    distribution = model.distribution(label)
    x = distribution.sample((5,))
    torch.testing.assert_close(distribution.log_prob(x), model.log_prob(x, label.expand(5)))
