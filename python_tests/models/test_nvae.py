"""NVAE against closed forms: divergences, densities, singular values, what depends on what."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from flowops.models import NVAE, NVAEConfig
from flowops.models.likelihoods import LogisticMixture
from flowops.models.nvae_cells import AutoregressiveShift, SpectralPenalty
from flowops.testing import randomize_

SHAPE = (1, 6, 8)
SIZES = {"scales": 2, "groups": 2, "latent": 2, "channels": 4, "cells": 1, "expansion": 3}


def small(shape: tuple[int, int, int] = SHAPE, **options: object) -> NVAE:
    torch.manual_seed(0)
    model = NVAE(NVAEConfig(shape, **{**SIZES, **options})).double()
    randomize_(model, std=0.2)
    return model.eval()


def binary(count: int = 3, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, dtype=torch.float64).round()


@pytest.mark.parametrize("flow", [False, True])
def test_the_loss_is_the_mean_of_the_weights(flow: bool) -> None:
    model, x = small(flow=flow, kl_warmup=0, spectral=0.0), binary()
    with torch.no_grad():
        losses = torch.stack([model.loss(x).total for _ in range(400)])
        weights = model.log_weights(x, samples=400).mean(1)
    error = ((losses.var() + weights.var()) / 400).sqrt()
    assert (losses.mean() + weights.mean()).abs() < 4 * error


def test_a_group_has_the_divergence_of_its_distributions() -> None:
    model = small()
    group = model._group(1)
    feature, h = torch.randn(2, 5, 16, 2, 2, dtype=torch.float64)
    prior = group.prior(h)
    mean, log_std = prior.chunk(2, 1)
    move, log_factor = group._relative(feature, h).chunk(2, 1)
    posterior = Normal(mean + move, (log_std + log_factor).exp())
    expected = kl_divergence(posterior, Normal(mean, log_std.exp())).sum((1, 2, 3))
    z, kl = group.draw(feature, h, prior)
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(group.mean(feature, h, prior), mean + move)
    z, log_ratio = group.weigh(feature, h, prior, None)
    ratio = Normal(mean, log_std.exp()).log_prob(z) - posterior.log_prob(z)
    torch.testing.assert_close(log_ratio, ratio.sum((1, 2, 3)), rtol=1e-12, atol=1e-10)
    first = model._group(0)
    assert torch.equal(first.prior(h), torch.zeros(5, 4, 2, 2, dtype=torch.float64))


def test_extreme_weights_keep_the_divergence_finite() -> None:
    model, x = small(), binary()
    with torch.no_grad():
        for i in range(4):
            model._group(i).posterior.weight.mul_(1e6)
    assert model.loss(x).total.isfinite()


@pytest.mark.parametrize("reverse", [False, True])
def test_autoregressive_shifts_are_unit_triangular(reverse: bool) -> None:
    torch.manual_seed(1)
    shift = AutoregressiveShift(2, 5, reverse=reverse).double()
    randomize_(shift, std=0.5)
    z = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    flat = lambda v: shift(v.view(1, 2, 3, 4)).permute(0, 2, 3, 1).flatten()  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(flat, z.flatten())
    jacobian = jacobian[:, torch.arange(24).view(2, 12).T.flatten()]  # pixels outside, channels in
    expected = torch.eye(24, dtype=torch.float64)
    triangle = jacobian.tril(-1) if not reverse else jacobian.triu(1)
    torch.testing.assert_close(jacobian, expected + triangle, rtol=0, atol=1e-14)
    assert triangle.abs().max() > 1e-3
    assert torch.linalg.slogdet(jacobian)[1].abs() < 1e-12


def test_the_penalty_is_of_singular_values_and_scales() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1)).double()
    nn.init.normal_(model[1].weight)
    penalty = SpectralPenalty(model).double()
    for _ in range(30):
        found = penalty(model)
    expected = sum(torch.linalg.svdvals(model[i].weight.flatten(1))[0] for i in (0, 2))
    expected = expected + model[1].weight.abs().max()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(found, model[0].weight)[0]
    u, _, v = torch.linalg.svd(model[0].weight.flatten(1))
    torch.testing.assert_close(grads.flatten(1), torch.outer(u[:, 0], v[0]), rtol=0, atol=1e-4)
    with torch.no_grad():
        model[2].weight.zero_()
    assert torch.autograd.grad(penalty(model), model[2].weight)[0].isfinite().all()
    state = copy.deepcopy(penalty.state_dict())
    penalty.eval()(model)
    assert all(torch.equal(value, state[name]) for name, value in penalty.state_dict().items())


def test_a_prior_sees_the_codes_before_it_alone() -> None:
    model, x = small(), binary(1)
    seen: list[Tensor] = []
    codes = [torch.randn(1, *shape, dtype=torch.float64) for shape in model.code_shapes]

    def priors(given: list[Tensor]) -> list[Tensor]:
        seen: list[Tensor] = []
        model._descend(1, lambda i, h, prior: (seen.append(prior), given[i])[1])
        return seen

    before = priors(codes)
    after = priors([codes[0], codes[1], codes[2] + 1, codes[3]])
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * 3 + [False]
    # And the posterior sees the image.
    assert not torch.equal(model.encode(x), model.encode(1 - x))
    assert not seen


def test_samples_and_codes_agree() -> None:
    model, x = small(), binary()
    source = torch.Generator().manual_seed(3)
    codes = model.sample_codes(4, None, 0.0, source)
    taken: list[Tensor] = []
    model._descend(4, lambda i, h, prior: (taken.append(prior[:, :2]), prior[:, :2])[1])
    torch.testing.assert_close(codes, torch.cat([mean.flatten(1) for mean in taken], 1))
    assert model.sample((4,), temperature=0.0).shape == (4, *SHAPE)
    assert model.encode(x).shape == (3, sum(math.prod(shape) for shape in model.code_shapes))
    assert model.reconstruct(x).shape == x.shape


def test_groups_are_balanced_while_the_divergence_warms_up() -> None:
    model = small(kl_warmup=100)
    kls = torch.tensor([4.0, 1.0, 2.0, 8.0], dtype=torch.float64, requires_grad=True)
    assert model._weighed(kls, 100) == 15.0
    (grad,) = torch.autograd.grad(model._weighed(kls, 50), kls)
    balance = torch.tensor([4.01, 1.01, 2.01 / 4, 8.01 / 4], dtype=torch.float64)
    torch.testing.assert_close(grad, 0.5 * balance / balance.mean())
    (grad,) = torch.autograd.grad(model._weighed(kls, 0), kls)
    torch.testing.assert_close(grad.mean().item(), 1e-4)
    assert small(kl_warmup=0)._weighed(kls, 0) == 15.0


def test_reestimated_norms_are_those_of_samples() -> None:
    model = small().train()
    model.loss(binary())
    model.eval()
    likelihood_norm = model.encoders[0][0].norms[0].norm.running_mean.clone()
    norm = model._group(1).cells[0].before
    inputs: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model.reestimate_norms(passes=6, count=5, generator=torch.Generator().manual_seed(4))
    handle.remove()
    assert len(inputs) == 6
    means = torch.stack([given.mean((0, 2, 3)) for given in inputs])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    assert torch.equal(model.encoders[0][0].norms[0].norm.running_mean, likelihood_norm)
    assert norm.momentum == 0.05
    assert not model.training


@pytest.mark.parametrize("colours", [1, 3])
def test_the_mixture_mean_is_that_of_its_values(colours: int) -> None:
    torch.manual_seed(5)
    mixture = LogisticMixture(colours, 2, 5)
    raw = 0.5 * torch.randn(1, mixture.raw_channels, 1, 1, dtype=torch.float64)
    kinds = raw[:, 2:].unflatten(1, (colours, -1, 2))
    kinds[:, :, 0] *= 0.3  # means well inside, narrow: their clamping and binning say little
    kinds[:, :, 1] = -4
    values = torch.cartesian_prod(*[torch.arange(5.0, dtype=torch.float64)] * colours)
    images = values.reshape(-1, colours, 1, 1) / 4
    log_prob = mixture.log_prob(raw.expand(len(images), -1, -1, -1), images)
    torch.testing.assert_close(log_prob.logsumexp(0).item(), 0.0, rtol=0, atol=1e-10)
    fine = LogisticMixture(colours, 2, 64 if colours == 3 else 1024)
    steps = torch.arange(float(fine.values), dtype=torch.float64)
    values = torch.cartesian_prod(*[steps] * colours).reshape(-1, colours, 1, 1)
    images = values / (fine.values - 1)
    p = fine.log_prob(raw.expand(len(images), -1, -1, -1), images).exp()
    mean = (p[:, None] * images.flatten(1)).sum(0)
    torch.testing.assert_close(fine.mean(raw).flatten(), mean, rtol=0, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 6, 8), (3, 5, 7)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic_mixture"])
def test_shapes_gradients_and_state(shape: tuple[int, int, int], likelihood: str) -> None:
    options = {"likelihood": likelihood, "values": 9, "flow": True}
    model = small(shape, **options).train()
    x = torch.randint(0, 9, (4, *shape)).double() / 8
    model.loss(x).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    loaded = small(shape, **options)
    with torch.no_grad():
        loaded.top.add_(1.0)
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.reconstruct(x), model.eval().reconstruct(x))
    torch.testing.assert_close(copy.deepcopy(model).encode(x), model.encode(x))
    assert model.importance_bound(x, samples=2).shape == (4,)


@pytest.mark.parametrize(
    "options",
    [
        {"scales": 0},
        {"channels": 5},
        {"expansion": 0},
        {"likelihood": "gaussian"},
        {"values": 1},
        {"spectral": -1.0},
        {"event_shape": (6, 8)},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="NVAE: "):
        replace(NVAEConfig(SHAPE), **options)
