"""invertible_conv1x1, the product, against its float64 reference and PyTorch's own op checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close, jacobian_logdet

# Vectors, sequences, images and volumes; whole vectors of pixels, rests, both; channels that fill
# blocks or not.
SHAPES = (
    (3, 5),
    (500, 63),
    (2, 3, 7),
    (3, 3, 65),
    (2, 4, 5, 3),
    (4, 12, 16, 16),
    (3, 48, 8, 8),
    (9, 8, 2, 2),
    (2, 6, 25, 33),
    (2, 3, 2, 3, 2),
    (1, 1, 1, 1),
    (2, 100, 3, 6),
)


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def make_inputs(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random x, weight and bias; outputs of order one."""
    channels = shape[1]
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(channels, channels, dtype=torch.float64) / max(channels, 1) ** 0.5
    bias = torch.randn(channels, dtype=torch.float64)
    return [x.to(device, dtype), weight.to(device, wide_of(dtype)), bias.to(device, wide_of(dtype))]


def compare(inputs: list[Tensor]) -> None:
    """Output and all gradients against the reference in float64 on the same inputs."""
    x = inputs[0]
    ours = [t.detach().requires_grad_() for t in inputs]
    theirs = [t.detach().double().requires_grad_() for t in inputs]
    z, expected = ops.invertible_conv1x1(*ours), reference.invertible_conv1x1(*theirs)
    assert z.dtype == x.dtype
    # Sums of up to 100 products.
    assert_close(z, expected, dtype=x.dtype, factor=3)
    weights = torch.randn_like(z)
    grads = torch.autograd.grad(z, ours, weights)
    wanted = torch.autograd.grad(expected, theirs, weights.double())
    assert_close(grads[0], wanted[0], dtype=x.dtype, factor=3)
    for leaf, grad, want in zip(ours[1:], grads[1:], wanted[1:], strict=True):
        assert grad.dtype == leaf.dtype
        # Sums over the batch and all pixels, up to 1,650 products.
        assert_close(grad, want, dtype=grad.dtype, factor=100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias = make_inputs(shape, device, dtype)
    compare([x, weight, bias])
    compare([x, weight])
    if len(shape) == 4:
        compare([x.to(memory_format=torch.channels_last), weight, bias])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weight_may_have_the_type_of_the_data(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = make_inputs((2, 6, 4, 4), device, dtype)
    ours = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
    theirs = [t.detach().double().requires_grad_() for t in ours]
    z, expected = ops.invertible_conv1x1(*ours), reference.invertible_conv1x1(*theirs)
    assert_close(z, expected, dtype=dtype, factor=3)  # outputs up to 5
    grads = torch.autograd.grad(z.sum(), ours)
    wanted = torch.autograd.grad(expected.sum(), theirs)
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, want, dtype=dtype, factor=3)


def strided_views(device: torch.device) -> dict[str, Tensor]:
    base = torch.randn(3, 8, 6, 5, device=device)
    last = base.to(memory_format=torch.channels_last)
    return {
        "channel_slice": base[:, 2:5],
        "channels_last_slice": last[:, 2:5],
        "every_second_channel": base[:, ::2],
        "every_second_pixel": base[..., ::2],
        "transposed_pixels": base.mT,
        "expanded_batch": base[:1].expand(4, -1, -1, -1),
        "transposed_vectors": torch.randn(3, 4, device=device).T,
        "vector_slice": torch.randn(5, 9, device=device)[:, 1:7],
        "large_channel_slice": torch.randn(2, 20, 16, 16, device=device)[:, 3:15],
    }


def test_takes_strided_views_as_they_are(device: torch.device) -> None:
    for x in strided_views(device).values():
        _, weight, bias = make_inputs(tuple(x.shape), device, x.dtype)
        compare([x, weight, bias])
        compare([x, weight.T])


def test_gradient_of_another_layout(device: torch.device) -> None:
    x, weight, bias = make_inputs((2, 6, 16, 5), device, torch.float32)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    theirs = [t.detach().double().requires_grad_() for t in leaves]
    upstream = torch.randn_like(x).to(memory_format=torch.channels_last)
    grads = torch.autograd.grad(ops.invertible_conv1x1(*leaves), leaves, upstream)
    wanted = torch.autograd.grad(reference.invertible_conv1x1(*theirs), theirs, upstream.double())
    for grad, want in zip(grads, wanted, strict=True):
        assert_close(grad, want, dtype=torch.float32, factor=30)  # sums of 160 products


def test_keeps_channels_last(device: torch.device) -> None:
    x = torch.randn(2, 8, 6, 5, device=device).to(memory_format=torch.channels_last)
    z = ops.invertible_conv1x1(x[:, 4:], torch.eye(4, device=device))
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(z, x[:, 4:])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_inputs(shape: tuple[int, ...], device: torch.device) -> None:
    compare(make_inputs(shape, device, torch.float32))


def test_only_wanted_gradients_are_computed(device: torch.device) -> None:
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        inputs = make_inputs((2, 5, 4, 3), device)
        leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        theirs = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        ops.invertible_conv1x1(*leaves).square().sum().backward()
        reference.invertible_conv1x1(*theirs).square().sum().backward()
        for i, (ours, expected) in enumerate(zip(leaves, theirs, strict=True)):
            assert (ours.grad is not None) == (i in wanted)
            if i in wanted:
                assert_close(ours.grad, expected.grad, dtype=torch.float64)


def test_sums_do_not_depend_on_threads(device: torch.device) -> None:
    for shape in ((40, 12, 16, 16), (700, 9), (50, 24, 2, 2), (7, 5, 31, 33)):
        leaves = [t.requires_grad_() for t in make_inputs(shape, device, torch.float32)]

        def run(leaves: list[Tensor] = leaves) -> tuple[Tensor, ...]:
            return torch.autograd.grad(ops.invertible_conv1x1(*leaves).square().sum(), leaves)

        same_for_any_threads(run)


def test_logdet_is_pixels_times_that_of_the_weight(device: torch.device) -> None:
    x, weight, bias = make_inputs((1, 4, 2, 3), device)
    expected = jacobian_logdet(lambda row: ops.invertible_conv1x1(row, weight, bias), x)
    logdet = 6 * torch.linalg.slogdet(weight).logabsdet
    assert_close(logdet[None], expected, dtype=torch.float64)


@pytest.mark.parametrize("count", [2, 3])
def test_gradcheck_twice(count: int, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((2, 3, 2, 2), device)[:count]]
    assert torch.autograd.gradcheck(ops.invertible_conv1x1, leaves)
    assert torch.autograd.gradgradcheck(ops.invertible_conv1x1, leaves)


def test_composed_backward_equals_the_fused_one(device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((3, 5, 4, 7), device)]
    loss = ops.invertible_conv1x1(*leaves).square().sum()
    fused = torch.autograd.grad(loss, leaves, retain_graph=True)
    composed = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(fused, composed, strict=True):
        assert_close(a, b.detach(), dtype=torch.float64, factor=30)  # sums of 84 products


def test_opcheck(device: torch.device) -> None:
    x, weight, bias = (t.requires_grad_() for t in make_inputs((2, 3, 4), device, torch.float32))
    op = torch.ops.flowops.invertible_conv1x1
    torch.library.opcheck(op, (x, weight, bias))
    torch.library.opcheck(op, (x, weight, None))
    torch.library.opcheck(op, (x.detach(), weight, bias))
    for view in strided_views(device).values():
        _, weight, _ = make_inputs(tuple(view.shape), device, torch.float32)
        torch.library.opcheck(op, (view.detach().requires_grad_(), weight, None))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, weight, bias = make_inputs((3, 2), device)

    def one(row: Tensor) -> Tensor:
        return ops.invertible_conv1x1(row[None], weight, bias)[0]

    jacobians = torch.func.vmap(torch.func.jacrev(one))(x)
    assert_close(jacobians, weight.expand(3, 2, 2), dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        z = ops.invertible_conv1x1(dual, weight, bias)
        tangent = torch.autograd.forward_ad.unpack_dual(z).tangent
    assert_close(tangent, weight.sum(1).expand(3, 2), dtype=torch.float64)


def test_autocast_keeps_the_state_in_float32(device: torch.device) -> None:
    x, weight, bias = make_inputs((3, 2), device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z = ops.invertible_conv1x1(x.bfloat16(), weight, bias)
    assert z.dtype == torch.float32


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.invertible_conv1x1(x, weight, bias).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        leaves = [t.requires_grad_() for t in make_inputs((batch, 3, 4), device, torch.float32)]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X, W = torch.randn(2, 4, 3), torch.eye(4)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "dtype": ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16, got Long"),
    "weight": ({"weight": torch.eye(3)}, r"weight must have shape \[4, 4\] .*got \[3, 3\]"),
    "weight_dim": ({"weight": torch.ones(4)}, r"weight must have shape \[4, 4\] .*got \[4\]"),
    "weight_dtype": ({"weight": W.double()}, r"weight must be Float \(like x\) .*got Double"),
    "bias": ({"bias": torch.ones(5)}, r"bias must have shape \[4\] .*got \[5\]"),
    "bias_dtype": (
        {"bias": torch.ones(4).double()},
        r"bias must be Float \(like weight\), got Double",
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {k: v.to(device) for k, v in ({"x": X, "weight": W} | changed).items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="invertible_conv1x1: " + message),
    ):
        ops.invertible_conv1x1(**arguments)
