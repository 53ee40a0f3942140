"""gaussian_rsample of a net's output whole: what its halves give, in one gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import DTYPES, SAMPLE_SHAPES, kernel_and_composed, same_for_any_threads, saved_bytes
from torch import Tensor
from torch._subclasses import FakeTensorMode

from flowops import ops, reference
from flowops.testing import assert_close

FORMS = ("logvar", "log_std", "std", "softplus")
PRIORS = ("standard", "given", "residual")
KEY = torch.tensor([5, 9])


def make_params(
    shape: tuple[int, ...],
    device: torch.device,
    form: str = "logvar",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Means and raw scales of Gaussians of ``shape``."""
    mean, scale = torch.randn(2, *shape, dtype=torch.float64)
    scale = scale.abs() + 0.25 if form == "std" else scale
    return torch.cat((mean, scale), 1).to(device, dtype)


def options_of(prior: Tensor | None, form: str, residual: bool) -> dict[str, Any]:
    given = None if prior is None else tuple(prior.chunk(2, 1))
    return {"form": form, "prior": given, "residual": residual}


def compare(params: Tensor, prior: Tensor | None = None, form: str = "logvar") -> None:
    """Sample, KL and gradients are those of the halves to the bit, with either form of prior."""
    key = KEY.to(params.device)
    whole, halves = (params.detach().requires_grad_() for _ in range(2))
    of_prior = [None if prior is None else prior.detach().requires_grad_() for _ in range(2)]
    for residual in (False, True) if prior is not None else (False,):
        results = [
            ops.gaussian_rsample_kl(
                params=whole, key=key, **options_of(of_prior[0], form, residual)
            ),
            ops.gaussian_rsample_kl(
                *halves.chunk(2, 1), key=key, **options_of(of_prior[1], form, residual)
            ),
        ]
        weights = [torch.randn_like(t) for t in results[0]]
        grads = [
            torch.autograd.grad(outputs, [t for t in leaves if t is not None], weights)
            for outputs, leaves in zip(
                results, zip((whole, halves), of_prior, strict=True), strict=True
            )
        ]
        for got, want in zip(results[0] + grads[0], results[1] + grads[1], strict=True):
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
        assert results[0][0].stride() == results[1][0].stride()
        alone = ops.gaussian_rsample(params=params, key=key, **options_of(prior, form, residual))
        assert torch.equal(alone, results[0][0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_params_are_mean_and_scale(form: str, dtype: torch.dtype, device: torch.device) -> None:
    for shape in (*SAMPLE_SHAPES, (0, 3), (2, 0), (2, 3, 0)):
        compare(make_params(shape, device, form, dtype), None, form)
        compare(*(make_params(shape, device, form, dtype) for _ in range(2)), form)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_reference(form: str, prior: str, device: torch.device) -> None:
    params, other = (make_params((3, 4, 5), device, form).requires_grad_() for _ in range(2))
    leaves = [params] if prior == "standard" else [params, other]
    options = options_of(None if prior == "standard" else other, form, prior == "residual")
    key = KEY.to(device)
    got = ops.gaussian_rsample_kl(params=params, key=key, **options)
    want = reference.gaussian_rsample_kl(params=params, key=key, **options)
    weights = [torch.randn_like(t) for t in got]
    grads = (torch.autograd.grad(t, leaves, weights) for t in (got, want))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, dtype=torch.float64, factor=20)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, dtype=torch.float64, factor=20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_params_of_any_strides(dtype: torch.dtype, device: torch.device) -> None:
    larger = torch.randn(3, 14, 6, 5, device=device, dtype=dtype)
    last = larger.to(memory_format=torch.channels_last)
    rows = torch.randn(70, 30, device=device, dtype=dtype)
    views = {
        "slice": larger[:, 3:11],
        "every_second_channel": larger[:, 1:13:2],
        "channels_last": last[:, 6:].contiguous(memory_format=torch.channels_last),
        "channels_last_slice": last[:, 1:9],
        "transposed_pixels": larger[:, :8].mT,
        "pixels_apart": larger[:, :8, :, ::3],
        "expanded": larger[:1, :8].expand(3, 8, 6, 5),
        "expanded_channels": larger[:, :1].expand(3, 8, 6, 5),
        "expanded_pixels": larger[:, :8, :1, :1].expand(3, 8, 6, 5),
        "one_channel": larger[:, 4:6],
        "one_channel_last": last[:, 4:6],
        "one_pixel": last[:, :8, :1, :1],
        "vector_slice": rows[:, 9:23],
        "vectors": torch.randn(18, 70, device=device, dtype=dtype).T,
        "expanded_vectors": rows[:1, :10].expand(70, 10),
    }
    for params in views.values():
        compare(params)
        compare(params, params.flip(0))


def test_results_have_the_layout_of_params(device: torch.device) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        params = torch.randn(2, 6, 4, 5, device=device).to(memory_format=memory_format)
        z, kl = ops.gaussian_rsample_kl(params=params.requires_grad_())
        (grad,) = torch.autograd.grad((z.sum() + kl.sum()), params)
        assert z.is_contiguous(memory_format=memory_format)
        assert grad.is_contiguous(memory_format=memory_format)


def test_results_do_not_depend_on_threads(device: torch.device) -> None:
    key = KEY.to(device)
    for shape in ((9, 12, 31, 33), (3000, 5)):
        params = make_params(shape, device, dtype=torch.float32).requires_grad_()

        def run(params: Tensor = params) -> tuple[Tensor, ...]:
            z, kl = ops.gaussian_rsample_kl(params=params, key=key)
            return z, kl, *torch.autograd.grad((z.square().sum(), kl.sum()), params)

        same_for_any_threads(run)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_twice(form: str, prior: str, device: torch.device) -> None:
    count = 1 if prior == "standard" else 2
    leaves = [make_params((2, 3), device, form).requires_grad_() for _ in range(count)]
    key = KEY.to(device)

    def run(params: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        options = options_of(other, form, prior == "residual")
        return ops.gaussian_rsample_kl(params=params, key=key, **options)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
    outputs = run(*leaves)
    for a, b in zip(*kernel_and_composed(outputs, leaves), strict=True):
        assert_close(a, b, dtype=torch.float64, factor=10)


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("residual", [False, True])
def test_one_gradient_alone(wanted: int, residual: bool, device: torch.device) -> None:
    key = KEY.to(device)
    tensors = [make_params((4, 6, 5), device) for _ in range(2)]
    tensors[wanted].requires_grad_()
    for create in (False, True):
        grads = []
        for module in (ops, reference):
            options = options_of(tensors[1], "logvar", residual)
            z, kl = module.gaussian_rsample_kl(params=tensors[0], key=key, **options)
            loss = z.square().sum() + kl.sum()
            grads += torch.autograd.grad(loss, tensors[wanted], create_graph=create)
        assert_close(*grads, dtype=torch.float64, factor=20)


def test_backward_gives_the_gradients_of_what_is_given(device: torch.device) -> None:
    key = KEY.to(device)
    params, prior = (make_params((2, 3, 4), device) for _ in range(2))
    shape, none = params.chunk(2, 1)[0].shape, torch.Size([0])
    upstream = torch.randn(shape, device=device).double(), torch.ones(2, device=device).double()
    backward = torch.ops.flowops.gaussian_rsample_backward
    for of_prior in ([None, None], list(prior.chunk(2, 1))):
        given = [none if t is None else shape for t in of_prior]
        whole = backward(*upstream, None, None, key, *of_prior, params, 0, False, True)
        assert [t.shape for t in whole] == [none, none, *given, params.shape]
        halves = backward(*upstream, *params.chunk(2, 1), key, *of_prior, None, 0, False, True)
        assert [t.shape for t in halves] == [shape, shape, *given, none]
        assert torch.equal(whole[4], torch.cat(halves[:2], 1))


def test_backward_keeps_params_the_key_and_nothing_else(device: torch.device) -> None:
    params = torch.randn(4, 1200, device=device, requires_grad=True)
    assert saved_bytes(lambda: ops.gaussian_rsample_kl(params=params), params) == 16


@pytest.mark.parametrize("prior", PRIORS)
def test_opcheck(prior: str, device: torch.device) -> None:
    key = KEY.to(device)
    planar = [torch.randn(2, 6, 4, 3, device=device) for _ in range(2)]
    last = [t.to(memory_format=torch.channels_last) for t in planar]
    op, backward = torch.ops.flowops.gaussian_rsample, torch.ops.flowops.gaussian_rsample_backward
    for params, other in (planar, last, [t[:, :2] for t in last], [t[..., ::2] for t in planar]):
        of_prior = [None, None] if prior == "standard" else list(other.chunk(2, 1))
        options = 0, prior == "residual", True
        leaf = params.detach().requires_grad_()
        torch.library.opcheck(op, (None, None, key, *of_prior, leaf, *options))
        grads = torch.randn_like(params.chunk(2, 1)[0]), torch.randn(2, device=device)
        torch.library.opcheck(backward, (*grads, None, None, key, *of_prior, params, *options))


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(params: Tensor) -> Tensor:
        z, kl = ops.gaussian_rsample_kl(params=params)
        return z.square().sum() + kl.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 6, 4), (5, 6, 4)):
        params = torch.randn(shape, device=device, requires_grad=True)
        grads = []
        for function in (compiled, step):
            torch.manual_seed(1)
            grads += torch.autograd.grad(function(params), params)
        assert torch.equal(*grads)


def test_transforms_take_the_reference(device: torch.device) -> None:
    key = KEY.to(device)
    params = make_params((4, 6), device)

    def loss(params: Tensor) -> Tensor:
        z, kl = ops.gaussian_rsample_kl(params=params, key=key)
        return z.square().sum() + kl.sum()

    leaf = params.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    assert_close(torch.func.grad(loss)(params), want, dtype=torch.float64, factor=10)
    tangent = torch.func.jvp(loss, (params,), (torch.ones_like(params),))[1]
    assert_close(tangent, want.sum(), dtype=torch.float64, factor=20)
    batched = torch.func.vmap(loss)(params[None])
    assert_close(batched[0], loss(params), dtype=torch.float64, factor=20)


def test_autocast_keeps_float32(device: torch.device) -> None:
    params = torch.randn(4, 12, device=device).bfloat16().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, kl = ops.gaussian_rsample_kl(params=params)
    assert z.dtype == kl.dtype == torch.float32
    assert torch.autograd.grad(z.sum() + kl.sum(), params)[0].dtype == torch.bfloat16


X, PARAMS = torch.randn(2, 4, 3), torch.randn(2, 8, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "mean and scale must be given where params is None, got neither"),
    "mean_alone": ({"mean": X}, "mean and scale must be given .*got one of them"),
    "scale_alone": ({"scale": X}, "mean and scale must be given .*got one of them"),
    "params_and_mean": (
        {"params": PARAMS, "mean": X},
        "params must be None where mean or scale is given, got a tensor",
    ),
    "params_and_scale": (
        {"params": PARAMS, "scale": X},
        "params must be None where mean or scale is given, got a tensor",
    ),
    "all": ({"params": PARAMS, "mean": X, "scale": X}, "params must be None where mean or scale"),
    "odd": (
        {"params": PARAMS[:, :7]},
        r"params must have shape \(batch, 2 channels, \.\.\.\), got \[2, 7, 3\]",
    ),
    "vector": ({"params": torch.zeros(4)}, r"params must have shape \(batch, 2 chan.*got \[4\]"),
}
BAD_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"params": PARAMS.long()}, "params must be float64, .* or bfloat16, got Long"),
    "prior": (
        {"params": PARAMS, "prior": (PARAMS, PARAMS)},
        r"prior mean must have shape \[2, 4, 3\] \(like mean\), got \[2, 8, 3\]",
    ),
    "residual": ({"params": PARAMS, "residual": True}, "prior must be given for the residual"),
}


def on_device(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in ({"key": KEY} | arguments).items()}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", [*BAD, *BAD_TYPES])
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    arguments, message = (BAD | BAD_TYPES)[case]
    for function in (ops.gaussian_rsample, ops.gaussian_rsample_kl):
        with (
            torch.inference_mode(inference),
            pytest.raises(ValueError, match="gaussian_rsample: " + message),
        ):
            function(**on_device(arguments, device))


@pytest.mark.parametrize("case", BAD)
def test_bad_params_are_an_error_where_no_kernel_runs(case: str, device: torch.device) -> None:
    arguments, message = BAD[case]
    arguments = on_device(arguments, device)
    with pytest.raises(ValueError, match="gaussian_rsample: " + message):
        torch.func.grad(lambda t: ops.gaussian_rsample(**arguments).sum() * t)(X[0, 0, 0])
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(ValueError, match="gaussian_rsample: " + message),
    ):
        ops.gaussian_rsample(**arguments)


@pytest.mark.parametrize("case", ["neither", "mean_alone", "params_and_mean", "odd"])
def test_the_op_itself_checks_what_is_given(case: str, device: torch.device) -> None:
    arguments, message = BAD[case]
    mean, scale, params = (
        None if (t := arguments.get(name)) is None else t.to(device)
        for name in ("mean", "scale", "params")
    )
    with pytest.raises(ValueError, match="gaussian_rsample: " + message):
        torch.ops.flowops.gaussian_rsample(
            mean, scale, KEY.to(device), None, None, params, 0, False, True
        )
