"""flowops.compat.torch_nn: layers with PyTorch's spectral norm, in both forms, taken over."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from flowops import accelerate
from flowops.compat import patch
from flowops.compat._twins import Joined

FORMS = {"hook": spectral_norm, "parametrization": parametrizations.spectral_norm}
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "embedding": (lambda: nn.Bilinear(3, 3, 4), (2, 3)),
}


def call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x, x) if isinstance(module, nn.Bilinear) else module(x)


def vectors(module: nn.Module) -> list[torch.Tensor]:
    return [b for n, b in module.named_buffers() if n.endswith(("_u", "_v"))]


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", LAYERS)
def test_steps_of_training_are_those_of_torch(
    case: str, form: str, dtype: torch.dtype, iterations: int
) -> None:
    make, shape = LAYERS[case]
    theirs = FORMS[form](make().to(dtype), n_power_iterations=iterations)
    ours = copy.deepcopy(theirs)
    report = accelerate(ours)
    assert len(report.swapped) == 1
    x = torch.randn(shape, dtype=dtype)
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    for step in range(4):
        results = []
        for module in (ours, theirs):
            module.train(step < 3)
            out = call(module, x) + call(module, x)  # two passes before the backward pass
            parameters = list(module.parameters())
            grads = torch.autograd.grad(out.square().sum(), parameters)
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.sub_(1e-3 * grad)
            results.append((out.detach(), grads, vectors(module)))
        torch.testing.assert_close(results[0], results[1], rtol=bound, atol=bound)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_restores_and_copies(form: str) -> None:
    model = nn.Sequential(FORMS[form](nn.Linear(4, 4)), nn.ReLU(), FORMS[form](nn.Linear(4, 2)))
    x = torch.randn(3, 4)
    kinds = [type(h) for m in model.modules() for h in (m, *m._forward_pre_hooks.values())]
    report = accelerate(model, (x,), verify=True)
    assert len(report.swapped) == 2
    assert report.kept == []
    again = pickle.loads(pickle.dumps(model)) if form == "hook" else copy.deepcopy(model)
    torch.testing.assert_close(again(x), model(x))
    held = [h for m in again.modules() for h in (m, *m._forward_pre_hooks.values())]
    assert sum(isinstance(h, Joined) for h in held) == 2
    report.restore()
    after = [type(h) for m in model.modules() for h in (m, *m._forward_pre_hooks.values())]
    assert after == kinds


def test_patch_of_layers_that_are_built_inside() -> None:
    with patch("torch_nn") as report:
        layer = parametrizations.spectral_norm(nn.Linear(3, 3))
    assert len(report.swapped) == 1
    assert isinstance(layer.parametrizations.weight[0], Joined)


def test_vectors_and_complex_weights() -> None:
    vector = parametrizations.spectral_norm(nn.LayerNorm(4), "weight")
    x = torch.randn(2, 4)
    accelerate(vector, (x,), verify=True)
    layer = nn.Linear(3, 3, dtype=torch.complex64)
    report = accelerate(parametrizations.spectral_norm(layer))
    assert [kept.reason for kept in report.kept] == ["its weight is complex"]
