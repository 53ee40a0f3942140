"""gaussian_log_prob against torch.distributions in float64, autograd, op checks and errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, SAMPLE_SHAPES, same_for_any_threads
from torch import Tensor
from torch.distributions import Normal

from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close

# Which of mean and log_scale are given.
GIVEN = tuple(itertools.product((False, True), repeat=2))


def expected_of(x: Tensor, mean: Tensor | None, log_scale: Tensor | None) -> Tensor:
    """By torch.distributions, in float64."""
    x = x.double()
    loc = torch.zeros_like(x) if mean is None else mean.double()
    scale = torch.ones_like(x) if log_scale is None else log_scale.double().exp()
    # Expanded operands reach it as they are.
    return Normal(loc, scale, validate_args=False).log_prob(x).flatten(1).sum(1)


def make_inputs(
    shape: tuple[int, ...], given: tuple[bool, bool], device: torch.device, dtype: torch.dtype
) -> list[Tensor | None]:
    x, mean, log_scale = torch.randn(3, *shape, dtype=torch.float64).to(device, dtype)
    return [x, mean if given[0] else None, log_scale if given[1] else None]


def compare(inputs: list[Tensor | None]) -> None:
    """The density and all gradients against torch.distributions on the same inputs."""
    assert inputs[0] is not None
    dtype = inputs[0].dtype
    ours, theirs = (
        [None if t is None else t.detach().requires_grad_() for t in inputs] for _ in range(2)
    )
    got, want = ops.gaussian_log_prob(*ours), expected_of(*theirs)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    # Inputs are the same and arithmetic is wide, so 16 bits do not show in the sum.
    assert_close(got, want, dtype=got.dtype, factor=2)
    weights = torch.randn_like(got)
    leaves = [t for t in ours if t is not None]
    grads = torch.autograd.grad(got, leaves, weights)
    wanted = torch.autograd.grad(want, [t for t in theirs if t is not None], weights.double())
    for leaf, grad, expected in zip(leaves, grads, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        rtol, atol = TOLERANCES[dtype]
        size = float(expected.abs().max()) if expected.numel() else 0.0
        # h (d^2 - 1) cancels near d = 1.
        torch.testing.assert_close(
            grad.double(), expected.double(), rtol=rtol, atol=atol * (1 + size / 10)
        )


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_torch_distributions(
    given: tuple[bool, bool], dtype: torch.dtype, device: torch.device
) -> None:
    for shape in SAMPLE_SHAPES:
        compare(make_inputs(shape, given, device, dtype))


def test_reference_is_torch_distributions(device: torch.device) -> None:
    for given in GIVEN:
        inputs = make_inputs((4, 3, 5), given, device, torch.float64)
        assert_close(
            reference.gaussian_log_prob(*inputs), expected_of(*inputs), dtype=torch.float64
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_strided_views_as_they_are(dtype: torch.dtype, device: torch.device) -> None:
    base = torch.randn(3, 8, 6, 5, device=device, dtype=dtype)
    half = torch.randn(3, 4, 6, 5, device=device, dtype=dtype)
    last, half_last = (t.to(memory_format=torch.channels_last) for t in (base, half))
    views = {
        "halves": [half, *base.chunk(2, 1)],
        "channels_last": [last, last.flip(0), last / 2],
        "channels_last_halves": [half_last, *last.chunk(2, 1)],
        "mixed_layouts": [half, *last.chunk(2, 1)],
        "every_second_channel": [half, base[:, ::2], base[:, 1::2]],
        "transposed_pixels": [base.mT, base.mT.flip(0), base.mT / 2],
        "expanded": [base, base[:1].expand_as(base), base[:1, :1].expand_as(base)],
        "expanded_pixels": [base, base[..., :1].expand_as(base), base[:, :, :1].expand_as(base)],
        "vectors": [t.T for t in torch.randn(3, 6, 9, device=device, dtype=dtype)],
        "vector_halves": list(torch.randn(70, 24, device=device, dtype=dtype).chunk(3, 1)),
    }
    for tensors in views.values():
        compare(list(tensors))
        compare([tensors[0], None, tensors[2]])


def test_arguments_expand(device: torch.device) -> None:
    x = torch.randn(4, 3, 5, 6, device=device, dtype=torch.float64)
    for shape in ((1, 3, 1, 1), (3, 1, 1), (6,), (), (4, 1, 1, 1)):
        mean, log_scale = torch.randn(2, *shape, device=device, dtype=torch.float64)
        leaves = [mean.requires_grad_(), log_scale.requires_grad_()]
        got = ops.gaussian_log_prob(x, mean, log_scale)
        want = expected_of(x, mean, log_scale)
        assert_close(got, want, dtype=torch.float64)
        weights = torch.randn_like(want)
        for a, b in zip(
            torch.autograd.grad(got, leaves, weights),
            torch.autograd.grad(want, leaves, weights),
            strict=True,
        ):
            assert a.shape == torch.Size(shape)
            assert_close(a, b, dtype=torch.float64, factor=10)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3, 0), (0, 0)])
def test_empty_inputs_pass(shape: tuple[int, ...], device: torch.device) -> None:
    for given in GIVEN:
        inputs = make_inputs(shape, given, device, torch.float32)
        compare(inputs)
        assert torch.equal(ops.gaussian_log_prob(*inputs), torch.zeros(shape[0], device=device))


def test_results_do_not_depend_on_threads_or_batch(device: torch.device) -> None:
    for shape in ((9, 12, 31, 33), (9, 3, 83, 81), (3000, 5), (40, 300), (700, 64)):
        inputs = [t.requires_grad_() for t in torch.randn(3, *shape, device=device)]

        def run(inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            total = ops.gaussian_log_prob(*inputs)
            return total, *torch.autograd.grad(total.sum(), inputs)

        many = same_for_any_threads(run)
        part = ops.gaussian_log_prob(*(t[:-1].detach() for t in inputs))
        assert torch.equal(part, many[0][:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_and_huge_deviations(dtype: torch.dtype, device: torch.device) -> None:
    largest = 300.0 if dtype == torch.float64 else 80.0
    log_scale = torch.tensor([[-largest, -30.0, 30.0, largest]], device=device, dtype=dtype)
    mean = torch.tensor([[0.5, -3.0, 20.0, 1.0]], device=device, dtype=dtype)
    for distance in (0.0, 1e-3):
        # The wide result of the first is out of the range of float32 away from the mean.
        some = slice(0 if distance == 0 else 1, None)
        x = (mean + distance)[:, some]
        given = x, mean[:, some].clone(), log_scale[:, some].clone()
        leaves = [t.requires_grad_() for t in given]
        wide = [t.detach().double().requires_grad_() for t in leaves]
        got, want = ops.gaussian_log_prob(*leaves), expected_of(*wide)
        assert_close(got, want, dtype=torch.promote_types(dtype, torch.float32), factor=20)
        grads = torch.autograd.grad(got.sum(), leaves)
        for a, b in zip(grads, torch.autograd.grad(want.sum(), wide), strict=True):
            assert_close(a, b.to(dtype), dtype=dtype, factor=20)  # exponents of up to 80


def test_at_the_mean_the_density_is_finite_for_any_deviation(device: torch.device) -> None:
    x = torch.full((1, 3), 2.0, device=device, dtype=torch.float16)
    log_scale = torch.tensor([[-60000.0, -500.0, 60000.0]], device=device, dtype=torch.float16)
    leaves = [x.requires_grad_(), x.detach().clone().requires_grad_(), log_scale.requires_grad_()]
    got = ops.gaussian_log_prob(*leaves)
    want = -log_scale.detach().double().sum(1) - 1.5 * math.log(2 * math.pi)
    assert_close(got, want, dtype=torch.float32, factor=60)  # 60,000 + 500 - 60,000
    grads = torch.autograd.grad(got.sum(), leaves)
    for grad, value in zip(grads, (0.0, 0.0, -1.0), strict=True):
        assert torch.equal(grad, torch.full_like(grad, value))


def test_nan_and_infinity_stay_in_their_sample(device: torch.device) -> None:
    for bad, shape in itertools.product(range(3), ((3, 70), (3, 600), (3, 5))):
        inputs = list(torch.randn(3, *shape, device=device))
        inputs[bad][1, 3] = torch.nan
        assert ops.gaussian_log_prob(*inputs).isnan().tolist() == [False, True, False]
    x = torch.tensor([[torch.inf, 0.0]], device=device)
    assert ops.gaussian_log_prob(x).item() == -math.inf


@pytest.mark.parametrize("given", GIVEN)
def test_gradcheck_twice(given: tuple[bool, bool], device: torch.device) -> None:
    inputs = make_inputs((2, 3, 2), given, device, torch.float64)
    leaves = [t.requires_grad_() for t in inputs if t is not None]

    def run(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        return ops.gaussian_log_prob(*(None if t is None else next(rest) for t in inputs))

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_for_gradients_is_that_of_the_kernel(
    given: tuple[bool, bool], dtype: torch.dtype, device: torch.device
) -> None:
    inputs = make_inputs((3, 4, 5), given, device, dtype)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    total = ops.gaussian_log_prob(*inputs)
    weights = torch.randn_like(total)
    fused, composed = (
        torch.autograd.grad(total, leaves, weights, retain_graph=True, create_graph=create)
        for create in (False, True)
    )
    for a, b in zip(composed, fused, strict=True):
        assert_close(a, b, dtype=dtype, factor=4)


@pytest.mark.parametrize("wanted", range(3))
def test_one_gradient_alone(wanted: int, device: torch.device) -> None:
    inputs = list(torch.randn(3, 4, 6, device=device, dtype=torch.float64))
    leaf = inputs[wanted].requires_grad_()
    for absent in range(1, 3):
        given: list[Tensor | None] = list(inputs)
        if absent != wanted:
            given[absent] = None
        (got,) = torch.autograd.grad(ops.gaussian_log_prob(*given).sum(), leaf)
        (want,) = torch.autograd.grad(expected_of(*given).sum(), leaf)
        assert_close(got, want, dtype=torch.float64, factor=10)


def test_backward_leaves_out_what_is_not_wanted(device: torch.device) -> None:
    x, mean, log_scale = torch.randn(3, 2, 4, device=device)
    grad = torch.ones(2, device=device)
    backward = torch.ops.flowops.gaussian_log_prob_backward
    for wants in itertools.product((False, True), repeat=3):
        grads = backward(grad, x, mean, log_scale, *wants)
        assert [t.numel() > 0 for t in grads] == list(wants)
    assert [t.numel() for t in backward(grad, x, None, None, True, True, True)] == [8, 0, 0]


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, params: Tensor) -> Tensor:
        return (ops.gaussian_log_prob(x, *params.chunk(2, 1)) + ops.gaussian_log_prob(x)).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x = torch.randn(batch, 6, 4, device=device, requires_grad=True)
        params = torch.randn(batch, 12, 4, device=device, requires_grad=True)
        got = torch.autograd.grad(compiled(x, params), (x, params))
        want = torch.autograd.grad(step(x, params), (x, params))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("given", GIVEN)
def test_opcheck(given: tuple[bool, bool], device: torch.device) -> None:
    inputs = make_inputs((2, 3, 4), given, device, torch.float32)
    leaves = [None if t is None else t.requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.flowops.gaussian_log_prob, leaves)
    fixed = [None if t is None else t.detach() for t in inputs]
    grad = torch.randn(2, device=device)
    backward = torch.ops.flowops.gaussian_log_prob_backward
    torch.library.opcheck(backward, (grad, *fixed, True, True, False))
    last = torch.randn(2, 12, 3, 3, device=device).to(memory_format=torch.channels_last)
    torch.library.opcheck(backward, (grad, *last.chunk(3, 1), True, True, True))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, mean, log_scale = torch.randn(3, 4, 6, device=device, dtype=torch.float64)
    slope = (mean - x) * (-2 * log_scale).exp()
    grad = torch.func.grad(lambda t: ops.gaussian_log_prob(t, mean, log_scale).sum())(x)
    assert_close(grad, slope, dtype=torch.float64)
    tangent = torch.func.jvp(
        lambda t: ops.gaussian_log_prob(t, mean, log_scale), (x,), (torch.ones_like(x),)
    )[1]
    assert_close(tangent, slope.sum(1), dtype=torch.float64, factor=10)
    batched = torch.func.vmap(ops.gaussian_log_prob)(x[None], mean[None], log_scale[None])
    assert_close(batched[0], expected_of(x, mean, log_scale), dtype=torch.float64)


def test_autocast_keeps_float32(device: torch.device) -> None:
    x, mean = torch.randn(2, 4, 6, device=device).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        # A net's output is 16 bits wide there, the data are not.
        total = ops.gaussian_log_prob(x.float(), mean)
    assert total.dtype == torch.float32
    assert_close(total, expected_of(x, mean, None), dtype=torch.float32)


X = torch.randn(2, 4, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "dtype": ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16, got Long"),
    "mean": (
        {"mean": X[:, :3]},
        r"mean must expand to shape \[2, 4, 3\] \(like x\), got \[2, 3, 3\]",
    ),
    "mean_dtype": ({"mean": X.double()}, r"mean must be Float \(like x\), got Double"),
    "log_scale": (
        {"log_scale": torch.zeros(1, 2, 4, 3)},
        r"log_scale must expand to shape \[2, 4, 3\] \(like x\), got \[1, 2, 4, 3\]",
    ),
    "log_scale_dtype": ({"log_scale": X.half()}, r"log_scale must be Float .*got Half"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {name: t.to(device) for name, t in ({"x": X} | changed).items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="gaussian_log_prob: " + message),
    ):
        ops.gaussian_log_prob(**arguments)


def test_the_op_itself_checks_shapes(device: torch.device) -> None:
    x = X.to(device)
    with pytest.raises(ValueError, match=r"mean must have shape \[2, 4, 3\] \(like x\), got"):
        torch.ops.flowops.gaussian_log_prob(x, x[:1], None)
    backward = torch.ops.flowops.gaussian_log_prob_backward
    with pytest.raises(ValueError, match=r"grad must have shape \[2\] \(one value a sample\)"):
        backward(x, x, None, None, True, False, False)
    with pytest.raises(ValueError, match="grad must be Float, got Double"):
        backward(x[:, 0, 0].double(), x, None, None, True, False, False)
