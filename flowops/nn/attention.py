"""Linear attention as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowops import ops
from flowops.ops._dispatch import index_of
from flowops.ops.linear_attention import FEATURE_MAPS, State


class LinearAttention(nn.Module):
    """Multi-head attention in time linear in the length.

    See :func:`flowops.ops.linear_attention`. Parameters, their names and initial distributions are
    those of ``nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)``, whose state dict
    loads, and :meth:`forward` takes what its forward takes: the layer can stand in its place, in
    ``nn.TransformerEncoderLayer`` too. The weights of the attention are never formed, except by
    :meth:`attention_matrix`, for those who want to look at them.

    Args:
        embed_dim: size of the inputs and of the output.
        num_heads: heads, among which ``embed_dim`` is divided evenly.
        bias: whether the projections have biases.
        feature_map: of queries and keys, see the function.
        causal: whether a position sees those up to itself alone; :meth:`step` needs it.
        normalize: whether to divide by the sum of the weights.
        eps: added to that sum.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if ``embed_dim`` is not a multiple of ``num_heads``, or ``feature_map`` unknown.

    Example:
        >>> layer = LinearAttention(8, 2, causal=True)
        >>> x = torch.randn(1, 5, 8)
        >>> prompt, state = layer.step(x[:, :4])
        >>> last, state = layer.step(x[:, 4:], state)
        >>> torch.allclose(torch.cat([prompt, last], 1), layer(x, x, x)[0], atol=1e-6)
        True
    """

    batch_first = True
    # nn.TransformerEncoderLayer then calls the layer, instead of softmax attention on its weights.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        feature_map: str = "elu",
        causal: bool = False,
        normalize: bool = True,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        index_of("LinearAttention", "feature_map", feature_map, FEATURE_MAPS)
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(
                f"LinearAttention: embed_dim must be a multiple of num_heads, got {embed_dim} and "
                f"{num_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.feature_map = feature_map
        self.causal = causal
        self.normalize = normalize
        self.eps = eps
        width = 3 * embed_dim
        self.in_proj_weight = nn.Parameter(
            torch.empty(width, embed_dim, device=device, dtype=dtype)
        )
        in_proj_bias = torch.empty(width, device=device, dtype=dtype)
        self.in_proj_bias = nn.Parameter(in_proj_bias) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values, as ``nn.MultiheadAttention`` does."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend from the queries to the keys.

        Args:
            query: (B, Tq, embed_dim).
            key: (B, Tk, embed_dim).
            value: (B, Tk, embed_dim).
            key_padding_mask: (B, Tk), True, or minus infinity, where a key is left out.
            need_weights: must be False.
            attn_mask: must be None, unless ``is_causal`` says that it is the causal mask.
            is_causal: whether this call is causal, whatever the layer is.

        Returns:
            (B, Tq, embed_dim), and None in the place of the weights.

        Raises:
            ValueError: if weights or an arbitrary mask are asked for, or shapes do not fit.
        """
        if need_weights:
            raise ValueError("LinearAttention: need_weights must be False, got True")
        if attn_mask is not None and not is_causal:
            raise ValueError("LinearAttention: attn_mask must be None or causal, got a mask")
        q, k, v = self._project(query, key, value)
        out = self._attend(q, k, v, key_padding_mask, is_causal)
        return self.out_proj(out.flatten(2)), None

    def attention_matrix(
        self,
        query: Tensor,
        key: Tensor,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the weights of :meth:`forward`, which itself never forms them, to look at them.

        They are what the op makes of an identity matrix in the place of the values: the heads'
        outputs are these matrices times the projected values. Rows sum to one, up to ``eps``, where
        the layer normalises. Cost: quadratic in the length, in time and memory.

        Args:
            query: (B, Tq, embed_dim).
            key: (B, Tk, embed_dim).
            key_padding_mask: see :meth:`forward`.
            is_causal: see :meth:`forward`.

        Returns:
            (B, num_heads, Tq, Tk).
        """
        q, k, _ = self._project(query, key, key)
        length = k.size(1)
        identity = torch.eye(length, device=k.device, dtype=k.dtype)[None, :, None]
        values = identity.expand(k.size(0), length, self.num_heads, length)
        return self._attend(q, k, values, key_padding_mask, is_causal).transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            key_padding_mask = torch.isneginf(key_padding_mask)
        return ops.linear_attention(
            q,
            k,
            v,
            feature_map=self.feature_map,
            causal=self.causal or is_causal,
            normalize=self.normalize,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
        )

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Attend from the next positions to themselves and all before them.

        Args:
            x: the next positions, (B, T, embed_dim): a whole prompt, or one at a time.
            state: what the call before returned; None at the beginning.

        Returns:
            (B, T, embed_dim), and the state for the next call.

        Raises:
            ValueError: if the layer is not causal.
        """
        if not self.causal:
            raise ValueError("LinearAttention: step must be called on a causal layer")
        q, k, v = self._project(x, x, x)
        out, state = ops.linear_attention_state(
            q,
            k,
            v,
            feature_map=self.feature_map,
            causal=True,
            normalize=self.normalize,
            eps=self.eps,
            initial_state=state,
        )
        return self.out_proj(out.flatten(2)), state

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.dim() != 3 or x.size(2) != self.embed_dim:
                raise ValueError(
                    f"LinearAttention: {name} must have shape (batch, time, {self.embed_dim}), "
                    f"got {list(x.shape)}"
                )
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key and key is value:
            q, k, v = functional.linear(query, weight, bias).chunk(3, 2)
        else:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            given = zip((query, key, value), weight.chunk(3), biases, strict=True)
            q, k, v = (functional.linear(x, w, b) for x, w, b in given)
        # Neither in a loop nor by unflatten: the compiler fails on both under torch.device.
        return self._heads(q), self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.num_heads, self.embed_dim // self.num_heads)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"{self.embed_dim}, {self.num_heads}, feature_map={self.feature_map!r}, "
            f"causal={self.causal}, normalize={self.normalize}"
        )
