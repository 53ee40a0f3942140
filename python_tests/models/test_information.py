"""VIB and Deep InfoMax against closed forms."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, softplus

from flowops.losses import jensen_shannon_loss
from flowops.models import VIB, InfoMax, InfoMaxConfig, VIBConfig
from flowops.nn import MLP

SHAPE = (1, 4, 4)


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def small_vib(**options: object) -> VIB:
    return perturbed(VIB(VIBConfig(SHAPE, latent=3, hidden=8, classes=4, **options)))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64)


def test_vib_loss_is_in_bits() -> None:
    vib, x, labels = small_vib(beta=0.7), images(), torch.tensor([0, 1, 2, 3, 0, 1])
    mean, scale = vib.encoder(2 * x - 1).chunk(2, 1)
    posterior = Normal(mean, softplus(scale - 5))
    rate = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1) / math.log(2)
    torch.testing.assert_close(vib.rate(x), rate, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vib.encode(x), mean)
    draws = [vib.loss(x, labels) for _ in range(2000)]
    predictions = torch.stack([draw.parts["prediction"] for draw in draws])
    torch.testing.assert_close(draws[0].parts["rate"], rate.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(draws[0].total.detach(), predictions[0] + 0.7 * rate.mean())
    codes = posterior.sample((2000,))
    expected = torch.stack([cross_entropy(vib.decoder(z), labels) for z in codes]) / math.log(2)
    error = (expected.var() + predictions.var()).sqrt() / math.sqrt(2000)
    assert abs(expected.mean() - predictions.mean()) < 4 * error


def test_vib_predictions_average_probabilities() -> None:
    vib, x = small_vib(), images()
    torch.testing.assert_close(vib.predict(x, samples=0), vib.decoder(vib.encode(x)).log_softmax(1))
    log_probs = vib.predict(x, samples=5)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(6, dtype=torch.float64))
    one = torch.stack([vib.predict(x, samples=1).exp() for _ in range(3000)])
    many = vib.predict(x, samples=3000).exp()
    error = one.std(0) * math.sqrt(2 / 3000)
    assert ((one.mean(0) - many).abs() < 4.5 * error + 1e-9).all()
    with pytest.raises(ValueError, match="samples must be at least 0"):
        vib.predict(x, samples=-1)


def test_vib_information_is_below_the_rate_and_the_count() -> None:
    vib, x = small_vib(), images(200)
    estimates = torch.stack([vib.information(x) for _ in range(20)])
    assert estimates.mean() < vib.rate(x).mean()
    assert estimates.max() <= math.log2(200)
    # Against the definition, for one draw of the codes.
    mean, scale = vib.encoder(2 * x - 1).chunk(2, 1)
    posterior = Normal(mean, softplus(scale - 5))
    codes = posterior.sample((200,))
    own = posterior.log_prob(codes).sum(2)
    among = torch.stack(
        [Normal(m, s).log_prob(codes).sum(2) for m, s in zip(mean, posterior.scale, strict=True)]
    )
    mixture = among.logsumexp(0) - math.log(200)
    expected = (own - mixture).mean(1) / math.log(2)
    error = (expected.var() / 200 + estimates.var() / 20).sqrt()
    assert abs(expected.mean() - estimates.mean()) < 4 * error
    # An encoder that ignores the image tells nothing.
    with torch.no_grad():
        vib.encoder.mlp.layers[0].weight.zero_()
    assert vib.information(x).abs() < 1e-9


def test_a_jensen_shannon_loss_of_unrelated_pairs() -> None:
    zeros = torch.zeros(5)
    torch.testing.assert_close(jensen_shannon_loss(zeros, zeros).item(), 2 * math.log(2))
    # At the log-ratio of two Bernoullis the loss is 2 ln 2 - 2 JSD.
    joint, product = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.4, 0.6]).double()
    ratio = (joint / product).log()
    mixture = (joint + product) / 2
    jsd = 0.5 * ((joint * (joint / mixture).log()) + (product * (product / mixture).log())).sum()
    loss = jensen_shannon_loss(
        ratio.repeat_interleave(torch.tensor([8, 2])), ratio.repeat_interleave(torch.tensor([4, 6]))
    )
    torch.testing.assert_close(loss, 2 * math.log(2) - 2 * jsd)


def gaussian_ratio(x: Tensor, z: Tensor, r: float) -> Tensor:
    """log p(x, z) / p(x) p(z) of standard normals with correlation r."""
    quadratic = (r * r * (x * x + z * z) - 2 * r * x * z) / (2 * (1 - r * r))
    return -0.5 * math.log(1 - r * r) - quadratic


@pytest.mark.parametrize("r", [0.3, 0.8])
def test_a_discriminator_finds_the_log_ratio_of_gaussians(r: float) -> None:
    torch.manual_seed(1)
    judge = MLP(2, 1, hidden=(64, 64), zero_last=False)
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)

    def pairs(count: int) -> tuple[Tensor, Tensor]:
        x, noise, other = torch.randn(3, count)
        z = r * x + math.sqrt(1 - r * r) * noise
        return torch.stack([x, z], 1), torch.stack([x, other], 1)

    for _ in range(1500):
        joint, product = pairs(2048)
        loss = jensen_shannon_loss(judge(joint), judge(product))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    axis = torch.linspace(-2, 2, 41)
    x, z = (part.flatten() for part in torch.meshgrid(axis, axis, indexing="ij"))
    exact = gaussian_ratio(x, z, r)
    with torch.no_grad():
        found = judge(torch.stack([x, z], 1)).squeeze(1)
        held_out = jensen_shannon_loss(*map(judge, pairs(400_000)))
    assert torch.corrcoef(torch.stack([exact, found]))[0, 1] > 0.97
    # Quadrature of the least loss, over the whole plane.
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    x, z = torch.meshgrid(axis, axis, indexing="ij")
    ratio = gaussian_ratio(x, z, r)
    product_density = (-(x * x + z * z) / 2).exp() / (2 * math.pi)
    values = product_density * (ratio.exp() * softplus(-ratio) + softplus(ratio))
    least = torch.trapezoid(torch.trapezoid(values, axis), axis).item()
    assert least < 2 * math.log(2)
    assert held_out.item() == pytest.approx(least, rel=0.01)


def small_infomax(**options: object) -> InfoMax:
    return perturbed(InfoMax(InfoMaxConfig(SHAPE, latent=3, channels=4, hidden=8, **options)))


def test_infomax_terms_add_up() -> None:
    model, x = small_infomax(alpha=0.3, beta=0.2, gamma=0.1), images(8)
    loss = model.loss(x)
    parts = loss.parts
    expected = 0.1 * parts["prior"] + 0.3 * parts["whole"] + 0.2 * parts["part"]
    torch.testing.assert_close(loss.total.detach(), expected)
    model.eval()
    mean, log_std = model.posterior(model._features(x)[1]).chunk(2, 1)
    kl = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(model.loss(x).parts["prior"], kl.detach(), rtol=1e-12, atol=1e-12)


def test_infomax_pairs_no_image_with_its_own_code() -> None:
    model = small_infomax().eval()
    seen: list[Tensor] = []
    model.whole_judge.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = images(5)
    for _ in range(20):
        model.loss(x)
    for joint, product in zip(seen[::2], seen[1::2], strict=True):
        whole = joint.size(1) - 3
        assert torch.equal(joint[:, :whole], product[:, :whole])
        assert not (joint[:, whole:] == product[:, whole:]).any()
        assert torch.equal(joint[:, whole:].sort(0).values, product[:, whole:].sort(0).values)


def test_infomax_parts_are_judged_by_place() -> None:
    model, x = small_infomax().eval(), torch.rand(3, 1, 8, 12, dtype=torch.float64)
    model.event_shape = (1, 8, 12)
    part, whole = model._features(x)
    assert part.shape == (3, 8, 2, 3)
    assert whole.shape == (3, 8)
    code = torch.randn(3, 3, dtype=torch.float64)
    scores = model._judge(part.flatten(2).transpose(1, 2), code).view(3, 2, 3)
    expected = model.part_judge(torch.cat([part[1, :, 1, 2], code[1]])[None])
    torch.testing.assert_close(scores[1, 1, 2], expected.squeeze())


@pytest.mark.parametrize("make", [small_vib, small_infomax])
def test_models_are_plain_modules(make) -> None:
    model, x = make().eval(), images()
    loaded = make()
    with torch.no_grad():
        next(loaded.parameters()).add_(1.0)
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.eval().encode(x), model.encode(x))
    torch.testing.assert_close(copy.deepcopy(model).encode(x), model.encode(x))
    labels = torch.zeros(6, dtype=torch.int64)
    model.loss(x, labels).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 4, 4\)"):
        model.encode(x[0])


def test_bad_requests_are_refused() -> None:
    for options in ({"classes": 0}, {"beta": -1.0}, {"depth": 0, "network": "conv"}):
        with pytest.raises(ValueError, match="VIB: "):
            replace(VIBConfig(SHAPE, classes=4), **options)
    for options in ({"latent": 0}, {"gamma": math.nan}):
        with pytest.raises(ValueError, match="InfoMax: "):
            replace(InfoMaxConfig(SHAPE), **options)
    with pytest.raises(ValueError, match="labels must be given"):
        small_vib().loss(images())
    with pytest.raises(ValueError, match="at least 2 images"):
        small_infomax().loss(images(1))
