"""FrEIA's splines: against their definition knot by knot, and against FrEIA where it has them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from flowops.compat.freia import rational_quadratic_spline
from flowops.testing import jacobian_logdet

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "bounded": {"domain_clamping": 4.0},
    "domain": {"default_domain": (-1.0, 2.0, 0.0, 8.0), "min_bin_sizes": (0.0, 0.3)},
    "identity": {"identity_tails": True},
    "identity_bounded": {"identity_tails": True, "domain_clamping": 5.0},
    "one_bin": {"bins": 1},
}


def make_inputs(form: dict[str, Any], *shape: int) -> tuple[Tensor, Tensor]:
    bins = form.get("bins", 10)
    count = 3 * bins + (not form.get("identity_tails", False))
    x = 3 * torch.randn(5, 4, *shape, dtype=torch.float64)
    return x, torch.randn(5, 4 * count, *shape, dtype=torch.float64)


def knots_and_slopes(
    raw: Tensor, bins: int, domain: tuple[float, ...], least: tuple[float, float], clamping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The corners of the bins of one element, and the slopes there."""

    def bounded(size: Tensor) -> Tensor:
        return clamping * torch.tanh(size / clamping) if clamping < math.inf else size

    rest = raw[2 * bins :]
    ends = []
    for i in (0, 1):
        logits, default = raw[i * bins : (i + 1) * bins], domain[2 * i + 1] - domain[2 * i]
        if len(rest) == bins:
            total = bounded((domain[1] - domain[0]) * softplus(rest[0] + math.log(math.e - 1)))
            sizes, start = total * logits.softmax(0), -total / 2
        else:
            shift = math.log(math.exp(default / bins - least[i]) - 1)
            sizes, start = least[i] + softplus(logits + shift), rest[1 - i] + domain[2 * i]
            factor = bounded(sizes.sum()) / sizes.sum()
            sizes, start = sizes * factor, start * factor
        ends.append(torch.cat([start[None], start + sizes.cumsum(0)]))
    x, y = ends
    edge = (y[-1] - y[0]) / (x[-1] - x[0])
    inner = softplus(raw[len(raw) - bins + 1 :] + math.log(math.e - 1))
    return x, y, torch.cat([edge[None], inner, edge[None]])


def by_definition(x: Tensor, raw: Tensor, form: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One element, equations 4 and 5 of the paper; a straight line outside."""
    left, bottom, slopes = knots_and_slopes(
        raw,
        form.get("bins", 10),
        form.get("default_domain", (-3.0, 3.0, -3.0, 3.0)),
        form.get("min_bin_sizes", (0.1, 0.1)),
        form.get("domain_clamping", math.inf),
    )
    if not left[0] < x <= left[-1]:
        return bottom[0] + slopes[0] * (x - left[0]), slopes[0].log()
    k = int((x > left).sum()) - 1
    width, height = left[k + 1] - left[k], bottom[k + 1] - bottom[k]
    s, t, d0, d1 = height / width, (x - left[k]) / width, slopes[k], slopes[k + 1]
    over = s + (d0 + d1 - 2 * s) * t * (1 - t)
    top = d1 * t.square() + 2 * s * t * (1 - t) + d0 * (1 - t).square()
    z = bottom[k] + height * (s * t.square() + d0 * t * (1 - t)) / over
    return z, (s.square() * top / over.square()).log()


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_definition(name: str) -> None:
    form = FORMS[name]
    x, parameters = make_inputs(form, 2)
    rows = parameters.unflatten(1, (4, -1)).movedim(2, -1).reshape(x.numel(), -1)
    pairs = zip(x.flatten(), rows, strict=True)
    expected = [by_definition(element, raw, form) for element, raw in pairs]
    z, logdet = rational_quadratic_spline(x, parameters, **form)
    torch.testing.assert_close(z.flatten(), torch.stack([e[0] for e in expected]))
    slopes = torch.stack([e[1] for e in expected]).view_as(x)
    torch.testing.assert_close(logdet, slopes.flatten(1).sum(1))


@pytest.mark.parametrize("name", FORMS)
def test_reverse_undoes_it(name: str) -> None:
    x, parameters = make_inputs(FORMS[name], 3)
    z, logdet = rational_quadratic_spline(x, parameters, **FORMS[name])
    back, reverse = rational_quadratic_spline(z, parameters, rev=True, **FORMS[name])
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(reverse, -logdet)
    rows = iter(parameters.split(1))
    expected = jacobian_logdet(
        lambda row: rational_quadratic_spline(row, next(rows), **FORMS[name])[0], x
    )
    torch.testing.assert_close(logdet, expected)


@pytest.mark.parametrize("rev", [False, True])
@pytest.mark.parametrize("name", ["default", "identity_bounded"])
def test_gradcheck(name: str, rev: bool) -> None:
    form = FORMS[name] | {"bins": 3}
    leaves = [t[:2].requires_grad_() for t in make_inputs(form)]
    assert torch.autograd.gradcheck(
        lambda x, p: rational_quadratic_spline(x, p, rev=rev, **form), leaves
    )


def test_finite_where_bins_and_slopes_are_least_and_in_half_precision() -> None:
    x, parameters = make_inputs({})
    leaves = [t.float().requires_grad_() for t in (x, parameters - 1000)]
    z, logdet = rational_quadratic_spline(*leaves)
    grads = torch.autograd.grad(z.sum() + 1e-3 * logdet.sum(), leaves)
    assert all(t.isfinite().all() for t in (z, logdet, *grads))
    half = [t.bfloat16() for t in make_inputs({})]
    z, logdet = rational_quadratic_spline(*half)
    assert z.dtype == torch.bfloat16
    assert logdet.dtype == torch.float32
    expected = rational_quadratic_spline(*(t.double() for t in half))[1].float()
    torch.testing.assert_close(logdet, expected, rtol=1e-4, atol=1e-3)


def test_errors() -> None:
    x, parameters = make_inputs({})
    with pytest.raises(ValueError, match=r"parameters must have shape \[5, 120\], got \[5, 124\]"):
        rational_quadratic_spline(x, parameters, identity_tails=True)
    with pytest.raises(ValueError, match=r"min_bin_sizes must be below 0.6, .* 10 bins .*got 0.7"):
        rational_quadratic_spline(x, parameters, min_bin_sizes=(0.7, 0.1))


@pytest.mark.parametrize("rev", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_equals_freia(name: str, rev: bool) -> None:
    splines = pytest.importorskip("FrEIA.modules.splines")
    form = FORMS[name]
    x, parameters = make_inputs(form)
    x, parameters = x.float(), parameters.float()
    # A block of 8 channels whose networks ignore their input; the first half is moved by subnet1.
    bins = form.get("bins", 10)
    options = {"bins": bins} | {k: v for k, v in form.items() if k != "bins"}

    class Constant(torch.nn.Module):
        def __init__(self, given: Tensor) -> None:
            super().__init__()
            self.given = given

        def forward(self, _: Tensor) -> Tensor:
            return self.given

    block = splines.RationalQuadraticSpline(
        [(8,)], subnet_constructor=lambda _, __: Constant(parameters), **options
    )
    both = torch.cat([x, x.flip(1)], 1)
    (theirs,), their_logdet = block([both], rev=rev)
    ours = [rational_quadratic_spline(h, parameters, rev=rev, **form) for h in both.chunk(2, 1)]
    torch.testing.assert_close(torch.cat([o[0] for o in ours], 1), theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0][1] + ours[1][1], their_logdet, rtol=1e-3, atol=1e-3)
