"""Auto-encoders: losses, codes to sample, sparsity, state, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowops.models import (
    AE,
    AEConfig,
    AutoEncoder,
    SparseAE,
    SparseAEConfig,
    build,
)
from flowops.models.autoencoder import reconstruction_error
from flowops.models.moments import RunningMoments

SHAPE = (1, 8, 8)
NAMES = ("linear_ae", "ae", "sparse_ae", "stacked_ae", "denoising_ae")
SMALL = {
    "linear_ae": {"latent": 4},
    "ae": {"latent": 4, "hidden": 16},
    "sparse_ae": {"latent": 70, "active": 7},
    "stacked_ae": {"latent": 4, "hidden": 16, "depth": 2, "layer_steps": 5},
    "denoising_ae": {"latent": 4, "hidden": 16},
}


def small(name: str, **options: object) -> AutoEncoder:
    model = build(name, SHAPE, **{**SMALL[name], **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def digits() -> Tensor:
    """(1797, 1, 8, 8), grey in [0, 1]."""
    return torch.from_numpy(load_digits().data / 16).view(-1, *SHAPE)


# What every auto-encoder does.


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_loss(name: str) -> None:
    model, x = small(name), digits()[:9]
    features = SMALL[name]["latent"]
    assert model.encode(x).shape == (9, features)
    assert model.reconstruct(x).shape == model.decode(model.encode(x)).shape == (9, *SHAPE)
    model.eval()
    loss = model.loss(x)
    error = (model.reconstruct(x) - x).square()
    penalty = loss.parts.get("penalty", 0)
    torch.testing.assert_close(loss.total, error.sum() / 9 + penalty, rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.parts["mse"], error.mean(), rtol=1e-13, atol=0)
    assert not any(part.requires_grad for part in loss.parts.values())
    assert model.encode(x[:0]).shape == (0, features)
    sample = model.float().sample((2, 3))
    assert sample.shape == (2, 3, *SHAPE)
    assert sample.min() >= 0
    assert sample.max() <= 1


@pytest.mark.parametrize("name", ["ae", "sparse_ae", "stacked_ae", "denoising_ae"])
def test_cross_entropy(name: str) -> None:
    model, x = small(name, output="bernoulli").eval(), digits()[:9]
    y = model.reconstruct(x)
    wanted = -(x * y.log() + (1 - x) * (1 - y).log()).sum() / 9
    loss = model.loss(x)
    torch.testing.assert_close(loss.total - loss.parts.get("penalty", 0), wanted)
    torch.testing.assert_close(loss.parts["mse"], (y - x).square().mean())


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_state(name: str) -> None:
    model, x = small(name), digits()[:40]
    model.loss(x, step=100)
    wanted = model.reconstruct(x)
    fresh = small(name)
    fresh.load_state_dict(model.state_dict())
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.reconstruct(x), wanted)
        source = torch.Generator()
        draws = [m.sample((5,), generator=source.manual_seed(3)) for m in (twin, model)]
        assert torch.equal(*draws)


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_images(name: str) -> None:
    model = small(name)
    for call in (model.loss, model.encode):
        with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, 8, 8\), got"):
            call(torch.zeros(3, 64, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_computes_errors_in_float32(name: str) -> None:
    model, x = small(name).float(), digits()[:64].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.loss(x, step=100)
    assert low.total.dtype == low.parts["mse"].dtype == torch.float32
    if name != "denoising_ae":  # which draws new noise
        high = model.loss(x, step=100)
        torch.testing.assert_close(low.total, high.total, rtol=3e-2, atol=0)


@pytest.mark.parametrize("output", ["sigmoid", "linear", "bernoulli"])
def test_errors_of_16_bit_pixels_are_those_of_the_same_numbers(output: str) -> None:
    raw, target = torch.randn(2, 9, 64).bfloat16()
    for got, wanted in zip(
        reconstruction_error(raw, target, output),
        reconstruction_error(raw.double(), target.double(), output),
        strict=True,
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    model, x = small(name).eval(), digits()[:3]
    values = [p.detach().requires_grad_() for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]

    def total(*given: Tensor) -> Tensor:
        state = dict(zip(names, given, strict=True))
        return torch.func.functional_call(_LossOf(model), state, (x,))

    names = [f"model.{n}" for n in names]
    assert torch.autograd.gradcheck(total, values, fast_mode=True)


class _LossOf(torch.nn.Module):
    def __init__(self, model: AutoEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.loss(x).total


# Codes to sample.


@pytest.mark.parametrize("batches", [1, 7])
def test_moments_are_those_of_all_codes(batches: int) -> None:
    model, x = small("ae"), digits()[: 30 * batches]
    for batch in x.split(30):
        model.loss(batch)
    codes = model.encode(x).detach()
    torch.testing.assert_close(model.moments.mean, codes.mean(0))
    torch.testing.assert_close(model.moments.covariance, torch.cov(codes.T, correction=0))
    kept = model.moments.covariance.clone()
    model.eval().loss(3 * x)
    assert torch.equal(model.moments.covariance, kept)


def test_moments_do_not_lose_digits_under_autocast() -> None:
    moments, codes = RunningMoments(4), (torch.randn(50, 4) + 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments.update(codes)
    torch.testing.assert_close(moments.covariance, torch.cov(codes.float().T, correction=0))


def test_moments_forget() -> None:
    model, x = small("linear_ae"), digits()
    for _ in range(100):
        model.loss(5 - 2 * x[:50])
    for _ in range(1500):
        model.loss(x[:50])
    codes = model.encode(x[:50]).detach()
    torch.testing.assert_close(model.moments.mean, codes.mean(0), rtol=0, atol=1e-4)
    covariance = torch.cov(codes.T, correction=0)
    torch.testing.assert_close(model.moments.covariance, covariance, rtol=0, atol=1e-4)


def test_codes_are_drawn_from_the_moments() -> None:
    model, x = small("linear_ae"), digits()[:100]
    model.loss(x)
    mean, covariance = model.moments.mean, model.moments.covariance
    count, temperature = 40_000, 0.7
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance))
    noise = (model.sample_codes(count, None, temperature, None) - mean) @ whiten.T / temperature
    assert noise.mean(0).abs().max() < 4.5 / math.sqrt(count)
    error = noise.T @ noise / count - torch.eye(4)
    assert error.abs().max() < 4.5 * math.sqrt(2 / count)
    torch.testing.assert_close(model.sample_codes(3, None, 0.0, None), mean.expand(3, 4))


# Denoising.


def test_target_is_never_masked() -> None:
    """With everything masked the output is constant, and the error that of the clean images."""
    model = small("denoising_ae", mask=1.0)
    x = digits()[:9]
    constant = model.reconstruct(torch.zeros_like(x))
    loss = model.loss(x)
    torch.testing.assert_close(loss.total, (constant - x).square().sum() / 9)


@pytest.mark.parametrize("corruption", ["mask", "gaussian"])
def test_evaluation_sees_the_mean_of_the_noise(corruption: str) -> None:
    model, x = small("denoising_ae", corruption=corruption), digits()[:9]
    seen = 0.7 * x if corruption == "mask" else x
    draws = torch.stack([model.corrupt(x) for _ in range(1000)])
    error = (draws.mean(0) - seen).abs() / (draws.std(0) / math.sqrt(1000)).clamp(min=1e-12)
    assert error.max() < 5
    assert torch.equal(model.encode(x), model.encoder(seen))
    error = (model.decode(model.encoder(seen)) - x).square().sum() / 9
    assert model.loss(x).total != model.loss(x).total
    torch.testing.assert_close(model.eval().loss(x).total, error)


# Sparse.


def sparse(sparsity: str, **options: object) -> SparseAE:
    return SparseAE(SparseAEConfig(SHAPE, sparsity=sparsity, **options)).double()


def test_kl_penalty_and_its_gradient() -> None:
    model = sparse("kl", latent=70, rho=0.07, beta=2.5)
    raw = (2 * torch.randn(11, 70, dtype=torch.float64)).requires_grad_()
    rho, beta, on = 0.07, 2.5, raw.sigmoid()
    mean = on.mean(0)
    wanted = beta * (rho * (rho / mean).log() + (1 - rho) * ((1 - rho) / (1 - mean)).log()).sum()
    penalty = model.penalty(raw)
    torch.testing.assert_close(penalty, wanted, rtol=1e-13, atol=0)
    (got,) = torch.autograd.grad(penalty, raw)
    slope = beta * (-rho / mean + (1 - rho) / (1 - mean)) / 11 * on * (1 - on)
    torch.testing.assert_close(got, slope.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_kl_penalty_of_units_that_never_change_is_finite(value: float) -> None:
    raw = torch.full((4, 70), value, requires_grad=True)
    penalty = sparse("kl", latent=70).penalty(raw)
    penalty.backward()
    assert penalty.isfinite()
    assert (raw.grad.sign() == math.copysign(1, value)).all()


def test_l1_penalty() -> None:
    model, x = sparse("l1", latent=70, l1=0.3), digits()[:11]
    loss = model.loss(x)
    code = model.encode(x)
    assert code.min() == 0
    wanted = 0.3 * code.abs().sum() / 11
    torch.testing.assert_close(loss.parts["penalty"], wanted.detach())


@pytest.mark.parametrize("active", [1, 7, 70])
def test_top_keeps_exactly_so_many(active: int) -> None:
    model, x = sparse("top", latent=70, active=active), digits()[:50]
    raw, code = model.encoder(x), model.encode(x)
    assert ((code != 0).sum(1) == active).all()
    kept = code != 0
    assert torch.equal(code[kept], raw[kept])
    assert (
        raw.masked_fill(~kept, math.inf).amin(1) > raw.masked_fill(kept, -math.inf).amax(1)
    ).all()
    ties = model.activate(torch.ones(3, 70, dtype=torch.float64))
    assert ((ties != 0).sum(1) == active).all()
    assert "penalty" not in model.loss(x).parts
    sample = model.sample_codes(9, None, 1.0, None)
    assert ((sample != 0).sum(1) == active).all()


def test_kl_training_reaches_the_mean_activation() -> None:
    model, x = sparse("kl", latent=100).float(), digits().float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    start = model.encode(x).mean().item()
    for step in range(600):
        optimizer.zero_grad()
        model.loss(x[step % 7 :: 7]).total.backward()
        optimizer.step()
    assert abs(start - 0.05) > 0.2
    assert abs(model.encode(x).mean().item() - 0.05) < 0.01


# Options.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear_ae", {"latent": 0}, "LinearAE: latent must be at least 1, got 0"),
        ("ae", {"output": "x"}, "AE: output must be one of sigmoid, linear, bernoulli, got 'x'"),
        ("ae", {"depth": -1}, "AE: depth must be at least 0, got -1"),
        ("ae", {"network": "conv", "depth": 0}, "AE: depth must be at least 1, got 0"),
        ("denoising_ae", {"mask": 1.1}, r"DenoisingAE: mask must be in \[0, 1\], got 1.1"),
        ("denoising_ae", {"sigma": -1.0}, "sigma must be at least 0 and finite, got -1.0"),
        ("sparse_ae", {"rho": 0.0}, r"SparseAE: rho must be in \(0, 1\), got 0.0"),
        ("sparse_ae", {"active": 71}, r"active must be in \[1, latent\], got 71 of 70"),
        ("sparse_ae", {"beta": math.inf}, "beta must be at least 0 and finite, got inf"),
        ("stacked_ae", {"hidden": 1}, "StackedAE: hidden must be at least 2, got 1"),
        ("stacked_ae", {"layer_steps": 0}, "StackedAE: layer_steps must be at least 1, got 0"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **options)


def test_convolutional() -> None:
    model = AE(AEConfig(SHAPE, latent=5, network="conv", hidden=4, depth=2))
    x = digits()[:6].float()
    assert model.encode(x).shape == (6, 5)
    assert model.reconstruct(x).shape == x.shape
