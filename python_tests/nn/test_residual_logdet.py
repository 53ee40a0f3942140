"""Estimators of ln det(I + J), against determinants of Jacobians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowops.nn import (
    Exact,
    InvertibleResidual,
    LipschitzMLP,
    PowerSeries,
    Roulette,
    terms_for,
    truncation_bound,
)
from flowops.nn.residual_logdet import random_signs, series
from flowops.testing import randomize_

FEATURES = 8


def _matrix(lipschitz: float, *, diagonal: bool = False) -> Tensor:
    """Symmetric, eigenvalues -L/2 ... -L: as far from its first terms as the series can be."""
    values = -torch.linspace(lipschitz / 2, lipschitz, FEATURES, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(FEATURES, FEATURES, dtype=torch.float64))[0]
    return torch.diag(values) if diagonal else basis @ torch.diag(values) @ basis.T


def _linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(*matrix.shape, bias=False, dtype=matrix.dtype)
    layer.weight.data = matrix
    return layer


def _estimate(matrix: Tensor, probe: Tensor, weights: Tensor) -> Tensor:
    network = _linear(matrix)
    x = torch.randn_like(probe).requires_grad_()
    return series(network, network(x), x, probe, weights)[0]


def _truncated(matrix: Tensor, terms: int) -> Tensor:
    powers = [torch.linalg.matrix_power(matrix, k).trace() / k for k in range(1, terms + 1)]
    return torch.stack([p if k % 2 == 0 else -p for k, p in enumerate(powers)]).sum()


@pytest.mark.parametrize("lipschitz", [0.6, 0.9])
@pytest.mark.parametrize("terms", [5, 10, 20])
def test_series_with_the_exact_trace_keeps_the_truncation_bound(
    lipschitz: float, terms: int
) -> None:
    torch.manual_seed(0)
    matrix = _matrix(lipschitz)
    probes = FEATURES**0.5 * torch.eye(FEATURES, dtype=torch.float64)  # their mean is the trace
    value = _estimate(matrix, probes, PowerSeries(terms).weights(probes)).mean()
    torch.testing.assert_close(value, _truncated(matrix, terms))
    exact = torch.linalg.slogdet(torch.eye(FEATURES) + matrix).logabsdet
    error = (value - exact).abs().item()
    assert error <= truncation_bound(lipschitz, terms, FEATURES)
    assert error > truncation_bound(lipschitz, terms)  # all eigenvalues are near the worst


@pytest.mark.parametrize(
    ("lipschitz", "terms", "bound"),
    [(0.9, 5, 0.47), (0.9, 10, 0.18), (0.9, 20, 0.039), (0.98, 5, 1.73), (0.98, 20, 0.68)],
)
def test_truncation_bound_has_known_values(lipschitz: float, terms: int, bound: float) -> None:
    assert truncation_bound(lipschitz, terms) == pytest.approx(bound, rel=0.03)
    assert truncation_bound(lipschitz, terms, 10) == pytest.approx(10 * bound, rel=0.03)


def test_terms_for_is_enough_and_not_much_more() -> None:
    for lipschitz in (0.0, 0.3, 0.9, 0.98):
        for bound in (1e-1, 1e-4, 1e-9):
            terms = terms_for(lipschitz, bound)
            assert truncation_bound(lipschitz, terms) <= bound
            shorter = int(0.8 * terms)
            assert terms <= 2 or truncation_bound(lipschitz, shorter) > bound


def test_mean_over_random_signs_is_the_trace() -> None:
    torch.manual_seed(1)
    matrix = _matrix(0.8)
    probes = random_signs(torch.empty(10_000, FEATURES, dtype=torch.float64))
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    values = _estimate(matrix, probes, PowerSeries(7).weights(probes))
    error = values.std() / len(values) ** 0.5
    assert error > 1e-4  # else nothing is estimated
    assert (values.mean() - _truncated(matrix, 7)).abs() < 4 * error


def test_roulette_has_no_bias_where_the_truncated_series_has() -> None:
    torch.manual_seed(2)
    matrix = _matrix(0.6, diagonal=True)  # for which random signs give the exact trace
    probes = random_signs(torch.empty(200_000, FEATURES, dtype=torch.float64))
    weights = Roulette(p=0.5).for_lipschitz(0.6).weights(probes)
    values = _estimate(matrix, probes, weights)
    exact = torch.linalg.slogdet(torch.eye(FEATURES) + matrix).logabsdet
    assert exact.item() == pytest.approx(-4.9140, abs=1e-4)
    error = values.std() / len(values) ** 0.5
    assert (values.mean() - exact).abs() < 4 * error
    assert (values.mean() - _truncated(matrix, 5)).abs() > 4 * error


def test_roulette_draws_for_each_sample() -> None:
    torch.manual_seed(3)
    weights = Roulette(p=0.3, exact_terms=2).weights(torch.empty(20_000, 1, dtype=torch.float64))
    counted = (weights != 0).double()
    assert (counted[:, :3] == 1).all()
    for k in range(3, 8):  # term k + 1 counts with probability .7^(k - 2), and so weighs
        expected = 0.7 ** (k - 2)
        assert counted[:, k].mean().item() == pytest.approx(expected, abs=0.015)
        torch.testing.assert_close(weights[:, k].max().item(), 1 / expected)
    assert (counted[1:] != counted[:-1]).any(1).double().mean() > 0.5


def test_samples_that_leave_the_batch_change_nothing_for_the_others() -> None:
    torch.manual_seed(4)
    network = randomize_(LipschitzMLP(4, 4, hidden=(9,)).double(), std=1.0).eval()
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    probe = random_signs(x)
    lengths = torch.tensor([3, 1, 6, 2, 6, 0, 1])
    weights = (torch.arange(6) < lengths[:, None]) * torch.rand(7, 6, dtype=torch.float64)
    total, vectors = series(network, network(x), x, probe, weights)
    for i in range(7):
        row = x[i : i + 1].detach().requires_grad_()
        alone = series(network, network(row), row, probe[i : i + 1], weights[i : i + 1])
        torch.testing.assert_close(total[i : i + 1], alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(vectors[i : i + 1], alone[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [PowerSeries(60), Roulette(p=0.5), Roulette(p=0.4, probes=2)])
def test_neumann_gradient_is_that_of_the_exact_log_determinant(
    estimator: PowerSeries | Roulette,
) -> None:
    torch.manual_seed(5)
    network = randomize_(LipschitzMLP(3, 3, hidden=(6,), lipschitz=0.6).double(), std=1.0)
    for _ in range(50):
        network(torch.zeros(1, 3, dtype=torch.float64))
    network.eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    upstream = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def gradients(layer: InvertibleResidual, copies: int) -> Tensor:
        inputs = x.repeat(copies, 1).requires_grad_()
        loss = (layer(inputs)[1] * upstream.repeat(copies)).sum() / copies
        wanted = [inputs, *network.parameters()]
        by_x, *others = torch.autograd.grad(loss, wanted, materialize_grads=True)
        by_x = by_x.view(copies, *x.shape).sum(0)
        return torch.cat([g.flatten() for g in (by_x, *others)])

    exact = gradients(InvertibleResidual(network, logdet=Exact(), lipschitz=0.6), 1)
    layer = InvertibleResidual(network, logdet=estimator, eval_logdet=estimator, lipschitz=0.6)
    drawn = torch.stack([gradients(layer, 250) for _ in range(60)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() <= 4 * error + 1e-12).all()
    # The test can see a sample's weight: another one is rejected.
    upstream[1] = -1.9
    other = gradients(InvertibleResidual(network, logdet=Exact(), lipschitz=0.6), 1)
    assert ((drawn.mean(0) - other).abs() > 4 * error + 1e-12).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PowerSeries(0), "PowerSeries: terms must be at least 1, got 0"),
        (lambda: PowerSeries(3, probes=0), "PowerSeries: probes must be at least 1, got 0"),
        (lambda: Roulette(probes=0), "Roulette: probes must be at least 1"),
        (lambda: Roulette(exact_terms=-1), "Roulette: exact_terms must be at least 0"),
        (lambda: Roulette(p=1.0), "Roulette: p must be between 0 and 1"),
        (lambda: Roulette(p=0.5).for_lipschitz(0.9), "p must be below .* 0.19, or the variance"),
        (lambda: Roulette().weights(torch.zeros(1)), "Roulette: p must be set"),
        (lambda: truncation_bound(1.0, 3), "truncation_bound: lipschitz must be in"),
        (lambda: terms_for(1.0, 0.1), "terms_for: lipschitz must be in"),
        (lambda: terms_for(0.5, 0.0), "terms_for: bound must be positive"),
    ],
)
def test_errors_name_the_argument(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_roulette_chooses_a_p_of_finite_variance() -> None:
    assert Roulette().for_lipschitz(0.6).p == pytest.approx(0.32)
    assert Roulette(p=0.1).for_lipschitz(0.9).p == 0.1
