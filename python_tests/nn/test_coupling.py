"""Couplings: what they keep, how they begin, what they refuse."""

from __future__ import annotations

import pytest
import torch

from flowops import ops
from flowops.nn import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    GatedResNet,
    GlowConvNet,
    checkerboard_mask,
)
from flowops.ops import ScaleMap
from flowops.testing import check_bijector, jacobian_logdet, randomize_


@pytest.mark.parametrize(("keep", "kept"), [("first", slice(0, 2)), ("second", slice(3, 5))])
def test_kept_channels_pass_through(keep: str, kept: slice) -> None:
    layer = randomize_(AffineCoupling(5, MLP(2, 6), keep=keep, kept_channels=2))
    x = torch.randn(4, 5)
    z = layer(x)[0]
    assert torch.equal(z[:, kept], x[:, kept])
    assert (z != x).sum() == 4 * 3


def test_kept_pixels_pass_through() -> None:
    mask = checkerboard_mask(4, 6, parity=1)
    layer = AffineCoupling(2, GatedResNet(2, 4, hidden=4, blocks=1, mask=mask), mask=mask)
    x = torch.randn(3, 2, 4, 6)
    z = randomize_(layer)(x)[0]
    assert torch.equal(z == x, mask.expand_as(x))


def test_begins_as_the_identity() -> None:
    layer = AffineCoupling(4, GlowConvNet(2, 4, hidden=8))
    x = torch.randn(3, 4, 2, 2)
    z, logdet = layer(x)
    assert torch.equal(z, x)
    assert torch.equal(logdet, torch.zeros(3))


@pytest.mark.parametrize("mutation", ["mask dropped from the logdet", "sign of the logdet"])
def test_the_jacobian_check_sees_a_wrong_logdet(
    mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check on the checks: a mutated kernel must fail where the true one passes."""
    true_op = ops.affine_coupling

    def mutated(x: torch.Tensor, params: torch.Tensor, **options: object) -> object:
        z, logdet = true_op(x, params, **options)
        if mutation.startswith("sign"):
            return z, -logdet
        return z, true_op(x, params, **{**options, "mask": None})[1]

    mask = checkerboard_mask(2, 2)
    layer = AffineCoupling(2, GatedResNet(2, 4, hidden=4, mask=mask), mask=mask, scale="tanh_exp")
    randomize_(layer.double())
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    check_bijector(layer, x)
    monkeypatch.setattr(ops, "affine_coupling", mutated)
    with pytest.raises(AssertionError):
        check_bijector(layer, x)
    truth = jacobian_logdet(lambda v: layer(v)[0], x)
    assert not torch.allclose(layer(x)[1], truth)


def test_float32_logdet_under_autocast() -> None:
    layer = randomize_(AffineCoupling(4, GlowConvNet(2, 4, hidden=8), scale="tanh_exp"))
    x = torch.randn(3, 4, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = layer(x)
        back, _ = layer.inverse(z)
    assert logdet.dtype == torch.float32
    torch.testing.assert_close(back.float(), x, rtol=0, atol=5e-2)


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    layer = randomize_(AffineCoupling(4, GlowConvNet(2, 4, hidden=8)))
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(3, 4, 2, 2)
    z, logdet = layer(x)
    (z.sum() + logdet.sum()).backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    z_compiled, logdet_compiled = compiled(x)
    (z_compiled.sum() + logdet_compiled.sum()).backward()
    torch.testing.assert_close(z_compiled, z)
    torch.testing.assert_close(logdet_compiled, logdet)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_checkerboard_mask_table() -> None:
    assert checkerboard_mask(2, 3).int().tolist() == [[[1, 0, 1], [0, 1, 0]]]
    assert checkerboard_mask(2, 3, parity=1).int().tolist() == [[[0, 1, 0], [1, 0, 1]]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AffineCoupling(4, MLP(2, 4), keep="third"),
            "AffineCoupling: keep must be 'first' or 'second', got 'third'",
        ),
        (
            lambda: AffineCoupling(4, MLP(2, 4), scale="cube"),
            "AffineCoupling: scale must be one of additive, exp, .*, softplus, got 'cube'",
        ),
        (
            lambda: AffineCoupling(4, MLP(2, 4), order="any"),
            "AffineCoupling: order must be 'scale_then_shift' or 'shift_then_scale', got 'any'",
        ),
        (
            lambda: AffineCoupling(4, MLP(2, 4), layout="rows"),
            "AffineCoupling: layout must be 'scale_shift' or 'shift_scale'",
        ),
        (
            lambda: AdditiveCoupling(1, MLP(1, 1)),
            "AdditiveCoupling: kept_channels must be between 1 and channels - 1 = 0, got 0",
        ),
        (
            lambda: AffineCoupling(2, MLP(2, 4), mask=torch.ones(2)),
            "AffineCoupling: mask must have dtype torch.bool, got torch.float32",
        ),
        (lambda: checkerboard_mask(2, 2, parity=2), "parity must be 0 or 1, got 2"),
    ],
)
def test_errors(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "scale",
    [
        ScaleMap("softplus", floor=0.1, limit=1.2),
        ScaleMap("sigmoid", floor=0.05),
        ScaleMap("tanh_exp", gain=0.5, limit=2.0),
        ScaleMap("atan_exp", gain=2.0, limit=0.7),
    ],
)
def test_scale_with_constants(scale: ScaleMap) -> None:
    layer = AffineCoupling(4, MLP(2, 4), scale=scale).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    assert layer.amplitude is None
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    z, logdet = layer(x)
    torch.testing.assert_close(layer.inverse(z)[0], x)
    torch.testing.assert_close(logdet, jacobian_logdet(lambda row: layer(row)[0], x))
    # Without a graph, as in a reversible chain.
    grads = torch.randn_like(z), torch.randn_like(logdet)
    parameters = list(layer.parameters())
    expected = torch.autograd.grad((z, logdet), [x, *parameters], grads)
    back, grad_x, others = layer.undo(z.detach(), None, grads, parameters)
    torch.testing.assert_close(back, x.detach())
    torch.testing.assert_close([grad_x, *others], list(expected))
