"""Training steps of a small VAE of digits: each network in one call, the sample with its KL."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowops
from benchmarks.case import Model, ModelCase
from benchmarks.cases import gaussian_rsample
from flowops.nn import MLP, GaussianRsample

PIXELS, HIDDEN = 784, 400


def eager_network(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_out))


def our_network(n_in: int, n_out: int) -> nn.Module:
    return MLP(n_in, n_out, hidden=(HIDDEN,))


class VAE(nn.Module):
    """Encoder and decoder of one hidden layer."""

    def __init__(self, network: Callable[[int, int], nn.Module], latent: int) -> None:
        super().__init__()
        self.encoder = network(PIXELS, 2 * latent)
        self.decoder = network(latent, PIXELS)

    def negative_bound(self, x: Tensor, z: Tensor, kl: Tensor) -> Tensor:
        logits = self.decoder(z)
        error = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (error + kl.sum()) / len(x)


def eager(x: Tensor, latent: int) -> Model:
    vae = VAE(eager_network, latent)

    def loss(x: Tensor) -> Tensor:
        return vae.negative_bound(x, *gaussian_rsample.eager(*vae.encoder(x).chunk(2, 1)))

    noise = lambda: torch.randn(len(x), latent, device=x.device)
    return Model(vae, loss, lambda: vae.decoder(noise()).sigmoid())


def ours(x: Tensor, latent: int) -> Model:
    vae, draw = VAE(our_network, latent), GaussianRsample()

    def loss(x: Tensor) -> Tensor:
        return vae.negative_bound(x, *draw(vae.encoder(x)))

    noise = lambda: flowops.randn((len(x), latent), device=x.device)
    return Model(vae, loss, lambda: vae.decoder(noise()).sigmoid())


def case(batch: int, latent: int) -> ModelCase:
    return ModelCase(
        "vae",
        f"batch {batch}, 784 pixels, hidden {HIDDEN}, latent {latent}",
        lambda: (torch.rand(batch, PIXELS).round(),),
        {"eager": lambda x: eager(x, latent), "ours": lambda x: ours(x, latent)},
    )


CASES = [case(128, 32)]
