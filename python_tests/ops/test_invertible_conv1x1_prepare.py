"""invertible_conv1x1_lu and _full against the float64 reference, slogdet and op checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.cases import same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SIZES = ((1,), (2, 3), (12, 12, 24), (16, 17, 5), (33, 48), (97,))
LU = ("lower", "upper", "log_s", "sign", "permutation")
ACTNORM = ("actnorm_bias", "actnorm_log_scale")
Layers = dict[str, list[Tensor]]


def make_layers(
    sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64
) -> Layers:
    """Random parameters of well-conditioned layers; unused triangles are random too."""
    layers: Layers = {name: [] for name in (*LU, *ACTNORM, "weight")}
    for n in sizes:
        matrices = torch.randn(2, n, n, dtype=torch.float64) / (2 + n**0.5)
        vectors = torch.randn(3, n, dtype=torch.float64) / 3
        layers["lower"].append(matrices[0])
        layers["upper"].append(matrices[1])
        layers["log_s"].append(vectors[0])
        layers["sign"].append(torch.randint(0, 2, (n,)).double() * 2 - 1)
        layers["permutation"].append(torch.randperm(n))
        layers["actnorm_bias"].append(vectors[1])
        layers["actnorm_log_scale"].append(vectors[2])
    layers["weight"] = reference.invertible_conv1x1_lu(*(layers[name] for name in LU))[0]
    return {
        name: [t.to(device, dtype if t.is_floating_point() else None) for t in tensors]
        for name, tensors in layers.items()
    }


def call(module: Any, layers: Layers, kind: str, actnorm: bool, inverse: bool) -> list[Tensor]:
    """Weights, biases and log-dets in one list."""
    options: dict[str, Any] = {name: layers[name] for name in ACTNORM} if actnorm else {}
    if kind == "full":
        prepared = module.invertible_conv1x1_full(layers["weight"], inverse=inverse, **options)
    else:
        arguments = [layers[name] for name in LU]
        prepared = module.invertible_conv1x1_lu(*arguments, inverse=inverse, **options)
    weights, biases, logdet = prepared
    return [*weights, *biases, logdet]


def leaves_of(layers: Layers, kind: str, actnorm: bool) -> list[Tensor]:
    names = ("weight",) if kind == "full" else LU[:3]
    return [t for name in (*names, *(ACTNORM if actnorm else ())) for t in layers[name]]


def detached(layers: Layers, dtype: torch.dtype | None = None) -> Layers:
    """Copies that require gradients, in ``dtype`` where one is given."""
    return {
        name: [
            t.detach().to(dtype or t.dtype).requires_grad_() if t.is_floating_point() else t
            for t in tensors
        ]
        for name, tensors in layers.items()
    }


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("actnorm", [False, True])
@pytest.mark.parametrize("kind", ["lu", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_matches_reference(
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    kind: str,
    actnorm: bool,
    inverse: bool,
    device: torch.device,
) -> None:
    layers = make_layers(sizes, device, dtype)
    ours, theirs = detached(layers), detached(layers, torch.float64)
    got = call(ops, ours, kind, actnorm, inverse)
    expected = call(reference, theirs, kind, actnorm, inverse)
    wide = torch.promote_types(dtype, torch.float32)
    upstream = [torch.randn_like(t) for t in got]
    assert all(t.dtype == wide for t in got)
    for a, b in zip(got, expected, strict=True):
        # Inverses amplify rounding by the condition number, up to 50 here; elements reach 5.
        assert_close(a, b, dtype=wide, factor=100)
    ours_leaves, their_leaves = leaves_of(ours, kind, actnorm), leaves_of(theirs, kind, actnorm)
    grads = torch.autograd.grad(got, ours_leaves, upstream)
    wanted = torch.autograd.grad(expected, their_leaves, [u.double() for u in upstream])
    for leaf, grad, want in zip(ours_leaves, grads, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        scale = float(want.abs().max().clamp(min=1))
        # Two products with the inverse, so the condition number squared.
        assert_close(
            grad / scale, want / scale, dtype=dtype, factor=1 if dtype == torch.bfloat16 else 300
        )


@pytest.mark.parametrize("n", [1, 2, 7, 12, 48, 96])
def test_logdet_is_that_of_the_weight(n: int, device: torch.device) -> None:
    layers = make_layers((n, n), device)
    *weights, logdet = call(ops, layers, "lu", False, False)
    expected = torch.stack([torch.linalg.slogdet(w).logabsdet for w in weights])
    torch.testing.assert_close(logdet, expected, rtol=1e-12, atol=1e-12 * n)
    full = ops.invertible_conv1x1_full(weights)[2]
    torch.testing.assert_close(full, expected, rtol=1e-12, atol=1e-12 * n)


@pytest.mark.parametrize("kind", ["lu", "full"])
@pytest.mark.parametrize("actnorm", [False, True])
def test_inverse_undoes_the_layer(kind: str, actnorm: bool, device: torch.device) -> None:
    layers = make_layers((5, 12), device)
    forward = call(ops, layers, kind, actnorm, False)
    inverse = call(ops, layers, kind, actnorm, True)
    assert_close(forward[-1], -inverse[-1], dtype=torch.float64)
    for i, n in enumerate((5, 12)):
        x = torch.randn(2, n, 3, device=device, dtype=torch.float64)
        biases = (forward[2 + i], inverse[2 + i]) if actnorm else (None, None)
        z = ops.invertible_conv1x1(x, forward[i], biases[0])
        again = ops.invertible_conv1x1(z, inverse[i], biases[1])
        assert_close(again, x, dtype=torch.float64, factor=100)  # the condition number
        if actnorm:
            scaled, _ = ops.actnorm(x, layers["actnorm_bias"][i], layers["actnorm_log_scale"][i])
            assert_close(
                ops.invertible_conv1x1(scaled, layers["weight"][i]), z, dtype=torch.float64
            )


def test_pivots_where_the_diagonal_is_zero(device: torch.device) -> None:
    for n in (2, 19, 40):
        weight = torch.eye(n, dtype=torch.float64, device=device).roll(1, 0) * 3
        (inverse,), _, logdet = ops.invertible_conv1x1_full([weight], inverse=True)
        assert_close(inverse, weight.T / 9, dtype=torch.float64)
        assert_close(
            logdet, -torch.full((1,), 3.0).log().double() * n, dtype=torch.float32, factor=n
        )


def test_large_layers_are_factored_by_lapack(device: torch.device) -> None:
    n = 200
    weight = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, device=device)).Q * 1.1
    weight.requires_grad_()
    expected = torch.linalg.slogdet(weight).logabsdet
    _, _, logdet = ops.invertible_conv1x1_full([weight])
    assert_close(logdet[0], expected, dtype=torch.float64, factor=n)
    (grad,) = torch.autograd.grad(logdet, weight, torch.ones_like(logdet))
    assert_close(grad, torch.linalg.inv(weight).T, dtype=torch.float64)
    (inverse,), _, _ = ops.invertible_conv1x1_full([weight], inverse=True)
    assert_close(inverse, torch.linalg.inv(weight), dtype=torch.float64)


def test_singular_weight_is_not_finite(device: torch.device) -> None:
    weight = torch.ones(3, 3, device=device)
    assert ops.invertible_conv1x1_full([weight])[2].item() == -torch.inf
    (inverse,), _, logdet = ops.invertible_conv1x1_full([weight], inverse=True)
    assert logdet.item() == torch.inf
    assert not inverse.isfinite().all()


def test_takes_strided_parameters(device: torch.device) -> None:
    layers = make_layers((6,), device)
    expected = call(ops, layers, "lu", True, False)
    strided = {
        name: [t.repeat_interleave(2, -1)[..., ::2] for t in ts] for name, ts in layers.items()
    }
    strided["lower"] = [t.mT.contiguous().mT for t in layers["lower"]]
    for a, b in zip(call(ops, strided, "lu", True, False), expected, strict=True):
        assert torch.equal(a, b)


def test_layers_do_not_depend_on_each_other_or_on_threads(device: torch.device) -> None:
    layers = detached(make_layers((24, 12, 48, 12), device, torch.float32))

    def run(layers: Layers) -> list[Tensor]:
        outputs = call(ops, layers, "lu", True, False)
        total = sum(t.square().sum() for t in outputs)
        return [*outputs, *torch.autograd.grad(total, leaves_of(layers, "lu", True))]

    many = same_for_any_threads(lambda: run(layers))
    alone = call(ops, {name: ts[2:3] for name, ts in layers.items()}, "lu", True, False)
    assert torch.equal(alone[0], many[2])
    assert torch.equal(alone[2][0], many[8][2])


def function_of(layers: Layers, kind: str, actnorm: bool, inverse: bool) -> Callable[..., Any]:
    """The op as a function of its differentiable tensors alone, as gradcheck wants it."""
    names = (*(("weight",) if kind == "full" else LU[:3]), *(ACTNORM if actnorm else ()))

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        count = len(layers["weight"])
        lists = {name: list(leaves[i * count : (i + 1) * count]) for i, name in enumerate(names)}
        return tuple(call(ops, layers | lists, kind, actnorm, inverse))

    return run


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("actnorm", [False, True])
@pytest.mark.parametrize("kind", ["lu", "full"])
def test_gradcheck_twice(kind: str, actnorm: bool, inverse: bool, device: torch.device) -> None:
    layers = make_layers((3, 2), device)
    run = function_of(layers, kind, actnorm, inverse)
    leaves = [t.requires_grad_() for t in leaves_of(layers, kind, actnorm)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("actnorm", [False, True])
def test_opcheck(actnorm: bool, inverse: bool, device: torch.device) -> None:
    layers = detached(make_layers((3, 2), device, torch.float32))
    options = [layers[name] if actnorm else [] for name in ACTNORM]
    lists = [layers[name] for name in LU]
    lists[3] = [t.detach() for t in lists[3]]
    torch.library.opcheck(torch.ops.flowops.invertible_conv1x1_lu, (*lists, *options, inverse))
    full = (layers["weight"], *options, inverse)
    torch.library.opcheck(torch.ops.flowops.invertible_conv1x1_full, full)


def test_transforms_take_the_reference(device: torch.device) -> None:
    layers = make_layers((3,), device)

    def logdet(weight: Tensor) -> Tensor:
        return ops.invertible_conv1x1_full([weight])[2][0]

    weight = layers["weight"][0]
    assert_close(torch.func.grad(logdet)(weight), torch.linalg.inv(weight).T, dtype=torch.float64)

    def first(log_s: Tensor) -> Tensor:
        return call(ops, layers | {"log_s": [log_s]}, "lu", False, False)[-1]

    assert_close(
        torch.func.jacrev(first)(layers["log_s"][0]),
        torch.ones(1, 3, device=device),
        dtype=torch.float64,
    )


def test_autocast_keeps_float32(device: torch.device) -> None:
    layers = make_layers((3,), device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert all(t.dtype == torch.float32 for t in call(ops, layers, "lu", True, True))


def test_compiles_whole(device: torch.device) -> None:
    layers = detached(make_layers((3, 2), device, torch.float32))
    for kind in ("lu", "full"):
        leaves = leaves_of(layers, kind, True)

        def step(kind: str = kind) -> Tensor:
            return sum(t.square().sum() for t in call(ops, layers, kind, True, False))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(), leaves)
        want = torch.autograd.grad(step(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
