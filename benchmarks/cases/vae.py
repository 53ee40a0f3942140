"""Training steps of a small VAE of digits: the sample and its KL divergence are what differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import flowops
from benchmarks.case import Model, ModelCase
from benchmarks.cases import gaussian_rsample
from flowops.nn import GaussianRsample

PIXELS, HIDDEN = 784, 400


class VAE(nn.Module):
    """Encoder and decoder of one hidden layer."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)
        )

    def negative_bound(self, x: Tensor, z: Tensor, kl: Tensor) -> Tensor:
        logits = self.decoder(z)
        error = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (error + kl.sum()) / len(x)


def eager(x: Tensor, latent: int) -> Model:
    vae = VAE(latent)

    def loss(x: Tensor) -> Tensor:
        return vae.negative_bound(x, *gaussian_rsample.eager(*vae.encoder(x).chunk(2, 1)))

    noise = lambda: torch.randn(len(x), latent, device=x.device)
    return Model(vae, loss, lambda: vae.decoder(noise()).sigmoid())


def ours(x: Tensor, latent: int) -> Model:
    vae, draw = VAE(latent), GaussianRsample()

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
