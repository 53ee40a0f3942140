"""Invertible 1x1 convolutions: initial rotation, parameterisation, preparation in one call."""

from __future__ import annotations

import pytest
import torch

from flowops import ops
from flowops.nn import ActNorm, InvertibleConv1x1, Sequential, prepare
from flowops.testing import randomize_


@pytest.mark.parametrize("parameterization", ["lu", "full"])
@pytest.mark.parametrize("channels", [1, 2, 7, 48])
def test_begins_as_a_rotation(parameterization: str, channels: int) -> None:
    layer = InvertibleConv1x1(channels, parameterization=parameterization).double()
    layer.reset_parameters()
    weight, bias, logdet = prepare([(None, layer)])[0]
    assert bias is None
    torch.testing.assert_close(weight @ weight.T, torch.eye(channels, dtype=weight.dtype))
    torch.testing.assert_close(logdet, torch.zeros_like(logdet), rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameterization", ["lu", "full"])
def test_begins_as_a_permutation_where_asked(parameterization: str) -> None:
    layer = InvertibleConv1x1(7, parameterization=parameterization, initial="permutation")
    weight, _, logdet = prepare([(None, layer)])[0]
    assert ((weight == 0) | (weight == 1)).all()
    assert (weight.sum(0) == 1).all()
    assert (weight.sum(1) == 1).all()
    assert not torch.equal(weight, torch.eye(7))
    assert logdet == 0
    with pytest.raises(ValueError, match="initial must be 'rotation' or 'permutation', got 'eye'"):
        InvertibleConv1x1(7, initial="eye")


@pytest.mark.parametrize("inverse", [False, True])
def test_equals_nflows_lu_linear(inverse: bool) -> None:
    lu = pytest.importorskip("nflows.transforms.lu")
    theirs = randomize_(lu.LULinear(6).double())
    layer = InvertibleConv1x1(6).double()
    with torch.no_grad():
        layer.lower[tuple(theirs.lower_indices)] = theirs.lower_entries
        layer.upper[tuple(theirs.upper_indices)] = theirs.upper_entries
        layer.log_s.copy_(theirs.upper_diag.log())
        layer.sign.fill_(1)
        layer.permutation.copy_(torch.arange(6))
        theirs.bias.zero_()
    x = torch.randn(9, 6, dtype=torch.float64)
    if inverse:
        back, logdet = layer.inverse(x)
        torch.testing.assert_close(theirs(back)[0], x)
        torch.testing.assert_close(-theirs(back)[1], logdet)
        return
    for ours, expected in zip(layer(x), theirs(x), strict=True):
        torch.testing.assert_close(ours, expected)


def test_lu_logdet_is_slogdet_with_a_permutation() -> None:
    layer = randomize_(InvertibleConv1x1(6).double())
    layer.permutation.copy_(torch.tensor([3, 0, 5, 1, 2, 4]))
    layer.sign.copy_(torch.tensor([1.0, -1, -1, 1, -1, 1]))
    weight, _, logdet = prepare([(None, layer)])[0]
    expected = torch.linalg.slogdet(weight).logabsdet
    torch.testing.assert_close(logdet, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logdet, layer.log_s.sum(), rtol=0, atol=1e-12)


def test_prepare_takes_one_call_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    lu = ops.invertible_conv1x1_lu

    def counted(lower: list[torch.Tensor], *rest: object, **options: object) -> object:
        calls.append(len(lower))
        return lu(lower, *rest, **options)

    monkeypatch.setattr(ops, "invertible_conv1x1_lu", counted)
    layers = [layer for _ in range(5) for layer in (ActNorm(4), InvertibleConv1x1(4))]
    Sequential(*layers)(torch.randn(2, 4, 3, 3))
    assert calls == [5]


@pytest.mark.parametrize("inverse", [False, True])
def test_prepare_keeps_the_order_of_mixed_layers(inverse: bool) -> None:
    pairs = [
        (ActNorm(4), InvertibleConv1x1(4)),
        (None, InvertibleConv1x1(3, parameterization="full")),
        (ActNorm(2), InvertibleConv1x1(2, parameterization="full")),
        (None, InvertibleConv1x1(5)),
        (ActNorm(6), InvertibleConv1x1(6)),
    ]
    for actnorm, conv in pairs:
        randomize_(conv.double())
        if actnorm is not None:
            randomize_(actnorm.double())
    together = prepare(pairs, inverse=inverse)
    for pair, (weight, bias, logdet) in zip(pairs, together, strict=True):
        x = torch.randn(2, pair[1].channels, 3, dtype=torch.float64)
        chain = [layer for layer in pair if layer is not None]
        expected, total = x, None
        for layer in reversed(chain) if inverse else chain:
            call = layer.inverse if inverse else layer
            expected, total = call(expected, logdet=total)
        torch.testing.assert_close(ops.invertible_conv1x1(x, weight, bias), expected)
        torch.testing.assert_close((3 * logdet).expand(2), total)
    assert prepare([]) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InvertibleConv1x1(0), "InvertibleConv1x1: channels must be at least 1, got 0"),
        (
            lambda: InvertibleConv1x1(2, parameterization="qr"),
            "InvertibleConv1x1: parameterization must be 'lu' or 'full', got 'qr'",
        ),
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
