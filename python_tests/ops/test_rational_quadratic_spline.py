"""rational_quadratic_spline against its float64 reference, other libraries, autograd, op checks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close, jacobian_logdet

TAILS = ("linear", "circular", "none")
# Less and more than a vector of lanes, one element a sample, images, a sample of two blocks.
SHAPES = ((5, 1), (1100, 1), (3, 7), (37, 32), (2, 3, 4, 5), (1, 2, 65, 66), (1, 1))
OPS = {False: ops.rational_quadratic_spline, True: ops.rational_quadratic_spline_inverse}
REFERENCES = {
    False: reference.rational_quadratic_spline,
    True: reference.rational_quadratic_spline_inverse,
}
ZUKO: dict[str, Any] = {"slope_map": "exp", "min_width": 0.0, "min_height": 0.0, "soft_clip": 1e-3}
FORMS: dict[str, dict[str, Any]] = {
    "nflows": {},
    "identity": {"beta": math.log(2) / (1 - 1e-3)},
    "zuko": ZUKO,
    "clipped_softplus": {"soft_clip": 1e-2, "min_slope": 0.1},
}


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def make_inputs(
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    *,
    bins: int = 8,
    tails: str = "linear",
) -> tuple[Tensor, Tensor]:
    """x inside and outside of [-3, 3], and raw parameters."""
    count = 3 * bins + TAILS.index(tails) - 1
    x = (2 * torch.randn(shape, dtype=torch.float64)).to(device, dtype)
    return x, torch.randn(*shape, count, dtype=torch.float64).to(device, dtype)


# Factors of the tolerance of z, logdet and gradients (these relative to the largest), by dtype. In
# float32 knots are known to 2e-7 of the domain, which a bin of a tenth of it divides by; the halves
# compute in float32, so that only their log-dets, float32, show more than one rounding.
FACTORS = {
    torch.float64: (1, 1, 3),
    torch.float32: (4, 15, 30),
    torch.float16: (1, 15, 1),
    torch.bfloat16: (1, 15, 1),
}


def compare(x: Tensor, params: Tensor, inverse: bool, wild: float = 1, **options: Any) -> None:
    """Outputs and gradients against the reference in float64 on the same inputs."""
    ours, theirs = (
        [t.detach().to(d).requires_grad_() for t in (x, params)] for d in (x.dtype, torch.float64)
    )
    ours[1] = params.detach().requires_grad_()
    z, logdet = OPS[inverse](*ours, **options)
    expected = REFERENCES[inverse](*theirs, **options)
    assert z.dtype == x.dtype
    assert logdet.dtype == wide_of(x.dtype)
    of_z, of_logdet, of_grads = (wild * factor for factor in FACTORS[x.dtype])
    assert_close(z, expected[0], dtype=x.dtype, factor=of_z)
    assert_close(logdet, expected[1], dtype=logdet.dtype, factor=of_logdet)
    weights = torch.randn_like(z), torch.randn_like(logdet)
    grads = torch.autograd.grad((z, logdet), ours, weights)
    wanted = torch.autograd.grad(expected, theirs, [w.double() for w in weights])
    for leaf, grad, want in zip(ours, grads, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        scale = float(want.abs().max().clamp_min(1)) if want.numel() else 1.0
        assert_close(grad / scale, want / scale, dtype=grad.dtype, factor=of_grads)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, tails: str, inverse: bool, device: torch.device
) -> None:
    x, params = make_inputs(shape, device, dtype, tails=tails)
    # The edges themselves, whose derivative is that of the inside.
    x.view(-1)[:1], x.view(-1)[-1:] = 3, -3
    compare(x, 0.3 * params, inverse, tails=tails)


@pytest.mark.parametrize("inverse", [False, True])
def test_narrow_bins_and_steep_slopes(inverse: bool, device: torch.device) -> None:
    # Bins down to a thousandth of the domain lose as many times more of what a knot is known to.
    compare(*make_inputs((37, 32), device, torch.float32), inverse, wild=30)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", TAILS)
def test_backward_composed_for_second_derivatives_equals_the_kernel(
    tails: str, inverse: bool, device: torch.device
) -> None:
    x, params = make_inputs((9, 7), device, tails=tails)
    x.view(-1)[:4] = torch.tensor([3, -3, 30, 0])
    leaves = x.requires_grad_(), params.requires_grad_()
    outputs = OPS[inverse](*leaves, tails=tails)
    weights = [torch.randn_like(t) for t in outputs]
    kernel = torch.autograd.grad(outputs, leaves, weights, retain_graph=True)
    composed = torch.autograd.grad(outputs, leaves, weights, create_graph=True)
    for got, want in zip(kernel, composed, strict=True):
        assert_close(got, want, dtype=torch.float64, factor=100)  # gradients up to a hundred


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bins", [1, 2, 4, 5, 8, 10, 16, 32, 40])
def test_every_form_and_number_of_bins(
    bins: int, form: str, inverse: bool, device: torch.device
) -> None:
    for tails in TAILS:
        inputs = make_inputs((7, 5), device, bins=bins, tails=tails)
        compare(*inputs, inverse, tails=tails, **FORMS[form])
        compare(*inputs, inverse, tails=tails, elementwise=True, **FORMS[form])


@pytest.mark.parametrize("inverse", [False, True])
def test_bounds(inverse: bool, device: torch.device) -> None:
    # Samples of several vectors, so that their lanes meet other channels.
    x, params = make_inputs((3, 4, 25), device, tails="none")
    compare(x, params, inverse, tails="none", bounds=(-1.0, 3.0, -2.0, 0.5))
    table = torch.tensor([[-1.0, -2, -3, -4], [1, 1, 1, 2], [0, -5, -1, 2], [1, 5, 1, 4]])
    for wide in (table, table.to(device).double()):
        compare(x, params, inverse, tails="none", bounds=wide.to(device))
    square = torch.cat([table[:2], table[:2]]).to(device)
    compare(*make_inputs((6, 4, 3), device), inverse, bounds=square)


def layouts(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    x, h = torch.randn(3, 4, 6, 5, device=device), 0.3 * torch.randn(3, 92, 6, 5, device=device)
    last = h.to(memory_format=torch.channels_last)
    vectors, raw = h.view(-1)[:8280].view(9, 920), h.new_empty(3, 4, 6, 5, 30).normal_(0, 0.3)
    wide, one = torch.randn(3, 8, 6, 5, device=device), 0.3 * torch.randn(23, device=device)
    return {
        "planar": (x, h.unflatten(1, (23, 4)).movedim(1, -1)),
        "channel_by_channel": (x, h.unflatten(1, (4, 23)).movedim(2, -1)),
        "channels_last": (
            x.to(memory_format=torch.channels_last),
            last.unflatten(1, (4, 23)).movedim(2, -1),
        ),
        "channel_slice": (wide[:, 2:6], raw[..., :23].contiguous()),
        "transposed_pixels": (x.mT, raw[..., :23].mT.reshape(3, 4, 5, 6, 23)),
        "wider_params": (x, raw[..., 3:26]),
        "wider_planar": (x, raw.view(3, 30, 4, 6, 5)[:, 3:26].movedim(1, -1)),
        "planar_vectors": (torch.randn(9, 40, device=device), vectors.view(9, 23, 40).mT),
        "expanded": (x[:1].expand(3, -1, -1, -1), one.expand(3, 4, 6, 5, 23)),
    }  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True])
def test_takes_strided_views_as_they_are(inverse: bool, device: torch.device) -> None:
    for x, params in layouts(device).values():
        compare(x, params, inverse)
        compare(x.bfloat16(), params.bfloat16(), inverse)
        compare(x, params, inverse, elementwise=True)


def test_gradient_of_planar_params_is_planar(device: torch.device) -> None:
    x, params = layouts(device)["planar"]
    params = params.detach().requires_grad_()
    z, _ = ops.rational_quadratic_spline(x, params)
    (grad,) = torch.autograd.grad(z.sum(), params)
    assert grad.stride() == params.stride()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_inputs_return_the_incoming_logdet(
    shape: tuple[int, ...], device: torch.device
) -> None:
    x, params = make_inputs(shape, device, torch.float32)
    logdet = torch.randn(shape[0], device=device)
    compare(x, params, False, logdet=logdet)
    assert torch.equal(ops.rational_quadratic_spline(x, params, logdet=logdet)[1], logdet)


@pytest.mark.parametrize("inverse", [False, True])
def test_an_incoming_logdet_is_added(inverse: bool, device: torch.device) -> None:
    x, params = make_inputs((4, 3), device)
    for elementwise in (False, True):
        logdet = torch.randn(
            (4, 3) if elementwise else 4, device=device, dtype=x.dtype
        ).requires_grad_()
        alone = OPS[inverse](x, params, elementwise=elementwise)[1]
        total = OPS[inverse](x, params, logdet=logdet, elementwise=elementwise)[1]
        assert_close(total, alone + logdet, dtype=x.dtype)
        assert torch.equal(torch.autograd.grad(total.sum(), logdet)[0], torch.ones_like(logdet))


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_inverse_undoes_forward(scale: float, tails: str, device: torch.device) -> None:
    x, params = make_inputs((50, 9), device, tails=tails)
    options: dict[str, Any] = {"tails": tails, "elementwise": True}
    z, logdet = ops.rational_quadratic_spline(x, scale * params, **options)
    back, reverse = ops.rational_quadratic_spline_inverse(z, scale * params, **options)
    # Conditioned by the slope: what z loses to rounding, x loses divided by it.
    error = (back - x).abs() * logdet.exp().clamp_max(1)
    assert float(error.max()) < 1e-11
    assert scale > 1 or float((logdet + reverse).abs().max()) < 1e-6


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", TAILS)
def test_logdet_is_that_of_the_jacobian(tails: str, inverse: bool, device: torch.device) -> None:
    x, params = make_inputs((2, 3, 2), device, tails=tails)
    logdet = OPS[inverse](x, params, tails=tails)[1]
    rows = iter(params.split(1))
    expected = jacobian_logdet(lambda row: OPS[inverse](row, next(rows), tails=tails)[0], x)
    assert_close(logdet, expected, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("inverse", [False, True])
def test_everything_is_finite_at_knots_edges_and_extremes(
    inverse: bool, tails: str, dtype: torch.dtype, device: torch.device
) -> None:
    # Equal bins: knots at multiples of 0.75 of [-3, 3]; then logits that leave one bin all.
    x = torch.tensor(
        [-1e30, -3.0, -2.25, -0.0, 0.75, 3.0, 3.0000002, 1e30], device=device, dtype=dtype
    )
    _, params = make_inputs((6, 8), device, dtype, tails=tails)
    params[0] = 0
    params[1:4, :, 2] = torch.tensor([50.0, -1e4, 1e30], device=device, dtype=dtype)[:, None]
    params[4] *= 50
    params[5] = params[5].sign() * 1e4
    leaves = x.expand(6, 8).clone().requires_grad_(), params.requires_grad_()
    z, logdet = OPS[inverse](*leaves, tails=tails)
    grads = torch.autograd.grad((z.clamp(-10, 10).sum(), logdet.sum()), leaves)
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("inverse", [False, True])
def test_nan_gives_nan_where_it_is(inverse: bool, device: torch.device) -> None:
    x, params = make_inputs((2, 20), device, torch.float32)
    x[0, 3] = math.nan
    z, _ = OPS[inverse](x, params)
    assert z[0, 3].isnan()
    assert z.isnan().sum() == 1
    clean = torch.zeros_like(x)
    params[1, 7, 9] = math.nan
    assert OPS[inverse](clean, params)[0][1, 7].isnan()


def test_sums_do_not_depend_on_threads(device: torch.device) -> None:
    x, params = make_inputs((33, 100), device, torch.float32)
    same_for_any_threads(lambda: ops.rational_quadratic_spline(x, params))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tails", TAILS)
def test_gradcheck_twice(tails: str, form: str, inverse: bool, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((2, 2), device, bins=3, tails=tails)]

    def run(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return OPS[inverse](x, params, tails=tails, **FORMS[form])

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("inverse", [False, True])
def test_opcheck(inverse: bool, device: torch.device) -> None:
    form = [-3.0, 3.0, -3.0, 3.0, 1e-3, 1e-3, 1e-3, 1.0, 0.0]
    for x, params in layouts(device).values():
        leaves = x.detach().requires_grad_(), params.detach().requires_grad_()
        arguments = (*leaves, None, None, form, 0, False, False, inverse)
        torch.library.opcheck(torch.ops.flowops.rational_quadratic_spline, arguments)


def same_as_theirs(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], leaves: tuple[Tensor, ...]
) -> None:
    """Outputs, and gradients relative to the largest."""
    weights = [torch.randn_like(out) for out in theirs]
    grads, wanted = (torch.autograd.grad(outputs, leaves, weights) for outputs in (ours, theirs))
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected, dtype=torch.float64)
    for got, expected in zip(grads, wanted, strict=True):
        assert_close(got / expected.abs().max(), expected / expected.abs().max(), dtype=got.dtype)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", None])
def test_equals_nflows(tails: str | None, inverse: bool, device: torch.device) -> None:
    module = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    x, params = make_inputs((20, 6), device, tails=tails or "none")
    x, params = (x if tails else 2.9 * x.tanh()).requires_grad_(), params.requires_grad_()
    parts = params[..., :8], params[..., 8:16], params[..., 16:]
    if tails:
        theirs = module.unconstrained_rational_quadratic_spline(
            x, *parts, inverse=inverse, tails=tails, tail_bound=3.0
        )
    else:
        box = {"left": -3.0, "right": 3.0, "bottom": -3.0, "top": 3.0}
        theirs = module.rational_quadratic_spline(x, *parts, inverse=inverse, **box)
    ours = OPS[inverse](x, params, elementwise=True, tails=tails or "none")
    same_as_theirs(ours, theirs, (x, params))


@pytest.mark.parametrize("inverse", [False, True])
def test_equals_zuko(inverse: bool, device: torch.device) -> None:
    module = pytest.importorskip("zuko.transforms")
    x, params = (t.requires_grad_() for t in make_inputs((20, 6), device))
    parts = params[..., :8], params[..., 8:16], params[..., 16:]
    transform = module.MonotonicRQSTransform(*parts, bound=3.0)
    theirs = (transform.inv(x),) if inverse else transform.call_and_ladj(x)
    ours = OPS[inverse](x, params, elementwise=True, **ZUKO)
    same_as_theirs(ours[: len(theirs)], theirs, (x, params))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, params = make_inputs((3, 2), device)

    def one(row: Tensor, raw: Tensor) -> Tensor:
        return ops.rational_quadratic_spline(row[None], raw[None])[0][0]

    jacobians = torch.func.vmap(torch.func.jacrev(one))(x, params)
    expected = ops.rational_quadratic_spline(x, params, elementwise=True)[1].exp()
    assert_close(torch.diagonal(jacobians, dim1=1, dim2=2), expected, dtype=torch.float64)


def test_autocast_keeps_the_state_in_float32(device: torch.device) -> None:
    x, params = make_inputs((3, 2), device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, logdet = ops.rational_quadratic_spline(x.bfloat16(), params.bfloat16())
    assert z.dtype == logdet.dtype == torch.float32


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, params: Tensor) -> Tensor:
        z, logdet = ops.rational_quadratic_spline(x, params)
        return z.square().sum() - logdet.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        leaves = [t.requires_grad_() for t in make_inputs((batch, 3), device)]
        got = torch.autograd.grad(compiled(*leaves), leaves)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X, P = torch.randn(2, 4), torch.zeros(2, 4, 23)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "x": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "params": ({"params": torch.zeros(2, 5, 23)}, r"params must have the shape of x, .*got \[2, 5"),
    "count": ({"params": torch.zeros(2, 4, 24)}, "params must have 3K - 1 values .*got 24"),
    "dtype": ({"params": P.double()}, r"params must be Float \(like x\), got Double"),
    "tails": ({"tails": "flat"}, "tails must be one of .*got 'flat'"),
    "slope_map": ({"slope_map": "relu"}, "slope_map must be one of .*got 'relu'"),
    "bounds": ({"bounds": (-1.0, 1.0, -2.0, 2.0)}, "bounds must be the same on both sides"),
    "order": ({"bounds": -1.0}, "bounds must have left < right"),
    "table": ({"bounds": torch.zeros(4, 3)}, r"bounds must have shape \[4, 4\], got \[4, 3\]"),
    "min_width": ({"min_width": 0.2}, "min_width must be at least 0 and below 1 / K, got 0.2"),
    "min_height": ({"min_height": -1.0}, "min_height must be at least 0"),
    "min_slope": ({"min_slope": 1.0}, "min_slope must be at least 0 and below 1, got 1"),
    "beta": ({"beta": 0.0}, "beta must be positive, got 0"),
    "soft_clip": ({"soft_clip": 1.0}, "soft_clip must be between 0 and 1, got 1"),
    "logdet": ({"logdet": torch.zeros(3)}, r"logdet must have shape \[2\] .*got \[3\]"),
    "elements": ({"logdet": torch.zeros(2), "elementwise": True}, "logdet must have shape .*2, 4"),
}  # fmt: skip


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments: dict[str, Any] = {"x": X, "params": P} | changed
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    expected = pytest.raises(ValueError, match="rational_quadratic_spline: " + message)
    with torch.inference_mode(inference), expected:
        ops.rational_quadratic_spline(**arguments)
