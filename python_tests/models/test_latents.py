"""The codes of VAEs against closed forms: divergences, moments, densities."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowops.models.latents import (
    GaussianLatent,
    GumbelLatent,
    VectorQuantizedLatent,
    VonMisesFisherLatent,
)

LATENTS = {
    "gaussian": lambda: GaussianLatent(5),
    "vmf": lambda: VonMisesFisherLatent(4, 20.0),
    "gumbel": lambda: GumbelLatent(3, 4),
    "vq": lambda: VectorQuantizedLatent(3, 7, 2),
}


def bessel(order: int, kappa: float) -> float:
    """The modified Bessel function of the first kind, by its series."""
    m = torch.arange(1000, dtype=torch.float64)
    logs = (2 * m + order) * math.log(kappa / 2) - torch.lgamma(m + 1) - torch.lgamma(m + order + 1)
    return logs.logsumexp(0).exp().item()


@pytest.mark.parametrize("name", LATENTS)
def test_forward_and_weigh_agree(name: str) -> None:
    torch.manual_seed(0)
    latent = LATENTS[name]().double()
    h = torch.randn(200, latent.params, dtype=torch.float64)
    draw = latent(h, 0)
    code, log_ratio = latent.weigh(h)
    assert draw.code.shape == code.shape == latent.code(h).shape == (200, latent.features)
    assert draw.kl.shape == draw.penalty.shape == log_ratio.shape == (200,)
    assert latent.prior(h, 9, 1.0, None).shape == (9, latent.features)
    # E[log p(z|x) - log q(z)] is the divergence, for each row.
    many = torch.stack([latent.weigh(h)[1] for _ in range(4000)])
    error = many.std(0) / math.sqrt(len(many)) + 1e-12
    assert ((many.mean(0) + draw.kl).abs() / error).max() < 5


def test_gaussian_divergence_is_that_of_torch() -> None:
    torch.manual_seed(1)
    h = torch.randn(6, 10, dtype=torch.float64)
    prior_mean = torch.randn(6, 5, dtype=torch.float64)
    mean, log_std = h.chunk(2, 1)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    for given in (None, prior_mean):
        prior = torch.distributions.Normal(torch.zeros_like(mean) if given is None else given, 1.0)
        expected = torch.distributions.kl_divergence(posterior, prior).sum(1)
        draw = GaussianLatent(5)(h, 0, given)
        torch.testing.assert_close(draw.kl, expected, rtol=1e-12, atol=1e-12)
        code, log_ratio = GaussianLatent(5).weigh(h, given)
        expected = (prior.log_prob(code) - posterior.log_prob(code)).sum(1)
        torch.testing.assert_close(log_ratio, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [2, 4, 6, 20])
@pytest.mark.parametrize("kappa", [0.5, 20.0, 300.0])
def test_vmf_constants_are_ratios_of_bessel_functions(features: int, kappa: float) -> None:
    latent = VonMisesFisherLatent(features, kappa)
    half = features // 2
    low, high = bessel(half - 1, kappa), bessel(half, kappa)
    assert latent.mean_cosine == pytest.approx(high / low, rel=1e-7)
    d = features
    kl = (
        kappa * high / low
        + (d / 2 - 1) * math.log(kappa)
        - (d / 2) * math.log(2 * math.pi)
        - math.log(low)
        + (d / 2) * math.log(math.pi)
        + math.log(2)
        - math.lgamma(d / 2)
    )
    assert latent.kl == pytest.approx(kl, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(("features", "kappa"), [(2, 3.0), (3, 20.0), (4, 20.0), (9, 1.0)])
def test_vmf_samples_have_the_mean_cosine(features: int, kappa: float) -> None:
    torch.manual_seed(2)
    latent = VonMisesFisherLatent(features, kappa).double()
    h = torch.randn(1, features, dtype=torch.float64).expand(100_000, features)
    code = latent(h, 0).code
    direction = latent.code(h[:1])[0]
    cosine = code @ direction
    torch.testing.assert_close(code.norm(dim=1), torch.ones_like(cosine), rtol=0, atol=1e-12)
    error = cosine.std() / math.sqrt(len(cosine))
    assert abs(cosine.mean() - latent.mean_cosine) < 4 * error
    # Across the direction nothing is preferred.
    across = code - cosine[:, None] * direction
    bound = 4.5 * across.std() / math.sqrt(len(across)) + 1e-12
    assert across.mean(0).abs().max() < bound


def test_gumbel_divergence_and_temperature() -> None:
    torch.manual_seed(3)
    latent = GumbelLatent(3, 4)
    h = torch.randn(5, 12, dtype=torch.float64)
    p = torch.distributions.Categorical(logits=h.unflatten(1, (3, 4)))
    uniform = torch.distributions.Categorical(logits=torch.zeros_like(p.logits))
    expected = torch.distributions.kl_divergence(p, uniform).sum(1)
    torch.testing.assert_close(latent(h, 0).kl, expected, rtol=1e-12, atol=1e-12)
    hardness = [latent(h, step).code.unflatten(1, (3, 4)).amax(2).mean() for step in (0, 5000)]
    assert hardness[0] < 0.9 < 0.99 < hardness[1]
    codes = latent(h, 5000).code.unflatten(1, (3, 4)).sum(2)
    torch.testing.assert_close(codes, torch.ones_like(codes))


def test_vq_takes_the_nearest_vector_and_passes_the_gradient() -> None:
    torch.manual_seed(4)
    latent = VectorQuantizedLatent(3, 7, 2).double()
    h = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    draw = latent(h, 0)
    distance = (h.view(5, 3, 1, 2) - latent.codebook).pow(2).sum(3)
    nearest = latent.codebook[distance.argmin(2)].flatten(1)
    torch.testing.assert_close(draw.code, nearest)
    direction = torch.randn_like(nearest)
    (passed,) = torch.autograd.grad(draw.code, h, direction, retain_graph=True)
    torch.testing.assert_close(passed, direction)
    torch.testing.assert_close(draw.penalty, 1.25 * distance.amin(2).sum(1))
    grad_h, grad_codebook = torch.autograd.grad(draw.penalty.sum(), [h, latent.codebook])
    torch.testing.assert_close(grad_h, 2 * 0.25 * (h - nearest))
    expected = torch.zeros_like(latent.codebook)
    expected.index_add_(0, distance.argmin(2).flatten(), 2 * (nearest - h).detach().view(-1, 2))
    torch.testing.assert_close(grad_codebook, expected)
    torch.testing.assert_close(draw.kl, torch.full_like(draw.kl, 3 * math.log(7)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VonMisesFisherLatent(1, 1.0),
        lambda: VonMisesFisherLatent(4, 0.0),
        lambda: GumbelLatent(0, 3),
        lambda: GumbelLatent(3, 1),
        lambda: VectorQuantizedLatent(3, 1, 2),
        lambda: VectorQuantizedLatent(3, 4, 0),
    ],
)
def test_bad_sizes_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        make()


@pytest.mark.parametrize("name", LATENTS)
def test_draws_follow_the_generator(name: str) -> None:
    latent: nn.Module = LATENTS[name]()
    h = torch.randn(4, latent.params)

    def draw() -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(7)
        return latent.weigh(h, generator=source)[0], latent.prior(h, 3, 0.5, source)

    for first, second in zip(draw(), draw(), strict=True):
        assert torch.equal(first, second)
