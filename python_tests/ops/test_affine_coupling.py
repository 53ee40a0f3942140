"""affine_coupling against its float64 reference, the Jacobian, and PyTorch's own op checks."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.ops.affine_coupling import LAYOUTS, ORDERS, ScaleMap
from flowops.ops.affine_coupling import SCALES as KINDS
from flowops.testing import assert_close, jacobian_logdet

SHAPES = ((3, 5), (2, 3, 7), (2, 4, 5, 3), (2, 3, 2, 3, 2), (1, 1, 1, 1), (5, 63), (2, 2, 25, 33))
Scale = str | ScaleMap
# Each a path of its own through the kernels.
SCALES: tuple[Scale, ...] = ("additive", "exp", "tanh_exp", "sigmoid")
VARIANTS = list(itertools.product(SCALES, ORDERS, LAYOUTS))
ALL_SCALES: tuple[Scale, ...] = (
    *KINDS,
    ScaleMap("sigmoid", floor=0.05),
    ScaleMap("softplus", floor=0.1, limit=1.5),
    ScaleMap("tanh_exp", gain=0.4, limit=2.0),
    ScaleMap("atan_exp", gain=-1.5, limit=0.6),
    ScaleMap("softsign_exp", gain=3.0, limit=1.5),
)
OPS = {False: ops.affine_coupling, True: ops.affine_coupling_inverse}
REFERENCES = {False: reference.affine_coupling, True: reference.affine_coupling_inverse}


def make_inputs(
    shape: tuple[int, ...],
    scale: Scale,
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    amplitude_dim: int = 1,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Random x, params and keyword arguments with amplitude and incoming log-det."""
    n = shape[1]
    channels = n if scale == "additive" else 2 * n
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    params = torch.randn(shape[0], channels, *shape[2:], dtype=torch.float64).to(device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    options: dict[str, Any] = {"scale": scale}
    options["logdet"] = torch.randn(shape[0], device=device, dtype=wide)
    if scale == "tanh_exp":
        options["amplitude"] = torch.randn((n,) * amplitude_dim, device=device, dtype=wide)
    return x, params, options


def compare(x: Tensor, params: Tensor, options: dict[str, Any], inverse: bool) -> None:
    """Outputs and all gradients against the reference in float64 on the same inputs."""
    names = [k for k, v in options.items() if isinstance(v, Tensor) and v.is_floating_point()]
    leaves = [x, params, *(options[k] for k in names)]
    ours = [t.detach().requires_grad_() for t in leaves]
    theirs = [t.detach().double().requires_grad_() for t in leaves]
    z, logdet = OPS[inverse](ours[0], ours[1], **options | dict(zip(names, ours[2:], strict=True)))
    expected = REFERENCES[inverse](
        theirs[0], theirs[1], **options | dict(zip(names, theirs[2:], strict=True))
    )
    assert z.dtype == x.dtype
    assert logdet.dtype == torch.promote_types(x.dtype, torch.float32)
    assert_close(z, expected[0], dtype=x.dtype)
    # A sum over up to 1,650 elements.
    assert_close(logdet, expected[1], dtype=logdet.dtype, factor=30)
    weights = torch.randn_like(z), torch.randn_like(logdet)
    grads = torch.autograd.grad((z, logdet), ours, weights)
    wanted = torch.autograd.grad(expected, theirs, [w.double() for w in weights])
    for leaf, grad, want in zip(leaves, grads, wanted, strict=True):
        # An amplitude's gradient is a sum over the batch and all pixels.
        assert_close(grad, want, dtype=x.dtype, factor=1 if leaf.dim() == x.dim() else 30)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference_over_shapes(
    shape: tuple[int, ...], dtype: torch.dtype, inverse: bool, device: torch.device
) -> None:
    for scale in ALL_SCALES:
        compare(*make_inputs(shape, scale, device, dtype), inverse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("scale", "order", "layout"), VARIANTS)
def test_matches_reference_over_variants(
    scale: str, order: str, layout: str, inverse: bool, device: torch.device
) -> None:
    for amplitude_dim in (0, 1):
        x, params, options = make_inputs((2, 3, 4, 5), scale, device, amplitude_dim=amplitude_dim)
        compare(x, params, options | {"order": order, "layout": layout}, inverse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("start", [0, 2, 3])
def test_copies_channels_outside_the_moved_ones(
    start: int, scale: str, inverse: bool, device: torch.device
) -> None:
    _, params, options = make_inputs((2, 2, 3, 3), scale, device, torch.float32)
    x = torch.randn(2, 5, 3, 3, device=device)
    options["start"] = start
    compare(x, params, options, inverse)
    compare(x.to(memory_format=torch.channels_last), params, options, inverse)
    compare(x[:, :, 0, 0], params[:, :, 0, 0], options, inverse)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", ALL_SCALES)
@pytest.mark.parametrize("mask_shape", [(3, 4, 5), (4, 5), (1, 4, 5), (3, 1, 1)])
def test_mask_keeps_elements(
    mask_shape: tuple[int, ...], scale: Scale, inverse: bool, device: torch.device
) -> None:
    x, params, options = make_inputs((2, 3, 4, 5), scale, device)
    options["mask"] = torch.rand(mask_shape, device=device) < 0.5
    compare(x, params, options, inverse)
    last = [t.to(memory_format=torch.channels_last) for t in (x, params)]
    compare(*last, options, inverse)
    z, _ = OPS[inverse](x, params, **options)
    kept = options["mask"].expand_as(x)
    assert torch.equal(z[kept], x[kept])


def strided_views(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    base, wide = torch.randn(2, 8, 6, 5, device=device), torch.randn(2, 12, 6, 5, device=device)
    last = torch.channels_last
    base_last, wide_last = base.to(memory_format=last), wide.to(memory_format=last)
    return {
        "channel_slice": (base[:, 4:7], wide[:, 3:9]),
        "channels_last_slice": (base_last[:, 4:7], wide_last[:, 3:9]),
        "x_channels_last_only": (base_last[:, :3], wide[:, :6]),
        "params_channels_last_only": (base[:, :3], wide_last[:, :6]),
        "every_second_channel": (base[:, 1:7:2], wide[:, ::2]),
        "every_second_pixel": (base[:, :3, :, ::2], wide[:, :6, :, ::2]),
        "transposed_pixels": (base[:, :3].mT, wide[:, :6].mT),
        "expanded_batch": (base[:1, :3].expand(4, -1, -1, -1), wide[:1, :6].expand(4, -1, -1, -1)),
        "transposed_vectors": (
            torch.randn(3, 4, device=device).T,
            torch.randn(6, 4, device=device).T,
        ),
    }


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_strided_views_as_they_are(layout: str, inverse: bool, device: torch.device) -> None:
    for x, params in strided_views(device).values():
        compare(x, params, {"scale": "sigmoid", "layout": layout}, inverse)
        amplitude = torch.randn(x.size(1), device=device)
        compare(x, params, {"scale": "tanh_exp", "layout": layout, "amplitude": amplitude}, inverse)


def test_keeps_channels_last(device: torch.device) -> None:
    x = torch.randn(2, 8, 6, 5, device=device).to(memory_format=torch.channels_last)
    params = torch.randn(2, 8, 6, 5, device=device)
    z, _ = ops.affine_coupling(x[:, 4:], params)
    assert z.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)])
def test_empty_inputs_return_the_incoming_logdet(
    shape: tuple[int, ...], device: torch.device
) -> None:
    x, params, options = make_inputs(shape, "exp", device, torch.float32)
    compare(x, params, options, False)
    _, logdet = ops.affine_coupling(x, params, **options)
    assert torch.equal(logdet, options["logdet"])


def test_long_sample_is_summed_in_a_fixed_order(device: torch.device) -> None:
    x, params, options = make_inputs((2, 5, 97, 89), "sigmoid", device, torch.float32)
    compare(x, params, {"scale": "sigmoid"}, False)
    z, logdet = same_for_any_threads(lambda: ops.affine_coupling(x, params, **options))
    options["logdet"] = options["logdet"][1:]
    alone = ops.affine_coupling(x[1:], params[1:], **options)
    assert torch.equal(alone[0], z[1:])
    assert torch.equal(alone[1], logdet[1:])


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", ALL_SCALES)
def test_logdet_is_that_of_the_jacobian(scale: Scale, inverse: bool, device: torch.device) -> None:
    x, params, options = make_inputs((1, 3, 2, 2), scale, device)
    options |= {"logdet": None, "mask": torch.rand(3, 2, 2, device=device) < 0.3}
    logdet = OPS[inverse](x, params, **options)[1]
    expected = jacobian_logdet(lambda row: OPS[inverse](row, params, **options)[0], x)
    assert_close(logdet, expected, dtype=torch.float64)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scale", ALL_SCALES)
def test_gradcheck_twice(scale: Scale, order: str, inverse: bool, device: torch.device) -> None:
    x, params, options = make_inputs((2, 2, 2), scale, device)
    mask = torch.tensor([[True, False], [False, False]], device=device)

    def run(x: Tensor, params: Tensor, logdet: Tensor, *amplitude: Tensor) -> tuple[Tensor, Tensor]:
        keywords: dict[str, Any] = {"scale": scale, "order": order, "mask": mask, "logdet": logdet}
        return OPS[inverse](x, params, amplitude=amplitude[0] if amplitude else None, **keywords)

    leaves = [x, params, options["logdet"]]
    leaves = [
        t.requires_grad_() for t in leaves + [options[k] for k in ("amplitude",) if k in options]
    ]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize(("scale", "order", "layout"), VARIANTS)
def test_composed_backward_equals_the_fused_one(
    scale: str, order: str, layout: str, device: torch.device
) -> None:
    _, params, options = make_inputs((2, 2, 3), scale, device)
    x = torch.randn(2, 4, 3, device=device, dtype=torch.float64)
    leaves = [x.requires_grad_(), params.requires_grad_()]
    options |= {"order": order, "layout": layout, "start": 1}
    loss = sum(out.square().sum() for out in ops.affine_coupling(*leaves, **options))
    fused = torch.autograd.grad(loss, leaves, retain_graph=True)
    composed = torch.autograd.grad(loss, leaves, create_graph=True)
    for a, b in zip(fused, composed, strict=True):
        assert_close(a, b.detach(), dtype=torch.float64)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", KINDS)
def test_opcheck(scale: str, inverse: bool, device: torch.device) -> None:
    x, params, options = make_inputs((2, 3, 4), scale, device, torch.float32)
    arguments = (x.requires_grad_(), params.requires_grad_(), options.get("amplitude"), None)
    numbers = (0, KINDS.index(scale), 1, 2, inverse, *ScaleMap(scale).constants)
    torch.library.opcheck(
        torch.ops.flowops.affine_coupling, (*arguments, options["logdet"], *numbers)
    )


@pytest.mark.parametrize("kind", ["tanh_exp", "atan_exp", "softsign_exp"])
def test_a_learned_amplitude_takes_the_place_of_the_limit(kind: str, device: torch.device) -> None:
    x, params, options = make_inputs((2, 3, 4), kind, device)
    options["amplitude"] = torch.rand(3, device=device, dtype=torch.float64) + 0.5
    compare(x, params, options, False)
    compare(x, params, options | {"scale": ScaleMap(kind, gain=0.7, limit=9.0)}, True)
    leaf = options["amplitude"].requires_grad_()
    run = partial(ops.affine_coupling, scale=ScaleMap(kind, gain=0.7))
    assert torch.autograd.gradgradcheck(lambda a: run(x, params, amplitude=a), leaf)


def test_scales_at_far_ends(device: torch.device) -> None:
    """Where exponentials would overflow, and where softplus is cut and its slope vanishes."""
    raw = torch.tensor([-1e30, -200.0, -30.0, 1.2, 30.0, 200.0, 1e30], device=device)
    bounded = [s for s in ALL_SCALES if s not in ("additive", "exp", "sigmoid")]
    for scale in [s for s in bounded if s != "reciprocal_sigmoid"]:
        for dtype in (torch.float32, torch.float64):
            x = torch.ones(7, 1, device=device, dtype=dtype)
            params = torch.stack([raw, raw.cos()], 1).to(dtype)
            compare(x, params, {"scale": scale}, False)
    cut = torch.stack([raw[3:6], raw[3:6]], 1).requires_grad_()
    z, logdet = ops.affine_coupling(
        torch.ones(3, 1, device=device), cut, scale=ScaleMap("softplus", limit=1.5)
    )
    (grad,) = torch.autograd.grad(z.sum() + logdet.sum(), cut)
    assert grad[0, 0] > 0
    assert torch.equal(grad[1:, 0], torch.zeros(2, device=device))


def test_opcheck_layouts(device: torch.device) -> None:
    for x, params in strided_views(device).values():
        arguments = (x, params, None, None, None, 0, 3, 1, 2, False)
        torch.library.opcheck(torch.ops.flowops.affine_coupling, arguments)


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, params, _ = make_inputs((3, 2), "exp", device)

    def one(row: Tensor, row_params: Tensor) -> Tensor:
        return ops.affine_coupling(row[None], row_params[None])[0][0]

    jacobians = torch.func.vmap(torch.func.jacrev(one))(x, params)
    expected = params[:, :2].exp()
    assert_close(torch.diagonal(jacobians, dim1=1, dim2=2), expected, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(
            ops.affine_coupling(dual, params)[0]
        ).tangent
    assert_close(tangent, expected, dtype=torch.float64)


def test_autocast_keeps_the_state_in_float32(device: torch.device) -> None:
    x, params, _ = make_inputs((3, 2), "exp", device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, logdet = ops.affine_coupling(x, params.bfloat16())
    assert z.dtype == logdet.dtype == torch.float32


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, params: Tensor) -> Tensor:
        z, logdet = ops.affine_coupling(x, params, scale="sigmoid")
        return z.square().sum() - logdet.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x, params, _ = make_inputs((batch, 3, 4), "sigmoid", device, torch.float32)
        leaves = x.requires_grad_(), params.requires_grad_()
        got = torch.autograd.grad(compiled(*leaves), leaves)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X, P = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "dtype": ({"x": X.long(), "params": P.long()}, "x must be float64, float32"),
    "params_dtype": ({"params": P.double()}, "params must be Float"),
    "params_shape": ({"params": P[:, :, :2]}, "params must have the batch and pixel sizes of x"),
    "params_odd": ({"params": P[:, :3]}, "params must have an even number of channels"),
    "start": (
        {"start": 3},
        "start must leave room for the 2 moved channels among the 4 of x, got 3",
    ),
    "start_sign": ({"start": -1}, "start must leave room"),
    "amplitude": ({"amplitude": torch.ones(2)}, "amplitude must be None unless"),
    "gain": ({"scale": ScaleMap("exp", gain=2.0)}, "gain must be finite and not 0 with a bounded"),
    "no_gain": ({"scale": ScaleMap("atan_exp", gain=0.0)}, "gain must .* got 0"),
    "limit": ({"scale": ScaleMap("sigmoid", limit=2.0)}, "limit must be finite and positive"),
    "limit_sign": ({"scale": ScaleMap("softsign_exp", limit=-1.0)}, "limit must .* got -1"),
    "floor": ({"scale": ScaleMap("exp", floor=1e-3)}, "floor must be positive with softplus"),
    "no_floor": ({"scale": ScaleMap("softplus", floor=0.0)}, "floor must .* got 0"),
    "empty_range": (
        {"scale": ScaleMap("softplus", floor=1.0, limit=0.5)},
        "limit must be above floor, 1, got 0.5",
    ),
    "amplitude_shape": (
        {"scale": "tanh_exp", "amplitude": torch.ones(3)},
        r"amplitude must have shape \[\] or \[2\], got \[3\]",
    ),
    "mask_dtype": ({"mask": torch.ones(2, 3)}, "mask must be bool"),
    "mask_shape": (
        {"mask": torch.ones(4, 3) > 0},
        r"mask must broadcast to \[2, 3\], got \[4, 3\]",
    ),
    "logdet_shape": ({"logdet": torch.zeros(3)}, r"logdet must have shape \[2\]"),
    "logdet_dtype": ({"logdet": torch.zeros(2).double()}, "logdet must be Float, got Double"),
    "scale": ({"scale": "sine"}, "scale must be one of 'additive', 'exp'"),
    "order": ({"order": "both"}, "order must be one of"),
    "layout": ({"layout": "planar"}, "layout must be one of"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {"x": X, "params": P} | changed
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="affine_coupling: " + message),
    ):
        ops.affine_coupling(**arguments)
