"""logistic_mixture_log_prob against differences of sigmoids, sums over all values and op checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close

# Vectors, sequences, images and volumes; several samples a tile, samples of several chunks.
SHAPES = ((3,), (300,), (2, 7), (2, 8, 8), (5, 1, 1), (2, 131, 129), (2, 3, 2, 5))


def make_inputs(
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    colours: int = 3,
    components: int = 4,
    levels: int = 256,
) -> tuple[Tensor, Tensor]:
    """Random values, and parameters whose scales span some levels to the whole range."""
    batch, *pixels = shape
    x = torch.randint(0, levels, (batch, colours, *pixels), device=device)
    edges = torch.rand(x.shape, device=device)
    x = torch.where(edges < 0.1, 0, torch.where(edges > 0.9, levels - 1, x)).to(dtype)
    kinds = torch.randn(batch, colours, 3 if colours == 3 else 2, components, *pixels)
    kinds[:, :, 1] = kinds[:, :, 1] - 3
    params = torch.cat([torch.randn(batch, components, *pixels), kinds.flatten(1, 3)], 1)
    return x, params.to(device, dtype)


def expected_of(x: Tensor, params: Tensor, levels: int = 256, floor: float = -7.0) -> Tensor:
    """Component by component, by differences of distribution functions, in float64."""
    x, params = x.double().flatten(2), params.double().flatten(2)
    colours, kinds = x.size(1), 3 if x.size(1) == 3 else 2
    count = params.size(1) // (1 + colours * kinds)
    u, half, joint = 2 * x / (levels - 1) - 1, 1 / (levels - 1), []
    for k in range(count):

        def parameter(colour: int, kind: int, k: int = k) -> Tensor:
            return params[:, count * (1 + colour * kinds + kind) + k]

        total = params[:, k]
        for c in range(colours):
            mean, scale = parameter(c, 0), parameter(c, 1).clamp(min=floor).exp()
            if c == 1:
                mean = mean + parameter(0, 2).tanh() * u[:, 0]
            if c == 2:
                mean = mean + parameter(1, 2).tanh() * u[:, 0] + parameter(2, 2).tanh() * u[:, 1]
            upper = torch.where(x[:, c] == levels - 1, math.inf, (u[:, c] + half - mean) / scale)
            lower = torch.where(x[:, c] == 0, -math.inf, (u[:, c] - half - mean) / scale)
            # The same from the other side, where the smaller numbers are.
            sign = torch.where(u[:, c] > mean, -1, 1)
            mass = torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)
            total = total + mass.abs().log()
        joint.append(total)
    prior = torch.logsumexp(params[:, :count], 1)
    return (torch.logsumexp(torch.stack(joint), 0) - prior).sum(1)


def compare(x: Tensor, params: Tensor, **options: Any) -> None:
    """Values and gradients against the reference in float64 on the same inputs."""
    dtype = params.dtype
    ours, theirs = params.detach().requires_grad_(), params.detach().double().requires_grad_()
    got = ops.logistic_mixture_log_prob(x, ours, **options)
    want = reference.logistic_mixture_log_prob(x, theirs, **options)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    # A term of some nats for each pixel, whose mean is known to an eps and divided by the scale.
    rtol, atol = TOLERANCES[got.dtype]
    pixels = torch.Size(x.shape[2:]).numel()
    torch.testing.assert_close(got.double(), want, rtol=rtol * 2, atol=atol * (5 + pixels / 8))
    weights = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, ours, weights)
    (wanted,) = torch.autograd.grad(want, theirs, weights.double())
    assert grad.dtype == dtype
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    rtol = TOLERANCES[dtype][0]
    # That of a mean is an inverse scale, and moves by its square with what a mean is rounded by.
    atol = TOLERANCES[dtype][1] + atol * (size + size**2 / 20)
    torch.testing.assert_close(grad.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(dtype: torch.dtype, colours: int, device: torch.device) -> None:
    for shape in SHAPES:
        x, params = make_inputs(shape, device, dtype, colours)
        compare(x, params)
        compare(x.to(torch.uint8), params)
        if len(shape) == 3:
            last = params.to(memory_format=torch.channels_last)
            compare(x.to(memory_format=torch.channels_last), last)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("levels", [2, 3, 32, 256])
def test_matches_differences_of_sigmoids(levels: int, colours: int, device: torch.device) -> None:
    x, params = make_inputs((3, 4, 5), device, colours=colours, levels=levels)
    params.requires_grad_()
    for function in (ops.logistic_mixture_log_prob, reference.logistic_mixture_log_prob):
        # Of narrower scales the oracle's probabilities underflow.
        got = function(x, params, levels=levels, min_log_scale=-3)
        want = expected_of(x, params, levels, -3)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        (grad,) = torch.autograd.grad(got.sum(), params)
        (wanted,) = torch.autograd.grad(want.sum(), params)
        torch.testing.assert_close(grad, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("levels", [2, 3, 256, 65536])
def test_probabilities_of_all_values_sum_to_one(levels: int, device: torch.device) -> None:
    x = torch.arange(levels, device=device, dtype=torch.float64)[:, None]
    for _ in range(500 if levels <= 256 else 5):
        logits, means = torch.randn(5), 3 * torch.rand(5) - 1.5
        params = torch.cat([logits, means, 8 * torch.rand(5) - 7.5]).to(x)
        log_prob = ops.logistic_mixture_log_prob(x, params.expand(levels, -1), levels=levels)
        assert abs(float(log_prob.exp().sum()) - 1) < 1e-12


def test_probabilities_of_all_colours_sum_to_one(device: torch.device) -> None:
    x = torch.cartesian_prod(*[torch.arange(6.0, dtype=torch.float64)] * 3).to(device)
    for _ in range(50):
        params = torch.randn(1, 20, dtype=torch.float64, device=device).expand(len(x), -1)
        log_prob = ops.logistic_mixture_log_prob(x, params, levels=6)
        assert abs(float(log_prob.exp().sum()) - 1) < 1e-12


def test_unlikely_values_keep_their_digits(device: torch.device) -> None:
    # Of the bin of 200 under a logistic of scale exp(-7) at -1: 624 of its scales away.
    inverse, u = math.exp(7), 400 / 255 - 1
    lower = inverse * (u - 1 / 255 + 1)
    exact = -lower + math.log(-math.expm1(-2 * inverse / 255))
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor([[200.0]], dtype=dtype, device=device)
        params = torch.tensor([[0.0, -1.0, -9.0]], dtype=dtype, device=device).requires_grad_()
        log_prob = ops.logistic_mixture_log_prob(x, params)
        assert_close(log_prob, torch.tensor([exact], dtype=torch.float64), dtype=dtype)
        (grad,) = torch.autograd.grad(log_prob, params)
        # The mean draws with 1 / scale; the log-scale is below its least, so nothing moves it.
        want = torch.tensor([[0, inverse, 0]], dtype=torch.float64)
        assert_close(grad.cpu(), want, dtype=dtype, factor=4)


@pytest.mark.parametrize(
    "function", [ops.logistic_mixture_log_prob, reference.logistic_mixture_log_prob]
)
@pytest.mark.parametrize("composed", [False, True])
def test_wide_scales_do_not_underflow(
    composed: bool, function: Callable[..., Tensor], device: torch.device
) -> None:
    for scale in (60.0, 90.0, 300.0):
        params = torch.tensor([[0.0, 0.3, scale]], device=device).requires_grad_()
        log_prob = function(torch.tensor([[7.0]], device=device), params)
        # The density at the mean, 1/4 of the inverse scale, times the width of the bin.
        want = torch.tensor([math.log(2 / 255 / 4) - scale], device=device)
        assert_close(log_prob, want, dtype=torch.float32)
        (grad,) = torch.autograd.grad(log_prob, params, create_graph=composed)
        assert_close(grad, torch.tensor([[0, 0, -1]], device=device), dtype=torch.float32)


def test_components_without_weight_do_not_count(device: torch.device) -> None:
    x, params = make_inputs((2, 5), device, colours=1, components=2)
    alone = params[:, [1, 3, 5]]
    params[:, 0] = -math.inf
    params.requires_grad_()
    got = ops.logistic_mixture_log_prob(x, params)
    assert_close(got, ops.logistic_mixture_log_prob(x, alone), dtype=torch.float64)
    (grad,) = torch.autograd.grad(got.sum(), params)
    assert torch.equal(grad[:, [0, 1, 2, 4]], torch.zeros(2, 4, 5, dtype=grad.dtype).to(device))


def test_scales_stop_at_the_least(device: torch.device) -> None:
    x, params = make_inputs((2, 3, 3), device, colours=1)
    for floor in (-3.0, 0.0):
        expected = expected_of(x, params, floor=floor)
        got = ops.logistic_mixture_log_prob(x, params, min_log_scale=floor)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        compare(x, params, min_log_scale=floor)


def test_takes_strided_views_as_they_are(device: torch.device) -> None:
    x, params = make_inputs((3, 6, 5), device, torch.float32)
    wide = torch.randn(3, 60, 6, 10, device=device)
    views = {
        "channels": wide[:, 10:50, :, :5].copy_(params),
        "pixels": wide[:, :40, :, ::2].copy_(params),
        "transposed": params.mT.contiguous().mT,
    }
    for view in views.values():
        compare(x, view)
        compare(x.flip(0).flip(0).mT.contiguous().mT, view)
    one = params[:1].expand(3, -1, -1, -1)
    compare(x, one)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (0,)])
def test_empty_inputs(shape: tuple[int, ...], device: torch.device) -> None:
    compare(*make_inputs(shape, device, torch.float32))


def test_nan_stays_in_its_sample(device: torch.device) -> None:
    for colours in (1, 3):
        x, params = make_inputs((3, 40), device, torch.float32, colours)
        for bad in range(params.size(1)):
            broken = params.clone()
            broken[1, bad, 30] = math.nan
            got = ops.logistic_mixture_log_prob(x, broken)
            assert got.isnan().tolist() == [False, True, False]


def test_sums_do_not_depend_on_threads_or_batch(device: torch.device) -> None:
    for shape in ((40, 3), (9, 31, 33), (2, 200, 201)):
        x, params = make_inputs(shape, device, torch.float32)
        params.requires_grad_()

        def run(x: Tensor = x, params: Tensor = params) -> tuple[Tensor, Tensor]:
            got = ops.logistic_mixture_log_prob(x, params)
            return got, torch.autograd.grad(got.sum(), params)[0]

        many = same_for_any_threads(run)
        assert torch.equal(run(x[:1], params[:1])[0], many[0][:1])


@pytest.mark.parametrize("colours", [1, 3])
def test_gradcheck_twice(colours: int, device: torch.device) -> None:
    x, params = make_inputs((2, 3), device, colours=colours, components=2)

    def run(params: Tensor) -> Tensor:
        return ops.logistic_mixture_log_prob(x, params)

    assert torch.autograd.gradcheck(run, params.requires_grad_())
    assert torch.autograd.gradgradcheck(run, params)


def test_values_have_no_gradient(device: torch.device) -> None:
    x, params = make_inputs((2, 3), device)
    total = ops.logistic_mixture_log_prob(x.requires_grad_(), params.requires_grad_()).sum()
    assert torch.autograd.grad(total, x, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(total, x, allow_unused=True, create_graph=True) == (None,)


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, params: Tensor) -> Tensor:
        return ops.logistic_mixture_log_prob(x, params.mul(2)).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x, params = make_inputs((batch, 4, 3), device, torch.float32)
        params.requires_grad_()
        got, want = (torch.autograd.grad(f(x, params), params)[0] for f in (compiled, step))
        assert torch.equal(got, want)


@pytest.mark.parametrize("colours", [1, 3])
def test_opcheck(colours: int, device: torch.device) -> None:
    x, params = make_inputs((2, 3, 4), device, torch.float32, colours)
    op = torch.ops.flowops.logistic_mixture_log_prob
    last = params.to(memory_format=torch.channels_last)
    torch.library.opcheck(op, (x, params.requires_grad_(), 256, -7.0))
    torch.library.opcheck(op, (x.to(torch.uint8), last.requires_grad_(), 256, -7.0))
    backward = torch.ops.flowops.logistic_mixture_log_prob_backward
    grad = torch.randn(2, device=device)
    torch.library.opcheck(backward, (grad, x, last.detach(), 256, -7.0))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, params = make_inputs((2, 5), device)

    def run(params: Tensor) -> Tensor:
        return ops.logistic_mixture_log_prob(x, params).sum()

    leaf = params.clone().requires_grad_()
    (want,) = torch.autograd.grad(run(leaf), leaf)
    assert_close(torch.func.grad(run)(params), want, dtype=torch.float64, factor=10)
    tangent = torch.func.jvp(run, (params,), (torch.ones_like(params),))[1]
    assert_close(tangent, want.sum(), dtype=torch.float64, factor=100)  # a sum of 400 terms


def test_autocast_keeps_float32(device: torch.device) -> None:
    x, params = make_inputs((2, 5), device, torch.bfloat16)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = ops.logistic_mixture_log_prob(x.to(torch.uint8), params)
    want = reference.logistic_mixture_log_prob(x.double(), params.double())
    assert_close(got, want, dtype=torch.float32, factor=2)


X, PARAMS = torch.zeros(2, 3, 5), torch.zeros(2, 20, 5)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "colours": ({"x": X[:, :2]}, r"x must have shape \(batch, 1 or 3, \.\.\.\), got \[2, 2, 5\]"),
    "dim": ({"x": X[0, 0]}, r"x must have shape \(batch, 1 or 3, \.\.\.\), got \[5\]"),
    "dtype": ({"x": X.long()}, r"x must be uint8 or Float \(like params\), got Long"),
    "params_dtype": ({"params": PARAMS.int()}, "params must be float64, .* got Int"),
    "channels": (
        {"params": PARAMS[:, :19]},
        r"params must have 10 channels a component and the other sizes of x, \[2, 3, 5\], got "
        r"\[2, 19, 5\]",
    ),
    "none": ({"params": PARAMS[:, :0]}, r"params must have 10 channels a .* got \[2, 0, 5\]"),
    "one_colour": ({"x": X[:, :1]}, r"params must have 3 channels a component .*got \[2, 20, 5\]"),
    "pixels": ({"params": PARAMS[..., :4]}, r"params must have .* got \[2, 20, 4\]"),
    "levels": ({"levels": 1}, "levels must be 2 to 65536, got 1"),
    "too_many": ({"levels": 65537}, "levels must be 2 to 65536, got 65537"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments: dict[str, Any] = {"x": X.to(device), "params": PARAMS.to(device)}
    arguments |= {k: v.to(device) if isinstance(v, Tensor) else v for k, v in changed.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="logistic_mixture_log_prob: " + message),
    ):
        ops.logistic_mixture_log_prob(**arguments)


def test_the_backward_op_checks_the_gradient(device: torch.device) -> None:
    x, params = X.to(device), PARAMS.to(device)
    backward = torch.ops.flowops.logistic_mixture_log_prob_backward
    with pytest.raises(ValueError, match=r"grad must have shape \[2\] \(one value a sample\)"):
        backward(x, x, params, 256, -7.0)
    with pytest.raises(ValueError, match="grad must be Float, got Double"):
        backward(x[:, 0, 0].double(), x, params, 256, -7.0)
