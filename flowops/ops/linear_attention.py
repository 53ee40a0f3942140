"""Linear attention: non-causal, causal and recurrent, with its state."""

from __future__ import annotations

import torch
from torch import Tensor

from flowops import reference
from flowops.ops._dispatch import accumulation_dtype, index_of, transforms_active, typed_call

_NAME = "linear_attention"
_kernel = typed_call("linear_attention")
_KERNEL_MAPS = ("elu", "relu", "exp", "identity")
FEATURE_MAPS = (*_KERNEL_MAPS, "cosine", "softmax")
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
    r"""Attend in time linear in the length, by features of queries and keys.

    .. math::
        o_i = \frac{S_i^T \phi(q_i)}{z_i^T \phi(q_i) + \epsilon}, \qquad
        S_i = S_0 + \sum_j \phi(k_j) v_j^T, \quad z_i = z_0 + \sum_j \phi(k_j),

    with the sums over all j or, causal, over :math:`j \le i`. Not normalised, the result is
    :math:`S_i^T \phi(q_i)`. There is no :math:`1 / \sqrt{D}`.

    Shapes:
        q (B, Tq, H, D), k (B, Tk, H, D), v (B, Tk, H, Dv); Dv may differ from D, and Tq from Tk
        where not causal. Any strides; only a last dimension that is not dense costs a copy.

    Args:
        q: Queries, float64, float32, float16 or bfloat16.
        k: Keys, dtype of ``q``.
        v: Values, dtype of ``q``.
        feature_map: :math:`\phi`. "elu": :math:`\mathrm{elu}(x) + 1`, computed without
            cancellation; "relu"; "exp"; "identity"; "cosine": :math:`(1, x / \|x\|)`, so that the
            weights are :math:`1 + \cos(q_i, k_j)` and the state has D + 1 rows; "softmax": softmax
            of a query over its D features and of each feature of the keys over time, whose weights
            sum to one by themselves, not with ``causal``, ``cu_seqlens`` or ``initial_state``.
        causal: Whether row i sees keys up to i alone.
        normalize: Whether to divide by the sum of the weights.
        eps: Added to that sum, so that a row without weight gives 0. With "identity" the sum can
            come near ``-eps``: then nothing guards the quotient.
        key_padding_mask: bool (B, Tk), True where a key is left out, as in
            ``nn.MultiheadAttention``. What it holds, NaN included, is not seen.
        cu_seqlens: int64 or int32 (N + 1), rising from 0 to the length: sequence n is
            ``q[0, cu_seqlens[n]:cu_seqlens[n + 1]]`` of a batch of one, and sees itself alone.
            On a GPU its values are not checked.
        initial_state: :math:`S_0` (N, H, D, Dv) and :math:`z_0` (N, H, D), in float64 for float64
            and else float32; N = B without ``cu_seqlens``. None for zeros.

    Returns:
        (B, Tq, H, Dv), dtype of ``q``, differentiable in q, k, v and the state.

    Raises:
        ValueError: If an argument does not fit the others.

    Numerics:
        Features, sums and state in float32 for the 16-bit types. The same for any thread count.
        CUDA multiplies on tensor cores in TF32: float32 operands and the sums of the state in three
        products, with an error of 2^-21, the rows of 16-bit results in one, with 2^-11.
        Causality is exact: a NaN or an infinity at a later time changes nothing before it.
        Differentiable any number of times. Under autocast q, k and v are taken in the lower
        precision, as by ``scaled_dot_product_attention``, the state as it is. ``torch.func``
        transforms and forward-mode AD take :func:`flowops.reference.linear_attention`, which forms
        the matrix of weights.

    Cost:
        2 T H D Dv multiplications, causal about 32 T H (D + Dv) / 2 more; the backward pass three
        times that. Memory beyond inputs and results: one number a row; the state of one head.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236, equations 4-12;
        "softmax": Shen et al., Efficient Attention, 2018, arXiv:1812.01243.

    Example:
        >>> q, k, v = torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2), torch.tensor([3.0, 6, 9])
        >>> linear_attention(q, k, v.view(1, 3, 1, 1), causal=True, eps=0).flatten()
        tensor([3.0000, 4.5000, 6.0000])
    """
    return _run(
        q,
        k,
        v,
        feature_map,
        causal,
        normalize,
        eps,
        key_padding_mask,
        cu_seqlens,
        initial_state,
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
    r"""Return what :func:`linear_attention` returns, and the state after the last key.

    A causal call of one time step with the last state is one step of the recurrence: in any split,
    the pieces of a sequence give what the whole gives.

    Args:
        q: See :func:`linear_attention`.
        k: See there.
        v: See there.
        feature_map: See there; not "softmax", which has no state.
        causal: See there.
        normalize: See there.
        eps: See there.
        key_padding_mask: See there.
        cu_seqlens: See there.
        initial_state: See there.

    Returns:
        The result, and :math:`S` (N, H, D, Dv) and :math:`z` (N, H, D), float64 for float64 and
        else float32, differentiable too.

    Raises:
        ValueError: If an argument does not fit the others.

    Example:
        >>> q = torch.randn(1, 5, 2, 4)
        >>> whole = linear_attention(q, q, q, causal=True)
        >>> out, state = linear_attention_state(q[:, :3], q[:, :3], q[:, :3], causal=True)
        >>> rest = linear_attention(q[:, 3:], q[:, 3:], q[:, 3:], causal=True, initial_state=state)
        >>> torch.allclose(torch.cat([out, rest], 1), whole)
        True
    """
    if feature_map == "softmax":
        raise ValueError(f"{_NAME}: feature_map must not be 'softmax' where a state is wanted")
    return _run(
        q,
        k,
        v,
        feature_map,
        causal,
        normalize,
        eps,
        key_padding_mask,
        cu_seqlens,
        initial_state,
    )


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: str,
    causal: bool,
    normalize: bool,
    eps: float,
    key_padding_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: State | None,
) -> tuple[Tensor, State]:
    index_of(_NAME, "feature_map", feature_map, FEATURE_MAPS)
    if feature_map == "softmax" and (causal or not (cu_seqlens is initial_state is None)):
        raise ValueError(
            f"{_NAME}: feature_map must not be 'softmax' with causal, cu_seqlens or initial_state, "
            "for it looks at all keys"
        )
    if transforms_active():
        return reference.linear_attention_state(
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
        )
    if feature_map not in _KERNEL_MAPS:
        normalize = normalize and feature_map != "softmax"
        q, k = reference.linear_attention_features(q, k, feature_map, key_padding_mask)
        feature_map = "identity"
    kv, z = (None, None) if initial_state is None else initial_state
    out, kv, z, _ = _kernel(
        q,
        k,
        v,
        kv,
        z,
        key_padding_mask,
        cu_seqlens,
        _KERNEL_MAPS.index(feature_map),
        causal,
        normalize,
        eps,
    )
    return out, (kv, z)


@torch.library.register_fake("flowops::linear_attention")
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    key_padding_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    feature_map: int,
    causal: bool,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = [q.size(0), q.size(1) if causal else k.size(1), q.size(2), q.size(3)]
    torch._check_value(
        list(k.shape) == wanted, lambda: f"{_NAME}: k must have shape {wanted}, got {list(k.shape)}"
    )
    wanted = [*wanted[:3], v.size(3)]
    torch._check_value(
        list(v.shape) == wanted, lambda: f"{_NAME}: v must have shape {wanted}, got {list(v.shape)}"
    )
    sequences = q.size(0) if cu_seqlens is None else cu_seqlens.size(0) - 1
    wide = accumulation_dtype(q.dtype)
    state = (sequences, q.size(2), q.size(3))
    return (
        q.new_empty((*q.shape[:3], v.size(3))),
        q.new_empty((*state, v.size(3)), dtype=wide),
        q.new_empty(state, dtype=wide),
        q.new_empty(q.shape[:3] if normalize else (0,), dtype=wide),
    )


@torch.library.register_fake("flowops::linear_attention_backward")
def _(
    grad_out: Tensor,
    grad_kv: Tensor | None,
    grad_z: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_kv: Tensor | None,
    initial_z: Tensor | None,
    key_padding_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    out: Tensor,
    final_kv: Tensor,
    final_z: Tensor,
    denominator: Tensor,
    feature_map: int,
    causal: bool,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(q.dtype)
    wanted = initial_kv is not None or not causal
    state = [q.new_empty(t.shape if wanted else 0, dtype=wide) for t in (final_kv, final_z)]
    q, k, v = (t.new_empty(t.shape) for t in (q, k, v))
    return q, k, v, state[0], state[1]
