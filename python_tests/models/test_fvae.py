"""f-VAE against closed forms: a linear one has an exact density."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from flowops.models import FVAE, FVAEConfig
from flowops.testing import randomize_

SHAPE = (1, 4, 4)


def small(**options: object) -> FVAE:
    torch.manual_seed(0)
    config = FVAEConfig(
        SHAPE, latent=4, channels=4, blocks=1, flow_steps=2, flow_hidden=4, **options
    )
    return FVAE(config).double()


class _Linear(nn.Module):
    """Vectors through a matrix, as maps of the shapes given."""

    def __init__(self, matrix: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).unflatten(1, self.shape)


def linear() -> tuple[FVAE, MultivariateNormal]:
    """An f-VAE with E, G linear and F affine, and the density of its images."""
    torch.manual_seed(1)
    model = FVAE(FVAEConfig(SHAPE, latent=2, channels=2, flow_steps=1, flow_hidden=4)).double()
    encode, decode = 0.2 * torch.randn(2, 16).double(), torch.randn(16, 2).double()
    sizes = model.decoder.sizes
    model.encoder, model.decoder = _Linear(encode, (2, 1, 1)), _Linear(decode, SHAPE)
    model.decoder.sizes = sizes
    randomize_(model.flow)
    with torch.no_grad():
        # A coupling whose network is off moves and scales by constants: the flow is affine.
        network = model.flow[2].conditioner
        for parameter in network.parameters():
            parameter.zero_()
        model.log_std.fill_(-0.5)
        zero, basis = torch.zeros(1, 2, 1, 1).double(), torch.eye(2).double().view(2, 2, 1, 1)
        shift = model.flow(zero)[0].flatten()
        slope = (model.flow(basis)[0].flatten(1) - shift).T
        inverse = torch.linalg.inv(slope)
        spread = decode @ inverse
        sigma = model.likelihood.sigma
        covariance = spread @ spread.T + sigma**2 * torch.eye(16).double()
    return model, MultivariateNormal(-spread @ shift, covariance)


def test_the_linear_case_has_its_density() -> None:
    model, density = linear()
    x = density.sample((3,))
    images, exact = x.view(3, *SHAPE), density.log_prob(x)
    with torch.no_grad():
        # The encoder of least squares, so that the weights have a small variance.
        decode = model.decoder.matrix
        model.encoder.matrix.copy_(torch.linalg.pinv(decode))
        model.log_std.fill_((model.likelihood.sigma / decode.norm() * 2.5).log())
        weights = (model.log_weights(images, samples=40_000) - exact).exp()
    error = weights.std(0) / 200
    assert error.max() < 0.05
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()
    bound = torch.stack([-model.loss(images[:1]).total for _ in range(500)])
    assert bound.mean() < exact[0] + 4 * bound.std() / math.sqrt(500)


@pytest.mark.parametrize("flow_steps", [0, 2])
def test_the_loss_is_the_mean_of_the_weights(flow_steps: int) -> None:
    model = small()
    model = model if flow_steps else FVAE(replace(model.config, flow_steps=0)).double()
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    model.initialize(x)
    randomize_(model.flow)
    with torch.no_grad():
        losses = torch.stack([model.loss(x).total for _ in range(3000)])
        weights = model.log_weights(x, samples=3000).mean(1)
    error = ((losses.var() + weights.var()) / 3000).sqrt()
    assert (losses.mean() + weights.mean()).abs() < 4 * error


def test_without_a_flow_it_is_a_vae() -> None:
    model = FVAE(replace(small().config, flow_steps=0)).double()
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    torch.manual_seed(2)
    loss = model.loss(x).total
    torch.manual_seed(2)
    code, _ = model._draw(x, 1, None)
    mean = model.encoder(x).flatten(1)
    # The code's cost by its own noise; a VAE has the divergence, its mean over the noise.
    kl = 0.5 * (mean**2 + (2 * model.log_std).exp() - 1).sum(1) - mean.size(1) * model.log_std
    noise = (code.flatten(1) - mean) / model.log_std.exp()
    squares = (code.flatten(1) ** 2 - mean**2 - (2 * model.log_std).exp()).sum(1) / 2
    expected = kl + squares - model.likelihood.log_prob(model.decoder(code), x)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=1e-12)
    assert noise.abs().max() < 6


def test_codes_are_drawn_through_the_inverse_flow() -> None:
    model = small(coupling="affine")
    x = torch.rand(4, *SHAPE, dtype=torch.float64)
    model.initialize(x)
    randomize_(model.flow)
    v = model.encoder(x)
    torch.testing.assert_close(model.reconstruct(x), model.decoder(v))
    z = torch.randn(4, 4, dtype=torch.float64)
    code = model.flow.inverse(z.view(4, *model.code_shape))[0]
    torch.testing.assert_close(model.decode(z), model.decoder(code))
    torch.testing.assert_close(model.flow(code)[0].flatten(1), z)
    assert model.sample((3,)).shape == (3, *SHAPE)


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 8, 8)])
@pytest.mark.parametrize("memory", ["plain", "reversible"])
def test_shapes_gradients_and_state(shape: tuple[int, int, int], memory: str) -> None:
    config = FVAEConfig(shape, latent=4, channels=4, flow_steps=2, flow_hidden=4, memory=memory)
    model = FVAE(config).double()
    x = torch.rand(4, *shape, dtype=torch.float64)
    model.initialize(x)
    model.loss(x).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    loaded = FVAE(config).double()
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded.reconstruct(x), model.reconstruct(x))
    torch.testing.assert_close(copy.deepcopy(model).encode(x), model.encode(x))
    assert model.reconstruct(x).shape == x.shape


@pytest.mark.parametrize(
    "options",
    [
        {"latent": 1},
        {"channels": 0},
        {"flow_steps": -1},
        {"coupling": "spline"},
        {"event_shape": (1, 3, 8)},
        {"event_shape": (8, 8)},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="FVAE: "):
        replace(FVAEConfig(SHAPE), **options)
