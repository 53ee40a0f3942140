"""fla's layer of linear attention, and its feature maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from flowops.compat._twins import Twin
from flowops.compat.fla.ops import chunk_linear_attn

_NAME = "LinearAttention"


class HadamardFeatureMap(nn.Module):
    """The product of two linear layers."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(head_dim, head_dim)
        self.layer2 = nn.Linear(head_dim, head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last dimension."""
        return self.layer1(x) * self.layer2(x)


class HedgehogFeatureMap(nn.Module):
    """The softmax of plus and minus twice a linear layer, which begins as the identity."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(head_dim, head_dim)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last dimension."""
        y = 2 * self.layer(x)
        return torch.cat([y, -y], -1).softmax(-1)


class T2RFeatureMap(nn.Module):
    """A linear layer and a ReLU."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(head_dim, head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last dimension."""
        return self.layer(x).relu()


class DPFPFeatureMap(nn.Module):
    """Products of the positive parts, and of their negatives, with themselves rolled by 1 to nu."""

    def __init__(self, head_dim: int, nu: int = 4) -> None:
        super().__init__()
        self.nu = nu

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last dimension."""
        positive = x.relu()
        x = torch.cat([positive, -positive], -1)
        return torch.cat([x * x.roll(shift, -1) for shift in range(1, self.nu + 1)], -1)


def _elu_plus_one(x: Tensor) -> Tensor:
    return elu(x) + 1


def _without_size(make: Callable[[], Any], head_dim: int) -> Any:
    return make()


_FEATURE_MAPS: dict[str, Callable[[int], Any]] = {
    "elementwise_product": HadamardFeatureMap,
    "hedgehog": HedgehogFeatureMap,
    "t2r": T2RFeatureMap,
    "dpfp": DPFPFeatureMap,
    "elu": partial(_without_size, lambda: _elu_plus_one),
    "relu": partial(_without_size, nn.ReLU),
    "identity": partial(_without_size, nn.Identity),
}
_TIED = ("elementwise_product", "hedgehog", "t2r")


class LinearAttention(Twin):
    r"""Causal linear attention of several heads, with projections before and after.

    One kernel serves every mode. Queries and keys pass a feature map, and the result of each head a
    root-mean-square norm.

    Args:
        mode: "chunk", "fused_chunk" or "fused_recurrent", which are the same here.
        hidden_size: Size of the states.
        expand_k: Size of all keys, as a multiple of it.
        expand_v: Size of all values, likewise.
        num_heads: Number of heads.
        num_kv_heads: Heads of keys and values, which queries share in groups; by default all.
        feature_map: "elementwise_product", "hedgehog", "t2r", "dpfp", "elu", "relu" or "identity".
        tie_feature_map_qk: One feature map for queries and keys, of the first three.
        output_norm: "rmsnorm" or "identity".
        norm_q: Divide the features of queries by their sum.
        norm_k: Divide the features of keys by their sum.
        do_feature_map_norm: Divide by the sum of the weights.
        elementwise_affine: Whether the norm has a weight.
        norm_eps: Of the norm.
        layer_idx: Place of the layer in a cache.
        **kwargs: Not used, as there.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236.
    """

    feature_map_q: Callable[[Tensor], Tensor]
    feature_map_k: Callable[[Tensor], Tensor]

    def __init__(
        self,
        mode: str = "chunk",
        hidden_size: int = 1024,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        feature_map: str = "elementwise_product",
        tie_feature_map_qk: bool = False,
        output_norm: str = "rmsnorm",
        norm_q: bool = False,
        norm_k: bool = False,
        do_feature_map_norm: bool = False,
        elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        layer_idx: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.mode, self.hidden_size, self.layer_idx = mode, hidden_size, layer_idx
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_groups = num_heads // self.num_kv_heads
        self.key_dim, self.value_dim = int(hidden_size * expand_k), int(hidden_size * expand_v)
        _check("mode", mode, ("chunk", "fused_chunk", "fused_recurrent"))
        _check("feature_map", feature_map, tuple(_FEATURE_MAPS))
        _check("output_norm", output_norm, ("rmsnorm", "identity"))
        if num_heads % self.num_kv_heads or self.key_dim % num_heads or self.value_dim % num_heads:
            raise ValueError(
                f"{_NAME}: num_heads must divide the sizes of keys and values, {self.key_dim} and "
                f"{self.value_dim}, and be a multiple of num_kv_heads, {self.num_kv_heads}, "
                f"got {num_heads}"
            )
        self.head_k_dim = self.key_dim // num_heads
        self.head_v_dim = self.value_dim // num_heads
        self.do_feature_map_norm = do_feature_map_norm
        make = _FEATURE_MAPS[feature_map]
        self.feature_map_q = make(self.head_k_dim)
        tied = tie_feature_map_qk and feature_map in _TIED
        self.feature_map_k = self.feature_map_q if tied else make(self.head_k_dim)
        project = partial(nn.Linear, hidden_size, bias=False)
        self.q_proj = project(self.key_dim)
        self.k_proj = project(self.key_dim // self.num_kv_groups)
        self.v_proj = project(self.value_dim // self.num_kv_groups)
        self.norm = nn.Identity()
        if output_norm == "rmsnorm":
            self.norm = nn.RMSNorm(self.head_v_dim, norm_eps, elementwise_affine)
        self.o_proj = nn.Linear(self.value_dim, hidden_size, bias=False)
        self.norm_q, self.norm_k = norm_q, norm_k

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, None, Any]:
        """Return (B, T, hidden_size), None, and the cache.

        Args:
            hidden_states: (B, T, hidden_size).
            attention_mask: (B, at least T), 0 where a value is left out; its end counts.
            past_key_values: A cache of fla, which holds the state of each layer.
            use_cache: Whether to keep the last state.
            output_attentions: Not used: there are no weights.
            **kwargs: Not used.

        Raises:
            ValueError: If there is a cache, and the layer has no place in it.
        """
        before = None
        if past_key_values is not None:
            if self.layer_idx is None:
                raise ValueError(f"{_NAME}: layer_idx must be given with a cache, got None")
            if len(past_key_values) > self.layer_idx:
                before = past_key_values[self.layer_idx]["recurrent_state"]
        v = self.v_proj(hidden_states)
        if attention_mask is not None:
            v = v * attention_mask[:, -v.size(1) :, None]
        q = self.feature_map_q(_heads(self.q_proj(hidden_states), self.head_k_dim, 1))
        k = _heads(self.k_proj(hidden_states), self.head_k_dim, self.num_kv_groups)
        k = self.feature_map_k(k)
        q, k = (
            t / (t.sum(-1, keepdim=True) + 1e-4) if wanted else t
            for t, wanted in ((q, self.norm_q), (k, self.norm_k))
        )
        out, state = chunk_linear_attn(
            q,
            k,
            _heads(v, self.head_v_dim, self.num_kv_groups),
            initial_state=before,
            output_final_state=bool(use_cache),
            normalize=self.do_feature_map_norm,
        )
        if past_key_values is not None:
            past_key_values.update(
                recurrent_state=state, layer_idx=self.layer_idx, offset=q.size(1)
            )
        return self.o_proj(self.norm(out).flatten(2)), None, past_key_values


def _heads(x: Tensor, size: int, groups: int) -> Tensor:
    """Return (B, T, H, size); each head of keys and values serves ``groups`` of queries."""
    x = x.unflatten(-1, (-1, size))
    return x if groups == 1 else x.repeat_interleave(groups, 2)


def _check(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{_NAME}: {argument} must be one of {', '.join(choices)}, got {value!r}")
