"""The twins of fla's and fast-transformers' functions against the sums that they stand for.

Against fla's own functions in ``test_fla_peer``.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from flowops.compat import fast_transformers, fla
from flowops.testing import assert_close

CHUNKED = [fla.chunk_linear_attn, fla.fused_chunk_linear_attn, fla.fused_recurrent_linear_attn]


def inputs(length=7, batch=2, dtype=torch.float64):
    def draw(*shape):
        return torch.rand(*shape, dtype=torch.float64).add(0.1).to(dtype).requires_grad_()

    return [draw(batch, length, 3, size) for size in (4, 4, 5)]


def explicit(q, k, v, scale, kv=0, z=0, normalize=True):
    """The recurrence itself, from the formula, with one state a step."""
    states = (k[..., :, None] * v[..., None, :]).cumsum(1) + kv
    sums = k.cumsum(1) + z
    out = scale * torch.einsum("bthk,bthkv->bthv", q, states)
    if normalize:
        out = out / (scale * (q * sums).sum(-1, keepdim=True) + 1e-10)
    return out, states[:, -1], sums[:, -1:]


def equal_with_gradients(got, want, leaves):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert_close(a, b, dtype=torch.float64, factor=10)
    weights = [torch.randn_like(t) for t in got]
    for a, b in zip(
        torch.autograd.grad(got, leaves, weights, retain_graph=True),
        torch.autograd.grad(want, leaves, weights),
        strict=True,
    ):
        assert_close(a, b, dtype=torch.float64, factor=100)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("function", CHUNKED)
def test_normalised_with_state(function, scale):
    leaves = inputs()
    kv = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    z = torch.rand(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    out, state = function(
        *leaves, scale=scale, initial_state=(kv, z), output_final_state=True, normalize=True
    )
    want = explicit(*leaves, 0.5 if scale is None else scale, kv[:, None], z)
    equal_with_gradients((out, *state), want, [*leaves, kv, z])


@pytest.mark.parametrize("function", CHUNKED)
def test_not_normalised(function):
    leaves = inputs()
    kv = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    got = function(*leaves, initial_state=kv, output_final_state=True, normalize=False)
    want = explicit(*leaves, 0.5, kv[:, None], normalize=False)[:2]
    equal_with_gradients(got, want, [*leaves, kv])


def test_defaults_are_those_of_fla():
    leaves = inputs()
    for function, normalize in zip(CHUNKED, (True, True, False), strict=True):
        out, state = function(*leaves)
        assert state is None
        assert_close(out, explicit(*leaves, 0.5, normalize=normalize)[0], dtype=torch.float64)


def test_a_state_without_sums_starts_them_at_zero():
    leaves, kv = inputs(), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    out, _ = fla.chunk_linear_attn(*leaves, initial_state=kv)
    assert_close(out, explicit(*leaves, 0.5, kv[:, None])[0], dtype=torch.float64, factor=10)


@pytest.mark.parametrize("normalize", [False, True])
def test_reverse_sees_what_comes_after(normalize):
    leaves = inputs()
    out, _ = fla.fused_recurrent_linear_attn(*leaves, reverse=True, normalize=normalize)
    want = explicit(*(t.flip(1) for t in leaves), 0.5, normalize=normalize)[0].flip(1)
    assert_close(out, want, dtype=torch.float64, factor=10)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_apart(reverse):
    q, k, v = inputs(9, 1)
    bounds = [0, 2, 3, 9]
    kv, z = torch.rand(3, 3, 4, 5, dtype=torch.float64), torch.rand(3, 1, 3, 4, dtype=torch.float64)
    options = {"output_final_state": True, "reverse": reverse, "normalize": True}
    out, (last_kv, last_z) = fla.fused_recurrent_linear_attn(
        q, k, v, initial_state=(kv, z), cu_seqlens=torch.tensor(bounds), **options
    )
    for i, (start, end) in enumerate(itertools.pairwise(bounds)):
        piece = [t[:, start:end] for t in (q, k, v)]
        alone, (alone_kv, alone_z) = fla.fused_recurrent_linear_attn(
            *piece, initial_state=(kv[i : i + 1], z[i : i + 1]), **options
        )
        assert_close(out[:, start:end], alone, dtype=torch.float64, factor=10)
        assert_close(last_kv[i], alone_kv[0], dtype=torch.float64, factor=10)
        assert_close(last_z[i], alone_z[0], dtype=torch.float64, factor=10)


def test_errors_of_fla():
    q, k, v = inputs()
    pair = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 3, 4)
    with pytest.raises(ValueError, match="linear_attn: scale must not be 0"):
        fla.chunk_linear_attn(q, k, v, scale=0)
    with pytest.raises(ValueError, match="linear_attn: initial_state must be one tensor"):
        fla.chunk_linear_attn(q, k, v, initial_state=pair, normalize=False)
    with pytest.raises(ValueError, match="linear_attention: k must have shape"):
        fla.chunk_linear_attn(q, k[:, :3], v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_causal_dot_product(dtype):
    q, k, v = (t.detach().transpose(1, 2).requires_grad_() for t in inputs(dtype=dtype))
    out = fast_transformers.causal_dot_product(q, k, v)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    weights = (wide[0] @ wide[1].mT).tril()
    want = weights @ wide[2]
    assert out.dtype == dtype
    assert_close(out, want, dtype=dtype, factor=10)
    upstream = torch.randn_like(want)
    got_grads = torch.autograd.grad(out, [q, k, v], upstream.to(dtype))
    want_grads = torch.autograd.grad(want, wide, upstream.to(dtype).double())
    for a, b in zip(got_grads, want_grads, strict=True):
        assert_close(a, b, dtype=dtype, factor=30)
