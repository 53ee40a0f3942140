"""flowops.compat.fla.LinearAttention by its definition; against fla in test_fla_layer_peer."""

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
        both = torch.cat([x.clamp_min(0), (-x).clamp_min(0)], -1)
        return torch.cat([both * torch.roll(both, j, -1) for j in (1, 2, 3, 4)], -1)
    return {"elu": elu(x) + 1, "relu": x.clamp_min(0), "identity": x}[kind]


def by_definition(layer: LinearAttention, case: str, x: Tensor, mask: Tensor) -> Tensor:
    options, heads = OPTIONS[case], layer.num_heads
    q = (x @ layer.q_proj.weight.T).view(*x.shape[:2], heads, -1)
    k, v = (
        (x @ p.weight.T).view(*x.shape[:2], layer.num_kv_heads, -1)
        for p in (layer.k_proj, layer.v_proj)
    )
    k, v = (t.repeat_interleave(heads // layer.num_kv_heads, 2) for t in (k, v))
    size = q.size(-1)
    q, k = features(layer, case, "q", q), features(layer, case, "k", k)
    if options.get("norm_q"):
        q = q / (q.sum(-1, keepdim=True) + 1e-4)
    if options.get("norm_k"):
        k = k / (k.sum(-1, keepdim=True) + 1e-4)
    kept = mask[:, -x.size(1) :]
    weights = torch.einsum("bthd,bshd->bhts", q, k).tril() * q.size(-1) ** -0.5
    weights = weights * kept[:, None, None]
    if options.get("do_feature_map_norm"):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-10)
    assert size == layer.head_k_dim
    out = torch.einsum("bhts,bshd->bthd", weights, v) * kept[:, :, None, None]
    if options.get("output_norm") != "identity":
        out = rms_norm(out, out.shape[-1:], getattr(layer.norm, "weight", None), 1e-5)
    return out.flatten(2) @ layer.o_proj.weight.T


@pytest.mark.parametrize("case", OPTIONS)
def test_equals_its_definition(case: str) -> None:
    layer, x = make(case), torch.randn(2, 7, 24).double().requires_grad_()
    mask = torch.tensor([[1] * 9, [1, 1, 0, 1, 1, 0, 1, 1, 0]])
    got, weights, cache = layer(x, mask)
    assert (weights, cache) == (None, None)
    expected = by_definition(layer, case, x, mask)
    torch.testing.assert_close(got, expected)
    leaves = [x, *layer.parameters()]
    loss = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, loss), torch.autograd.grad(expected, leaves, loss)
    )


class Cache(dict[int, Any]):
    """What the layer asks of fla's cache."""

    def update(self, *, recurrent_state: Any, layer_idx: int, offset: int) -> None:  # type: ignore[override]
        seen = self[layer_idx]["seen"] if self.get(layer_idx) else 0
        self[layer_idx] = {"recurrent_state": recurrent_state, "seen": seen + offset}


@pytest.mark.parametrize("case", ["default", "elu"])
def test_pieces_with_a_cache_give_the_whole(case: str) -> None:
    layer, x = make(case, layer_idx=0), torch.randn(2, 7, 24).double()
    cache = Cache()
    pieces = [layer(piece, None, cache, use_cache=True)[0] for piece in x.split([3, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x)[0])
    assert cache[0]["seen"] == 7


@pytest.mark.parametrize("case", ["default", "elu"])
def test_steps_left_out_are_as_if_not_there(case: str) -> None:
    layer, x = make(case, layer_idx=0), torch.randn(1, 7, 24).double()
    kept = torch.tensor([[0, 1, 1, 0, 1, 0, 0]])
    filled = x.masked_fill(kept[..., None] == 0, torch.nan)
    cache, short = Cache(), Cache()
    out = layer(filled, kept, cache, use_cache=True)[0]
    torch.testing.assert_close(out[kept == 1], layer(x[kept == 1][None], None, short, True)[0][0])
    assert not out[kept == 0].any()
    torch.testing.assert_close(cache[0]["recurrent_state"], short[0]["recurrent_state"])


def test_gradients_in_float16_stay_finite_beside_padding() -> None:
    layer, x = make("elu").half(), torch.randn(2, 5, 24).half().requires_grad_()
    out = layer(x, torch.tensor([[0, 0, 1, 1, 1], [0] * 5]))[0]
    grads = torch.autograd.grad(out.sum(), [x, *layer.parameters()])
    assert all(g.isfinite().all() for g in grads)


def test_packed_sequences_are_apart() -> None:
    layer, x = make("elu"), torch.randn(1, 9, 24).double()
    out = layer(x, torch.zeros(1, 9), cu_seqlens=torch.tensor([0, 2, 9]))[0]
    torch.testing.assert_close(out, torch.cat([layer(x[:, :2])[0], layer(x[:, 2:])[0]], 1))


def test_a_cache_that_was_reset_begins_anew() -> None:
    layer, x = make("elu", layer_idx=0), torch.randn(1, 3, 24).double()
    cache = Cache({0: None})
    torch.testing.assert_close(layer(x, None, cache)[0], layer(x)[0])


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
        ({"expand_k": 0.3}, "expand_k must give a whole number of times 16, got 0.3"),
        ({"num_heads": 3}, "num_heads must divide the sizes of keys and values, 16 and 16"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearAttention(hidden_size=16, **options)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2, 3, 1)])
def test_bad_masks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, at least 3\), got"):
        make("elu")(torch.randn(2, 3, 24).double(), torch.ones(shape))


def test_products_beside_a_whole_number_are_rounded() -> None:
    assert LinearAttention(hidden_size=100, num_heads=1, expand_k=0.29).key_dim == 29


def test_the_norm_is_float32_beside_states_of_16_bits() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = LinearAttention(hidden_size=8, num_heads=2)
        assert [n for n, p in layer.named_parameters() if p.dtype == torch.float32] == [
            "norm.weight"
        ]
        assert layer(torch.randn(1, 3, 8))[0].dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_cache_asks_for_a_place() -> None:
    with pytest.raises(ValueError, match="layer_idx must be given with a cache, got None"):
        make("elu")(torch.randn(1, 2, 24).double(), None, Cache())
