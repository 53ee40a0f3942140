"""What ``fast_transformers.causal_product`` offers."""

from __future__ import annotations

from torch import Tensor

from flowops import ops

__all__ = ["causal_dot_product"]


def causal_dot_product(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    r"""Sum of values before and at each position, weighted by the products of query and keys.

    .. math:: o_i = \sum_{j \le i} (q_i \cdot k_j) v_j

    For ``from fast_transformers.causal_product import causal_dot_product``. Other than there,
    16-bit types and float64 are taken too, and the result has the dtype of ``Q``.

    Args:
        Q: Queries after the feature map, (N, H, L, E).
        K: Keys after the feature map, (N, H, L, E).
        V: Values, (N, H, L, M).

    Returns:
        (N, H, L, M). It lies in memory as (N, L, H, M).

    Raises:
        ValueError: If a shape does not fit the others.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236, equations 8 and 9.
    """
    q, k, v = (t.transpose(1, 2) for t in (Q, K, V))
    out = ops.linear_attention(q, k, v, feature_map="identity", causal=True, normalize=False)
    return out.transpose(1, 2)
