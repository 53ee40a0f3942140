"""Initial values that keep norms: ours, and the properties of torch's that we rely on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flowops.utils import delta_orthogonal_


def z_score(samples: Tensor, mean: float) -> float:
    """How many standard errors the sample mean is from ``mean``."""
    return float((samples.mean() - mean) / (samples.std() / math.sqrt(samples.numel())))


@pytest.mark.parametrize("n", [16, 64, 256])
def test_gaussian_matrices_are_almost_orthogonal(n: int) -> None:
    """E mean (W^T W - I)^2 = (n + 1) / n^2 for entries of variance 1/n."""
    draws = torch.empty(max(16, 4096 // n), dtype=torch.float64)
    for i in range(len(draws)):
        weight = nn.init.kaiming_normal_(
            torch.empty(n, n, dtype=torch.float64), mode="fan_out", nonlinearity="linear"
        )
        draws[i] = (weight.T @ weight - torch.eye(n)).square().mean()
    assert abs(z_score(draws, (n + 1) / n**2)) < 4


@pytest.mark.parametrize("gain", ["linear", "relu"])
def test_fan_out_keeps_norms_on_average(gain: str) -> None:
    """E |W x|^2 = |x|^2; under relu half of it is lost, hence the 2."""
    ratios = torch.empty(400, dtype=torch.float64)
    x = torch.randn(30, dtype=torch.float64)
    for i in range(len(ratios)):
        weight = nn.init.kaiming_normal_(
            torch.empty(50, 30, dtype=torch.float64), mode="fan_out", nonlinearity=gain
        )
        y = weight @ x
        ratios[i] = (y.relu() if gain == "relu" else y).square().sum() / x.square().sum()
    assert abs(z_score(ratios, 1)) < 4


def test_orthogonal_is_uniform() -> None:
    """Haar's measure has E tr Q = 0 and E (tr Q)^2 = 1; QR without signs -1.6 and 3 for n = 8."""
    traces = torch.stack(
        [nn.init.orthogonal_(torch.empty(8, 8, dtype=torch.float64)).trace() for _ in range(4000)]
    )
    assert abs(z_score(traces, 0)) < 4
    assert abs(z_score(traces.square(), 1)) < 4


def test_deep_orthogonal_chain_keeps_norms() -> None:
    x = torch.randn(7, 20, dtype=torch.float64)
    y = x
    for _ in range(50):
        y = y @ nn.init.orthogonal_(torch.empty(20, 20, dtype=torch.float64)).T
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("outputs", [4, 9])
def test_delta_orthogonal_keeps_the_norm_of_each_position(
    dimensions: int, kernel: int, outputs: int
) -> None:
    layer = CONVOLUTIONS[dimensions - 1](
        4, outputs, kernel, padding="same", bias=False, dtype=torch.float64
    )
    assert delta_orthogonal_(layer.weight, 1.5) is layer.weight
    assert layer.weight.requires_grad
    x = torch.randn(2, 4, *[6] * dimensions, dtype=torch.float64)
    torch.testing.assert_close(layer(x).norm(dim=1), 1.5 * x.norm(dim=1), rtol=1e-12, atol=0)


def test_delta_orthogonal_takes_a_generator() -> None:
    weights = [
        delta_orthogonal_(torch.empty(5, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 3, 3), (4, 4, 2), (4, 4, 3, 4)])
def test_shapes_are_checked(shape: tuple[int, ...]) -> None:
    weight = torch.ones(shape)
    with pytest.raises(ValueError, match="delta_orthogonal_: weight must have shape"):
        delta_orthogonal_(weight)
    assert torch.equal(weight, torch.ones(shape))
