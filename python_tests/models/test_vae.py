"""VAEs against closed forms: probabilistic PCA, whose bound is exact."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from flowops.models import CVAE, VAE, CVAEConfig, VAEConfig, base

SHAPE = (1, 2, 3)
LATENT = 2
SIGMA = 0.4


def perturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def small(**options: object) -> VAE:
    config = VAEConfig(SHAPE, latent=3, hidden=8, **options)
    return VAE(config).double()


def linear_vae() -> tuple[VAE, MultivariateNormal]:
    """A VAE that is probabilistic PCA with its exact posterior, and its density of images."""
    torch.manual_seed(0)
    config = VAEConfig(SHAPE, latent=LATENT, depth=0, likelihood="gaussian", sigma=SIGMA)
    vae = VAE(config).double()
    basis = torch.linalg.qr(torch.randn(6, LATENT, dtype=torch.float64))[0]
    weight = basis * torch.tensor([1.5, 0.7])
    shift = torch.randn(6, dtype=torch.float64)
    precision = weight.T @ weight / SIGMA**2 + torch.eye(LATENT, dtype=torch.float64)
    posterior = torch.linalg.solve(precision, weight.T) / SIGMA**2
    with torch.no_grad():
        vae.likelihood.log_excess.fill_(math.log(SIGMA - vae.likelihood.floor))
        vae.decoder.mlp.layers[0].weight.copy_(weight)
        vae.decoder.mlp.layers[0].bias.copy_(shift)
        encoder = vae.encoder.mlp.layers[0]
        encoder.weight.zero_()
        encoder.weight[:LATENT] = posterior
        encoder.bias[:LATENT] = -posterior @ shift
        encoder.bias[LATENT:] = -0.5 * precision.diagonal().log()
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(6, dtype=torch.float64)
    return vae, MultivariateNormal(shift, covariance)


def test_importance_weights_of_the_exact_posterior_are_the_density() -> None:
    vae, density = linear_vae()
    x = density.sample((7,))
    weights = vae.log_weights(x.view(7, *SHAPE), samples=5)
    expected = density.log_prob(x).expand(5, 7)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)


def test_the_bound_is_exact_and_falls_by_the_divergence() -> None:
    vae, density = linear_vae()
    x = density.sample((3,))
    images = x.view(3, *SHAPE)

    def expected_bound() -> Tensor:
        # The mean over codes of the reconstruction of a linear decoder, in closed form.
        mean, log_std = vae.encoder(images).chunk(2, 1)
        weight = vae.decoder.mlp.layers[0].weight
        at_mean = vae.likelihood.log_prob(vae.decoder(mean), images)
        spread = (weight**2).sum(0) * (2 * log_std).exp()
        kl = vae.latent(vae.encoder(images), 0).kl
        return at_mean - spread.sum(1) / (2 * SIGMA**2) - kl

    with torch.no_grad():
        exact = density.log_prob(x)
        torch.testing.assert_close(expected_bound(), exact, rtol=0, atol=1e-10)
        mean, log_std = vae.encoder(images).chunk(2, 1)
        right = Normal(mean.clone(), log_std.exp())
        perturb(vae.encoder)
        mean, log_std = vae.encoder(images).chunk(2, 1)
        lost = kl_divergence(Normal(mean, log_std.exp()), right).sum(1)
        assert lost.min() > 0
        torch.testing.assert_close(expected_bound(), exact - lost, rtol=0, atol=1e-10)
        # And the one-sample bound has that mean.
        draws = torch.stack([vae.elbo(images) for _ in range(4000)])
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - expected_bound()).abs() / error).max() < 4


def test_the_importance_bound_rises_to_the_density() -> None:
    vae, density = linear_vae()
    x = density.sample((4,))
    images = x.view(4, *SHAPE)
    exact = density.log_prob(x)
    with torch.no_grad():
        # Off its place but wider than the posterior, so that the weights have a variance.
        vae.encoder.mlp.layers[0].bias += torch.tensor([0.2, -0.3, 0.4, 0.3])
    torch.manual_seed(1)
    means, errors = [], []
    for samples in (1, 4, 32):
        draws = torch.stack([vae.importance_bound(images, samples=samples) for _ in range(400)])
        means.append(draws.mean(0))
        errors.append(draws.std(0) / 20)
    assert (means[0] < means[1] - 2 * errors[1]).all()
    assert (means[1] < means[2] + 2 * errors[2]).all()
    # The mean of the weights themselves is the density: no bound, no bias.
    weights = (vae.log_weights(images, samples=40_000) - exact).exp()
    error = weights.std(0) / 200
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()
    assert error.max() < 0.01


def test_importance_bound_takes_as_many_samples_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_ROWS", 100)
    vae, density = linear_vae()
    images = density.sample((2,)).view(2, *SHAPE)
    perturb(vae.encoder)
    source = torch.Generator().manual_seed(3)
    bound = vae.importance_bound(images, samples=120, generator=source)
    source = torch.Generator().manual_seed(3)
    parts = [vae.log_weights(images, samples=n, generator=source) for n in (50, 50, 20)]
    expected = torch.cat(parts).logsumexp(0) - math.log(120)
    torch.testing.assert_close(bound, expected)


@pytest.mark.parametrize("posterior", ["gaussian", "vmf", "gumbel", "vq"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_form_has_a_loss_gradients_codes_and_samples(
    posterior: str, likelihood: str, network: str
) -> None:
    torch.manual_seed(2)
    vae = small(posterior=posterior, likelihood=likelihood, network=network, depth=1)
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    x = x.round() if vae.pixels == "binary" else x
    loss = vae.loss(x)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert set(loss.parts) == {"reconstruction", "kl"}
    assert vae.reconstruct(x).shape == vae.sample((5,)).shape == x.shape
    assert vae.importance_bound(x, samples=3).shape == (5,)
    assert vae.loss(x[:0]).total.isnan()  # a mean over nothing
    assert vae.encode(x[:0]).shape == (0, vae.latent.features)
    loaded = small(posterior=posterior, likelihood=likelihood, network=network, depth=1)
    loaded.load_state_dict(vae.state_dict())
    torch.testing.assert_close(loaded.reconstruct(x), vae.reconstruct(x))
    torch.testing.assert_close(copy.deepcopy(vae).reconstruct(x), vae.reconstruct(x))


def test_the_bernoulli_likelihood_sums_pixels_and_is_a_distribution() -> None:
    torch.manual_seed(4)
    vae = VAE(VAEConfig((1, 1, 3), latent=2, hidden=4)).double()
    raw = vae.decoder(torch.randn(1, 2, dtype=torch.float64))
    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    images = states.view(8, 1, 1, 3)
    log_prob = vae.likelihood.log_prob(raw.expand(8, -1, -1, -1), images)
    torch.testing.assert_close(log_prob.logsumexp(0).item(), 0.0, rtol=0, atol=1e-12)
    expected = torch.distributions.Bernoulli(logits=raw).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


def test_the_gaussian_likelihood_has_its_constant() -> None:
    for sigma in (0.25, 0.0):
        vae = small(likelihood="gaussian", sigma=sigma)
        x = torch.rand(4, *SHAPE, dtype=torch.float64)
        raw = vae.decoder(torch.randn(4, 3, dtype=torch.float64))
        expected = Normal(raw, vae.likelihood.sigma).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(vae.likelihood.log_prob(raw, x), expected)
        assert vae.likelihood.sigma.item() == pytest.approx(sigma or 0.3)
        assert len(list(vae.likelihood.parameters())) == (sigma == 0)


def test_the_divergence_warms_up_and_is_weighed() -> None:
    vae = small(beta=2.0, kl_warmup=10)
    x = torch.rand(5, *SHAPE, dtype=torch.float64).round()
    assert [vae.kl_factor(step) for step in (0, 5, 10, 99)] == [0.0, 1.0, 2.0, 2.0]
    for step in (0, 5, 10):
        torch.manual_seed(5)
        loss = vae.loss(x, step=step)
        expected = loss.parts["reconstruction"] + vae.kl_factor(step) * loss.parts["kl"]
        torch.testing.assert_close(loss.total.detach(), expected)
    torch.manual_seed(5)
    elbo = vae.elbo(x).mean()
    torch.testing.assert_close(-elbo, loss.parts["reconstruction"] + loss.parts["kl"])


def test_the_loss_with_importance_is_the_importance_bound() -> None:
    vae = small(importance=4)
    x = torch.rand(5, *SHAPE, dtype=torch.float64).round()
    torch.manual_seed(6)
    loss = vae.loss(x).total
    torch.manual_seed(6)
    weights = vae.log_weights(x, samples=4)
    torch.testing.assert_close(-loss, (weights.logsumexp(0) - math.log(4)).mean())


def test_the_class_moves_the_prior_and_nothing_else() -> None:
    torch.manual_seed(7)
    cvae = CVAE(CVAEConfig(SHAPE, latent=3, hidden=8, classes=4)).double()
    x = torch.rand(6, *SHAPE, dtype=torch.float64).round()
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    draw = cvae.latent(cvae.encoder(x), 0, cvae.prior_mean(labels))
    mean, log_std = cvae.encoder(x).chunk(2, 1)
    variance = (2 * log_std).exp()
    moved = mean - cvae.class_means.weight[labels]
    expected = 0.5 * (moved**2 + variance - variance.log() - 1).sum(1)
    torch.testing.assert_close(draw.kl, expected, rtol=1e-12, atol=1e-12)
    source = torch.Generator().manual_seed(8)
    still = cvae.sample((6,), labels, temperature=0.0, generator=source)
    torch.testing.assert_close(still, cvae.decode(cvae.class_means(labels)))
    assert cvae.importance_bound(x, labels, samples=3).shape == (6,)
    with pytest.raises(ValueError, match="CVAE: labels must be given"):
        cvae.loss(x)


def test_samples_scale_with_temperature() -> None:
    vae = small()
    codes = [
        vae.latent.prior(vae._like, 5, t, torch.Generator().manual_seed(1)) for t in (1.0, 0.5)
    ]
    torch.testing.assert_close(codes[0] * 0.5, codes[1])
    still = vae.sample((2,), temperature=0.0)
    torch.testing.assert_close(still, vae.decode(torch.zeros(2, 3, dtype=torch.float64)))
    assert vae.sample((2, 3)).shape == (2, 3, *SHAPE)
    with pytest.raises(ValueError, match=r"VAE.sample: temperature must be at least 0"):
        vae.sample((1,), temperature=-1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent must be at least 1"),
        ({"network": "rnn"}, "network must be one of"),
        ({"network": "conv", "depth": 0}, "depth must be at least 1"),
        ({"posterior": "laplace"}, "posterior must be one of"),
        ({"beta": -1.0}, "beta must be"),
        ({"beta": math.nan}, "beta must be"),
        ({"kl_warmup": -1}, "kl_warmup must be"),
        ({"importance": 2, "posterior": "vq"}, "importance above 1"),
        ({"importance": 2, "beta": 0.5}, "importance above 1"),
        ({"likelihood": "gaussian", "sigma": -0.1}, "sigma must be"),
        ({"likelihood": "gaussian", "sigma": 1e-3}, "sigma must be"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(replace(VAEConfig(SHAPE), **options))


def test_bad_images_are_refused() -> None:
    vae = small()
    for x in (torch.rand(2, 1, 3, 2), torch.rand(1, 2, 3), torch.rand(2, 6)):
        with pytest.raises(ValueError, match=r"VAE: x must have shape \(batch, 1, 2, 3\)"):
            vae.loss(x.double())
    with pytest.raises(ValueError, match="samples must be at least 1"):
        vae.importance_bound(torch.rand(2, *SHAPE).double(), samples=0)


def test_a_training_step_compiles_whole() -> None:
    torch.manual_seed(9)
    vae = VAE(VAEConfig(SHAPE, latent=3, hidden=8))
    x = torch.rand(5, *SHAPE).round()
    compiled = torch.compile(lambda x: vae.loss(x).total, fullgraph=True, backend="aot_eager")
    torch.manual_seed(10)
    expected = vae.loss(x).total
    torch.manual_seed(10)
    torch.testing.assert_close(compiled(x), expected)
