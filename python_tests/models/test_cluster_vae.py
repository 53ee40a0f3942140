"""The clustering VAE against its defining integral."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from flowops.cli.objectives.scores import linear_probe, match_clusters
from flowops.models import ClusterVAE, ClusterVAEConfig

SHAPE = (1, 4, 5)


def small() -> ClusterVAE:
    torch.manual_seed(0)
    model = ClusterVAE(ClusterVAEConfig(SHAPE, clusters=3, latent=2, channels=4, hidden=8)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_the_loss_is_the_three_term_integral() -> None:
    model = small()
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([sum(model.terms(x)) for _ in range(4000)])
        mean, log_std = model.encoder(x).chunk(2, 1)
        posterior = Normal(mean, log_std.exp())
        z = posterior.sample((20_000,))
        flat = z.flatten(0, 1)
        p = model.classifier(flat).softmax(1).view(20_000, 2, 3)
        image = model.decoder(flat).sigmoid().view(20_000, 2, *SHAPE)
        reconstruction = -Normal(image, 2.5**-0.5).log_prob(x).sum((2, 3, 4))
        log_posterior = posterior.log_prob(z).sum(2)[..., None]
        log_prior = Normal(model.means, 1.0).log_prob(z[:, :, None]).sum(3)
        code = (p * (log_posterior - log_prior)).sum(2)
        kl = (p * (p.log() + math.log(3))).sum(2)
    expected = reconstruction + code + kl
    error = (expected.var(0) / 20_000 + draws.var(0) / 4000).sqrt()
    assert ((expected.mean(0) - draws.mean(0)).abs() < 4 * error).all()


def test_the_means_move_to_the_codes_of_their_cluster() -> None:
    model = small()
    x = torch.rand(5, *SHAPE, dtype=torch.float64)
    codes: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, given: codes.append(given[0]))
    _, code_term, _ = model.terms(x)
    (grad,) = torch.autograd.grad(code_term.sum(), model.means)
    p = model.classifier(codes[0]).softmax(1)
    expected = (p[:, :, None] * (model.means - codes[0][:, None])).sum(0)
    torch.testing.assert_close(grad, expected)


def test_images_of_a_cluster_are_decoded_from_its_mean() -> None:
    model = small()
    labels = torch.tensor([2, 0, 1])
    still = model.sample((3,), labels, temperature=0.0)
    torch.testing.assert_close(still, model.decode(model.means[labels]))
    torch.testing.assert_close(model.sample((3,), temperature=0.0), model.decode(model.means))
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    assert torch.equal(model.cluster(x), model.classifier(model.encode(x)).argmax(1))
    torch.testing.assert_close(copy.deepcopy(model).reconstruct(x), model.reconstruct(x))


def test_every_parameter_has_a_gradient() -> None:
    model = small()
    loss = model.loss(torch.rand(4, *SHAPE, dtype=torch.float64))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(sum(loss.parts.values()), loss.total.detach())


def test_separated_images_are_clustered() -> None:
    kinds = torch.arange(200) % 2
    config = ClusterVAEConfig(
        (1, 4, 4), clusters=2, latent=2, channels=8, hidden=16, precision=40.0
    )
    runs: list[tuple[float, float]] = []
    for seed in range(3):  # all clusters begin alike, and a run may stay there
        torch.manual_seed(seed)
        model = ClusterVAE(config)
        noise = 0.05 * torch.randn(200, 1, 4, 4)
        x = (0.2 + 0.6 * kinds.float()[:, None, None, None] + noise).clamp(0, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(400):
            loss = model.loss(x).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = model.eval().cluster(x).numpy()
        scores = match_clusters(found, kinds.numpy(), found, kinds.numpy(), 2)
        runs.append((loss.item(), scores["hungarian"]))
    assert min(runs)[1] > 0.95


def test_matches_are_made_on_the_training_images() -> None:
    train, train_labels = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([4, 4, 4, 4, 4, 1, 1])
    test, test_labels = np.array([0, 1, 2, 2]), np.array([4, 4, 1, 4])
    scores = match_clusters(train, train_labels, test, test_labels, 3)
    assert scores["many_to_one"] == 0.75  # clusters 0 and 1 both stand for class 4
    assert scores["hungarian"] == 0.5  # one of them may not
    swapped = match_clusters(test, test_labels, test, test_labels, 3)
    assert swapped["many_to_one"] == 0.75


def test_a_linear_probe_learns_on_one_part_and_is_scored_on_the_other() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = np.eye(3)[labels] * 1000 + rng.normal(0, 100, (400, 3))
    assert linear_probe(features[:300], labels[:300], features[300:], labels[300:]) > 0.98
    shuffled = rng.permutation(labels[:300])
    assert linear_probe(features[:300], shuffled, features[300:], labels[300:]) < 0.6


@pytest.mark.parametrize("options", [{"clusters": 0}, {"precision": 0.0}, {"precision": math.inf}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ClusterVAE: "):
        replace(ClusterVAEConfig(SHAPE), **options)
