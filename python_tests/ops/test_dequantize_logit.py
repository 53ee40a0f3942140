"""dequantize_logit, logit and its inverse against float64, autograd and op checks; the noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, SAMPLE_SHAPES, kernel_and_composed, same_for_any_threads
from torch import Tensor

import flowops
from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close, jacobian_logdet

ALPHAS = (0.05, 1e-6)


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def expected_of(
    t: Tensor, alpha: float, levels: int, logdet: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """By torch.logit and the softplus form of the log-determinant, in float64."""
    # torch.logit loses digits where 1 - y is small: the sides of y are taken apart.
    y, rest = alpha + (1 - 2 * alpha) * (t / levels), alpha + (1 - 2 * alpha) * (1 - t / levels)
    z = torch.where(y < 0.5, torch.logit(y), -torch.logit(rest))
    softplus = torch.nn.functional.softplus
    terms = softplus(z) + softplus(-z) + math.log((1 - 2 * alpha) / levels)
    total = terms.flatten(1).sum(1)
    return z, total if logdet is None else logdet + total


def assert_totals(got: Tensor, want: Tensor, shape: tuple[int, ...]) -> None:
    """Sums of terms of up to 10 of both signs: what counts is the size of the terms."""
    count = torch.Size(shape[1:]).numel()
    rtol, atol = TOLERANCES[got.dtype]
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol * (2 + count / 8))


def noisy(values: Tensor, levels: int, key: Tensor) -> Tensor:
    """``v + u`` in float64, with the numbers and the bound of the type of the op's arithmetic."""
    wide = wide_of(values.dtype) if values.is_floating_point() else torch.float32
    noise = reference.rand(values.shape, key=key, dtype=wide)
    most = 1 - 2 * levels * torch.finfo(wide).eps
    # The sum is rounded once, in the type of the arithmetic.
    return (values.to(wide) + noise.clamp(max=most)).double()


def compare_gradients(ours: tuple[Any, Any], theirs: tuple[Any, Any], leaves: list[Tensor]) -> None:
    x, wide = leaves
    weights = [torch.randn_like(t) for t in ours]
    (grad,) = torch.autograd.grad(ours, x, weights)
    (want,) = torch.autograd.grad(theirs, wide, [w.double() for w in weights])
    assert grad.dtype == x.dtype
    want = want.to(x.dtype)  # up to 1 / alpha, which float16 does not hold
    rtol, atol = TOLERANCES[x.dtype]
    size = float(want[want.isfinite()].abs().max()) if want.numel() else 0.0
    # g + h (a - b) cancels, before it is multiplied by up to c / alpha.
    torch.testing.assert_close(grad.double(), want.double(), rtol=rtol, atol=atol * (1 + size / 2))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_float64(dtype: torch.dtype, alpha: float, device: torch.device) -> None:
    for shape, levels in itertools.product(SAMPLE_SHAPES, (1, 256)):
        values = torch.rand(shape, dtype=torch.float64) * levels
        key = None if levels == 1 else ops.random_key(device=device)
        values = (values if key is None else values.floor()).to(device, dtype).clamp(max=levels)
        before = torch.randn(shape[0], device=device, dtype=wide_of(dtype))
        x, wide = values.clone().requires_grad_(), values.double().requires_grad_()
        t = wide if key is None else wide + (noisy(values, levels, key) - values.double())
        if key is None:
            ours = ops.logit(x, alpha=alpha, logdet=before)
        else:
            ours = ops.dequantize_logit(x, levels, alpha=alpha, logdet=before, key=key)
        want = expected_of(t, alpha, levels, before.double())
        assert ours[0].dtype == dtype
        assert ours[1].dtype == wide_of(dtype)
        assert_close(ours[0], want[0], dtype=dtype, factor=2)
        assert_totals(ours[1], want[1], shape)
        compare_gradients(ours, want, [x, wide])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_matches_float64(dtype: torch.dtype, alpha: float, device: torch.device) -> None:
    for shape, levels in itertools.product(SAMPLE_SHAPES, (1, 17)):
        z = (3 * torch.randn(shape, dtype=torch.float64)).to(device, dtype)
        x, wide = z.clone().requires_grad_(), z.double().requires_grad_()
        ours = ops.logit_inverse(x, alpha=alpha, levels=levels)
        want = levels * (torch.sigmoid(wide) - alpha) / (1 - 2 * alpha)
        sides = torch.nn.functional.logsigmoid(torch.stack([wide, -wide])).sum(0)
        total = (sides - math.log((1 - 2 * alpha) / levels)).flatten(1).sum(1)
        assert_close(ours[0], want, dtype=dtype, factor=levels)  # relative to the range
        assert_totals(ours[1], total, shape)
        compare_gradients(ours, (want, total), [x, wide])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bytes_are_read_as_they_are(alpha: float, device: torch.device) -> None:
    for shape in SAMPLE_SHAPES:
        values = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        key = ops.random_key(device=device)
        z, logdet = ops.dequantize_logit(values, 256, alpha=alpha, key=key)
        others = [
            ops.dequantize_logit(values.to(dtype), 256, alpha=alpha, key=key)
            for dtype in (torch.float32, torch.int64, torch.int16)
        ]
        assert z.dtype == logdet.dtype == torch.float32
        assert all(torch.equal(z, o[0]) and torch.equal(logdet, o[1]) for o in others)
        back, logdet_back = ops.logit_inverse(z, alpha=alpha, levels=256)
        # sigmoid rounds to 6e-8 of the range, 256 levels wide.
        assert_close(back, noisy(values, 256, key), dtype=torch.float32, factor=40)
        assert_close(logdet_back, -logdet, dtype=torch.float32, factor=4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_takes_strided_views_as_they_are(dtype: torch.dtype, device: torch.device) -> None:
    base = torch.randint(0, 17, (3, 8, 6, 5), device=device).to(dtype)
    last = base.to(memory_format=torch.channels_last)
    views = {
        "half": base[:, 4:],
        "channels_last": last,
        "channels_last_half": last[:, :4],
        "every_second_channel": base[:, 1::2],
        "every_second_column": base[..., ::2],
        "transposed_pixels": base.mT,
        "expanded": base[:1].expand(3, 8, 6, 5),
        "expanded_pixels": base[..., :1].expand(3, 8, 6, 5),
        "vectors": base[:, :, 0, 0].T,
        "offset": base.flatten()[1:-23].reshape(-1, 4),
    }
    for name, view in views.items():
        key = ops.random_key(device=device)
        got = ops.dequantize_logit(view, 17, alpha=0.05, key=key)
        dense = view.contiguous().clone()
        want = ops.dequantize_logit(dense, 17, alpha=0.05, key=key)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5, msg=name)
        if "channels_last" in name:
            assert got[0].is_contiguous(memory_format=torch.channels_last)
        if dtype != torch.float32:
            continue
        grads = []
        for x in (view.detach().requires_grad_(), dense.requires_grad_()):
            z, total = ops.dequantize_logit(x, 17, alpha=0.05, key=key)
            grads.append(torch.autograd.grad((z.square().sum(), total.sum()), x)[0])
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3, 0), (0, 0)])
def test_empty_inputs_pass(shape: tuple[int, ...], device: torch.device) -> None:
    for dtype in (torch.uint8, torch.float32):
        z, logdet = ops.dequantize_logit(
            torch.zeros(shape, dtype=dtype, device=device), 256, alpha=0.05
        )
        assert z.shape == shape
        assert torch.equal(logdet, torch.zeros(shape[0], device=device))
    x = torch.zeros(shape, device=device, requires_grad=True)
    before = torch.ones(shape[0], device=device)
    for function in (ops.logit, ops.logit_inverse):
        z, logdet = function(x, alpha=0.05, logdet=before)
        assert torch.equal(logdet, before)
        assert torch.autograd.grad(z.sum() + logdet.sum(), x)[0].shape == shape


@pytest.mark.parametrize("alpha", [0.05, 1e-6, 1e-12, 1e-20])
def test_ends_are_finite_and_lose_no_digits(alpha: float, device: torch.device) -> None:
    ends = torch.tensor([[0.0, 1.0]], device=device).requires_grad_()
    z, logdet = ops.logit(ends, alpha=alpha)
    size = math.log1p(-alpha) - math.log(alpha)
    assert_close(z, torch.tensor([[-size, size]]), dtype=torch.float32)
    slope = math.log1p(-2 * alpha) - 2 * (math.log(alpha) + math.log1p(-alpha)) / 2
    assert_close(logdet, torch.tensor([2 * slope]), dtype=torch.float32)
    (grad,) = torch.autograd.grad(z.sum(), ends)
    assert_close(
        grad * alpha, torch.full((1, 2), (1 - 2 * alpha) / (1 - alpha)), dtype=torch.float32
    )
    values = torch.tensor([[0, 255]], dtype=torch.uint8, device=device).expand(1000, 2)
    z, logdet = ops.dequantize_logit(values, 256, alpha=alpha)
    assert z.isfinite().all()
    assert logdet.isfinite().all()


def test_outside_the_domain_and_nan(device: torch.device) -> None:
    x = torch.tensor([[0.5, -2.0], [torch.nan, 0.5], [0.5, 0.5]], device=device)
    z, logdet = ops.logit(x, alpha=0.05)
    assert z.isnan().tolist() == [[False, True], [True, False], [False, False]]
    assert logdet.isnan().tolist() == [True, True, False]
    x, logdet = ops.logit_inverse(torch.tensor([[-1e4, 1e4, 0.0]], device=device), alpha=0.05)
    assert_close(x, torch.tensor([[-0.05, 0.95, 0.45]]) / 0.9, dtype=torch.float32)
    assert_close(logdet, -2e4 + torch.tensor([-2 * math.log(2) - 3 * math.log(0.9)]),
                 dtype=torch.float32)  # fmt: skip


@pytest.mark.parametrize("levels", [1, 2, 17, 256, 65536])
def test_values_stay_in_their_level(levels: int, device: torch.device) -> None:
    values = torch.arange(levels, device=device).repeat(max(1, 2**18 // levels)).float()
    z, _ = ops.dequantize_logit(values.view(1, -1).double(), levels, alpha=1e-4)
    t, _ = ops.logit_inverse(z, alpha=1e-4, levels=levels)
    assert torch.equal((t + 1e-9).floor(), values.view(1, -1).double())
    # In float32 the map back rounds; near the upper end z shows what the noise became.
    key = ops.random_key(device=device)
    for given in (values, torch.full_like(values, levels - 1)):
        noise = flowops.rand(len(given), key=key, device=device)
        t = reference.add_noise(given, noise, levels)
        assert torch.equal(t.floor(), given)
        z, _ = ops.dequantize_logit(given[None], levels, alpha=1e-6, key=key)
        want = expected_of(t.double()[None], 1e-6, levels)[0]
        assert_close(z, want, dtype=torch.float32, factor=2)


def test_logdet_is_that_of_the_jacobian(device: torch.device) -> None:
    for alpha, levels in itertools.product(ALPHAS, (1, 17)):
        x = torch.rand(3, 4, dtype=torch.float64, device=device) * levels
        options = {"alpha": alpha, "levels": levels}
        z, logdet = ops.logit(x, **options)
        expected = jacobian_logdet(lambda t, o=options: ops.logit(t, **o)[0], x)
        torch.testing.assert_close(logdet, expected, rtol=1e-10, atol=1e-10)
        back, logdet = ops.logit_inverse(z, **options)
        torch.testing.assert_close(back, x, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(logdet, -expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradcheck_twice(inverse: bool, noise: bool, device: torch.device) -> None:
    if inverse and noise:
        pytest.skip("the inverse has no noise")
    key = ops.random_key(device=device) if noise else None
    x = (torch.rand(2, 3, 2, dtype=torch.float64, device=device) * 4).requires_grad_()
    logdet = torch.randn(2, dtype=torch.float64, device=device, requires_grad=True)

    def run(x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        if inverse:
            return ops.logit_inverse(x, alpha=0.05, levels=5, logdet=logdet)
        if key is not None:
            return ops.dequantize_logit(x, 5, alpha=0.05, logdet=logdet, key=key)
        return ops.logit(x, alpha=0.05, levels=5, logdet=logdet)

    assert torch.autograd.gradcheck(run, (x, logdet))
    assert torch.autograd.gradgradcheck(run, (x, logdet))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_for_gradients_is_that_of_the_kernel(
    dtype: torch.dtype, device: torch.device
) -> None:
    x = (torch.rand(3, 4, 5, device=device) * 17).to(dtype).requires_grad_()
    outputs = (
        ops.logit(x, alpha=0.05, levels=17),
        ops.dequantize_logit(x, 18, alpha=0.05, key=ops.random_key(device=device)),
        ops.logit_inverse(x - 8, alpha=0.05, levels=17),
    )
    for output in outputs:
        (kernel,), (composed,) = kernel_and_composed(output, [x])
        assert_close(composed, kernel, dtype=dtype, factor=4)


def test_only_logdet_wants_a_gradient(device: torch.device) -> None:
    values = torch.zeros(2, 3, dtype=torch.uint8, device=device)
    before = torch.zeros(2, device=device, requires_grad=True)
    z, logdet = ops.dequantize_logit(values, 256, alpha=0.05, logdet=before)
    assert torch.autograd.grad((z.sum(), (2 * logdet).sum()), before)[0].tolist() == [2, 2]


def test_results_do_not_depend_on_threads_or_batch(device: torch.device) -> None:
    key = ops.random_key(device=device)
    for shape in ((9, 12, 31, 33), (3000, 5), (40, 300), (700, 64)):
        x = torch.randint(0, 256, shape, device=device).float().requires_grad_()

        def run(x: Tensor = x) -> tuple[Tensor, ...]:
            z, logdet = ops.dequantize_logit(x, 256, alpha=0.05, key=key)
            return z, logdet, *torch.autograd.grad((z.sum(), logdet.sum()), x)

        many = same_for_any_threads(run)
        z, logdet = ops.dequantize_logit(x[:-1].detach(), 256, alpha=0.05, key=key)
        assert torch.equal(z, many[0][:-1])
        assert torch.equal(logdet, many[1][:-1])
