"""Linear attention as PyTorch code writes it: one step over chunks, or the whole in one product."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import elu, pad

from benchmarks.case import Case, Function, Rival, Sweep
from flowops import ops

_CHUNK = 128


def non_causal(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """fast-transformers' LinearAttention."""
    q, k = elu(q) + 1, elu(k) + 1
    kv = torch.einsum("nshd,nshm->nhmd", k, v)
    z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(1)) + 1e-6)
    return [torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z)]


def causal_cumsum(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The formula as it is written: every state in memory."""
    q, k = elu(q) + 1, elu(k) + 1
    kv = torch.einsum("nshd,nshm->nshdm", k, v).cumsum(1)
    z = 1 / (torch.einsum("nlhd,nlhd->nlh", q, k.cumsum(1)) + 1e-6)
    return [torch.einsum("nlhd,nlhdm,nlh->nlhm", q, kv, z)]


def causal_chunked(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The best that eager PyTorch does: matrix products in chunks, states summed over them."""
    batch, time, heads, _ = q.shape
    q, k, v = (
        x.view(batch, time // _CHUNK, _CHUNK, heads, -1).transpose(2, 3)
        for x in (elu(q) + 1, elu(k) + 1, pad(v, (0, 1), value=1.0))
    )
    states = (k.transpose(3, 4) @ v).cumsum(1)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    sums = (q @ k.transpose(3, 4)).tril() @ v + q @ before
    out = sums[..., :-1] / (sums[..., -1:] + 1e-6)
    return [out.transpose(2, 3).reshape(batch, time, heads, -1)]


def load_fast_transformers(size: tuple[int, ...], causal: bool) -> Function:
    """The package's layer, and the masks that a model makes once for all its layers and steps."""
    from fast_transformers import attention, masking

    batch, time, _, width = size
    device = torch.get_default_device()
    lengths = masking.LengthMask(torch.full((batch,), time, device=device))
    if causal:
        layer = attention.CausalLinearAttention(width)
        mask = masking.TriangularCausalMask(time, device=device)
    else:
        layer = attention.LinearAttention(width)
        mask = masking.FullMask(time, device=device)
    return lambda q, k, v: [layer(q, k, v, mask, lengths, lengths)]


def load_fla() -> Function:
    from fla.ops.linear_attn import chunk_linear_attn

    return lambda q, k, v: [
        chunk_linear_attn(elu(q) + 1, elu(k) + 1, v, scale=1.0, normalize=True)[0]
    ]


def rivals(size: tuple[int, ...], causal: bool) -> tuple[Rival, ...]:
    peer = Rival("fast_transformers", partial(load_fast_transformers, size, causal))
    return (peer, Rival("fla", load_fla, devices=("cuda",))) if causal else (peer,)


def case(name: str, eager: object, size: tuple[int, ...], causal: bool) -> Case:
    return Case(
        "linear_attention",
        f"{size} float32, {name}",
        lambda: [torch.randn(size) for _ in range(3)],
        eager,  # pyright: ignore[reportArgumentType]
        lambda q, k, v: [ops.linear_attention(q, k, v, causal=causal)],
        4 * 4 * torch.Size(size).numel(),
        # What must be done whatever the chunks: each key into a state, each query out of it.
        flops=4 * torch.Size(size).numel() * size[-1],
        rivals=rivals(size, causal),
    )


CASES = [
    case("causal, against chunks", causal_chunked, (4, 1024, 8, 64), True),
    case("causal, against cumsum", causal_cumsum, (1, 512, 8, 64), True),
    case("causal, against chunks", causal_chunked, (4, 4096, 8, 64), True),
    case("non-causal", non_causal, (4, 1024, 8, 64), False),
    case("non-causal", non_causal, (4, 4096, 8, 64), False),
]

SWEEPS = [
    Sweep(
        "linear_attention", "sequence length", (512, 1024, 2048, 4096, 8192),
        lambda n: case("causal, against chunks", causal_chunked, (1, n, 8, 64), True),
    ),
    Sweep(
        "linear_attention", "head width", (16, 32, 64, 128),
        lambda d: case("causal, against chunks", causal_chunked, (1, 2048, 8, d), True),
    ),
]  # fmt: skip
