"""flowops.compat.fla.LinearAttention by its definition."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu, rms_norm

from flowops.compat.fla import LinearAttention

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "elu": {"feature_map": "elu", "do_feature_map_norm": True, "output_norm": "identity"},
    "hedgehog": {"feature_map": "hedgehog", "do_feature_map_norm": True, "norm_q": True},
    "t2r": {"feature_map": "t2r", "tie_feature_map_qk": True, "norm_k": True},
    "dpfp": {"feature_map": "dpfp", "elementwise_affine": False},
    "groups": {"num_kv_heads": 2, "expand_k": 0.5, "expand_v": 2.0, "feature_map": "relu"},
    "identity": {"feature_map": "identity", "mode": "fused_recurrent"},
}


def make(case: str, **options: Any) -> LinearAttention:
    layer = LinearAttention(hidden_size=24, num_heads=4, **OPTIONS[case], **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p) / 3)
    return layer


def features(layer: LinearAttention, case: str, which: str, x: Tensor) -> Tensor:
    held: Any = getattr(layer, f"feature_map_{which}")
    kind = OPTIONS[case].get("feature_map", "elementwise_product")
    if kind == "elementwise_product":
        return (x @ held.layer1.weight.T + held.layer1.bias) * (
            x @ held.layer2.weight.T + held.layer2.bias
        )
    if kind == "hedgehog":
        y = 2 * (x @ held.layer.weight.T + held.layer.bias)
        return torch.cat([y, -y], -1).softmax(-1)
    if kind == "t2r":
        return (x @ held.layer.weight.T).clamp_min(0)
    if kind == "dpfp":
        both = torch.cat([x.clamp_min(0), -x.clamp_min(0)], -1)
        return torch.cat([both * torch.roll(both, j, -1) for j in (1, 2, 3, 4)], -1)
    return {"elu": elu(x) + 1, "relu": x.clamp_min(0), "identity": x}[kind]


def by_definition(layer: LinearAttention, case: str, x: Tensor, mask: Tensor) -> Tensor:
    options, heads = OPTIONS[case], layer.num_heads
    q = (x @ layer.q_proj.weight.T).view(*x.shape[:2], heads, -1)
    k, v = (
        (x @ p.weight.T).view(*x.shape[:2], layer.num_kv_heads, -1)
        for p in (layer.k_proj, layer.v_proj)
    )
    v = v * mask[:, -x.size(1) :, None, None]
    k, v = (t.repeat_interleave(heads // layer.num_kv_heads, 2) for t in (k, v))
    size = q.size(-1)
    q, k = features(layer, case, "q", q), features(layer, case, "k", k)
    if options.get("norm_q"):
        q = q / (q.sum(-1, keepdim=True) + 1e-4)
    if options.get("norm_k"):
        k = k / (k.sum(-1, keepdim=True) + 1e-4)
    weights = torch.einsum("bthd,bshd->bhts", q, k).tril() * q.size(-1) ** -0.5
    if options.get("do_feature_map_norm"):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-10)
    assert size == layer.head_k_dim
    out = torch.einsum("bhts,bshd->bthd", weights, v)
    if options.get("output_norm") != "identity":
        out = rms_norm(out, out.shape[-1:], getattr(layer.norm, "weight", None), 1e-5)
    return out.flatten(2) @ layer.o_proj.weight.T


@pytest.mark.parametrize("case", OPTIONS)
def test_equals_its_definition(case: str) -> None:
    layer, x = make(case), torch.randn(2, 7, 24).double().requires_grad_()
    mask = torch.tensor([[1] * 9, [1] * 7 + [0] * 2])
    got, weights, cache = layer(x, mask)
    assert (weights, cache) == (None, None)
    expected = by_definition(layer, case, x, mask)
    torch.testing.assert_close(got, expected)
    leaves = [x, *layer.parameters()]
    loss = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, loss), torch.autograd.grad(expected, leaves, loss)
    )


class Cache(dict[int, dict[str, Any]]):
    """What the layer asks of fla's cache."""

    def update(self, *, recurrent_state: Any, layer_idx: int, offset: int) -> None:  # type: ignore[override]
        seen = self[layer_idx]["seen"] if layer_idx in self else 0
        self[layer_idx] = {"recurrent_state": recurrent_state, "seen": seen + offset}


@pytest.mark.parametrize("case", ["default", "elu"])
def test_pieces_with_a_cache_give_the_whole(case: str) -> None:
    layer, x = make(case, layer_idx=0), torch.randn(2, 7, 24).double()
    cache = Cache()
    pieces = [layer(piece, None, cache, use_cache=True)[0] for piece in x.split([3, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x)[0])
    assert cache[0]["seen"] == 7


def test_keys_and_copies() -> None:
    layer = make("default")
    names = {name.partition(".")[0] for name in layer.state_dict()}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert names == projections | {"feature_map_q", "feature_map_k", "norm"}
    x = torch.randn(1, 3, 24).double()
    torch.testing.assert_close(copy.deepcopy(layer)(x)[0], layer(x)[0])
    assert layer.feature_map_k is not layer.feature_map_q
    tied = make("t2r")
    assert tied.feature_map_k is tied.feature_map_q


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slow"}, "mode must be one of chunk, fused_chunk, fused_recurrent, got 'slow'"),
        ({"feature_map": "cos"}, "feature_map must be one of"),
        ({"output_norm": "batch"}, "output_norm must be one of rmsnorm, identity, got 'batch'"),
        ({"num_heads": 3}, "num_heads must divide the sizes of keys and values, 16 and 16"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearAttention(hidden_size=16, **options)


def test_a_cache_asks_for_a_place() -> None:
    with pytest.raises(ValueError, match="layer_idx must be given with a cache, got None"):
        make("elu")(torch.randn(1, 2, 24).double(), None, Cache())
