"""gaussian_rsample and its KL against the float64 reference, autograd, op checks and generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, SAMPLE_SHAPES, kernel_and_composed, same_for_any_threads
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import flowops
from flowops import ops, reference
from flowops.testing import TOLERANCES, assert_close

FORMS = ("logvar", "log_std", "std", "softplus")
PRIORS = ("standard", "given", "residual")


def wide_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def make_inputs(
    shape: tuple[int, ...],
    device: torch.device,
    form: str = "logvar",
    prior: str = "standard",
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """Mean and raw scale, and those of a prior unless it is the standard one."""
    count = 2 if prior == "standard" else 4
    inputs = list(torch.randn(count, *shape, dtype=torch.float64).to(device, dtype))
    if form == "std":
        inputs[1::2] = [t.abs() + 0.25 for t in inputs[1::2]]
    return inputs


def call(
    function: Callable[..., Any], inputs: list[Tensor], form: str, prior: str, key: Tensor
) -> Any:
    given = (inputs[2], inputs[3]) if len(inputs) == 4 else None
    return function(*inputs[:2], form=form, prior=given, residual=prior == "residual", key=key)


def expected_of(inputs: list[Tensor], form: str, prior: str, key: Tensor) -> tuple[Tensor, Tensor]:
    """The reference in float64, with the noise of the inputs' type."""
    dtype = wide_of(inputs[0].dtype)
    noise = reference.randn(inputs[0].shape, key=key, dtype=dtype).double()
    wide = [t.double() for t in inputs]
    _, kl = call(reference.gaussian_rsample_kl, wide, form, prior, key)
    deviations = {
        "logvar": lambda s: (0.5 * s).exp(),
        "log_std": torch.exp,
        "std": lambda s: s,
        "softplus": lambda s: torch.logaddexp(s, torch.zeros_like(s)),
    }
    std = deviations[form](wide[1])
    if prior == "residual":
        return wide[2] + wide[0] + deviations[form](wide[3]) * std * noise, kl
    return wide[0] + std * noise, kl


def compare(inputs: list[Tensor], form: str, prior: str) -> None:
    """Sample, KL and all gradients against the reference on the same inputs."""
    dtype, key = inputs[0].dtype, ops.random_key(device=inputs[0].device)
    ours = [t.detach().requires_grad_() for t in inputs]
    theirs = [t.detach().requires_grad_() for t in inputs]
    z, kl = call(ops.gaussian_rsample_kl, ours, form, prior, key)
    expected = expected_of(theirs, form, prior, key)
    assert z.dtype == dtype
    assert kl.dtype == wide_of(dtype)
    # Products of two exponentials of up to e^4.
    assert_close(z, expected[0], dtype=dtype, factor=4)
    # A sum of up to 20,169 terms.
    assert_close(kl, expected[1], dtype=kl.dtype, factor=20)
    weights = torch.randn_like(z), torch.randn_like(kl)
    grads = torch.autograd.grad((z, kl), ours, weights)
    wanted = torch.autograd.grad(expected, theirs, [w.double() for w in weights])
    for leaf, grad, want in zip(ours, grads, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        # Differences of terms up to e^8 / 0.25.
        rtol, atol = TOLERANCES[dtype]
        size = float(want.abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(
            grad.double(), want.double(), rtol=8 * rtol, atol=atol * (8 + size)
        )


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(form: str, prior: str, dtype: torch.dtype, device: torch.device) -> None:
    for shape in SAMPLE_SHAPES:
        compare(make_inputs(shape, device, form, prior, dtype), form, prior)


@pytest.mark.parametrize("prior", PRIORS)
def test_takes_strided_views_as_they_are(prior: str, device: torch.device) -> None:
    base = torch.randn(3, 8, 6, 5, device=device)
    last = base.to(memory_format=torch.channels_last)
    views = {
        "halves": list(base.chunk(2, 1)) + list(base.flip(0).chunk(2, 1)),
        "channels_last": [last, last.flip(0), last + 1, last - 1],
        "channels_last_halves": list(last.chunk(2, 1)) + list((-last).chunk(2, 1)),
        "every_second_channel": [base[:, ::2], base[:, 1::2], base[:, ::2], base[:, 1::2]],
        "transposed_pixels": [base.mT, base.mT, base.mT, base.mT],
        "expanded": [base, base, base[:1].expand_as(base), base[:1, :1].expand_as(base)],
        "expanded_pixels": [
            base,
            base,
            base[..., :1].expand_as(base),
            base[:, :, :1].expand_as(base),
        ],
        "vectors": [t.T for t in torch.randn(4, 6, 9, device=device)],
        "vector_halves": list(torch.randn(70, 24, device=device).chunk(4, 1)),
    }
    for tensors in views.values():
        compare(tensors[: 2 if prior == "standard" else 4], "logvar", prior)


def test_noise_does_not_depend_on_the_layout(device: torch.device) -> None:
    mean, scale = make_inputs((2, 8, 6, 5), device, dtype=torch.float32)
    key = ops.random_key(device=device)
    z = ops.gaussian_rsample(mean, scale, key=key)
    last = [t.to(memory_format=torch.channels_last) for t in (mean, scale)]
    other = ops.gaussian_rsample(*last, key=key)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(z, other)
    zeros = torch.zeros_like(mean)
    assert torch.equal(
        ops.gaussian_rsample(zeros, zeros, key=key), flowops.randn(*mean.shape, key=key)
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3, 0), (0, 0)])
def test_empty_inputs_pass(shape: tuple[int, ...], device: torch.device) -> None:
    for prior in PRIORS:
        compare(make_inputs(shape, device, "logvar", prior), "logvar", prior)
    z, kl = ops.gaussian_rsample_kl(*make_inputs(shape, device))
    assert z.shape == shape
    assert torch.equal(kl, kl.new_zeros(shape[0]))


def test_results_do_not_depend_on_threads_or_batch(device: torch.device) -> None:
    key = ops.random_key(device=device)
    for shape in ((9, 12, 31, 33), (3000, 5), (40, 300), (700, 64)):
        inputs = [t.requires_grad_() for t in make_inputs(shape, device, dtype=torch.float32)]

        def run(inputs: list[Tensor] = inputs) -> tuple[Tensor, ...]:
            z, kl = ops.gaussian_rsample_kl(*inputs, key=key)
            return z, kl, *torch.autograd.grad((z.square().sum(), kl.sum()), inputs)

        many = same_for_any_threads(run)
        # Element i takes number i, so a part of the batch from its start on is the same.
        z, kl = ops.gaussian_rsample_kl(*(t[:-1].detach() for t in inputs), key=key)
        assert torch.equal(z, many[0][:-1])
        assert torch.equal(kl, many[1][:-1])


@pytest.mark.parametrize("form", FORMS)
def test_kl_is_that_of_torch_distributions(form: str, device: torch.device) -> None:
    inputs = make_inputs((4, 6), device, form, "given")
    std = {"logvar": lambda s: (s / 2).exp(), "log_std": torch.exp, "std": lambda s: s}.get(
        form, torch.nn.functional.softplus
    )
    q, p = (Independent(Normal(m, std(s)), 1) for m, s in (inputs[:2], inputs[2:]))
    kl = ops.gaussian_rsample_kl(*inputs[:2], form=form, prior=(inputs[2], inputs[3]))[1]
    torch.testing.assert_close(kl, kl_divergence(q, p), rtol=1e-12, atol=1e-12)
    standard = Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)), 1)
    kl = ops.gaussian_rsample_kl(*inputs[:2], form=form)[1]
    torch.testing.assert_close(kl, kl_divergence(q, standard), rtol=1e-12, atol=1e-12)
    if form != "softplus":
        # The posterior relative to the prior, N(mp + x, (Sp T)^2).
        q = Independent(Normal(p.mean + inputs[0], p.stddev * std(inputs[1])), 1)
        kl = ops.gaussian_rsample_kl(
            *inputs[:2], form=form, prior=(inputs[2], inputs[3]), residual=True
        )[1]
        torch.testing.assert_close(kl, kl_divergence(q, p), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exponentials_do_not_overflow_half(dtype: torch.dtype, device: torch.device) -> None:
    # exp(12) and exp(24) are beyond float16.
    mean, scale = (torch.full((2, 3), v, device=device, dtype=dtype) for v in (300.0, 24.0))
    leaves = [mean.requires_grad_(), scale.requires_grad_()]
    z, kl = ops.gaussian_rsample_kl(*leaves, key=torch.tensor([3, 4], device=device))
    expected = reference.gaussian_rsample_kl(
        mean.float(), scale.float(), key=torch.tensor([3, 4], device=device)
    )
    assert_close(kl, expected[1], dtype=torch.float32)
    assert z.equal(expected[0].to(dtype)) or dtype == torch.bfloat16
    small = torch.full_like(mean, -60.0)
    assert ops.gaussian_rsample_kl(mean, small)[1].isfinite().all()


def test_softplus_is_right_where_it_underflows(device: torch.device) -> None:
    for dtype in (torch.float32, torch.float64):
        raw = torch.tensor([[-2000.0, -200.0, -60.0, -39.0, 0.0, 50.0]], device=device, dtype=dtype)
        mean, raw = torch.zeros_like(raw), raw.requires_grad_()
        kl = ops.gaussian_rsample_kl(mean, raw, form="softplus")[1]
        std = torch.logaddexp(raw.detach().double(), torch.zeros((), device=device).double())
        log_std = torch.where(raw < -30, raw.double(), std.log())
        assert_close(kl, (0.5 * (std.square() - 1) - log_std).sum(1), dtype=dtype)
        (grad,) = torch.autograd.grad(kl.sum(), raw)
        slope = torch.where(raw < -30, torch.ones_like(std), raw.double().sigmoid() / std)
        assert_close(grad, (std.square() - 1) * slope, dtype=dtype, factor=2)


def test_no_deviation_gives_the_mean_and_finite_gradients(device: torch.device) -> None:
    mean, std = torch.randn(2, 5, device=device), torch.zeros(2, 5, device=device)
    leaves = [mean.requires_grad_(), std.requires_grad_()]
    key = ops.random_key(device=device)
    z = ops.gaussian_rsample(*leaves, form="std", key=key)
    assert torch.equal(z, mean)
    assert torch.equal(
        torch.autograd.grad(z.sum(), std)[0], flowops.randn(2, 5, key=key, device=device)
    )
    assert ops.gaussian_rsample_kl(mean, std, form="std")[1].isposinf().all()
    assert ops.gaussian_rsample_kl(mean, std - 1, form="std")[1].isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_where_it_is(form: str, device: torch.device) -> None:
    for bad in (0, 1):
        inputs = make_inputs((3, 70), device, form, dtype=torch.float32)
        inputs[bad][1, 40] = torch.nan
        z, kl = ops.gaussian_rsample_kl(*inputs, form=form)
        assert z.isnan().nonzero().tolist() == [[1, 40]]
        assert kl.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_for_gradients_is_that_of_the_kernel(
    form: str, prior: str, device: torch.device
) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((3, 4, 5), device, form, prior)]
    outputs = call(ops.gaussian_rsample_kl, leaves, form, prior, ops.random_key(device=device))
    for a, b in zip(*kernel_and_composed(outputs, leaves), strict=True):
        assert_close(a, b, dtype=torch.float64, factor=10)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_twice(form: str, prior: str, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in make_inputs((2, 3), device, form, prior)]
    key = ops.random_key(device=device)

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return call(ops.gaussian_rsample_kl, list(inputs), form, prior, key)

    def sample(*inputs: Tensor) -> Tensor:
        return call(ops.gaussian_rsample, list(inputs), form, prior, key)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
    used = leaves if prior == "residual" else leaves[:2]
    assert torch.autograd.gradcheck(sample, used)
    assert torch.autograd.gradgradcheck(sample, used, atol=1e-4)
