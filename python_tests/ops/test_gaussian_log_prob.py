"""gaussian_log_prob against torch.distributions in float64, autograd and op checks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from ops.cases import DTYPES, SAMPLE_SHAPES, kernel_and_composed, same_for_any_threads
from torch import Tensor
from torch.distributions import Normal

from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close

NAMES = ("x", "mean", "log_scale", "params")
# What is given beside x.
GIVEN = ((), ("mean",), ("log_scale",), ("mean", "log_scale"), ("params",))
Inputs = dict[str, Tensor]


def expected_of(
    x: Tensor,
    mean: Tensor | None = None,
    log_scale: Tensor | None = None,
    params: Tensor | None = None,
) -> Tensor:
    """By torch.distributions, in float64."""
    x = x.double()
    if params is not None:
        mean, log_scale = params[:, : x.size(1)], params[:, x.size(1) :]
    loc = torch.zeros_like(x) if mean is None else mean.double()
    scale = torch.ones_like(x) if log_scale is None else log_scale.double().exp()
    # Expanded operands reach it as they are.
    return Normal(loc, scale, validate_args=False).log_prob(x).flatten(1).sum(1)


def make_inputs(
    shape: tuple[int, ...], given: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> Inputs:
    def normal(name: str) -> Tensor:
        channels = shape[1] * (2 if name == "params" else 1)
        values = torch.randn(shape[0], channels, *shape[2:], dtype=torch.float64)
        return values.to(device, dtype)

    return {name: normal(name) for name in ("x", *given)}


def leaves_of(inputs: Inputs) -> Inputs:
    return {name: t.detach().requires_grad_() for name, t in inputs.items()}


def positional(inputs: Inputs) -> list[Tensor | None]:
    return [inputs.get(name) for name in NAMES]


def compare(inputs: Inputs) -> None:
    """The density and all gradients against torch.distributions on the same inputs."""
    dtype = inputs["x"].dtype
    ours, theirs = leaves_of(inputs), leaves_of(inputs)
    got, want = ops.gaussian_log_prob(**ours), expected_of(**theirs)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    # Inputs are the same and arithmetic is wide, so 16 bits do not show in the sum.
    assert_close(got, want, dtype=got.dtype, factor=2)
    weights = torch.randn_like(got)
    grads = torch.autograd.grad(got, list(ours.values()), weights)
    wanted = torch.autograd.grad(want, list(theirs.values()), weights.double())
    for leaf, grad, expected in zip(ours.values(), grads, wanted, strict=True):
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
    given: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> None:
    for shape in SAMPLE_SHAPES:
        compare(make_inputs(shape, given, device, dtype))


def test_reference_is_torch_distributions(device: torch.device) -> None:
    for given in GIVEN:
        inputs = make_inputs((4, 3, 5), given, device, torch.float64)
        assert_close(
            reference.gaussian_log_prob(**inputs), expected_of(**inputs), dtype=torch.float64
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
    for x, mean, log_scale in views.values():
        compare({"x": x, "mean": mean, "log_scale": log_scale})
        compare({"x": x, "log_scale": log_scale})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_params_of_any_strides(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(3, 4, 6, 5, device=device, dtype=dtype)
    larger = torch.randn(3, 14, 6, 5, device=device, dtype=dtype)
    last_x, last = (t.to(memory_format=torch.channels_last) for t in (x, larger))
    rows = torch.randn(70, 30, device=device, dtype=dtype)
    views = {
        "slice": (x, larger[:, 3:11]),
        "every_second_channel": (x[:, :3], larger[:, 1:13:2]),
        "channels_last": (last_x, last[:, 6:].contiguous(memory_format=torch.channels_last)),
        "channels_last_slice": (last_x, last[:, 1:9]),
        "mixed_layouts": (x, last[:, 2:10]),
        "transposed_pixels": (x.mT, larger[:, :8].mT),
        "pixels_apart": (x[..., :2], larger[:, :8, :, ::3]),
        "expanded": (x, larger[:1, :8].expand(3, 8, 6, 5)),
        "expanded_channels": (x, larger[:, :1].expand(3, 8, 6, 5)),
        "expanded_pixels": (x, larger[:, :8, :1, :1].expand(3, 8, 6, 5)),
        "one_channel": (x[:, :1], larger[:, 4:6]),
        "vector_slice": (rows[:, :7], rows[:, 9:23]),
        "vectors": (rows[:, :9], torch.randn(18, 70, device=device, dtype=dtype).T),
        "expanded_vectors": (rows[:, :5], rows[:1, :10].expand(70, 10)),
    }
    for x, params in views.values():
        compare({"x": x, "params": params})


def test_the_gradient_of_params_has_their_layout(device: torch.device) -> None:
    x = torch.randn(2, 3, 4, 5, device=device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        params = torch.randn(2, 6, 4, 5, device=device).to(memory_format=memory_format)
        total = ops.gaussian_log_prob(x, params=params.requires_grad_()).sum()
        (grad,) = torch.autograd.grad(total, params)
        assert grad.is_contiguous(memory_format=memory_format)


def test_params_are_mean_and_log_scale(device: torch.device) -> None:
    for shape in ((700, 24), (3, 12, 31, 33)):
        x = torch.randn(shape, device=device, requires_grad=True)
        params = torch.randn(shape[0], 2 * shape[1], *shape[2:], device=device, requires_grad=True)
        whole, halves = (
            ops.gaussian_log_prob(x, params=params),
            ops.gaussian_log_prob(x, *params.chunk(2, 1)),
        )
        assert torch.equal(whole, halves)
        for a, b in zip(
            torch.autograd.grad(whole.sum(), (x, params)),
            torch.autograd.grad(halves.sum(), (x, params)),
            strict=True,
        ):
            assert torch.equal(a, b)


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
        assert torch.equal(ops.gaussian_log_prob(**inputs), torch.zeros(shape[0], device=device))


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
def test_gradcheck_twice(given: tuple[str, ...], device: torch.device) -> None:
    inputs = leaves_of(make_inputs((2, 3, 2), given, device, torch.float64))

    def run(*tensors: Tensor) -> Tensor:
        return ops.gaussian_log_prob(**dict(zip(inputs, tensors, strict=True)))

    leaves = list(inputs.values())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_for_gradients_is_that_of_the_kernel(
    given: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> None:
    inputs = leaves_of(make_inputs((3, 4, 5), given, device, dtype))
    total, leaves = ops.gaussian_log_prob(**inputs), list(inputs.values())
    for a, b in zip(*kernel_and_composed([total], leaves), strict=True):
        assert_close(a, b, dtype=dtype, factor=4)


@pytest.mark.parametrize("given", GIVEN)
def test_one_gradient_alone(given: tuple[str, ...], device: torch.device) -> None:
    inputs = make_inputs((4, 6, 5), given, device, torch.float64)
    for name, leaf in inputs.items():
        arguments = inputs | {name: leaf.clone().requires_grad_()}
        for create in (False, True):
            total = ops.gaussian_log_prob(**arguments).sum()
            (got,) = torch.autograd.grad(total, arguments[name], create_graph=create)
            (want,) = torch.autograd.grad(expected_of(**arguments).sum(), arguments[name])
            assert_close(got, want, dtype=torch.float64, factor=10)


def test_backward_leaves_out_what_is_not_wanted(device: torch.device) -> None:
    grad = torch.ones(2, device=device)
    for given in GIVEN:
        inputs = make_inputs((2, 4), given, device, torch.float32)
        for wants in itertools.product((False, True), repeat=4):
            grads = torch.ops.flowops.gaussian_log_prob_backward(grad, *positional(inputs), *wants)
            for name, wanted, got in zip(NAMES, wants, grads, strict=True):
                size = inputs[name].shape if wanted and name in inputs else (0,)
                assert got.shape == size


@pytest.mark.parametrize("given", GIVEN)
def test_opcheck(given: tuple[str, ...], device: torch.device) -> None:
    inputs = make_inputs((2, 3, 4), given, device, torch.float32)
    leaves = positional(leaves_of(inputs))
    torch.library.opcheck(torch.ops.flowops.gaussian_log_prob, leaves)
    grad = torch.randn(2, device=device)
    backward = torch.ops.flowops.gaussian_log_prob_backward
    torch.library.opcheck(backward, (grad, *positional(inputs), True, True, False, True))
    last = torch.randn(2, 12, 3, 3, device=device).to(memory_format=torch.channels_last)
    torch.library.opcheck(backward, (grad, *last.chunk(3, 1), None, *[True] * 4))
    torch.library.opcheck(backward, (grad, last[:, :4], None, None, last[:, 4:], *[True] * 4))
