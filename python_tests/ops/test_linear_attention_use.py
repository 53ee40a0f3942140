"""linear_attention in use: layouts, dtypes, threads, feature pairs, compile, autocast, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from ops.cases import same_for_any_threads
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close

Rows = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def rows(
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    size: tuple[int, ...] = (2, 40, 3, 8),
) -> Rows:
    q, k, v = (torch.randn(size, dtype=torch.float64).to(device, dtype) for _ in range(3))
    return q, k, v


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "head_first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "packed": lambda x: torch.stack([x, x], 2)[:, :, 1],
    "dim_first": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every_other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "one_row_for_all": lambda x: x[:, :1].expand(-1, 40, -1, -1),
    "one_head_for_all": lambda x: x[:, :, :1].expand(-1, -1, 3, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_any_layout(layout: str, device: torch.device) -> None:
    arranged = [LAYOUTS[layout](x).detach().requires_grad_() for x in rows(device)]
    plain = [x.detach().contiguous().requires_grad_() for x in arranged]
    upstream = LAYOUTS[layout](torch.randn_like(plain[2]))
    results = []
    for given in (arranged, plain):
        out = ops.linear_attention(*given, causal=True)
        results.append((out, *torch.autograd.grad(out, given, upstream)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, dtype=torch.float64)


@pytest.mark.parametrize("size", [(0, 5, 2, 3), (2, 0, 2, 3), (2, 5, 0, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_empty_and_single(causal: bool, size: tuple[int, ...], device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in rows(device, size=size))
    out, (kv, z) = ops.linear_attention_state(q, k, v, causal=causal)
    assert out.shape == size
    assert kv.shape == (size[0], size[2], size[3], size[3])
    grads = torch.autograd.grad(out.sum() + kv.sum() + z.sum(), (q, k, v))
    assert all(g.shape == size and g.isfinite().all() for g in grads)
    if size[1] == 0:
        assert (kv == 0).all()


def test_queries_without_keys_give_zero(device: torch.device) -> None:
    q, k, v = rows(device)
    assert (ops.linear_attention(q, k[:, :0], v[:, :0]) == 0).all()
    everything = torch.ones(k.shape[:2], dtype=torch.bool, device=device)
    assert (ops.linear_attention(q, k, v, causal=True, key_padding_mask=everything) == 0).all()
    assert (ops.linear_attention(-q.abs(), k, v, feature_map="relu") == 0).all()


@pytest.mark.parametrize("size", [(1, 70, 1, 48), (3, 70, 2, 17), (1, 300, 3, 64), (2, 40, 5, 8)])
@pytest.mark.parametrize("causal", [False, True])
def test_threads_do_not_change_the_result(
    causal: bool, size: tuple[int, ...], device: torch.device
) -> None:
    def run() -> list[Tensor]:
        given = [x.detach().requires_grad_() for x in (*inputs, *initial)]
        out, state = ops.linear_attention_state(*given[:3], causal=causal, initial_state=given[3:])  # pyright: ignore
        loss = out.square().sum() + state[0].square().sum() + state[1].square().sum()
        return [out, *state, *torch.autograd.grad(loss, given)]

    inputs = rows(device, torch.float32, size)
    batch, _, heads, dim = size
    initial = torch.randn(batch, heads, dim, dim), torch.rand(batch, heads, dim)
    initial = [t.to(device) for t in initial]
    same_for_any_threads(run)


@pytest.mark.parametrize("dims", [(256, 256), (256, 3), (3, 256), (129, 65)])
def test_wide_heads(dims: tuple[int, int], device: torch.device) -> None:
    dim, value_dim = dims
    q, k = (torch.randn(1, 9, 1, dim, dtype=torch.float64, device=device) for _ in range(2))
    v = torch.randn(1, 9, 1, value_dim, dtype=torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    firsts, seconds = [], []
    for function in (ops.linear_attention, reference.linear_attention):
        out = function(*leaves, causal=True)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        firsts.append((out, *grads))
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))  # pyright: ignore
    for a, b in zip(firsts[0] + seconds[0], firsts[1] + seconds[1], strict=True):
        assert_close(a, b, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dims", [(256, 256), (256, 3), (3, 256), (129, 65)])
def test_wide_heads_in_float32(
    dims: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    shapes = (1, 40, 1, dims[0]), (1, 40, 1, dims[0]), (1, 40, 1, dims[1])
    leaves = [torch.randn(s).to(device, dtype).requires_grad_() for s in shapes]
    upstream = torch.randn(shapes[2]).to(device, dtype)

    def run(function: Callable[..., Tensor], wide: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [t.detach().to(wide).requires_grad_() for t in leaves]
        out = function(*inputs, causal=True, normalize=False)
        return out, *torch.autograd.grad(out, inputs, upstream.to(wide))

    got, wanted = run(ops.linear_attention, dtype), run(reference.linear_attention, torch.float64)
    for a, b in zip(got, wanted, strict=True):
        # Sums over up to 40 rows and 256 columns, relative to the largest.
        assert_close(a / b.abs().max(), b / b.abs().max(), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_elu_is_accurate_in_half(dtype: torch.dtype, device: torch.device) -> None:
    # elu(x) + 1 in half would be 0 for all of these. One key of feature 1 gives f(q) itself.
    x = torch.tensor([-6.0, -7.0, -8.0, -9.0]).to(device, dtype)
    q, one = x.view(1, 4, 1, 1), torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
    out = ops.linear_attention(q, one, one + 1, normalize=False).flatten()
    assert ((out.double() / x.double().exp() - 1).abs() < 8e-3).all()


def test_long_sums_do_not_overflow_half(device: torch.device) -> None:
    q = torch.full((1, 3000, 1, 4), 5.0, dtype=torch.float16, device=device).requires_grad_()
    out = ops.linear_attention(q, q, q, causal=True)
    assert (out == 5).all()
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert grad.isfinite().all()


def test_weights_sum_to_one(device: torch.device) -> None:
    q, k, v = rows(device)
    for feature_map in ("elu", "exp", "cosine"):
        out = ops.linear_attention(q, k, torch.ones_like(v), feature_map=feature_map, causal=True)
        assert_close(out, torch.ones_like(out), dtype=torch.float32)  # but for eps
    out = ops.linear_attention(q, k, torch.ones_like(v), feature_map="softmax")
    assert_close(out, torch.ones_like(out), dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
def test_cosine_weights(causal: bool, device: torch.device) -> None:
    q, k, v = rows(device)
    weights = 1 + torch.cosine_similarity(q[:, :, None], k[:, None], dim=4)  # (B, i, j, H)
    if causal:
        weights = weights * torch.ones(40, 40, device=device).tril()[:, :, None]
    wanted = torch.einsum("bijh,bjhe->bihe", weights / (weights.sum(2, keepdim=True) + 1e-6), v)
    out, (kv, _) = ops.linear_attention_state(q, k, v, feature_map="cosine", causal=causal)
    assert_close(out, wanted, dtype=torch.float64)
    assert kv.shape == (2, 3, 9, 8)
    assert_close(
        out,
        reference.linear_attention(q, k, v, feature_map="cosine", causal=causal),
        dtype=torch.float64,
    )


def test_softmax_pair(device: torch.device) -> None:
    q, k, v = rows(device)
    left_out = torch.rand(2, 40, device=device) < 0.3
    logits = k.masked_fill(left_out[:, :, None, None], -torch.inf)
    context = torch.einsum("bjhd,bjhe->bhde", logits.softmax(1), v)
    wanted = torch.einsum("bihd,bhde->bihe", q.softmax(3), context)
    out = ops.linear_attention(q, k, v, feature_map="softmax", key_padding_mask=left_out)
    assert_close(out, wanted, dtype=torch.float64)


@pytest.mark.parametrize("variant", ["plain", "state", "sequences", "padding"])
def test_opcheck(variant: str, device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in rows(device, torch.float32, (1, 6, 2, 3)))
    sequences = 2 if variant == "sequences" else 1
    kv, z = torch.randn(sequences, 2, 3, 3, device=device), torch.rand(sequences, 2, 3).to(device)
    state = (kv.requires_grad_(), z.requires_grad_()) if variant != "plain" else (None, None)
    mask = torch.zeros(1, 6, dtype=torch.bool, device=device) if variant == "padding" else None
    offsets = torch.tensor([0, 4, 6], device=device) if variant == "sequences" else None
    given = (q, k, v, *state, mask, offsets)
    settings = (0, True, variant != "state", 1e-6)
    torch.library.opcheck(torch.ops.flowops.linear_attention, (*given, *settings))
    plain = [t.detach() if t is not None else None for t in given]
    out, last_kv, last_z, denominator = torch.ops.flowops.linear_attention(*plain, *settings)
    results = out, last_kv, last_z, denominator
    backward = (torch.ones_like(out), last_kv, last_z, *plain, *results, *settings)
    torch.library.opcheck(torch.ops.flowops.linear_attention_backward, backward)


def test_transforms_take_the_reference(device: torch.device) -> None:
    q, k, v = rows(device, size=(2, 5, 2, 3))

    def loss(q: Tensor) -> Tensor:
        return ops.linear_attention(q, k, v, causal=True).square().sum()

    leaf = q.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    assert_close(torch.func.grad(loss)(q), wanted, dtype=torch.float64)


def test_autocast_lowers_rows_and_keeps_the_state(device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in rows(device, torch.float32))
    state = torch.randn(2, 3, 8, 8, device=device), torch.rand(2, 3, 8, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out, last = ops.linear_attention_state(q, k, v, causal=True, initial_state=state)
    lowered = (x.detach().bfloat16() for x in (q, k, v))
    wanted, _ = ops.linear_attention_state(*lowered, causal=True, initial_state=state)
    assert out.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in last)
    assert torch.equal(out, wanted)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), (q, k, v)))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert ops.linear_attention(q.double(), k.double(), v.double()).dtype == torch.float64


@pytest.mark.parametrize("feature_map", ["elu", "cosine", "softmax"])
def test_compiles_whole_for_any_batch(feature_map: str, device: torch.device) -> None:
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = feature_map != "softmax"
        return ops.linear_attention(q, k, v, causal=causal, feature_map=feature_map).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, time in ((2, 9), (5, 4)):
        given = [x.requires_grad_() for x in rows(device, torch.float32, (batch, time, 2, 6))]
        got = torch.autograd.grad(compiled(*given), given)
        wanted = torch.autograd.grad(step(*given), given)
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, dtype=torch.float32)


X = torch.ones(2, 4, 3, 5)
STATE = (torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 5))
BAD: dict[str, tuple[dict[str, object], str]] = {
    "rank": ({"q": X[0]}, r"q must have shape \(batch, time, heads, dim\), got \[4, 3, 5\]"),
    "dtype": ({"q": X.long()}, "q must be float64, float32, float16 or bfloat16, got Long"),
    "k": ({"k": X[..., :2]}, r"k must have shape \[2, 4, 3, 5\], got \[2, 4, 3, 2\]"),
    "k_dtype": ({"k": X.double()}, r"k must be Float \(like q\), got Double"),
    "time": ({"k": X[:, :3], "causal": True}, r"k must have shape \[2, 4, 3, 5\], got \[2, 3, .*"),
    "v": ({"v": X[:, :3]}, r"v must have shape \[2, 4, 3, 5\], got \[2, 3, 3, 5\]"),
    "feature_map": ({"feature_map": "gelu"}, "feature_map must be one of 'elu', .*, got 'gelu'"),
    "softmax": (
        {"feature_map": "softmax", "causal": True},
        "feature_map must not be 'softmax' with causal, cu_seqlens or initial_state",
    ),
    "eps": ({"eps": -1.0}, "eps must not be negative, got -1"),
    "mask": (
        {"key_padding_mask": torch.zeros(2, 3, dtype=torch.bool)},
        r"key_padding_mask must have shape \[2, 4\], got \[2, 3\]",
    ),
    "mask_dtype": ({"key_padding_mask": torch.zeros(2, 4)}, "key_padding_mask must be bool, got F"),
    "kv": (
        {"initial_state": (STATE[0][:1], STATE[1])},
        r"initial kv must have shape \[2, 3, 5, 5\], got \[1, 3, 5, 5\]",
    ),
    "z_dtype": (
        {"initial_state": (STATE[0], STATE[1].double())},
        "initial z must be Float, got Double",
    ),
    "one_of_two": (
        {"initial_state": (STATE[0], None)},
        "initial_state must have both kv and z, got one",
    ),
    "batch": (
        {"cu_seqlens": torch.tensor([0, 4])},
        "q and k must have a batch of 1 and equal times where cu_seqlens is given",
    ),
    "offsets_dtype": (
        {"cu_seqlens": torch.tensor([0.0, 4.0])},
        "cu_seqlens must be int64 or int32, got Float",
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    def on_device(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(on_device(t) for t in value)
        return value.to(device) if isinstance(value, Tensor) else value

    changed, message = BAD[case]
    arguments = {"q": X, "k": X, "v": X} | changed
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="^linear_attention: " + message),
    ):
        ops.linear_attention(**{name: on_device(t) for name, t in arguments.items()})  # pyright: ignore


def test_offsets_on_the_cpu_are_checked() -> None:
    x = torch.ones(1, 4, 1, 2)
    for values in ([0, 3], [1, 4], [0, 3, 2, 4], [0, 5]):
        with pytest.raises(ValueError, match=r"^linear_attention: cu_seqlens must rise from 0 to"):
            ops.linear_attention(x, x, x, cu_seqlens=torch.tensor(values))
