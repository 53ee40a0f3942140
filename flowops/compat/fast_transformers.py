"""Linear attention of fast-transformers, by its names and arguments, on flowops kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, pad, relu

from flowops import ops
from flowops.compat._known import name_of
from flowops.compat._twins import Twin, full_name

__all__ = [
    "CausalLinearAttention",
    "LinearAttention",
    "RecurrentLinearAttention",
    "causal_dot_product",
    "elu_feature_map",
]

State = Sequence[Tensor]


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


def elu_plus_one(x: Tensor) -> Tensor:
    """Return elu(x) + 1."""
    return elu(x) + 1


# What the kernels compute themselves.
_KERNEL_MAPS = {"elu": elu_plus_one, "relu": relu}


class ActivationFunctionFeatureMap(nn.Module):
    """Features of each element by itself.

    Args:
        query_dims: Not used.
        activation_function: Of tensors.
    """

    def __init__(
        self, query_dims: int, activation_function: Callable[[Tensor], Tensor] = elu_plus_one
    ) -> None:
        super().__init__()
        self.query_dims = query_dims
        self.activation_function = activation_function

    def new_feature_map(self, device: torch.device) -> None:
        """Draw new features, of which there are none here."""

    def forward_queries(self, x: Tensor) -> Tensor:
        """Return the features of queries."""
        return self.activation_function(x)

    def forward_keys(self, x: Tensor) -> Tensor:
        """Return the features of keys."""
        return self.activation_function(x)


#: The map elu(x) + 1, which is the default.
elu_feature_map = ActivationFunctionFeatureMap


class _Attention(Twin):
    """What the three have in common; arguments as for :class:`CausalLinearAttention`."""

    feature_map: Any
    eps: float

    def __init__(
        self,
        query_dimensions: int,
        feature_map: Callable[[int], nn.Module] | None = None,
        eps: float = 1e-6,
        event_dispatcher: object = "",
    ) -> None:
        super().__init__()
        self.feature_map = (feature_map or elu_feature_map)(query_dimensions)
        self.eps = eps
        self.event_dispatcher = event_dispatcher

    def _features(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, str]:
        """Return what the kernel is given as queries and keys, and its feature map."""
        kind = full_name(type(self.feature_map)).rpartition(".")[2]
        if kind == "ActivationFunctionFeatureMap":
            name = name_of(self.feature_map.activation_function, _KERNEL_MAPS)
            if name is not None:
                return queries, keys, name
        of_queries = self.feature_map.forward_queries(queries)
        return of_queries, self.feature_map.forward_keys(keys), "identity"


class _Whole(_Attention):
    """Attention of whole sequences, under the one mask that the layer knows."""

    causal: ClassVar[bool]

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attn_mask: Any,
        query_lengths: Any,
        key_lengths: Any,
    ) -> Tensor:
        """Return (N, L, H, M); if causal, keys and values are cut or padded to the length L.

        Args:
            queries: (N, L, H, E).
            keys: (N, S, H, E).
            values: (N, S, H, M).
            attn_mask: A mask of fast-transformers: full, or if causal lower triangular.
            query_lengths: Not used.
            key_lengths: A mask (N, S).

        Raises:
            RuntimeError: If ``attn_mask`` is another.
        """
        if not (attn_mask.lower_triangular if self.causal else attn_mask.all_ones):
            wanted = "lower triangular" if self.causal else "full"
            name = type(self).__name__
            raise RuntimeError(f"{name}: attn_mask must be {wanted}, got one that is not")
        return self._attend(queries, keys, values, key_lengths)

    def _attend(self, q: Tensor, k: Tensor, values: Tensor, key_lengths: Any) -> Tensor:
        self.feature_map.new_feature_map(q.device)
        q, k, name = self._features(q, k)
        padding = key_lengths.bool_matrix == 0
        if self.causal and (more := q.size(1) - k.size(1)):
            # Keys to come are cut, and missing ones have no weight.
            k, values = (pad(t, (0, 0, 0, 0, 0, more)) for t in (k, values))
            padding = pad(padding, (0, more), value=True)
        return ops.linear_attention(
            q,
            k,
            values,
            feature_map=name,
            causal=self.causal,
            eps=self.eps,
            key_padding_mask=padding,
        )


class LinearAttention(_Whole):
    """Every query sees every key; arguments as for :class:`CausalLinearAttention`.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236.
    """

    causal = False


class CausalLinearAttention(_Whole):
    """A query sees the keys up to its own place.

    Args:
        query_dimensions: Size of queries and keys.
        feature_map: Makes a feature map of that size; by default elu(x) + 1. That and relu are
            computed inside of the kernel.
        eps: Added to the sum of weights.
        event_dispatcher: Kept, not used: these layers send no events.

    Source:
        Katharopoulos et al., Transformers are RNNs, 2020, arXiv:2006.16236.
    """

    causal = True


class RecurrentLinearAttention(_Attention):
    """One step of :class:`CausalLinearAttention` at a time, with its state; arguments as there.

    The state given stays as it is.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        state: State | None = None,
        memory: State | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return (N, H, M) and the next state [(N, H, E, M), (N, H, E)].

        Args:
            query: (N, H, E).
            key: (N, H, E).
            value: (N, H, M).
            state: What the step before returned, None at the first.
            memory: An older name of ``state``.

        Raises:
            ValueError: If both are given, or a shape does not fit.
        """
        if state is not None and memory is not None:
            raise ValueError("RecurrentLinearAttention: memory must be None with state, got both")
        state = memory if state is None else state
        if state is None:
            self.feature_map.new_feature_map(query.device)
        q, k, name = self._features(query, key)
        out, new = ops.linear_attention_state(
            q.unsqueeze(1),
            k.unsqueeze(1),
            value.unsqueeze(1),
            feature_map=name,
            causal=True,
            eps=self.eps,
            initial_state=None if state is None else (state[0], state[1]),
        )
        return out.squeeze(1), list(new)


_PLACES = {
    "attention.linear_attention": LinearAttention,
    "attention.causal_linear_attention": CausalLinearAttention,
    "recurrent.attention.self_attention.linear_attention": RecurrentLinearAttention,
}
#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[Twin]] = {
    f"fast_transformers.{place}.{twin.__name__}": twin for place, twin in _PLACES.items()
}
