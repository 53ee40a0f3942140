"""conv_spectral_norm against the SVD of the convolution written out as a matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowops.nn.utils import ConvSpectralNorm, conv_spectral_norm, spectral_norm
from flowops.testing import assert_close

Make = Callable[[], nn.Module]
CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(1, 1, 3), (6, 6)),
    "padded": (lambda: nn.Conv2d(2, 3, 3, padding=1), (5, 4)),
    "same": (lambda: nn.Conv2d(2, 2, (3, 5), padding="same"), (5, 6)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (6, 6)),
    "dilated": (lambda: nn.Conv2d(2, 2, 3, dilation=2, padding=1), (7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 5)),
    "pointwise": (lambda: nn.Conv2d(3, 5, 1), (4, 4)),
    "pointwise_strided": (lambda: nn.Conv2d(4, 4, 1, stride=2, groups=2), (3, 3)),
    "sequence": (lambda: nn.Conv1d(2, 3, 4, stride=3, padding=2), (11,)),
    "volume": (lambda: nn.Conv3d(1, 2, 2, padding=1), (3, 2, 3)),
}


def matrix_of(convolution: nn.Module, weight: Tensor, input_size: tuple[int, ...]) -> Tensor:
    """The convolution with ``weight`` on images of one size, column by column."""
    size = (convolution.in_channels, *input_size)
    basis = torch.eye(torch.Size(size).numel(), dtype=weight.dtype).view(-1, *size)
    return convolution._conv_forward(basis, weight, None).flatten(1).T


def make(case: str, **options: object) -> tuple[nn.Module, tuple[int, ...]]:
    build, size = CASES[case]
    layer = build().double()
    return conv_spectral_norm(layer, size, **options), size  # pyright: ignore


def converge(layer: nn.Module, steps: int = 300) -> nn.Module:
    with torch.no_grad():
        for _ in range(steps):
            layer.weight  # noqa: B018
    return layer


@pytest.mark.parametrize("case", CASES)
def test_sigma_and_its_gradient_are_the_svds(case: str) -> None:
    layer, size = make(case)
    converge(layer)
    original = layer.parametrizations.weight.original
    got = layer.parametrizations.weight[0].sigma(original)
    exact = torch.linalg.matrix_norm(matrix_of(layer, original, size), 2)
    assert_close(got, exact, dtype=torch.float64, factor=1000)  # as far as it has converged
    # 9th digit: the vectors converge with the square root of sigma's error.
    (grad,), (wanted,) = (torch.autograd.grad(t, original) for t in (got, exact))
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)
    assert_close(
        torch.linalg.matrix_norm(matrix_of(layer, layer.weight, size), 2),
        torch.ones(()),
        dtype=torch.float64,
        factor=1000,
    )


@pytest.mark.parametrize("case", ["padded", "strided", "pointwise", "sequence"])
def test_a_coefficient_bounds_the_norm_and_leaves_smaller_ones(case: str) -> None:
    for coefficient in (0.9, 50.0):
        layer, size = make(case, coefficient=coefficient)
        converge(layer)
        original = layer.parametrizations.weight.original
        norm = torch.linalg.matrix_norm(matrix_of(layer, layer.weight, size), 2)
        before = torch.linalg.matrix_norm(matrix_of(layer, original, size), 2)
        if before <= coefficient:
            assert torch.equal(layer.weight, original)
        else:
            assert coefficient * (1 - 1e-6) < norm < coefficient * (1 + 1e-6)


def test_the_matrix_norm_would_not_bound_it() -> None:
    torch.manual_seed(1)
    layer = spectral_norm(nn.Conv2d(4, 4, 3, padding=1).double())
    converge(layer)
    norm = torch.linalg.matrix_norm(matrix_of(layer, layer.weight.detach(), (6, 6)), 2)
    assert norm > 1.1


@pytest.mark.parametrize("coefficient", [None, 0.5, 50.0])
def test_gradients_hold_u_and_v_fixed(coefficient: float | None) -> None:
    layer, _ = make("strided", coefficient=coefficient)
    norm = layer.eval().parametrizations.weight[0]
    weight = layer.parametrizations.weight.original
    assert torch.autograd.gradcheck(norm, weight)
    assert torch.autograd.gradgradcheck(norm, weight)


def test_iterations_stop_at_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = make("padded", n_power_iterations=100, tolerance=1e-6)
    norm = layer.parametrizations.weight[0]
    calls: list[int] = []
    original = ConvSpectralNorm._map_transposed
    monkeypatch.setattr(
        ConvSpectralNorm, "_map_transposed", lambda *args: calls.append(1) or original(*args)
    )
    layer.weight  # noqa: B018
    warm = len(calls)
    assert warm <= 30
    with torch.no_grad():
        norm._v.normal_()
    calls.clear()
    layer.weight  # noqa: B018
    assert warm < len(calls) < 100
    norm.tolerance = None
    calls.clear()
    layer.weight  # noqa: B018
    assert len(calls) == 100


def test_evaluation_and_loading_keep_the_map() -> None:
    layer, _ = make("padded", coefficient=0.9)
    layer.weight.sum().backward()
    layer.eval()
    state = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    z = layer(x)
    assert torch.equal(z, layer(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, state[key])
    again, _ = make("padded", coefficient=0.9)
    again.load_state_dict(state)
    assert torch.equal(again.eval()(x), z)


def test_two_forwards_before_one_backward() -> None:
    layer, _ = make("padded")
    twin = copy.deepcopy(layer)
    x, y = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64).unbind()
    (layer(x).square().sum() - layer.eval()(y).sum() + layer.train()(y).sum()).backward()
    twin(x).square().sum().backward()
    (-twin.eval()(y).sum()).backward()
    twin.train()(y).sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, dtype=torch.float64)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_useless_weight_does_not_end_the_iteration(value: float) -> None:
    layer, _ = make("padded", coefficient=0.9)
    original = layer.parametrizations.weight.original
    good = original.detach().clone()
    with torch.no_grad():
        original.fill_(value)
        bounded = layer.weight
        assert bounded.isnan().all() if value else torch.equal(bounded, original)
        original.copy_(good)
    norm = converge(layer).parametrizations.weight[0]
    exact = torch.linalg.matrix_norm(matrix_of(layer, good, (5, 4)), 2)
    assert_close(norm.sigma(good), exact, dtype=torch.float64, factor=1000)


def test_a_residual_block_inverts_at_the_rate_of_its_bound() -> None:
    torch.manual_seed(0)
    coefficient = 0.7
    block = nn.Sequential(
        *(
            conv_spectral_norm(nn.Conv2d(2, 2, 3, padding=1).double(), (4, 4), coefficient=c)
            for c in (coefficient, 1.0)
        )
    )
    for layer in block:
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(5)  # beyond the bound
        converge(layer)
    block.insert(1, nn.ELU())
    block.eval()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        y = x + block(x)
        guess, first = y, None
        for k in range(1, 40):
            guess = y - block(guess)
            first = (guess - y).flatten(1).norm(dim=1) if first is None else first
            error = (guess - x).flatten(1).norm(dim=1)
            assert (error <= coefficient**k / (1 - coefficient) * first * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_the_dtype_and_sums_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = conv_spectral_norm(nn.Conv2d(8, 8, 3, padding=1), (6, 6)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == dtype
    norm = layer.parametrizations.weight[0]
    converge(layer, 100)
    original = layer.parametrizations.weight.original.detach()
    exact = torch.linalg.matrix_norm(matrix_of(layer, original.float(), (6, 6)), 2)
    torch.testing.assert_close(norm.sigma(original), exact, rtol=2e-3, atol=0)


def test_compiles_whole() -> None:
    layer = conv_spectral_norm(nn.Conv2d(2, 2, 3, padding=1), (5, 5), coefficient=0.3)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 2, 5, 5)
    for _ in range(2):
        compiled(x).sum().backward()
        twin(x).sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, dtype=torch.float32, factor=10)
    for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
        assert_close(a, b, dtype=torch.float32)


BAD: dict[str, tuple[Make, tuple[int, ...], dict[str, float], str]] = {
    "linear": (lambda: nn.Linear(2, 2), (3, 3), {}, "module must be a Conv1d, Conv2d or Conv3d"),
    "mode": (
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        (3, 3),
        {},
        "padding_mode must be 'zeros', got 'circular'",
    ),
    "size": (lambda: nn.Conv2d(2, 2, 3), (3,), {}, r"input_size must be 2 .*, got \(3,\)"),
    "zero": (lambda: nn.Conv2d(2, 2, 3), (3, 0), {}, r"input_size must be 2 .*, got \(3, 0\)"),
    "same": (
        lambda: nn.Conv2d(2, 2, 2, padding="same"),
        (3, 3),
        {},
        r"padding 'same' must be even on both sides, got kernel_size \(2, 2\)",
    ),
    "c": (lambda: nn.Conv2d(2, 2, 3), (3, 3), {"coefficient": 0}, "must be positive, got 0"),
    "iterations": (
        lambda: nn.Conv2d(2, 2, 3),
        (3, 3),
        {"n_power_iterations": 0},
        "n_power_iterations must be at least 1, got 0",
    ),
    "tolerance": (
        lambda: nn.Conv2d(2, 2, 3),
        (3, 3),
        {"tolerance": -1.0},
        r"tolerance must not be negative, got -1\.0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_clear_error(case: str) -> None:
    build, size, options, message = BAD[case]
    with pytest.raises(ValueError, match=f"^conv_spectral_norm: .*{message}"):
        conv_spectral_norm(build(), size, **options)  # pyright: ignore[reportArgumentType]
