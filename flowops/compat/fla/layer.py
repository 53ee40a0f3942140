"""fla's layer of linear attention, and its feature maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, rms_norm

from flowops.compat._twins import Twin
from flowops.compat.fla.ops import State, chunk_linear_attn

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
    """Products of the positive and the negative parts with themselves, rolled by 1 to nu."""

    def __init__(self, head_dim: int, nu: int = 4) -> None:
        super().__init__()
        self.nu = nu

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last dimension."""
        x = torch.cat([x.relu(), (-x).relu()], -1)
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
        self.key_dim = _whole("expand_k", hidden_size, expand_k)
        self.value_dim = _whole("expand_v", hidden_size, expand_v)
        self.key_dim_per_group = self.key_dim // self.num_kv_groups
        self.value_dim_per_group = self.value_dim // self.num_kv_groups
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
        self.k_proj = project(self.key_dim_per_group)
        self.v_proj = project(self.value_dim_per_group)
        self.norm = nn.Identity()
        if output_norm == "rmsnorm":
            self.norm = nn.RMSNorm(
                self.head_v_dim, norm_eps, elementwise_affine, dtype=torch.float32
            )
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
            attention_mask: (B, at least T), 0 where a step is left out, as if it were not there;
                its result is 0. The end of the mask counts.
            past_key_values: A cache of fla, which holds the state of each layer.
            use_cache: Whether to keep the last state.
            output_attentions: Not used: there are no weights.
            **kwargs: ``cu_seqlens`` (N + 1), the bounds of the sequences that a batch of one holds,
                with which no mask counts; others are not used.

        Raises:
            ValueError: If there is a cache, and the layer has no place in it, or the mask is too
                short.
        """
        before = self._state(past_key_values)
        cu_seqlens = kwargs.get("cu_seqlens")
        left_out = None if cu_seqlens is not None else _left_out(attention_mask, hidden_states)
        hidden_states = _without(hidden_states, left_out)
        q = self.feature_map_q(_heads(self.q_proj(hidden_states), self.head_k_dim, 1))
        k = _heads(self.k_proj(hidden_states), self.head_k_dim, self.num_kv_groups)
        k = self.feature_map_k(k)
        q, k = (
            t / (t.sum(-1, keepdim=True) + 1e-4) if wanted else t
            for t, wanted in ((q, self.norm_q), (k, self.norm_k))
        )
        out, state = chunk_linear_attn(
            q,
            _without(k, left_out),
            _heads(self.v_proj(hidden_states), self.head_v_dim, self.num_kv_groups),
            initial_state=before,
            output_final_state=bool(use_cache),
            normalize=self.do_feature_map_norm,
            cu_seqlens=cu_seqlens,
        )
        if past_key_values is not None:
            past_key_values.update(
                recurrent_state=state, layer_idx=self.layer_idx, offset=q.size(1)
            )
        out = _normed(self.norm, _without(out, left_out))
        return self.o_proj(out.flatten(2)), None, past_key_values

    def _state(self, cache: Any) -> State | None:
        """Return what a cache holds of this layer."""
        if cache is None:
            return None
        if self.layer_idx is None:
            raise ValueError(f"{_NAME}: layer_idx must be given with a cache, got None")
        # A cache that was reset holds the layer, with nothing in it.
        held = cache[self.layer_idx] if len(cache) > self.layer_idx else None
        return None if held is None else held["recurrent_state"]


def _left_out(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return (B, T), where the mask is 0."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.size(0) != x.size(0) or mask.size(1) < x.size(1):
        raise ValueError(
            f"{_NAME}: attention_mask must have shape ({x.size(0)}, at least {x.size(1)}), "
            f"got {tuple(mask.shape)}"
        )
    return mask[:, mask.size(1) - x.size(1) :] == 0


def _without(x: Tensor, left_out: Tensor | None) -> Tensor:
    """Return ``x`` (B, T, ...) with 0 at the steps that are left out."""
    if left_out is None:
        return x
    return x.masked_fill(left_out.view(*left_out.shape, *[1] * (x.dim() - 2)), 0)


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Return the norm of each head, by torch: fla's own module, of a layer taken over, is Triton's.

    The weight may be float32 beside states of 16 bits.
    """
    if isinstance(norm, nn.Identity):
        return x
    held: Any = norm
    return rms_norm(x, x.shape[-1:], held.weight, held.eps).to(x.dtype)


def _heads(x: Tensor, size: int, groups: int) -> Tensor:
    """Return (B, T, H, size); each head of keys and values serves ``groups`` of queries."""
    x = x.unflatten(-1, (-1, size))
    return x if groups == 1 else x.repeat_interleave(groups, 2)


def _check(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{_NAME}: {argument} must be one of {', '.join(choices)}, got {value!r}")


def _whole(argument: str, size: int, factor: float) -> int:
    """Return the product, which rounding may have put beside a whole number."""
    product = size * factor
    if not math.isclose(product, round(product)):
        raise ValueError(
            f"{_NAME}: {argument} must give a whole number of times {size}, got {factor}"
        )
    return round(product)
