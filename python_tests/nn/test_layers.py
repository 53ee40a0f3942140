"""Squeeze, permutations, splits, conditioners, preprocessing, containers: tables and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flowops.nn import (
    MADE,
    MLP,
    ActNorm,
    ActNormConv2d,
    GatedResNet,
    GlowConvNet,
    LearnedPrior,
    Logit,
    MultiScale,
    Permutation,
    ResidualMLP,
    Sequential,
    Split,
    Squeeze,
    ZeroConv2d,
    checkerboard_mask,
    dequantize,
    even_odd_permutation,
    ordered_squeeze_permutation,
    preprocessing,
)
from flowops.testing import randomize_


def test_squeeze_is_channel_major() -> None:
    x = torch.tensor([[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]])
    z, logdet = Squeeze()(x.double())
    assert z.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert z.shape == (1, 8, 1, 1)
    assert logdet.tolist() == [0]


def test_ordered_squeeze_keeps_the_diagonal() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)
    z = Sequential(Squeeze(), Permutation(ordered_squeeze_permutation(2)))(x)[0]
    assert z.flatten().tolist() == [0, 4, 3, 7, 1, 5, 2, 6]


def test_even_odd_permutation() -> None:
    assert even_odd_permutation(5).tolist() == [0, 2, 4, 1, 3]


def test_split_standardises_under_its_prior() -> None:
    split = randomize_(Split(5, ZeroConv2d(2, 6)).double())
    x = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    kept, noise, logdet = split(x)
    params = split.conditioner(kept)
    prior = torch.distributions.Normal(params[:, 0::2], params[:, 1::2].exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = prior.log_prob(x[:, 2:]).flatten(1).sum(1)
    torch.testing.assert_close(standard.log_prob(noise).flatten(1).sum(1) + logdet, expected)
    back, logdet_back = split.inverse(kept, noise)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(logdet_back, -logdet)


def test_split_without_a_prior_only_splits() -> None:
    x = torch.randn(3, 4, 2, 2)
    kept, noise, logdet = Split(4)(x)
    assert torch.equal(torch.cat([kept, noise], 1), x)
    assert torch.equal(Split(4).inverse(kept, noise)[0], x)
    assert logdet.tolist() == [0, 0, 0]


def test_learned_prior_is_a_gaussian() -> None:
    layer = randomize_(LearnedPrior(2, context_features=3).double())
    x, context = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    z, logdet = layer(x, context)
    params = layer._params(x, context)
    prior = torch.distributions.Normal(params[:, 0::2], params[:, 1::2].exp())
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(
        standard.log_prob(z).flatten(1).sum(1) + logdet, prior.log_prob(x).flatten(1).sum(1)
    )


@pytest.mark.parametrize(
    "network",
    [
        MLP(3, 5, hidden=(4,), context_features=2),
        GlowConvNet(3, 5, hidden=4, context_features=2),
        GatedResNet(3, 5, hidden=4, mask=checkerboard_mask(2, 2), context_features=2),
    ],
)
def test_conditioners_begin_at_zero_and_see_the_context(network: torch.nn.Module) -> None:
    shape = (6, 3) if isinstance(network, MLP) else (6, 3, 2, 2)
    x, context = torch.randn(shape), torch.randn(6, 2)
    assert not network(x, context).any()
    randomize_(network)
    assert network(x, context).shape == (6, 5, *shape[2:])
    assert not torch.equal(network(x, context), network(x, context + 1))
    with pytest.raises(ValueError, match=r"context must have shape \(batch, 2\), got None"):
        network(x)
    with pytest.raises(ValueError, match=r"context must have shape \(batch, 2\), got \(6, 1\)"):
        network(x, context[:, :1])


def test_actnorm_conv_is_conv_then_actnorm() -> None:
    layer = randomize_(ActNormConv2d(3, 4, 3).double())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = layer.actnorm(torch.nn.functional.conv2d(x, layer.weight, padding=1))[0]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("out_channels", [2, 4])
def test_edge_bias_is_a_channel_of_ones_on_the_padding(kernel_size: int, out_channels: int) -> None:
    layer = randomize_(ActNormConv2d(3, out_channels, kernel_size, edge_bias=True).double())
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    around = [kernel_size // 2] * 4
    inside = torch.nn.functional.pad(x, around)
    edge = torch.nn.functional.pad(x.new_zeros(2, 1, 5, 4), around, value=1.0)
    plain = torch.nn.functional.conv2d(torch.cat([inside, edge], 1), layer.weight)
    torch.testing.assert_close(layer(x), layer.actnorm(plain)[0])


def test_dequantize_stays_in_its_level() -> None:
    values = torch.arange(256).repeat(2000)
    y = dequantize(values, 256)
    assert y.dtype == torch.float32
    assert torch.equal((y * 256).floor().long(), values)
    assert (y < 1).all()
    spread = (y.double() * 256 - values).var().item()
    assert math.isclose(spread, 1 / 12, rel_tol=0.01)


def test_dequantize_follows_its_generator() -> None:
    values = torch.arange(17).double()
    draws = [dequantize(values, 17, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    assert draws[0].dtype == torch.float64


def test_logit_covers_the_ends() -> None:
    ends = torch.tensor([[0.0, 1.0]])
    for alpha in (0.05, 1e-6):
        z, logdet = Logit(alpha)(ends)
        assert z.isfinite().all()
        assert logdet.isfinite().all()
        torch.testing.assert_close(Logit(alpha).inverse(z)[0], ends, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Squeeze(0), "Squeeze: factor must be at least 1, got 0"),
        (lambda: Squeeze()(torch.zeros(1, 1, 3, 2)), "Squeeze: x must have shape"),
        (lambda: Squeeze().inverse(torch.zeros(1, 3, 2, 2)), "Squeeze: z must have shape"),
        (lambda: Permutation(torch.tensor([0, 0])), "Permutation: index must be a permutation"),
        (lambda: Split(1), "Split: channels must be at least 2, got 1"),
        (lambda: LearnedPrior(0), "LearnedPrior: channels must be at least 1, got 0"),
        (
            lambda: LearnedPrior(1, context_features=-1),
            "LearnedPrior: context_features must be at least 0, got -1",
        ),
        (lambda: MLP(0, 1), "MLP: sizes must be at least 1, got in_features=0"),
        (lambda: ActNormConv2d(0, 1, 3), "ActNormConv2d: in_channels and out_channels must be"),
        (lambda: ActNormConv2d(1, 1, 2), "ActNormConv2d: kernel_size must be odd, got 2"),
        (lambda: ZeroConv2d(1, 1, 2), "ZeroConv2d: kernel_size must be odd, got 2"),
        (lambda: GatedResNet(1, 1, blocks=-1), "GatedResNet: blocks must be at least 0, got -1"),
        (lambda: Logit(0.5), r"Logit: alpha must be in \(0, 0.5\), got 0.5"),
        (lambda: dequantize(torch.zeros(1), 0), "dequantize: levels must be at least 1, got 0"),
        (
            lambda: preprocessing("whiten", 0.1),
            "preprocessing: kind must be 'logit' or 'center', got 'whiten'",
        ),
        (
            lambda: MultiScale([Sequential(ActNorm(1))], [], []),
            "MultiScale: splits and shapes must have 0 and 1 entries for 1 levels, got 0 and 0",
        ),
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", ["plain", "residual", "masked"])
def test_networks_of_vectors_are_what_their_layers_say(kind: str) -> None:
    networks: dict[str, nn.Module] = {
        "plain": MLP(3, 4, hidden=(5, 6), context_features=2),
        "residual": ResidualMLP(3, 4, hidden=5, context_features=2),
        "masked": MADE(3, 4, hidden=7, context_features=2),
    }
    network = randomize_(networks[kind].double(), std=0.5)
    x, context = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    h = torch.cat([x, context], 1)
    if isinstance(network, MLP):
        for layer in network.layers[:-1]:
            h = torch.relu(layer(h))
        expected = network.layers[-1](h)
    else:
        assert isinstance(network, ResidualMLP)
        h = network.first(h)
        for inner, outer in zip(network.inner, network.outer, strict=True):
            h = h + outer(torch.relu(inner(torch.relu(h))))
        expected = network.last(torch.relu(h))
    torch.testing.assert_close(network(x, context).flatten(1), expected)
