"""What ``fla.ops.linear_attn`` offers, without Triton and on the CPU too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowops import ops

__all__ = ["chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn"]

State = Tensor | tuple[Tensor, Tensor]
_EPS = 1e-10


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    r"""Causal linear attention of queries and keys after their feature map.

    .. math::
        o_i = \frac{c\, S_i^T q_i}{c\, z_i^T q_i + 10^{-10}}, \qquad
        S_i = S_0 + \sum_{j \le i} k_j v_j^T, \quad z_i = z_0 + \sum_{j \le i} k_j

    with the scale c; not normalised, the numerator alone.

    Args:
        q: Queries, (B, T, H, K).
        k: Keys, (B, T, H, K).
        v: Values, (B, T, H, V).
        scale: c, by default ``K ** -0.5``.
        initial_state: :math:`S_0` (N, H, K, V); where normalised, with :math:`z_0` (N, 1, H, K) as
            a pair, or alone for :math:`z_0 = 0`. N = B without ``cu_seqlens``.
        output_final_state: Whether to return the last state.
        normalize: Whether to divide.
        cu_seqlens: int64 or int32 (N + 1), the bounds of the sequences that a batch of one holds.

    Returns:
        (B, T, H, V) in the dtype of ``q``; and the last state, float32 (float64 for float64), a
        pair where normalised, None where it is not asked for.

    Raises:
        ValueError: If a shape does not fit the others, ``scale`` is 0, or the state is a pair
            where not normalised.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236.
    """
    scale = 1 / math.sqrt(q.size(-1)) if scale is None else scale
    if scale == 0:
        raise ValueError("linear_attn: scale must not be 0, got 0")
    if isinstance(initial_state, tuple) and not normalize:
        raise ValueError("linear_attn: initial_state must be one tensor with normalize=False")
    out, (kv, z) = ops.linear_attention_state(
        # Where normalised, only eps feels the scale.
        q if normalize else q * scale,
        k,
        v,
        feature_map="identity",
        causal=True,
        normalize=normalize,
        eps=_EPS / scale,
        cu_seqlens=cu_seqlens,
        initial_state=_state(initial_state),
    )
    if not output_final_state:
        return out, None
    return out, (kv, z.unsqueeze(1)) if normalize else kv


#: There is one kernel.
fused_chunk_linear_attn = chunk_linear_attn


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    """Return what :func:`chunk_linear_attn` returns, or with ``reverse`` from the last step back.

    Args:
        q: See there.
        k: See there.
        v: See there.
        scale: See there.
        initial_state: See there; with ``reverse``, what comes after the last step.
        output_final_state: See there.
        reverse: Whether position i sees those from i on.
        normalize: See there.
        cu_seqlens: See there.
    """
    if not reverse:
        return chunk_linear_attn(
            q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens
        )
    # Backwards in time the sequences of a packed batch come in the opposite order too.
    packed = cu_seqlens is not None
    if packed:
        cu_seqlens = q.size(1) - cu_seqlens.flip(0)
        initial_state = _flip_sequences(initial_state)
    q, k, v = (t.flip(1) for t in (q, k, v))
    out, final = chunk_linear_attn(
        q, k, v, scale, initial_state, output_final_state, normalize, cu_seqlens
    )
    return out.flip(1), _flip_sequences(final) if packed else final


def _state(initial: State | None) -> tuple[Tensor, Tensor] | None:
    if initial is None:
        return None
    if isinstance(initial, tuple):
        return initial[0], initial[1].squeeze(1)
    return initial, initial.new_zeros(initial.shape[:-1])


def _flip_sequences(state: State | None) -> State | None:
    if isinstance(state, tuple):
        return state[0].flip(0), state[1].flip(0)
    return None if state is None else torch.flip(state, (0,))
