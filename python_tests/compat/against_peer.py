"""Checks of a drop-in layer against the peer's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from flowops.compat._twins import find_twin, swap, unswap

Values = dict[str, Any]


def call(layer: Any, z: Any, context: Tensor | None, *, inverse: bool) -> tuple[Any, Any]:
    function = layer.inverse if inverse else layer
    return function(z) if context is None else function(z, context)


def evaluate(layer: nn.Module, z: Any, context: Tensor | None, *, inverse: bool) -> Values:
    """Outputs and gradients by name, for random weights of the outputs that the seed fixes."""
    inputs = [t.clone().requires_grad_() for t in (z if isinstance(z, list) else [z])]
    layer.zero_grad()
    if context is not None:
        context = context.clone().requires_grad_()
    out, logdet = call(
        layer, inputs if isinstance(z, list) else inputs[0], context, inverse=inverse
    )
    outs = out if isinstance(out, list) else [out]
    generator = torch.Generator().manual_seed(5)
    loss = 0.0
    for value in [*outs, logdet]:
        if isinstance(value, Tensor):
            weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            loss = loss + (value * weight.to(value.dtype)).sum()
    loss.backward()
    values: Values = {f"out{i}": value.detach() for i, value in enumerate(outs)}
    values["logdet"] = logdet.detach() if isinstance(logdet, Tensor) else logdet
    values |= {f"grad_in{i}": value.grad for i, value in enumerate(inputs)}
    if context is not None:
        values["grad_context"] = context.grad
    return values | {name: p.grad for name, p in layer.named_parameters()}


def assert_same(actual: Values, expected: Values, tolerance: float = 1e-10) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        mine = actual[name]
        if not isinstance(value, Tensor):
            # A parameter that the peer's graph does not reach has no gradient, ours a zero one.
            assert mine == value or (value is None and not mine.any()), name
            continue
        mine = torch.zeros_like(value) if mine is None else mine
        assert mine.shape == value.shape, name
        assert mine.dtype == value.dtype, name
        torch.testing.assert_close(
            mine, value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: n + m
        )


def assert_as_exact(actual: Values, rival: Values, exact: Values, factor: float = 4.0) -> None:
    """Hold a float32 result to a few times the peer's own error against float64."""
    for name, value in exact.items():
        if not isinstance(value, Tensor) or not value.numel() or rival[name] is None:
            continue
        size = value.abs().max().clamp_min(1)
        error = (actual[name].double() - value).abs().max()
        allowed = (rival[name].double() - value).abs().max() + 2e-6 * size
        assert error <= factor * allowed, f"{name}: {error} against {allowed}"


def to(z: Any, dtype: torch.dtype) -> Any:
    return [t.to(dtype) for t in z] if isinstance(z, list) else z.to(dtype)


def check_against_peer(
    ours: nn.Module,
    peer: Any,
    z: Any,
    context: Tensor | None = None,
    *,
    factor: float = 4.0,
    tolerance: float = 1e-10,
) -> None:
    """Hold ours, and the peer's object swapped in place, to the peer's results.

    The state goes from the peer to ours and back. ``z`` are float64 inputs of both directions.
    """
    ours.load_state_dict(peer.state_dict(), strict=True)
    peer.load_state_dict(ours.state_dict(), strict=True)
    kind = type(peer)
    ours.double(), peer.double()
    for inverse in (False, True):
        exact = evaluate(peer, z, context, inverse=inverse)
        assert_same(evaluate(ours, z, context, inverse=inverse), exact, tolerance)
        single, rival = copy.deepcopy(ours).float(), copy.deepcopy(peer).float()
        low, seen = to(z, torch.float32), None if context is None else context.float()
        seen_exactly = None if seen is None else seen.double()
        assert_as_exact(
            evaluate(single, low, seen, inverse=inverse),
            evaluate(rival, low, seen, inverse=inverse),
            evaluate(peer, to(low, torch.float64), seen_exactly, inverse=inverse),
            factor,
        )
        twin = find_twin(peer)
        assert twin is not None
        assert twin is type(ours)
        assert twin.refusal(peer) is None
        swapped = swap(peer, twin)
        assert isinstance(swapped, kind)
        for taken in (swapped, copy.deepcopy(swapped)):
            assert isinstance(taken, twin)
            assert_same(evaluate(taken, z, context, inverse=inverse), exact, tolerance)
        assert unswap(swapped) is peer
        assert type(peer) is kind


def swap_all(model: nn.Module) -> int:
    """Swap every module of ``model`` that has a twin; return how many."""
    count = 0
    for module in list(model.modules()):
        twin = find_twin(module)
        if twin is not None and twin.refusal(module) is None:
            swap(module, twin)
            count += 1
    return count


def pickled(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))
