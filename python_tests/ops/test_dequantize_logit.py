"""dequantize_logit, logit and its inverse against float64, autograd and op checks; the noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flowops
from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close, jacobian_logdet

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Vectors, images and volumes; several samples a tile, samples of several chunks, odd sizes.
SHAPES = (
    (3, 5),
    (500, 63),
    (103, 5),
    (4, 700),
    (2, 3, 7),
    (2, 12, 8, 8),
    (2, 3, 83, 81),
    (2, 3, 2, 3, 2),
    (1, 1),
)
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
    for shape, levels in itertools.product(SHAPES, (1, 256)):
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
    for shape, levels in itertools.product(SHAPES, (1, 17)):
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
    for shape in SHAPES:
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
        weights = [torch.randn_like(t) for t in output]
        fused, composed = (
            torch.autograd.grad(output, x, weights, retain_graph=True, create_graph=create)[0]
            for create in (False, True)
        )
        assert_close(composed, fused, dtype=dtype, factor=4)


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

        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            many = run()
            torch.set_num_threads(1)
            one = run()
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))
        z, logdet = ops.dequantize_logit(x[:-1].detach(), 256, alpha=0.05, key=key)
        assert torch.equal(z, many[0][:-1])
        assert torch.equal(logdet, many[1][:-1])


def test_generators_and_keys(device: torch.device) -> None:
    values = torch.zeros(4, 6, dtype=torch.uint8, device=device)

    def draw(**options: Any) -> Tensor:
        return ops.dequantize_logit(values, 256, alpha=0.05, **options)[0]

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    seeded = [draw(generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="dequantize_logit: generator must be None where a key"):
        draw(key=ops.random_key(device=device), generator=torch.Generator())


def test_backward_keeps_the_key_and_not_the_noise(device: torch.device) -> None:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x = torch.zeros(4, 600, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ops.dequantize_logit(x, 256, alpha=0.05)
    assert sum(t.nbytes for t in saved if t.data_ptr() != x.data_ptr()) == 16


def test_checkpoint_draws_the_same_again(device: torch.device) -> None:
    x = torch.rand(4, 6, device=device, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        z, logdet = ops.dequantize_logit(x.sin(), 4, alpha=0.05)
        return z.square().sum() + logdet.sum()

    torch.manual_seed(5)
    (plain,) = torch.autograd.grad(step(x), x)
    torch.manual_seed(5)
    loss = checkpoint(step, x, use_reentrant=False)
    flowops.rand(10, device=device)
    assert torch.equal(torch.autograd.grad(loss, x)[0], plain)


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(values: Tensor, x: Tensor) -> Tensor:
        z, logdet = ops.dequantize_logit(values, 256, alpha=0.05)
        z, logdet = ops.logit(torch.sigmoid(z + x), alpha=0.05, logdet=logdet)
        return z.sum() + logdet.sum() + flowops.rand(z.size(0), device=z.device).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        values = torch.randint(0, 256, (batch, 6), dtype=torch.uint8, device=device)
        x = torch.randn(batch, 6, device=device, requires_grad=True)
        torch.manual_seed(batch)
        got = torch.autograd.grad(compiled(values, x), x)
        torch.manual_seed(batch)
        want = torch.autograd.grad(step(values, x), x)
        assert torch.equal(got[0], want[0])


def test_opcheck(device: torch.device) -> None:
    key = ops.random_key(device=device)
    x = torch.rand(2, 3, 4, device=device, requires_grad=True)
    last = torch.rand(2, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
    logdet = torch.randn(2, device=device, requires_grad=True)
    op, backward = torch.ops.flowops.dequantize_logit, torch.ops.flowops.dequantize_logit_backward
    for given, noise, inverse in ((x, None, False), (x, key, False), (x, None, True)):
        torch.library.opcheck(op, (given, noise, logdet, 17, 0.05, inverse))
        grads = torch.randn(2, 3, 4, device=device), torch.randn(2, device=device)
        torch.library.opcheck(backward, (*grads, given.detach(), noise, 17, 0.05, inverse))
    torch.library.opcheck(op, (last[:, :4], key, None, 17, 0.05, False))
    torch.library.opcheck(op, (last.mul(255).byte()[:, :4], key, None, 256, 0.05, False))
    torch.library.opcheck(torch.ops.flowops.uniform_noise, (key, [3, 5], torch.float64))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x = torch.rand(3, 4, dtype=torch.float64, device=device)
    key = ops.random_key(device=device)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = ops.dequantize_logit(x, 2, alpha=0.05, key=key)
        back, total = ops.logit_inverse(z, alpha=0.05, levels=2, logdet=logdet)
        return back, total

    assert_close(run(x)[1], torch.zeros(3), dtype=torch.float64, factor=10)
    grad = torch.func.grad(lambda t: run(t)[0].sum())(x)
    assert_close(grad, torch.ones_like(x), dtype=torch.float64, factor=10)
    value, tangent = torch.func.jvp(lambda t: run(t)[0], (x,), (torch.ones_like(x),))
    assert_close(tangent, torch.ones_like(x), dtype=torch.float64, factor=10)
    assert_close(value, run(x)[0], dtype=torch.float64, factor=10)
    pixels = torch.zeros(3, 2, 4, dtype=torch.uint8, device=device)
    batched = torch.func.vmap(
        lambda v: ops.dequantize_logit(v, 256, alpha=0.05)[0], randomness="different"
    )(pixels)
    assert not torch.equal(batched[0], batched[1])


def test_autocast_keeps_float32(device: torch.device) -> None:
    x = torch.rand(2, 3, device=device).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, logdet = ops.logit(x, alpha=0.05)
    assert z.dtype == logdet.dtype == torch.float32


X, BYTES = torch.rand(2, 4, 3), torch.zeros(2, 4, 3, dtype=torch.uint8)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"values": torch.rand(3)},
        r"x must have shape \(batch, channels, \.\.\.\), got \[3\]",
    ),
    "shape_of_bytes": ({"values": BYTES[0, 0]}, r"x must have shape \(batch, .*got \[3\]"),
    "levels": ({"levels": 0}, "levels must be 1 to 65536, got 0"),
    "many_levels": ({"levels": 65537}, "levels must be 1 to 65536, got 65537"),
    "alpha": ({"alpha": 0.5}, r"alpha must be in \(0, 0.5\), got 0.5"),
    "no_alpha": ({"alpha": 0.0}, r"alpha must be in \(0, 0.5\), got 0"),
    "logdet": ({"logdet": torch.zeros(3)}, r"logdet must have shape \[2\] .*got \[3\]"),
    "logdet_dtype": ({"logdet": torch.zeros(2).double()}, "logdet must be Float, got Double"),
    "key": ({"key": torch.tensor([1])}, r"key must be two int64 .*got Long of shape \[1\]"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {"values": X, "levels": 256, "alpha": 0.05, "key": torch.tensor([1, 2])} | changed
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="dequantize_logit: " + message),
    ):
        ops.dequantize_logit(**arguments)


def test_the_op_itself_checks_the_inverse(device: torch.device) -> None:
    op, backward = torch.ops.flowops.dequantize_logit, torch.ops.flowops.dequantize_logit_backward
    x, key = X.to(device), torch.tensor([1, 2], device=device)
    with pytest.raises(ValueError, match="key must be None for the inverse, got one"):
        op(x, key, None, 256, 0.05, True)
    with pytest.raises(ValueError, match="x must be floating for the inverse, got Byte"):
        op(BYTES.to(device), None, None, 256, 0.05, True)
    with pytest.raises(ValueError, match=r"grad_z must have shape \[2, 4, 3\]"):
        backward(x[0], x[:, 0, 0], x, None, 256, 0.05, False)
    with pytest.raises(ValueError, match=r"grad_logdet must have shape \[2\]"):
        backward(x, x, x, None, 256, 0.05, False)
    with pytest.raises(ValueError, match="rand: dtype must be float64 or float32, got Half"):
        flowops.rand(2, dtype=torch.float16, device=device)
