"""Pure-PyTorch twin of :mod:`flowops.ops.linear_attention`: the executable specification."""

from __future__ import annotations

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: State | None = None,
) -> Tensor:
    """See :func:`flowops.ops.linear_attention`."""
    return linear_attention_state(
        q,
        k,
        v,
        feature_map=feature_map,
        causal=causal,
        normalize=normalize,
        eps=eps,
        key_padding_mask=key_padding_mask,
        cu_seqlens=cu_seqlens,
        initial_state=initial_state,
    )[0]


def linear_attention_state(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: State | None = None,
) -> tuple[Tensor, State]:
    """See :func:`flowops.ops.linear_attention_state`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys = linear_attention_features(q.to(wide), k.to(wide), feature_map, key_padding_mask)
    values = v.to(wide)
    if key_padding_mask is not None:
        left_out = key_padding_mask[:, :, None, None]
        keys, values = keys.masked_fill(left_out, 0), values.masked_fill(left_out, 0)

    # Whether a position belongs to a sequence, (B, T, N): each batch is one, or a batch of one has
    # several.
    of_query = _membership(q, cu_seqlens).to(wide)
    of_key = _membership(k, cu_seqlens).to(wide)
    allowed = torch.einsum("bin,bjn->bij", of_query, of_key)
    if causal:
        allowed = allowed.tril()
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) * allowed[:, None]
    numerator = torch.einsum("bhij,bjhe->bihe", scores, values)
    denominator = scores.sum(3).transpose(1, 2)
    kv = torch.einsum("bjhd,bjhe,bjn->nhde", keys, values, of_key)
    z = torch.einsum("bjhd,bjn->nhd", keys, of_key)
    if initial_state is not None:
        kv_0, z_0 = initial_state
        numerator = numerator + torch.einsum("bihd,nhde,bin->bihe", queries, kv_0, of_query)
        denominator = denominator + torch.einsum("bihd,nhd,bin->bih", queries, z_0, of_query)
        kv, z = kv + kv_0, z + z_0
    if normalize and feature_map != "softmax":
        numerator = numerator / (denominator + eps)[..., None]
    return numerator.to(q.dtype), (kv, z)


def linear_attention_features(
    q: Tensor, k: Tensor, feature_map: str, key_padding_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the features of queries and keys, in their dtype."""
    if feature_map == "softmax":
        logits = k
        if key_padding_mask is not None:
            lowest = torch.finfo(k.dtype).min
            logits = k.masked_fill(key_padding_mask[:, :, None, None], lowest)
        return q.softmax(3), logits.softmax(1)
    return _feature(q, feature_map), _feature(k, feature_map)


def _feature(x: Tensor, feature_map: str) -> Tensor:
    if feature_map == "elu":
        return torch.where(x > 0, x + 1, torch.exp(x.clamp(max=0)))
    if feature_map == "relu":
        return torch.relu(x)
    if feature_map == "cosine":
        wide = torch.promote_types(x.dtype, torch.float32)
        unit = torch.nn.functional.normalize(x.to(wide), dim=3).to(x.dtype)
        return torch.cat([torch.ones_like(x[..., :1]), unit], 3)
    return torch.exp(x) if feature_map == "exp" else x


def _membership(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    if cu_seqlens is None:
        return torch.eye(x.size(0), device=x.device)[:, None].expand(-1, x.size(1), -1)
    position = torch.arange(x.size(1), device=x.device)[:, None]
    return ((position >= cu_seqlens[:-1]) & (position < cu_seqlens[1:]))[None]
