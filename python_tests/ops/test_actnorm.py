"""actnorm and its statistics against their float64 reference, autograd and op checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close, jacobian_logdet

# Vectors, sequences, images and volumes; rows above and below one tile; odd sizes.
SHAPES = (
    (3, 5),
    (500, 63),
    (4, 700),
    (2, 3, 7),
    (2, 4, 5, 3),
    (2, 12, 16, 16),
    (9, 48, 2, 2),
    (2, 3, 25, 33),
    (2, 3, 2, 3, 2),
    (1, 1, 1, 1),
)
OPS = {False: ops.actnorm, True: ops.actnorm_inverse}
REFERENCES = {False: reference.actnorm, True: reference.actnorm_inverse}


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def make_inputs(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random x, bias, log_scale and an incoming log-det."""
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    bias, log_scale = (torch.randn(2, shape[1], dtype=torch.float64) / 2).to(device, wide_of(dtype))
    return [x, bias, log_scale, torch.randn(shape[0], device=device, dtype=wide_of(dtype))]


def compare(inputs: list[Tensor], inverse: bool) -> None:
    """Outputs and all gradients against the reference in float64 on the same inputs."""
    dtype = inputs[0].dtype
    ours = [t.detach().requires_grad_() for t in inputs]
    theirs = [t.detach().double().requires_grad_() for t in inputs]
    z, logdet = OPS[inverse](*ours[:3], logdet=ours[3])
    expected = REFERENCES[inverse](*theirs[:3], logdet=theirs[3])
    assert z.dtype == dtype
    assert logdet.dtype == wide_of(dtype)
    assert_close(z, expected[0], dtype=dtype)
    # A multiple of the number of pixels, up to 825.
    assert_close(logdet, expected[1], dtype=logdet.dtype, factor=10)
    weights = torch.randn_like(z), torch.randn_like(logdet)
    grads = torch.autograd.grad((z, logdet), ours, weights)
    wanted = torch.autograd.grad(expected, theirs, [w.double() for w in weights])
    for leaf, grad, want in zip(ours, grads, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        # Sums over the batch and all pixels, up to 1,650 products.
        assert_close(grad, want, dtype=grad.dtype, factor=1 if leaf.shape == z.shape else 100)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, inverse: bool, device: torch.device
) -> None:
    inputs = make_inputs(shape, device, dtype)
    compare(inputs, inverse)
    if len(shape) == 4:
        inputs[0] = inputs[0].to(memory_format=torch.channels_last)
        compare(inputs, inverse)


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
    }


@pytest.mark.parametrize("inverse", [False, True])
def test_takes_strided_views_as_they_are(inverse: bool, device: torch.device) -> None:
    for x in strided_views(device).values():
        inputs = make_inputs(tuple(x.shape), device, x.dtype)
        compare([x, *inputs[1:]], inverse)
        for ours, expected in zip(
            ops.actnorm_statistics(x), reference.actnorm_statistics(x.double()), strict=True
        ):
            assert_close(ours, expected, dtype=x.dtype)


def test_keeps_channels_last(device: torch.device) -> None:
    x = torch.randn(2, 8, 6, 5, device=device).to(memory_format=torch.channels_last)
    z, _ = ops.actnorm(x[:, 4:], torch.zeros(4, device=device), torch.zeros(4, device=device))
    assert z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_inputs_return_the_incoming_logdet(
    shape: tuple[int, ...], device: torch.device
) -> None:
    inputs = make_inputs(shape, device, torch.float32)
    compare(inputs, False)
    if shape[2:] != (4,):
        assert torch.equal(ops.actnorm(*inputs[:3], logdet=inputs[3])[1], inputs[3])


def test_parameters_may_have_the_type_of_the_data(device: torch.device) -> None:
    x, bias, log_scale, _ = make_inputs((2, 3, 4), device, torch.bfloat16)
    half = bias.bfloat16(), log_scale.bfloat16()
    assert_close(ops.actnorm(x, *half)[0], reference.actnorm(x, *half)[0], dtype=torch.bfloat16)


def test_shift_comes_before_the_product(device: torch.device) -> None:
    # x - mean is exact; x exp(l) - mean exp(l) would be off by 1e-4 of the spread.
    x = 1000 + torch.rand(64, 1, dtype=torch.float64).to(device, torch.float32)
    bias, log_scale = torch.tensor([[-1000.0], [3.3]], device=device)
    expected, _ = reference.actnorm(x.double(), bias.double(), log_scale.double())
    assert_close(ops.actnorm(x, bias, log_scale)[0], expected, dtype=torch.float32)


def test_sums_do_not_depend_on_threads(device: torch.device) -> None:
    for shape in ((9, 12, 31, 33), (3000, 5), (40, 48, 2, 2)):
        inputs = [t.requires_grad_() for t in make_inputs(shape, device, torch.float32)]

        def run(inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            z, logdet = ops.actnorm(*inputs[:3], logdet=inputs[3])
            grads = torch.autograd.grad((z.square().sum(), logdet.sum()), inputs)
            return *grads, *ops.actnorm_statistics(inputs[0].detach())

        same_for_any_threads(run)


@pytest.mark.parametrize("inverse", [False, True])
def test_logdet_is_that_of_the_jacobian(inverse: bool, device: torch.device) -> None:
    x, bias, log_scale, _ = make_inputs((2, 3, 2, 2), device)
    logdet = OPS[inverse](x, bias, log_scale)[1]
    expected = jacobian_logdet(lambda row: OPS[inverse](row, bias, log_scale)[0], x)
    assert_close(logdet, expected, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_match_reference(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    x = (3 * torch.randn(shape, dtype=torch.float64) + 1).to(device, dtype)
    versions = [x, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    for version in versions:
        mean, std = ops.actnorm_statistics(version)
        expected = reference.actnorm_statistics(version.double())
        assert mean.dtype == std.dtype == wide_of(dtype)
        assert_close(mean, expected[0], dtype=mean.dtype, factor=3)  # values up to 10
        assert_close(std, expected[1], dtype=std.dtype, factor=3)


def test_statistics_survive_a_large_mean(device: torch.device) -> None:
    for shape in ((8, 3, 40, 41), (5000, 3), (600, 3, 2, 2)):
        x = (1000 + torch.randn(shape, dtype=torch.float64) / 100).to(device, torch.float32)
        _, std = ops.actnorm_statistics(x)
        expected = reference.actnorm_statistics(x.double())[1]
        # The mean itself is known to 6e-5; deviations from it to 0.6 % of 0.01 at worst.
        assert_close(std, expected, dtype=torch.float32, factor=30)


def test_statistics_of_nothing_are_nan(device: torch.device) -> None:
    mean, std = ops.actnorm_statistics(torch.zeros(0, 3, 2, device=device))
    assert mean.isnan().all()
    assert std.isnan().all()


@pytest.mark.parametrize("inverse", [False, True])
def test_gradcheck_twice(inverse: bool, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((2, 3, 2), device)]

    def run(x: Tensor, bias: Tensor, log_scale: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return OPS[inverse](x, bias, log_scale, logdet=logdet)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_statistics_gradcheck_twice(device: torch.device) -> None:
    x = torch.randn(3, 2, 4, device=device, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ops.actnorm_statistics, x)
    assert torch.autograd.gradgradcheck(ops.actnorm_statistics, x)


@pytest.mark.parametrize("inverse", [False, True])
def test_opcheck(inverse: bool, device: torch.device) -> None:
    inputs = [t.requires_grad_() for t in make_inputs((2, 3, 4), device, torch.float32)]
    torch.library.opcheck(torch.ops.flowops.actnorm, (*inputs, inverse))
    torch.library.opcheck(torch.ops.flowops.actnorm_statistics, (inputs[0],))
    for x in strided_views(device).values():
        _, bias, log_scale, _ = make_inputs(tuple(x.shape), device, torch.float32)
        torch.library.opcheck(torch.ops.flowops.actnorm, (x, bias, log_scale, None, inverse))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, bias, log_scale, _ = make_inputs((3, 2), device)

    def one(row: Tensor) -> Tensor:
        return ops.actnorm(row[None], bias, log_scale)[0][0]

    jacobians = torch.func.vmap(torch.func.jacrev(one))(x)
    expected = log_scale.exp().expand(3, 2)
    assert_close(torch.diagonal(jacobians, dim1=1, dim2=2), expected, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        z, _ = ops.actnorm(dual, bias, log_scale)
        tangent = torch.autograd.forward_ad.unpack_dual(z).tangent
    assert_close(tangent, expected, dtype=torch.float64)


def test_autocast_keeps_the_state_in_float32(device: torch.device) -> None:
    x, bias, log_scale, _ = make_inputs((3, 2), device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, logdet = ops.actnorm(x.bfloat16(), bias, log_scale)
    assert z.dtype == logdet.dtype == torch.float32


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
        z, logdet = ops.actnorm(x, bias, log_scale)
        return z.square().sum() - logdet.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        leaves = [t.requires_grad_() for t in make_inputs((batch, 3, 4), device)[:3]]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X, V = torch.randn(2, 4, 3), torch.zeros(4)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "dtype": ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16, got Long"),
    "bias": ({"bias": torch.zeros(3)}, r"bias must have shape \[4\] .*got \[3\]"),
    "bias_dim": ({"bias": torch.zeros(4, 1)}, r"bias must have shape \[4\] .*got \[4, 1\]"),
    "bias_dtype": ({"bias": V.double()}, r"bias must be Float \(like x\) or Float, got Double"),
    "log_scale": ({"log_scale": torch.zeros(5)}, r"log_scale must have shape \[4\] .*got \[5\]"),
    "log_scale_dtype": ({"log_scale": V.half()}, "log_scale must be Float .*got Half"),
    "logdet_shape": ({"logdet": torch.zeros(3)}, r"logdet must have shape \[2\] .*got \[3\]"),
    "logdet_dtype": ({"logdet": torch.zeros(2).double()}, "logdet must be Float, got Double"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {"x": X, "bias": V, "log_scale": V} | changed
    arguments = {k: v.to(device) for k, v in arguments.items()}
    with torch.inference_mode(inference), pytest.raises(ValueError, match="actnorm: " + message):
        ops.actnorm(**arguments)


@pytest.mark.parametrize("inference", [False, True])
def test_bad_statistics_input_is_one_clear_error(inference: bool, device: torch.device) -> None:
    message = r"actnorm_statistics: x must have shape \(batch, channels, \.\.\.\), got \[3\]"
    with torch.inference_mode(inference), pytest.raises(ValueError, match=message):
        ops.actnorm_statistics(torch.zeros(3, device=device))
