"""The layers of flowops.compat.nflows against nflows' own, case by case."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flowops.compat import nflows as ours
from flowops.testing import jacobian_logdet

from .nflows_cases import CASES, Case, assert_same, make_data, randomized, run

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("nflows")
    from nflows import transforms

    return transforms


def make_pair(case: Case, theirs: Any, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A peer's layer with random parameters, and ours, which has loaded its state."""
    peer = randomized(case.make(theirs), dtype)
    layer = case.make(ours).to(dtype).eval()
    layer.load_state_dict(peer.state_dict())
    peer.using_cache = False  # its cached inverse works in float32 alone
    return layer, peer


@DIRECTIONS
@pytest.mark.parametrize("name", CASES)
def test_equals_nflows(name: str, inverse: bool, theirs: Any) -> None:
    case = CASES[name]
    if inverse and not case.inverse_works:
        pytest.skip("nflows' own fails")
    layer, peer = make_pair(case, theirs, torch.float64)
    x, context = make_data(case, inverse=inverse)
    expected = run(peer, x, context, inverse=inverse)
    assert_same(run(layer, x, context, inverse=inverse), expected)
    state = layer.state_dict()
    again = case.make(theirs).double().eval()
    again.load_state_dict(state)
    again.using_cache = False
    assert_same(run(again, x, context, inverse=inverse), expected)


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@DIRECTIONS
@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if any(True for _ in case.make(ours).parameters())]
)
def test_as_exact_as_nflows_in_float32(name: str, inverse: bool, theirs: Any) -> None:
    case = CASES[name]
    if inverse and not case.inverse_works:
        pytest.skip("nflows' own fails")
    layer, peer = make_pair(case, theirs, torch.float32)
    x, context = (
        None if t is None else t.float().double() for t in make_data(case, 64, inverse=inverse)
    )
    actual = run(layer, x, context, inverse=inverse)
    rival = run(peer, x, context, inverse=inverse)
    truth = run(peer.double(), x, context, inverse=inverse)
    for key, exact in truth.items():
        assert actual[key].dtype == torch.float32
        assert actual[key].shape == rival[key].shape
        # The slope of a spline's log-slope jumps at knots, which rounding may cross.
        floor = 5e-4 if key.startswith("grad") and ("RQS" in name or "CDF" in name) else 2e-6
        error, peer_error = (rms(r[key] - exact) for r in (actual, rival))
        assert error <= 4 * peer_error + floor * rms(exact), (key, error, peer_error)


@DIRECTIONS
@pytest.mark.parametrize("name", CASES)
def test_logabsdet_is_that_of_the_jacobian(name: str, inverse: bool) -> None:
    case = CASES[name]
    layer = randomized(case.make(ours))
    x, context = make_data(case, 2, inverse=inverse)
    call = layer.inverse if inverse else layer
    outputs, logabsdet = call(x, context)
    rows = iter([None, None] if context is None else context.split(1))
    truth = jacobian_logdet(lambda row: call(row, next(rows))[0], x)
    torch.testing.assert_close(logabsdet, truth, rtol=1e-9, atol=1e-9)
    back, undone = (layer if inverse else layer.inverse)(outputs, context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(undone, -logabsdet, rtol=1e-9, atol=1e-9)


@DIRECTIONS
@pytest.mark.parametrize("name", CASES)
def test_empty_batch(name: str, inverse: bool) -> None:
    case = CASES[name]
    layer = randomized(case.make(ours))
    x, context = make_data(case, 0, inverse=inverse)
    outputs, logabsdet = (layer.inverse if inverse else layer)(x, context)
    assert outputs.shape == make_data(case, 0, inverse=not inverse)[0].shape
    assert logabsdet.shape == (0,)
