"""flowops.distributions.LogisticMixture: samples have the probabilities that log_prob gives."""

from __future__ import annotations

import pytest
import torch

from flowops import ops
from flowops.distributions import LogisticMixture


def params_of(colours: int, *shape: int, components: int = 2) -> torch.Tensor:
    batch, *pixels = shape
    return torch.randn(batch, (10 if colours == 3 else 3) * components, *pixels).double()


@pytest.mark.parametrize("colours", [1, 3])
def test_frequencies_are_the_probabilities(colours: int) -> None:
    levels, count = 4, 40_000
    params = params_of(colours, 2)
    mixture = LogisticMixture(params, colours, levels=levels)
    draws = mixture.sample((count,), generator=torch.Generator().manual_seed(0))
    assert draws.shape == (count, 2, colours)
    values = torch.cartesian_prod(*[torch.arange(levels)] * colours).view(-1, colours)
    weights = levels ** torch.arange(colours - 1, -1, -1)
    for row in range(2):
        log_prob = ops.logistic_mixture_log_prob(
            values.double(), params[row].expand(len(values), -1), levels=levels
        )
        counts = torch.bincount((draws[:, row].long() * weights).sum(1), minlength=len(values))
        expected = count * log_prob.exp()
        likely = expected > 5
        statistic = ((counts - expected).square() / expected)[likely].sum()
        # Chi-squared: mean and half the variance are the degrees of freedom.
        freedom = int(likely.sum())
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_shapes_types_and_log_prob() -> None:
    params = params_of(3, 2, 4, 5).float()
    mixture = LogisticMixture(params)
    assert mixture.batch_shape == (2,)
    assert mixture.event_shape == (3, 4, 5)
    draws = mixture.sample((6, 7))
    assert draws.shape == (6, 7, 2, 3, 4, 5)
    assert draws.dtype == torch.uint8
    log_prob = mixture.log_prob(draws)
    assert log_prob.shape == (6, 7, 2)
    for value, got in ((draws[2, 3], log_prob[2, 3]), (draws[2, 3].float(), log_prob[2, 3])):
        assert torch.equal(mixture.log_prob(value), got)
        assert torch.equal(ops.logistic_mixture_log_prob(value, params), got)
    assert mixture.sample((0,)).shape == (0, 2, 3, 4, 5)
    fine = LogisticMixture(params_of(1, 3), 1, levels=1000)
    assert fine.sample().dtype == torch.float64
    assert fine.log_prob(fine.sample()).shape == (3,)


def test_gradients_reach_the_net() -> None:
    params = params_of(1, 3, 2).requires_grad_()
    mixture = LogisticMixture(params, 1)
    assert not mixture.sample().requires_grad
    mixture.log_prob(mixture.sample()).sum().backward()
    assert params.grad is not None
    assert params.grad.abs().sum() > 0


def test_low_temperature_draws_the_likeliest_mean() -> None:
    # Means 0.2 and -0.6 of equal scale, the first likelier; the second colour follows the first.
    params = torch.zeros(1, 20)
    params[:, 0] = 1
    params[:, 2:4] = torch.tensor([0.2, -0.6])
    params[:, 6:8] = 5.0  # tanh(q_0) is 1
    draws = LogisticMixture(params).sample((50,), temperature=1e-4).float()
    assert torch.equal(draws[:, 0, 0], torch.full((50,), 153.0))
    # 0 + 1 * (2 * 153 / 255 - 1) is 0.2 again, the third colour is 0: between 127 and 128.
    assert torch.equal(draws[:, 0, 1], torch.full((50,), 153.0))
    assert set(draws[:, 0, 2].tolist()) <= {127.0, 128.0}


def test_generator_makes_draws_repeat() -> None:
    mixture = LogisticMixture(params_of(3, 2, 8))
    first, again = (mixture.sample(generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_bad_arguments_are_one_clear_error() -> None:
    with pytest.raises(ValueError, match="LogisticMixture: colours must be 1 or 3, got 2"):
        LogisticMixture(torch.zeros(2, 20), 2)
    with pytest.raises(ValueError, match=r"params must have shape .* got \[2, 12\]"):
        LogisticMixture(torch.zeros(2, 12))
    for shape in ((3, 4), (2, 1, 4), (2, 3, 5)):
        with pytest.raises(ValueError, match=r"value must have shape \(\.\.\., 2, 3, 4\), got"):
            LogisticMixture(torch.zeros(2, 20, 4)).log_prob(torch.zeros(shape))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        LogisticMixture(torch.zeros(2, 20)).sample(temperature=0)
