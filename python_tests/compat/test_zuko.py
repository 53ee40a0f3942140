"""flowops.compat.zuko against zuko: transforms, lazy layers, and whole flows taken over."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution

from flowops import accelerate
from flowops.compat import zuko as ours
from flowops.compat._twins import Joined
from flowops.testing import jacobian_logdet

DTYPES = (torch.float32, torch.float64)


@pytest.fixture
def zuko() -> Any:
    return pytest.importorskip("zuko")


def spline_parameters(*shape: int, bins: int = 6) -> list[Tensor]:
    return [torch.randn(*shape, n, dtype=torch.float64) for n in (bins, bins, bins - 1)]


def affine_parameters(*shape: int) -> list[Tensor]:
    return [3 * torch.randn(shape, dtype=torch.float64) for _ in range(2)]


UNIVARIATE = {
    "affine": ("MonotonicAffineTransform", affine_parameters, {}),
    "affine_slope": ("MonotonicAffineTransform", affine_parameters, {"slope": 0.1}),
    "spline": ("MonotonicRQSTransform", spline_parameters, {}),
    "spline_bound": ("MonotonicRQSTransform", spline_parameters, {"bound": 1.5, "slope": 1e-2}),
    "one_bin": ("MonotonicRQSTransform", partial(spline_parameters, bins=1), {}),
}
#: Shapes of x and of the parameters.
SHAPES = [((), ()), ((4,), (4,)), ((7, 4), (4,)), ((7, 4), (7, 4)), ((2, 3, 4), (3, 4))]


def evaluate(transform: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    if not inverse:
        return transform.call_and_ladj(x)
    y = transform.inv(x)
    return y, transform.inv.log_abs_det_jacobian(x, y)


def assert_as_good(got: Tensor, peer: Tensor, truth: Tensor) -> None:
    """Not farther from the truth than the peer in the same dtype, or what float64 takes for it."""
    assert got.dtype == peer.dtype
    assert got.shape == truth.shape
    if truth.numel() == 0:
        return
    rounding = 1e3 * torch.finfo(got.dtype).eps * truth.abs().max().clamp_min(1)
    error, of_peer = ((t.double() - truth).abs().max() for t in (got, peer))
    assert error <= 10 * of_peer + rounding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("case", UNIVARIATE)
def test_transforms_are_those_of_zuko(
    zuko: Any, case: str, inverse: bool, dtype: torch.dtype
) -> None:
    name, parameters, options = UNIVARIATE[case]
    for x_shape, shape in SHAPES:
        x = 2 * torch.randn(x_shape, dtype=torch.float64)
        exact = [t.requires_grad_() for t in (x, *parameters(*shape))]
        leaves = [t.detach().to(dtype).requires_grad_() for t in exact]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        results = []
        for module, given in ((ours, leaves), (zuko.transforms, leaves), (zuko.transforms, exact)):
            made = getattr(module, name)(*given[1:], **options)
            out = evaluate(made, given[0], inverse)
            weights = [torch.linspace(-1, 2, max(o.numel(), 1)).to(o)[: o.numel()] for o in out]
            grads = torch.autograd.grad(
                out, given, [w.view_as(o) for w, o in zip(weights, out, strict=True)]
            )
            results.append([*(o.detach() for o in out), *grads])
        for got, peer, truth in zip(*results, strict=True):
            assert_as_good(got, peer, truth)


@pytest.mark.parametrize("case", UNIVARIATE)
def test_elements_have_the_log_derivative_of_their_map(case: str) -> None:
    name, parameters, options = UNIVARIATE[case]
    transform = getattr(ours, name)(*parameters(4), **options)
    x = torch.randn(1, 4, dtype=torch.float64)
    y, ladj = transform.call_and_ladj(x)
    torch.testing.assert_close(ladj.sum(-1), jacobian_logdet(transform, x))
    torch.testing.assert_close(transform.inv(y), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 3, 4), (0, 4)])
def test_linear_transform_is_that_of_zuko(
    zuko: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    lu = (torch.randn(4, 4, dtype=dtype) + 2 * torch.eye(4, dtype=dtype)).requires_grad_()
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    results = []
    for module in (ours, zuko.transforms):
        made = module.LULinearTransform(lu)
        y, ladj = made.call_and_ladj(x)
        back = made.inv(x)
        more = made.log_abs_det_jacobian(x, y)
        loss = sum((out.square()).sum() for out in (y, ladj, back, more))
        results.append((y, ladj, back, more, torch.autograd.grad(loss, (x, lu))))
    torch.testing.assert_close(results[0], results[1], rtol=bound, atol=bound)


def test_transforms_serve_torch_distributions() -> None:
    shift, scale = torch.randn(2, 3, dtype=torch.float64)
    made = ours.MonotonicAffineTransform(shift, scale)
    base = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1)
    flow = TransformedDistribution(base, [made.inv])
    x = torch.randn(5, 3, dtype=torch.float64)
    z = made(x)
    expected = base.log_prob(z) + made.log_abs_det_jacobian(x, z).sum(-1)
    torch.testing.assert_close(flow.log_prob(x), expected)
    assert flow.sample((2,)).shape == (2, 3)


FLOWS = {
    "spline": lambda f: f.NSF(5, 3, transforms=2),
    "spline_coupling": lambda f: f.NSF(5, 3, passes=2, bins=4, slope=1e-2),
    "affine": lambda f: f.MAF(5, 3, transforms=2, randperm=True),
    "affine_coupling": lambda f: f.RealNVP(5, 3, randmask=True),
    "additive_names": lambda f: f.NICE(5, 3, hidden_features=(16,)),
    "no_hidden": lambda f: f.MAF(5, 3, hidden_features=()),
}


def randomise(flow: nn.Module, dtype: torch.dtype) -> nn.Module:
    for p in flow.parameters():
        nn.init.normal_(p, std=0.3)
    return flow.to(dtype)


def log_prob(flow: Any, x: Tensor, c: Tensor) -> Tensor:
    return flow(c).log_prob(x)


def samples(flow: Any, c: Tensor) -> Any:
    return flow(c).rsample_and_log_prob((4,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FLOWS)
def test_flows_of_zuko_are_taken_over(zuko: Any, case: str, dtype: torch.dtype) -> None:
    flow = randomise(FLOWS[case](zuko.flows), dtype)
    x, c = torch.randn(7, 5, dtype=dtype), torch.randn(7, 3, dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    for inputs, call in (((x, c), log_prob), ((c,), samples)):
        kinds = [type(m) for m in flow.modules()]
        report = accelerate(flow, inputs, verify=True, call=call, tolerance=tolerance)
        layers = [m for m in flow.modules() if isinstance(m, Joined)]
        assert len(report.swapped) == len(layers) >= 4
        assert isinstance(
            layers[0], kinds[[type(m) for m in flow.modules()].index(type(layers[0]))]
        )
        again = pickle.loads(pickle.dumps(copy.deepcopy(flow)))
        assert sum(isinstance(m, Joined) for m in again.modules()) == len(layers)
        torch.manual_seed(1)
        expected = call(flow, *inputs)
        torch.manual_seed(1)
        got = call(again, *inputs)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        report.restore()
        assert [type(m) for m in flow.modules()] == kinds


@pytest.mark.parametrize("name", ["MonotonicAffineTransform", "MonotonicRQSTransform"])
def test_univariate_argument_of_zuko(zuko: Any, name: str) -> None:
    shapes = [(), ()] if "Affine" in name else [(4,), (4,), (3,)]
    layers = []
    for module in (zuko.transforms, ours):
        torch.manual_seed(0)
        layer = zuko.flows.MaskedAutoregressiveTransform(
            5, 3, univariate=getattr(module, name), shapes=shapes
        )
        layers.append(randomise(layer, torch.float64) if not layers else layer.double())
    layers[1].load_state_dict(layers[0].state_dict())
    x, c = torch.randn(6, 5).double(), torch.randn(6, 3).double()
    expected = layers[0](c).call_and_ladj(x)
    torch.testing.assert_close(layers[1](c).call_and_ladj(x), expected)
    torch.testing.assert_close(layers[1](c).inv(expected[0]), x)
    accelerate(layers[1], (x, c), verify=True, call=lambda m, x, c: m(c).call_and_ladj(x))
    assert isinstance(layers[1], Joined)


def test_contexts_of_fewer_dimensions_than_zukos_samples(zuko: Any) -> None:
    for make in (FLOWS["spline"], FLOWS["affine_coupling"]):
        flow = randomise(make(zuko.flows), torch.float64)
        c, x = torch.randn(3).double(), torch.randn(2, 7, 5).double()
        accelerate(flow, (x, c), verify=True, call=log_prob)
        assert flow(c).sample((2,)).shape == (2, 5)
        z, ladj = flow.transform.transforms[0](c).call_and_ladj(x[:0])
        assert (z.shape, ladj.shape) == ((0, 7, 5), (0, 7))


def test_layers_of_zuko_that_stay(zuko: Any) -> None:
    circular = accelerate(zuko.flows.NCSF(3))
    assert any("CircularRQSTransform" in layer.reason for layer in circular.kept)
    smooth = accelerate(zuko.flows.MAF(3, activation=nn.ELU))
    assert any("between its layers is ELU" in layer.reason for layer in smooth.kept)
    residual = accelerate(zuko.flows.MAF(3, residual=True, hidden_features=(8, 8)))
    assert any("is Residual" in layer.reason for layer in residual.kept)
    assert {layer.kind for layer in smooth.swapped} == {layer.kind for layer in residual.swapped}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ours.MonotonicAffineTransform(*torch.ones(2, 3), slope=2.0), "slope must be"),
        (lambda: ours.LULinearTransform(torch.ones(2, 3)), r"LU must have shape \[D, D\]"),
        (lambda: ours.MonotonicRQSTransform(*torch.ones(3, 2, 4)), r"got \[4, 4, 4\]"),
    ],
)
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
