"""linear_attention against the explicit matrix of weights in float64, its gradients, its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from ops.cases import DTYPES
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close

# (B, Tq, Tk, H, D, Dv): below, at and above chunks and vectors, one row, more than one tile.
SHAPES = ((2, 70, 70, 3, 5, 7), (1, 33, 33, 2, 40, 70), (2, 1, 1, 1, 17, 3), (1, 64, 64, 2, 16, 1))
CROSS = ((2, 20, 45, 2, 16, 33), (1, 45, 20, 1, 3, 4))
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
    "exp": torch.exp,
    "identity": lambda x: x,
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def make(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, sequences: int
) -> Inputs:
    """q, k, v and a state, positive where it is summed into the denominator."""
    batch, tq, tk, heads, dim, value_dim = shape
    rows = (batch, tq, heads, dim), (batch, tk, heads, dim), (batch, tk, heads, value_dim)
    q, k, v = (torch.randn(size, dtype=torch.float64).to(device, dtype) for size in rows)
    wide = torch.promote_types(dtype, torch.float32)
    kv = torch.randn(sequences, heads, dim, value_dim, dtype=torch.float64).to(device, wide)
    z = 3 * torch.rand(sequences, heads, dim, dtype=torch.float64).to(device, wide)
    return q, k, v, kv, z


def explicit(
    inputs: Inputs, feature_map: str, causal: bool, normalize: bool, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Every head through its matrix of weights, the state as keys before all others."""
    q, k, v, kv, z = inputs
    f = MAPS[feature_map]
    out, last_kv, last_z = torch.zeros(*q.shape[:3], v.size(3)).to(kv), kv.clone(), z.clone()
    for b in range(q.size(0)):
        keep = slice(None) if left_out is None else ~left_out[b]
        for h in range(q.size(2)):
            fq, fk, values = f(q[b, :, h]), f(k[b, :, h]), v[b, :, h]
            weights = fq @ fk.T
            if causal:
                weights = weights.tril()
            weights, fk, values = weights[:, keep], fk[keep], values[keep]
            rows = weights @ values + fq @ kv[b, h]
            if normalize:
                rows = rows / (weights.sum(1) + fq @ z[b, h] + 1e-6)[:, None]
            out[b, :, h] = rows
            last_kv[b, h] = kv[b, h] + fk.T @ values
            last_z[b, h] = z[b, h] + fk.sum(0)
    return out, last_kv, last_z


def leaves(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    return tuple(t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs)  # pyright: ignore


def ours(inputs: Inputs, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *state = inputs
    out, (kv, z) = ops.linear_attention_state(q, k, v, initial_state=tuple(state), **options)  # pyright: ignore
    return out, kv, z


def compare(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Sums over up to 70 x 40 products, so relative to the largest element."""
    scale = wanted.abs().max().clamp(min=1) if wanted.numel() else 1
    assert_close(got / scale, wanted / scale, dtype=dtype, factor=4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("feature_map", "normalize"),
    [("elu", True), ("elu", False), ("relu", True), ("exp", True), ("identity", False)],
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_the_explicit_matrix(
    dtype: torch.dtype,
    causal: bool,
    feature_map: str,
    normalize: bool,
    padded: bool,
    device: torch.device,
) -> None:
    for shape in SHAPES if causal else SHAPES + CROSS:
        inputs = leaves(make(shape, dtype, device, shape[0]))
        exact = leaves(inputs, torch.float64)
        left_out = torch.rand(shape[0], shape[2], device=device) < 0.3 if padded else None
        options = {"feature_map": feature_map, "causal": causal, "normalize": normalize}
        got = ours(inputs, key_padding_mask=left_out, **options)
        wanted = explicit(exact, feature_map, causal, normalize, left_out)
        assert got[0].dtype == dtype
        assert got[1].dtype == got[2].dtype == torch.promote_types(dtype, torch.float32)
        for a, b in zip(got, wanted, strict=True):
            compare(a, b, dtype if a is got[0] else got[1].dtype)
        upstream = [torch.randn_like(t) for t in got]
        grads = torch.autograd.grad(got, inputs, upstream)
        expected = torch.autograd.grad(wanted, exact, [g.double() for g in upstream])
        for a, b, leaf in zip(grads, expected, inputs, strict=True):
            assert a.dtype == leaf.dtype
            compare(a, b, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_heads(dtype: torch.dtype, causal: bool, device: torch.device) -> None:
    """A block of a GPU takes the more columns of a head the more heads there are."""
    for heads in (140, 270):
        inputs = leaves(make((1, 3, 3, heads, 5, 65), dtype, device, 1))
        exact = leaves(inputs, torch.float64)
        got, wanted = ours(inputs, causal=causal), explicit(exact, "elu", causal, True)
        upstream = [torch.randn_like(t) for t in got]
        grads = torch.autograd.grad(got, inputs, upstream)
        expected = torch.autograd.grad(wanted, exact, [g.double() for g in upstream])
        for a, b in zip(got + grads, wanted + expected, strict=True):
            compare(a, b, dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_reference_is_the_explicit_matrix(feature_map: str, causal: bool) -> None:
    inputs = make((2, 9, 9, 2, 3, 4), torch.float64, torch.device("cpu"), 2)
    left_out = torch.rand(2, 9) < 0.3
    q, k, v, kv, z = inputs
    options = {"feature_map": feature_map, "causal": causal, "normalize": feature_map != "identity"}
    out, state = reference.linear_attention_state(
        q, k, v, key_padding_mask=left_out, initial_state=(kv, z), **options
    )
    for a, b in zip((out, *state), explicit(inputs, *options.values(), left_out), strict=True):  # pyright: ignore
        compare(a, b, torch.float64)


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize(
    ("feature_map", "normalize"), [("elu", True), ("exp", True), ("identity", False)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_twice(
    causal: bool, feature_map: str, normalize: bool, sequences: int, device: torch.device
) -> None:
    inputs = leaves(make((1, 5, 5, 2, 2, 3), torch.float64, device, sequences))
    cu_seqlens = None if sequences == 1 else torch.tensor([0, 3, 3, 5], device=device)
    left_out = torch.tensor([[False, True, False, False, False]], device=device)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return ours(
            given,  # pyright: ignore
            feature_map=feature_map,
            causal=causal,
            normalize=normalize,
            key_padding_mask=left_out,
            cu_seqlens=cu_seqlens,
        )

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp"])
@pytest.mark.parametrize("cuts", [None, (0, 35, 36, 40)])
@pytest.mark.parametrize("causal", [False, True])
def test_second_derivatives_are_those_of_the_reference(
    causal: bool, cuts: tuple[int, ...] | None, feature_map: str, device: torch.device
) -> None:
    # More than a chunk, and each output alone: gradgradcheck would miss a first derivative that is
    # wrong where it is composed of ops.
    cu_seqlens = None if cuts is None else torch.tensor(cuts, device=device)
    batch, sequences = (2, 2) if cuts is None else (1, 3)
    inputs = leaves(make((batch, 40, 40, 2, 3, 4), torch.float64, device, sequences))
    q, k, v, *state = inputs
    options = {"causal": causal, "cu_seqlens": cu_seqlens, "feature_map": feature_map}
    options["key_padding_mask"] = torch.rand(batch, 40, device=device) < 0.2
    for index in range(3):
        results = []
        for function in (ops.linear_attention_state, reference.linear_attention_state):
            out, last = function(q, k, v, initial_state=tuple(state), **options)  # pyright: ignore
            loss = (out, *last)[index].square().sum()
            first = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
            penalty = sum(g.square().sum() for g in first)
            second = torch.autograd.grad(penalty, inputs, materialize_grads=True)  # pyright: ignore
            results.append((*first, *second))
        for a, b in zip(*results, strict=True):
            compare(a, b, torch.float64)


@pytest.mark.parametrize("pieces", [(1,) * 40, (63, 2), (64, 64), (31, 1, 100)])
def test_any_split_gives_the_whole(pieces: tuple[int, ...], device: torch.device) -> None:
    time = sum(pieces)
    q, k, v, kv, z = inputs = make((2, time, time, 2, 6, 5), torch.float64, device, 2)
    wanted = ours(inputs, causal=True)
    state, parts = (kv, z), []
    for a, b, c in zip(*(t.split(pieces, 1) for t in (q, k, v)), strict=True):
        part, state = ops.linear_attention_state(a, b, c, causal=True, initial_state=state)
        parts.append(part)
    for got, want in zip((torch.cat(parts, 1), *state), wanted, strict=True):
        compare(got, want, torch.float64)


def test_the_state_carries_gradients_between_pieces(device: torch.device) -> None:
    inputs = leaves(make((1, 40, 40, 2, 3, 4), torch.float64, device, 1))
    upstream = torch.randn(1, 40, 2, 4, dtype=torch.float64, device=device)
    wanted = torch.autograd.grad(ours(inputs, causal=True)[0], inputs, upstream)
    state, parts = inputs[3:], []
    for a, b, c in zip(*(t.split(7, 1) for t in inputs[:3]), strict=True):
        part, state = ops.linear_attention_state(a, b, c, causal=True, initial_state=state)  # pyright: ignore
        parts.append(part)
    got = torch.autograd.grad(torch.cat(parts, 1), inputs, upstream)
    for a, b in zip(got, wanted, strict=True):
        compare(a, b, torch.float64)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("time", [0, 3, 30, 37])
def test_causality_is_exact(time: int, where: str, value: float, device: torch.device) -> None:
    inputs = make((1, 40, 40, 2, 5, 20), torch.float32, device, 1)
    upstream = torch.randn(1, 40, 2, 20, device=device)

    def run(changed: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = leaves(changed)
        out = ours(given, causal=True)[0]
        return out.detach(), torch.autograd.grad(out, given, upstream)

    before, grads = run(inputs)
    spoiled = [t.clone() for t in inputs]
    spoiled["qkv".index(where)][:, time] = value
    after, spoiled_grads = run(tuple(spoiled))  # pyright: ignore
    assert torch.equal(before[:, :time], after[:, :time])
    assert not after[:, time].isfinite().all()
    # A query, too, changes the gradients of keys up to its time alone.
    if where == "q":
        for a, b in zip(grads[1:3], spoiled_grads[1:3], strict=True):
            assert torch.equal(a[:, time + 1 :], b[:, time + 1 :])
        assert torch.equal(after[:, time + 1 :], before[:, time + 1 :])
    else:
        assert torch.equal(grads[0][:, :time], spoiled_grads[0][:, :time])


@pytest.mark.parametrize("causal", [False, True])
def test_padded_keys_are_not_seen(causal: bool, device: torch.device) -> None:
    inputs = leaves(make((2, 40, 40, 2, 5, 6), torch.float32, device, 2))
    left_out = torch.zeros(2, 40, dtype=torch.bool, device=device)
    left_out[0, 30:], left_out[1, :3] = True, True
    spoiled = [t.detach().clone() for t in inputs]
    for t in spoiled[1:3]:
        t[left_out] = torch.nan
    spoiled = leaves(tuple(spoiled))  # pyright: ignore
    results = []
    for given in (inputs, spoiled):
        out, kv, z = ours(given, causal=causal, key_padding_mask=left_out)
        grads = torch.autograd.grad(out.square().sum() + kv.sum() + z.sum(), given)
        results.append((out, kv, z, *grads))
        assert (grads[1][left_out] == 0).all()
        assert (grads[2][left_out] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_of_any_length(causal: bool, device: torch.device) -> None:
    lengths = (33, 0, 1, 70, 5)
    inputs = leaves(make((1, sum(lengths), sum(lengths), 2, 5, 6), torch.float64, device, 5))
    offsets = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    got = ours(inputs, causal=causal, cu_seqlens=offsets)
    upstream = [torch.randn_like(t) for t in got]
    grads = torch.autograd.grad(got, inputs, upstream)
    q, k, v, kv, z = inputs
    parts = [
        ours((a, b, c, kv[n : n + 1], z[n : n + 1]), causal=causal)
        for n, (a, b, c) in enumerate(zip(*(t.split(lengths, 1) for t in (q, k, v)), strict=True))
    ]
    wanted = [torch.cat([p[i] for p in parts], 1 if i == 0 else 0) for i in range(3)]
    for a, b in zip(got, wanted, strict=True):
        compare(a, b, torch.float64)
    for a, b in zip(grads, torch.autograd.grad(wanted, inputs, upstream), strict=True):
        compare(a, b, torch.float64)
    exact = reference.linear_attention(
        q, k, v, causal=causal, cu_seqlens=offsets, initial_state=(kv, z)
    )
    compare(got[0], exact, torch.float64)
