"""The option ``memory``: the same model, state and gradients, with activations rebuilt."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from flowops.distributions import Flow
from flowops.models import FLOWS, build
from flowops.nn import ReversibleSequential
from flowops.testing import randomize_

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "glow": ("glow", {}),
    "glow additive full": ("glow", {"coupling": "additive", "conv1x1": "full"}),
    "glow conditional": ("glow", {"context_features": 3, "condition": "all"}),
    "glow classes": ("glow", {"classes": 3, "condition": "all", "preprocess": "center"}),
    "realnvp": ("realnvp", {"context_features": 2}),
    "realnvp batch norm": ("realnvp", {"norm": "batch"}),
    "nice": ("nice", {"context_features": 2, "prior": "logistic"}),
    "nsf": ("nsf", {"context_features": 2}),
    "nsf permutation": ("nsf", {"mixing": "permutation"}),
}
SMALL: dict[str, dict[str, int]] = {
    "glow": {"hidden": 8, "steps": 3},
    "realnvp": {"hidden": 4, "blocks": 1},
    "nice": {"hidden": 16, "depth": 2},
    "nsf": {"hidden": 16, "transforms": 3, "bins": 4},
}


def _batch(model: Flow) -> tuple[Tensor, Tensor | None]:
    """Data and, for a conditional model, a context."""
    x = torch.rand(16, *model.event_shape, dtype=model.dtype)
    if getattr(model.config, "classes", 0):
        return x, torch.arange(16) % model.context_features
    if model.context_features:
        return x, torch.randn(16, model.context_features, dtype=model.dtype)
    return x, None


def _pair(case: str, dtype: torch.dtype) -> tuple[Flow, Flow]:
    """A plain model with noise on all parameters, then normalised by its data, and its twin."""
    name, options = CASES[case]
    plain = build(name, (1, 8, 8), **SMALL[name], **options).to(dtype)
    randomize_(plain, std=0.02 if name == "nsf" else 0.1)
    plain.initialize(*_batch(plain))
    reversible = build(name, (1, 8, 8), **SMALL[name], **options, memory="reversible").to(dtype)
    reversible.load_state_dict(plain.state_dict())
    return plain, reversible


def _gradients(model: Flow, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    wanted = {"x": x} | dict(model.named_parameters())
    grads = torch.autograd.grad(model.log_prob(x, context).sum(), list(wanted.values()))
    return dict(zip(wanted, grads, strict=True))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_plain_model(
    case: str, dtype: torch.dtype, tolerance: float
) -> None:
    plain, reversible = _pair(case, dtype)
    x, context = _batch(plain)
    expected, actual = _gradients(plain, x, context), _gradients(reversible, x, context)
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm().clamp_min(1e-20)
        assert error <= tolerance, f"{name}: relative error {error}"
    torch.testing.assert_close(reversible.log_prob(x, context), plain.log_prob(x, context))


@pytest.mark.parametrize("name", FLOWS)
def test_states_go_both_ways_and_old_configurations_are_plain(name: str) -> None:
    plain = build(name, (1, 8, 8), **SMALL[name])
    reversible = build(name, (1, 8, 8), **SMALL[name], memory="reversible")
    assert plain.config.memory == "plain"
    assert not any(isinstance(m, ReversibleSequential) for m in plain.modules())
    assert any(isinstance(m, ReversibleSequential) for m in reversible.modules())
    assert list(plain.state_dict()) == list(reversible.state_dict())
    reversible.load_state_dict(plain.state_dict())
    plain.load_state_dict(reversible.state_dict())


@pytest.mark.parametrize("name", FLOWS)
def test_copies_and_pickles_train(name: str) -> None:
    model = build(name, (1, 8, 8), **SMALL[name], memory="reversible")
    x, _ = _batch(model)
    model.initialize(x)
    expected = _gradients(model, x, None)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(_gradients(twin, x, None), expected, rtol=0, atol=0)


def test_a_memory_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ValueError, match="Glow: memory must be one of plain, reversible, got 'half'"
    ):
        build("glow", (1, 8, 8), memory="half")


def test_autoregressive_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="NSF: memory must be plain for autoregressive layers"):
        build("nsf", (1, 8, 8), kind="autoregressive", memory="reversible")
