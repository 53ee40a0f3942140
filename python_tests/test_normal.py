"""flowops.distributions.Normal against torch's, in torch.distributions code, and compiled."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, TransformedDistribution, kl_divergence
from torch.distributions.transforms import ExpTransform

import flowops
from flowops import ops
from flowops.distributions import Normal


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype) + 0.5


def test_agrees_with_torch() -> None:
    p, q = pair(3, 4), pair(3, 4)
    ours, theirs = Normal(*p), torch.distributions.Normal(*p)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for name in ("log_prob", "cdf", "icdf"):
        value = x.sigmoid() if name == "icdf" else x
        torch.testing.assert_close(getattr(ours, name)(value), getattr(theirs, name)(value))
    assert torch.equal(ours.entropy(), theirs.entropy())
    expected = kl_divergence(theirs, torch.distributions.Normal(*q))
    torch.testing.assert_close(kl_divergence(ours, Normal(*q)), expected)
    # Against a Normal of torch, torch's own formula.
    torch.testing.assert_close(kl_divergence(ours, torch.distributions.Normal(*q)), expected)
    independent = kl_divergence(Independent(ours, 1), Independent(Normal(*q), 1))
    torch.testing.assert_close(independent, expected.sum(1))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("sample", [(), (5,), (5, 2), (0,)])
def test_draws_have_shape_gradient_and_distribution(
    batch: tuple[int, ...], sample: tuple[int, ...]
) -> None:
    loc, scale = (t.requires_grad_() for t in pair(*batch))
    torch.manual_seed(4)
    x = Normal(loc, scale).rsample(sample)
    torch.manual_seed(4)
    noise = flowops.randn(*x.shape, key=ops.random_key(), dtype=torch.float64)
    torch.testing.assert_close(x, loc + scale * noise)
    grads = torch.autograd.grad(x.sum(), (loc, scale))
    torch.testing.assert_close(grads[0], torch.ones(x.shape, dtype=x.dtype).sum_to_size(batch))
    torch.testing.assert_close(grads[1], noise.sum_to_size(batch))
    drawn = Normal(loc, scale).sample(torch.Size(sample))
    assert drawn.shape == x.shape
    assert not drawn.requires_grad


def test_takes_numbers_and_broadcasts() -> None:
    assert Normal(0.0, 1.0).sample().shape == ()
    x = Normal(torch.zeros(3, 1), torch.ones(4)).sample((2,))
    assert x.shape == (2, 3, 4)
    assert Normal(torch.zeros(3), 2.0).expand((5, 3)).rsample().shape == (5, 3)
    assert isinstance(Normal(0.0, 1.0).expand((2,)), Normal)


def test_moments_of_samples() -> None:
    x = Normal(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])).sample((100_000,))
    torch.testing.assert_close(x.mean(0), torch.tensor([2.0, -1.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 3.0]), rtol=0.02, atol=0)


def test_serves_other_distributions() -> None:
    log_normal = TransformedDistribution(Normal(torch.zeros(3), torch.ones(3)), [ExpTransform()])
    expected = torch.distributions.LogNormal(torch.zeros(3), torch.ones(3))
    x = log_normal.rsample((4,))
    torch.testing.assert_close(log_normal.log_prob(x), expected.log_prob(x))


def test_half_parameters_give_float32_values() -> None:
    p, q = pair(2, 3, dtype=torch.float16), pair(2, 3, dtype=torch.float16)
    far = Normal(p[0] + 400, p[1]), Normal(q[0], q[1])
    value = kl_divergence(*far)
    exact = [torch.distributions.Normal(d.loc.double(), d.scale.double()) for d in far]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), kl_divergence(*exact), rtol=1e-5, atol=0)
    density = far[1].log_prob(far[0].loc)
    assert density.dtype == torch.float32
    expected = exact[1].log_prob(far[0].loc.double())
    torch.testing.assert_close(density.double(), expected, rtol=1e-5, atol=0)


def test_compiles_whole() -> None:
    def step(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        p = Independent(Normal(loc, scale), 1, validate_args=False)
        prior = Normal(torch.zeros_like(loc), torch.ones_like(scale))
        q = Independent(prior, 1, validate_args=False)
        z = p.rsample()
        return (
            q.log_prob(z) - kl_divergence(p, q) - kl_divergence(p.base_dist, prior).sum(1)
        ).sum()

    leaves = [t.requires_grad_() for t in pair(4, 3)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    got = torch.autograd.grad(compiled(*leaves), leaves)
    torch.manual_seed(1)
    want = torch.autograd.grad(step(*leaves), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_validates_on_request() -> None:
    with pytest.raises(ValueError, match="scale"):
        Normal(torch.zeros(2), -torch.ones(2), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        Normal(0.0, 1.0, validate_args=True).log_prob(torch.tensor(float("nan")))
