"""The spline functions of flowops.compat.nflows against nflows' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowops.compat.nflows import (
    rational_quadratic_spline,
    unconstrained_rational_quadratic_spline,
)

Spline = Callable[..., tuple[Tensor, Tensor]]
LEAST = {"min_bin_width": 2e-3, "min_bin_height": 4e-3, "min_derivative": 5e-3}
# nflows compares the data with the domain in both directions, so that ranges lie within it.
# Options of a function, the domain and the range of its data, and how many slopes exceed bins.
FORMS: dict[str, tuple[Spline, dict[str, Any], tuple[float, float, float, float], int]] = {
    "unit": (rational_quadratic_spline, {}, (0, 1, 0, 1), 1),
    "box": (
        rational_quadratic_spline,
        {"left": -1.0, "right": 2.0, "bottom": 0.5, "top": 1.0, **LEAST},
        (-1, 2, 0.5, 1),
        1,
    ),
    "tails": (unconstrained_rational_quadratic_spline, {}, (-2, 2, -2, 2), -1),
    "far": (
        unconstrained_rational_quadratic_spline,
        {"tail_bound": 3.0, **LEAST},
        (-4, 4, -4, 4),
        -1,
    ),
}


def make_inputs(name: str, *shape: int, inverse: bool, bins: int = 6) -> list[Tensor]:
    _, _, domain, more = FORMS[name]
    low, high = domain[2:] if inverse else domain[:2]
    x = low + (high - low) * torch.rand(shape, dtype=torch.float64)
    return [
        x,
        *(2 * torch.randn(*shape, n, dtype=torch.float64) for n in (bins, bins, bins + more)),
    ]


def results(function: Spline, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs, logabsdet = function(*leaves, **options)
    loss = outputs.sin().sum() + logabsdet.cos().sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [outputs, logabsdet, *grads]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("shape", [(), (9,), (5, 3), (2, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_functions_equal_nflows(name: str, shape: tuple[int, ...], inverse: bool) -> None:
    pytest.importorskip("nflows")
    from nflows.transforms import splines

    function, options, *_ = FORMS[name]
    inputs = make_inputs(name, *shape, inverse=inverse)
    expected = results(getattr(splines, function.__name__), inputs, inverse=inverse, **options)
    actual = results(function, inputs, inverse=inverse, **options)
    for value, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9)


def test_nflows_arguments_have_its_order_and_defaults() -> None:
    pytest.importorskip("nflows")
    import inspect

    from nflows.transforms import splines

    for function in (rational_quadratic_spline, unconstrained_rational_quadratic_spline):
        peer = inspect.signature(getattr(splines, function.__name__)).parameters.values()
        ours = list(inspect.signature(function).parameters.values())
        expected = [(p.name, p.default) for p in peer]
        assert [(p.name, p.default) for p in ours[: len(expected)]] == expected
        assert [p.name for p in ours[len(expected) :]] == ["enable_identity_init"]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_identity_init_makes_zeros_the_identity(inverse: bool) -> None:
    x = torch.rand(7, 2, dtype=torch.float64)
    zeros = [torch.zeros(7, 2, n, dtype=torch.float64) for n in (4, 4, 5)]
    outputs, logabsdet = rational_quadratic_spline(
        x, *zeros, inverse=inverse, enable_identity_init=True
    )
    torch.testing.assert_close(outputs, x)
    torch.testing.assert_close(logabsdet, torch.zeros_like(x))
    assert rational_quadratic_spline(x, *zeros, inverse=inverse)[1].abs().max() > 0.1


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_identity_init_with_tails_has_the_slopes_of_nflows_at_the_ends(inverse: bool) -> None:
    # The repository's nflows pads raw slopes and scales the softplus of all of them.
    x, widths, heights, slopes = make_inputs("tails", 40, 2, inverse=inverse)
    actual = results(
        unconstrained_rational_quadratic_spline,
        [x, widths, heights, slopes],
        inverse=inverse,
        enable_identity_init=True,
    )

    def by_definition(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        edge = torch.full((40, 2, 1), math.log(math.exp(1 - 1e-3) - 1), dtype=torch.float64)
        padded = (*params[:2], torch.cat([edge, params[2], edge], -1))
        box = {"left": -1.0, "right": 1.0, "bottom": -1.0, "top": 1.0}
        inside = x.abs() <= 1
        outputs, logabsdet = rational_quadratic_spline(
            x[inside], *(p[inside] for p in padded), inverse, **box, enable_identity_init=True
        )
        zeros = torch.zeros_like(x)
        return x.masked_scatter(inside, outputs), zeros.masked_scatter(inside, logabsdet)

    expected = results(by_definition, [x, widths, heights, slopes])
    for value, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, truth)
    end = torch.full((1, 1), 1.0, dtype=torch.float64)
    rows = [p[:1, :1] for p in (widths, heights, slopes)]
    slope = unconstrained_rational_quadratic_spline(end, *rows, enable_identity_init=True)[1].exp()
    beta = math.log(2) / (1 - 1e-3)
    raw = math.log(math.exp(1 - 1e-3) - 1)
    assert float(slope) == pytest.approx(1e-3 + math.log1p(math.exp(beta * raw)) / beta)


def test_beyond_the_domain_the_map_goes_on_straight() -> None:
    inputs = make_inputs("unit", 1, 1, inverse=False)
    rows = [t.expand(3, 1, -1) for t in inputs[1:]]
    x = torch.tensor([[1.0], [1.5], [2.0]], dtype=torch.float64)
    outputs, logabsdet = rational_quadratic_spline(x, *rows)
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0])
    torch.testing.assert_close(outputs[2] - outputs[0], logabsdet[0].exp())


def test_errors() -> None:
    x, widths, heights, slopes = make_inputs("unit", 4, 2, inverse=False)
    with pytest.raises(ValueError, match=r"unnormalized_heights must have shape \(4, 2, 6\)"):
        rational_quadratic_spline(x, widths, heights[..., 1:], slopes)
    with pytest.raises(ValueError, match=r"derivatives must have shape \(4, 2, 5\).*got \(4, 2, 7"):
        unconstrained_rational_quadratic_spline(x, widths, heights, slopes)
    with pytest.raises(ValueError, match=r"tails must be 'linear', got 'circular'"):
        unconstrained_rational_quadratic_spline(
            x, widths, heights, slopes[..., 2:], tails="circular"
        )
    with pytest.raises(ValueError, match=r"min_width must be .* below 1 / K, got 0.5 with K = 6"):
        rational_quadratic_spline(x, widths, heights, slopes, min_bin_width=0.5)
