"""Auto-encoders whose optimum is known: singular values, masked regression, scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowops.models import DenoisingAE, DenoisingAEConfig, LinearAE, LinearAEConfig

SHAPE = (1, 8, 8)


def digits() -> Tensor:
    """(1797, 1, 8, 8), grey in [0, 1]."""
    return torch.from_numpy(load_digits().data / 16).view(-1, *SHAPE)


def minimise(parameters: list[Tensor], loss: Callable[[], Tensor], rounds: int) -> float:
    """L-BFGS, each round from the last one's end with new curvature."""
    for _ in range(rounds):
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=200, history_size=50, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
    return loss().item()


# Linear: Eckart and Young.


def centre(x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Flat images, centred where there are biases, and what was taken off."""
    flat = x.flatten(1)
    mean = flat.mean(0) if bias else torch.zeros(flat.size(1), dtype=flat.dtype)
    return flat - mean, mean


def least_error(x: Tensor, bias: bool, latent: int) -> float:
    values = torch.linalg.svdvals(centre(x, bias)[0])
    return float(values[latent:].square().sum()) / len(x)


def largest_angle(a: Tensor, b: Tensor) -> float:
    """Largest principal angle between two column spaces, rad."""
    cosines = torch.linalg.svdvals(torch.linalg.qr(a)[0].T @ torch.linalg.qr(b)[0])
    return float(cosines.clamp(max=1).acos().max())


@pytest.mark.parametrize("bias", [False, True])
def test_linear_reaches_the_singular_values_and_no_more(bias: bool) -> None:
    latent, x = 5, digits()
    model = LinearAE(LinearAEConfig(SHAPE, latent=latent, bias=bias)).double()
    loss = minimise(list(model.parameters()), lambda: model.loss(x).total, rounds=2)
    bound = least_error(x, bias, latent)
    assert bound * (1 - 1e-12) <= loss <= 1.01 * bound
    assert bias or loss > 1.02 * least_error(x, True, latent)  # the optima are told apart

    left, _, right = torch.linalg.svd(centre(x, bias)[0], full_matrices=False)
    assert largest_angle(model.decoder[0].weight.detach(), right[:latent].T) < 0.05
    # Not the encoder's rows: at pixels that never vary its weights are arbitrary.
    codes = model.encode(x).detach()
    codes = codes - codes.mean(0) if bias else codes
    assert largest_angle(codes, left[:, :latent]) < 0.05


@pytest.mark.parametrize("bias", [False, True])
def test_linear_by_alternating_least_squares(bias: bool) -> None:
    latent, x = 5, digits()
    centred, mean = centre(x, bias)
    encoder = torch.randn(latent, 64, dtype=torch.float64)
    for _ in range(1000):
        codes = centred @ encoder.T
        decoder = torch.linalg.lstsq(codes, centred).solution  # (latent, 64)
        encoder = torch.linalg.solve(decoder @ decoder.T, decoder)
    model = LinearAE(LinearAEConfig(SHAPE, latent=latent, bias=bias)).double()
    with torch.no_grad():
        model.encoder[1].weight.copy_(encoder)
        model.decoder[0].weight.copy_(decoder.T)
        if bias:
            model.encoder[1].bias.copy_(-encoder @ mean)
            model.decoder[0].bias.copy_(mean)
    bound = least_error(x, bias, latent)
    assert abs(model.loss(x).total.item() - bound) < 1e-8 * bound


# Denoising.


def linear_denoiser(side: int, **options: object) -> DenoisingAE:
    """A denoiser that is one linear map: no bottleneck, no biases."""
    config = DenoisingAEConfig((1, side, side), latent=side**2, depth=0, output="linear", **options)
    model = DenoisingAE(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_().requires_grad_(False)
    return model


def map_of(model: DenoisingAE) -> Tensor:
    return model.decoder.mlp.layers[0].weight @ model.encoder.mlp.layers[0].weight


def expected_error(weight: Tensor, second: Tensor, cross: Tensor, noisy: Tensor) -> Tensor:
    """E |x - W y|^2 from E x x^T, E x y^T and E y y^T."""
    return (second - 2 * weight @ cross.T + weight @ noisy @ weight.T).trace()


def moments_of(x: Tensor, corruption: str, level: float) -> tuple[Tensor, Tensor, Tensor]:
    second = x.flatten(1).T @ x.flatten(1) / len(x)
    diagonal = second.diagonal().diag()
    if corruption == "gaussian":
        return second, second, second + level**2 * torch.eye(len(second))
    kept = 1 - level
    return second, kept * second, kept**2 * (second - diagonal) + kept * diagonal


@pytest.mark.parametrize(("corruption", "level"), [("mask", 0.3), ("gaussian", 0.4)])
def test_linear_denoiser_has_the_known_optimum(corruption: str, level: float) -> None:
    x = torch.nn.functional.avg_pool2d(digits(), 2)
    model = linear_denoiser(4, corruption=corruption, mask=level, sigma=level)
    known = moments_of(x, corruption, level)

    # The loss that training draws is, on average, the one whose minimum is known.
    draws = torch.stack([model.loss(x).total.detach() for _ in range(200)])
    expected = expected_error(map_of(model), *known).detach()
    assert abs(draws.mean() - expected) < 4 * draws.std() / math.sqrt(200)
    assert draws.std() < 0.02 * expected

    minimise(
        [p for p in model.parameters() if p.requires_grad],
        lambda: expected_error(map_of(model), *known),
        rounds=5,
    )
    optimum = known[1] @ torch.linalg.inv(known[2])
    assert (map_of(model) - optimum).norm() < 1e-2 * optimum.norm()
    assert (optimum - torch.eye(16)).norm() > 0.3  # far from the copy that clean images ask for


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_masked_pixels_are_zero_and_others_untouched(level: float) -> None:
    model = linear_denoiser(8, mask=level)
    x = torch.rand(400, *SHAPE, dtype=torch.float64) + 1
    noisy = model.corrupt(x)
    kept = noisy != 0
    assert torch.equal(noisy[kept], x[kept])
    count = x.numel()
    assert abs(kept.double().mean() - (1 - level)) <= 4 * math.sqrt(level * (1 - level) / count)


@pytest.mark.slow
def test_denoiser_is_the_score() -> None:
    """Two modes in one dimension: r(x) - x = sigma^2 d/dx log p_sigma(x)."""
    sigma, spread = 0.5, 0.3
    config = DenoisingAEConfig(
        (1, 1, 1), latent=8, hidden=64, depth=2, output="linear", corruption="gaussian", sigma=sigma
    )
    model = DenoisingAE(config)
    steps, size = 4000, 4096
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = torch.randint(2, (size, 1, 1, 1)) * 2.0 - 1 + spread * torch.randn(size, 1, 1, 1)
        optimizer.zero_grad()
        model.loss(x).total.backward()
        optimizer.step()
        schedule.step()
    x = torch.linspace(-2, 2, 201).view(-1, 1, 1, 1).requires_grad_()
    modes = torch.distributions.Normal(torch.tensor([-1.0, 1.0]), math.hypot(sigma, spread))
    log_density = modes.log_prob(x.view(-1, 1)).logsumexp(1).sum()
    score = sigma**2 * torch.autograd.grad(log_density, x)[0]
    error = (model.eval().reconstruct(x) - x - score).abs().max() / score.abs().max()
    assert error < 0.05
