"""Bits per dimension and its importance-weighted bound."""

from __future__ import annotations

import math

import pytest
import torch

from flowops.distributions import Flow, StandardNormal
from flowops.losses import bits_per_dim, importance_weighted_bits_per_dim
from flowops.nn import Shift


class _Gaussian(Flow):
    """Independent normals of mean 1/2 on 2 dimensions, whose discrete likelihood is known."""

    def __init__(self) -> None:
        super().__init__(Shift(-0.5), StandardNormal(2), event_shape=(2,))


def test_bits_per_dim_of_known_densities() -> None:
    assert bits_per_dim(torch.zeros(3), (1, 28, 28), 256).tolist() == [8, 8, 8]
    nats = torch.tensor([1980.5])
    torch.testing.assert_close(bits_per_dim(nats, 784, 256), 8 - nats / (784 * math.log(2)))


def test_importance_weighted_bound_falls_to_the_likelihood() -> None:
    flow = _Gaussian().train()
    values = torch.tensor([[0.0, 1.0]]).expand(4000, 2)
    normal = torch.distributions.Normal(0.5, 1.0)
    edges = torch.tensor([0.0, 0.5, 1.0])
    mass = normal.cdf(edges).diff()
    exact = -mass.log2().mean()
    bounds = [
        importance_weighted_bits_per_dim(flow, values, levels=2, samples=k).mean()
        for k in (1, 4, 32)
    ]
    assert bounds[0] > bounds[1] > bounds[2] > exact - 1e-4
    torch.testing.assert_close(bounds[2], exact.double(), rtol=0, atol=1e-3)
    assert flow.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bits_per_dim(torch.zeros(1), 0, 256), "dims must be at least 1, got 0"),
        (lambda: bits_per_dim(torch.zeros(1), 1, 0), "levels must be at least 1, got 0"),
        (
            lambda: importance_weighted_bits_per_dim(
                _Gaussian(), torch.zeros(1, 2), levels=2, samples=0
            ),
            "samples must be at least 1, got 0",
        ),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
