"""Spline layers and their networks: how they begin, what they keep and refuse, who sees whom."""

from __future__ import annotations

import pytest
import torch

from flowops import ops
from flowops.nn import (
    MADE,
    AutoregressiveSpline,
    GlowConvNet,
    RationalQuadraticSpline,
    ResidualMLP,
    checkerboard_mask,
    spline_parameters,
)
from flowops.testing import check_bijector, randomize_


@pytest.mark.parametrize("tails", ["linear", "circular", "none"])
def test_begins_as_the_identity(tails: str) -> None:
    x = 2 * torch.randn(30, 4)
    count = spline_parameters(5, tails)
    coupling = RationalQuadraticSpline(4, ResidualMLP(2, 2 * count), bins=5, tails=tails)
    for layer in (coupling, AutoregressiveSpline(4, bins=5, tails=tails)):
        z, logdet = layer(x)
        torch.testing.assert_close(z, x, rtol=0, atol=2e-6)
        torch.testing.assert_close(logdet, torch.zeros(30), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("keep", "kept"), [("first", slice(0, 2)), ("second", slice(3, 5))])
def test_kept_channels_pass_through(keep: str, kept: slice) -> None:
    network = ResidualMLP(2, 3 * spline_parameters(8))
    layer = randomize_(RationalQuadraticSpline(5, network, keep=keep, kept_channels=2))
    x = torch.rand(4, 5)
    z = layer(x)[0]
    assert torch.equal(z[:, kept], x[:, kept])
    assert (z != x).sum() == 4 * 3


def test_a_mask_equals_the_channels_it_keeps() -> None:
    mask = torch.tensor([True, True, False, False, False])
    inner = ResidualMLP(2, 3 * 23).double()

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
            assert not x[:, 2:].any()
            return torch.cat([torch.randn(len(x), 2 * 23).to(x), inner(x[:, :2], context)], 1)

    randomize_(inner)
    x = torch.randn(6, 5, dtype=torch.float64)
    before = torch.randn(6, dtype=torch.float64)
    narrow = RationalQuadraticSpline(5, inner, kept_channels=2)(x, logdet=before)
    masked = RationalQuadraticSpline(5, Wide(), mask=mask)(x, logdet=before)
    for got, expected in zip(masked, narrow, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_jacobian_check_sees_a_mask_dropped_from_the_logdet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = checkerboard_mask(2, 2)
    layer = RationalQuadraticSpline(2, GlowConvNet(2, 2 * 11, hidden=4), mask=mask, bins=4)
    randomize_(layer.double())
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    check_bijector(layer, x)
    monkeypatch.setattr(torch.Tensor, "masked_fill", lambda self, mask, value: self)
    with pytest.raises(AssertionError, match="log-det"):
        check_bijector(layer, x)


def dependence(network: MADE, context: torch.Tensor | None) -> torch.Tensor:
    """Return which features the outputs of each feature depend on, as bool (features, features)."""
    x = torch.randn(1, network.features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v, context), x)
    return (jacobian[0, :, :, 0] != 0).any(1)


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("hidden", [3, 64])
@pytest.mark.parametrize("features", [1, 2, 7])
def test_made_sees_only_what_comes_before(features: int, hidden: int, blocks: int) -> None:
    for passes in range(1, features + 1):
        order = torch.randperm(features)
        network = MADE(features, 2, hidden=hidden, blocks=blocks, order=order, passes=passes)
        randomize_(network.double(), std=1)
        group = order * passes // features
        sees = dependence(network, None)
        allowed = group[:, None] > group
        assert not (sees & ~allowed).any()
        # Wide networks see all that they may, but where a ReLU happens to be off.
        assert hidden < 64 or sees.sum() >= 0.9 * allowed.sum()
        assert group.unique().numel() == passes


def test_made_shows_the_context_to_every_feature() -> None:
    network = randomize_(MADE(4, 2, hidden=16, context_features=3)).double()
    x, context = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    changed = network(x, context) != network(x, context + 1)
    assert changed.any(2).all()
    with pytest.raises(ValueError, match=r"MADE: context must have shape \(batch, 3\), got None"):
        network(x)


def test_networks_begin_at_zero_again() -> None:
    for network in (randomize_(MADE(4, 2)), randomize_(ResidualMLP(4, 2))):
        assert network(torch.randn(3, 4)).any()
        network.reset_parameters()
        assert not network(torch.randn(3, 4)).any()
        assert network.first.weight.any()


def test_inverse_takes_as_many_passes_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    undo = ops.rational_quadratic_spline_inverse

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return undo(*arguments, **options)

    monkeypatch.setattr(ops, "rational_quadratic_spline_inverse", counted)
    for passes in (1, 3, 6):
        calls.clear()
        layer = randomize_(AutoregressiveSpline(6, hidden=8, passes=passes).double())
        x = torch.randn(4, 6, dtype=torch.float64)
        torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x, rtol=0, atol=1e-10)
        assert len(calls) == passes


def test_float32_logdet_under_autocast() -> None:
    layer = randomize_(AutoregressiveSpline(4))
    x = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = layer(x)
    assert z.dtype == logdet.dtype == torch.float32
    torch.testing.assert_close(logdet, layer(x)[1], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spline_parameters(0), "bins must be at least 1, got 0"),
        (lambda: spline_parameters(4, "flat"), "tails must be one of linear, .*got 'flat'"),
        (
            lambda: RationalQuadraticSpline(4, ResidualMLP(2, 46), keep="third"),
            "RationalQuadraticSpline: keep must be 'first' or 'second', got 'third'",
        ),
        (
            lambda: RationalQuadraticSpline(4, ResidualMLP(2, 46), kept_channels=4),
            "kept_channels must be between 1 and channels - 1 = 3, got 4",
        ),
        (
            lambda: RationalQuadraticSpline(4, ResidualMLP(2, 46), mask=torch.ones(4)),
            "mask must have dtype torch.bool, got torch.float32",
        ),
        (lambda: ResidualMLP(0, 4), "ResidualMLP: sizes must be at least 1, .*in_features=0"),
        (lambda: MADE(4, 2, blocks=-1), "MADE: .*blocks=-1"),
        (lambda: MADE(4, 2, passes=5), "passes must be from 1 to 4, got 5"),
        (
            lambda: MADE(3, 2, order=torch.tensor([0, 0, 1])),
            r"order must be a permutation of range\(3\), got \[0, 0, 1\]",
        ),
    ],
)
def test_errors(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
