"""flowops.compat.fast_transformers: the attention layers, by definition and against the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu

from flowops import accelerate
from flowops.compat import fast_transformers as ours
from flowops.compat._twins import Joined

MAPS = {
    "default": None,
    "relu": lambda size: ours.ActivationFunctionFeatureMap(size, torch.relu),
    "own": lambda size: ours.ActivationFunctionFeatureMap(size, lambda x: x.square() + 0.1),
}
FEATURES = {"default": lambda x: elu(x) + 1, "relu": torch.relu, "own": lambda x: x.square() + 0.1}


@dataclass
class Mask:
    """What the layers ask of the package's masks."""

    bool_matrix: Tensor
    all_ones: bool = True
    lower_triangular: bool = True


def inputs(length: int = 6, keys: int = 6) -> tuple[Tensor, ...]:
    shapes = ((2, length, 3, 4), (2, keys, 3, 4), (2, keys, 3, 5))
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, causal: bool, features: Any
) -> Tensor:
    weights = torch.einsum("nlhe,nshe->nhls", features(q), features(k))
    weights = weights * kept[:, None, None]
    if causal:
        weights = weights * torch.ones(weights.shape[-2:], dtype=weights.dtype).tril()
    total = weights.sum(-1, keepdim=True) + 1e-6
    return torch.einsum("nhls,nshm->nlhm", weights / total, v)


@pytest.mark.parametrize("lengths", [(6, 6), (4, 6), (6, 4)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", MAPS)
def test_layers_by_their_definition(case: str, causal: bool, lengths: tuple[int, int]) -> None:
    layer = (ours.CausalLinearAttention if causal else ours.LinearAttention)(4, MAPS[case])
    leaves = inputs(*lengths)
    kept = torch.rand(2, lengths[1]) < 0.8
    kept[:, 0] = True
    got = layer(*leaves, Mask(kept), None, Mask(kept))
    expected = by_definition(*leaves, kept, causal, FEATURES[case])
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, weights), torch.autograd.grad(expected, leaves, weights)
    )


@pytest.mark.parametrize("case", MAPS)
def test_steps_are_rows_of_the_causal_layer(case: str) -> None:
    q, k, v = inputs()
    every = torch.ones(2, 6, dtype=torch.bool)
    whole = ours.CausalLinearAttention(4, MAPS[case])(q, k, v, Mask(every), None, Mask(every))
    layer, state, rows = ours.RecurrentLinearAttention(4, MAPS[case]), None, []
    for i in range(6):
        held = None if state is None else [t.clone() for t in state]
        row, new = layer(q[:, i], k[:, i], v[:, i], state)
        if held is not None:
            torch.testing.assert_close(list(state), held, rtol=0, atol=0)
        rows.append(row)
        state = new
    torch.testing.assert_close(torch.stack(rows, 1), whole)
    assert [t.shape for t in state] == [(2, 3, 4, 5), (2, 3, 4)]


def test_maps_that_the_kernel_computes() -> None:
    x = torch.randn(2, 3, 4)
    names = [ours.LinearAttention(4, make)._features(x, x)[2] for make in MAPS.values()]
    assert names == ["elu", "relu", "identity"]


def test_bad_input() -> None:
    q, k, v = inputs()
    mask = Mask(torch.ones(2, 6, dtype=torch.bool), all_ones=False, lower_triangular=False)
    with pytest.raises(RuntimeError, match="LinearAttention: attn_mask must be full"):
        ours.LinearAttention(4)(q, k, v, mask, None, mask)
    with pytest.raises(RuntimeError, match="attn_mask must be lower triangular"):
        ours.CausalLinearAttention(4)(q, k, v, mask, None, mask)
    with pytest.raises(ValueError, match="memory must be None with state, got both"):
        ours.RecurrentLinearAttention(4)(q[:, 0], k[:, 0], v[:, 0], [q, k], [q, k])


@pytest.mark.parametrize("kind", ["linear", "causal-linear"])
@pytest.mark.parametrize("features", ["default", "random"])
def test_encoders_of_fast_transformers_are_taken_over(kind: str, features: str) -> None:
    builders = pytest.importorskip("fast_transformers.builders")
    from fast_transformers.feature_maps import Favor
    from fast_transformers.masking import LengthMask, TriangularCausalMask

    model = builders.TransformerEncoderBuilder.from_kwargs(
        n_layers=2, n_heads=3, query_dimensions=8, value_dimensions=8, feed_forward_dimensions=32,
        attention_type=kind, feature_map=Favor.factory(n_dims=16) if features == "random" else None,
        dropout=0.1,
    ).get()  # fmt: skip
    x = torch.randn(2, 7, 24)
    mask = TriangularCausalMask(7) if kind == "causal-linear" else None
    lengths = LengthMask(torch.tensor([7, 5]))

    def call(model: Any, x: Tensor) -> Tensor:
        return model(x, attn_mask=mask, length_mask=lengths)

    report = accelerate(model, (x,), verify=True, call=call)
    assert sum("Attention" in layer.kind for layer in report.swapped) == 2
    assert sum(isinstance(m, Joined) for m in model.modules()) == 2


def test_recurrent_encoders_of_fast_transformers_are_taken_over() -> None:
    builders = pytest.importorskip("fast_transformers.builders")
    model = builders.RecurrentEncoderBuilder.from_kwargs(
        n_layers=2, n_heads=3, query_dimensions=8, value_dimensions=8, feed_forward_dimensions=32,
        attention_type="linear",
    ).get()  # fmt: skip

    def call(model: Any, x: Tensor) -> list[Tensor]:
        state, rows = None, []
        for row in x.unbind(1):
            out, state = model(row, state)
            rows.append(out)
        return rows

    report = accelerate(model, (torch.randn(2, 5, 24),), verify=True, call=call)
    assert len(report.swapped) == 2
