"""spectral_norm against the float64 reference, torch's own, the SVD and op checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads
from torch import Tensor
from torch.nn.utils import parametrizations

from flowops import ops, reference
from flowops.testing import assert_close

# Ragged, odd, one row, one column, several tiles of rows and chunks of columns.
SHAPES = ((8, 3, 3, 3), (5, 7), (1, 5), (33, 1), (20, 16, 2, 2), (37, 70))
Layers = tuple[list[Tensor], list[Tensor], list[Tensor]]


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def unit(size: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(size, dtype=torch.float64), dim=0)


def make_layers(
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
) -> Layers:
    """Random weights, one singular value twice the others, and unit vectors near its own."""
    weight, u, v = [], [], []
    for shape in shapes:
        left, right = unit(shape[0]), unit(torch.Size(shape[1:]).numel())
        noise = torch.randn(shape, dtype=torch.float64) / (len(left) ** 0.5 + len(right) ** 0.5)
        weight.append(noise + 2 * torch.outer(left, right).view(shape))
        u.append(torch.nn.functional.normalize(left + unit(len(left)) / 4, dim=0))
        v.append(torch.nn.functional.normalize(right + unit(len(right)) / 4, dim=0))
    return tuple([t.to(device, dtype) for t in list_] for list_ in (weight, u, v))  # pyright: ignore


def detached(tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def flat(result: tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]) -> list[Tensor]:
    weights, u, v, sigma = result
    return [*weights, *u, *v, sigma]


@pytest.mark.parametrize("coefficient", [None, 0.9, 9.0])
@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(
    dtype: torch.dtype, iterations: int, coefficient: float | None, device: torch.device
) -> None:
    weight, u, v = make_layers(device, dtype)
    options = {"n_power_iterations": iterations, "coefficient": coefficient}
    ours, theirs = detached(weight), detached(weight, torch.float64)
    got = ops.spectral_norm(ours, u, v, **options)
    wanted = reference.spectral_norm(
        theirs, [t.double() for t in u], [t.double() for t in v], **options
    )
    wide = torch.promote_types(dtype, torch.float32)
    assert got[3].dtype == wide
    # sigma sums up to 2590 terms in the accumulation type, whatever the storage.
    assert_close(got[3], wanted[3], dtype=wide, factor=20)
    for a, b, like in zip(flat(got)[:-1], flat(wanted)[:-1], weight + u + v, strict=True):
        assert a.dtype == like.dtype
        assert a.shape == like.shape
        assert_close(a, b, dtype=dtype, factor=2)
    upstream = [torch.randn_like(t) for t in (*got[0], got[3])]
    grads = torch.autograd.grad([*got[0], got[3]], ours, upstream)
    expected = torch.autograd.grad([*wanted[0], wanted[3]], theirs, [g.double() for g in upstream])
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == dtype
        scale = b.abs().max().clamp(min=1)  # <g, W> and u, v add up rounding of many terms
        assert_close(a / scale, b / scale, dtype=dtype, factor=10)


def test_a_step_is_torchs(device: torch.device) -> None:
    for shape in SHAPES[:3]:
        weight = torch.nn.Parameter(torch.randn(shape, device=device))
        theirs = parametrizations._SpectralNorm(weight, n_power_iterations=2).to(device)
        u, v = theirs._u.clone(), theirs._v.clone()
        wanted = theirs(weight)
        (got,), (new_u,), (new_v,), _ = ops.spectral_norm([weight], [u], [v], n_power_iterations=2)
        assert_close(got, wanted, dtype=torch.float32)
        assert_close(new_u, theirs._u, dtype=torch.float32)
        assert_close(new_v, theirs._v, dtype=torch.float32)
        upstream = torch.randn_like(got)
        (grad,), (expected,) = (torch.autograd.grad(t, weight, upstream) for t in (got, wanted))
        assert_close(grad, expected, dtype=torch.float32, factor=4)  # two orders of summation


def test_converges_to_the_svd(device: torch.device) -> None:
    weight, u, v = make_layers(device)
    weight = detached(weight)
    _, new_u, new_v, sigma = ops.spectral_norm(weight, u, v, n_power_iterations=60)
    grads = torch.autograd.grad(sigma.sum(), weight)
    for w, left, right, s, grad in zip(weight, new_u, new_v, sigma, grads, strict=True):
        exact = torch.linalg.svdvals(w.detach().flatten(1))[0]
        assert_close(s, exact, dtype=torch.float64)
        # The derivative of a singular value, which u and v held fixed must not spoil.
        leaf = w.detach().clone().requires_grad_()
        (wanted,) = torch.autograd.grad(torch.linalg.matrix_norm(leaf.flatten(1), 2), leaf)
        assert_close(grad, wanted, dtype=torch.float64, factor=1000)  # the vectors converge slower
        assert_close(left @ w.detach().flatten(1) @ right, s, dtype=torch.float64)


@pytest.mark.parametrize("coefficient", [None, 0.5, 50.0])
def test_gradcheck_twice(coefficient: float | None, device: torch.device) -> None:
    # Without an iteration u and v do not follow the weight, as the gradients suppose.
    weight, u, v = make_layers(device, shapes=((3, 2, 2), (2, 3)))

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        results, _, _, sigma = ops.spectral_norm(
            leaves, u, v, n_power_iterations=0, coefficient=coefficient
        )
        return (*results, sigma)

    leaves = detached(weight)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_unused_outputs_need_no_gradient(device: torch.device) -> None:
    weight, u, v = make_layers(device)
    leaves = detached(weight)
    (first, *_), _, _, sigma = ops.spectral_norm(leaves, u, v)
    grads = torch.autograd.grad(first.sum() + sigma[1], leaves)
    assert all(g.abs().sum() > 0 for g in grads[:2])
    assert all(g.abs().sum() == 0 for g in grads[2:])


def test_two_forwards_before_one_backward(device: torch.device) -> None:
    weight, u, v = make_layers(device)
    leaves = detached(weight)
    first, u1, v1, _ = ops.spectral_norm(leaves, u, v)
    second, _, _, _ = ops.spectral_norm(leaves, u1, v1)
    both = torch.autograd.grad(sum(t.square().sum() for t in first + second), leaves)
    alone = [
        torch.autograd.grad(sum(t.square().sum() for t in results), leaves)
        for results in (ops.spectral_norm(leaves, *uv)[0] for uv in ((u, v), (u1, v1)))
    ]
    for total, a, b in zip(both, *alone, strict=True):
        assert_close(total, a + b, dtype=torch.float64)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda w: w.to(memory_format=torch.channels_last),
    "rows_inner": lambda w: w.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": lambda w: w.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda w: w[:, :1].expand(-1, 4, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_any_layout(layout: str, device: torch.device) -> None:
    (weight,), (u,), (v,) = make_layers(device, shapes=((20, 4, 3, 3),))
    arranged = LAYOUTS[layout](weight).detach().requires_grad_()
    plain = arranged.detach().contiguous().requires_grad_()
    got, wanted = (ops.spectral_norm([w], [u], [v], coefficient=0.9) for w in (arranged, plain))
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert_close(a, b, dtype=torch.float64)
    upstream = torch.randn_like(got[0][0])
    (grad,) = torch.autograd.grad(got[0], arranged, upstream)
    (expected,) = torch.autograd.grad(wanted[0], plain, upstream)
    assert_close(grad, expected, dtype=torch.float64)
    if layout == "channels_last":
        assert got[0][0].stride() == grad.stride() == arranged.stride()


def test_layers_do_not_depend_on_each_other_or_on_threads(device: torch.device) -> None:
    weight, u, v = make_layers(device, torch.float32, ((300, 900), (16, 40), (64, 64), (5, 7)))

    def run(weight: list[Tensor], u: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        leaves = detached(weight)
        result = ops.spectral_norm(leaves, u, v, n_power_iterations=2)
        return [
            *flat(result),
            *torch.autograd.grad(sum(t.square().sum() for t in result[0]), leaves),
        ]

    many = same_for_any_threads(lambda: run(weight, u, v))
    alone = run(weight[1:2], u[1:2], v[1:2])
    assert torch.equal(alone[0], many[1])
    assert torch.equal(alone[4], many[14])


def test_more_layers_than_one_launch_takes(device: torch.device) -> None:
    weight, u, v = make_layers(device, shapes=((2, 3), (3, 2)) * 50)
    leaves = detached(weight)
    results, *_ = ops.spectral_norm(leaves, u, v)
    wanted, *_ = reference.spectral_norm(weight, u, v)
    grads = torch.autograd.grad([r.square().sum() for r in results], leaves)
    for a, b, grad, w in zip(results, wanted, grads, weight, strict=True):
        assert_close(a, b, dtype=torch.float64)
        # |W / sigma|^2 does not change with the scale of W, so its gradient is orthogonal to W.
        assert_close((grad * w).sum(), torch.zeros(()), dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_useless_weights_leave_u_and_v(value: float, iterations: int, device: torch.device) -> None:
    weight, u, v = make_layers(device, shapes=((20, 40), (3, 2)))
    weight[0] = torch.full_like(weight[0], value)
    results, new_u, new_v, sigma = ops.spectral_norm(weight, u, v, n_power_iterations=iterations)
    assert torch.equal(new_u[0], u[0])
    assert torch.equal(new_v[0], v[0])
    assert not results[0].isfinite().any()
    assert results[1].isfinite().all()
    bounded, *_ = ops.spectral_norm(weight, u, v, n_power_iterations=iterations, coefficient=0.9)
    if value == 0:
        assert sigma[0] == 0
        assert torch.equal(bounded[0], weight[0])
    else:
        assert bounded[0].isnan().all()


def test_one_direction_alone_may_stay(device: torch.device) -> None:
    # W v = 0 leaves u, and W^T u still moves v.
    weight = torch.tensor([[2.0, 0.0], [0.0, 0.0]], dtype=torch.float64, device=device)
    u, v = unit(2).to(device), torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    got = ops.spectral_norm([weight], [u], [v])
    wanted = reference.spectral_norm([weight], [u], [v])
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert_close(a, b, dtype=torch.float64)
    assert torch.equal(got[1][0], u)


def test_nothing_changes_in_place(device: torch.device) -> None:
    for iterations in (0, 1):
        weight, u, v = make_layers(device)
        copies = [t.clone() for t in (*weight, *u, *v)]
        ops.spectral_norm(weight, u, v, n_power_iterations=iterations)
        assert all(torch.equal(a, b) for a, b in zip(copies, (*weight, *u, *v), strict=True))


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize("coefficient", [None, 0.9])
def test_opcheck(coefficient: float | None, iterations: int, device: torch.device) -> None:
    weight, u, v = make_layers(device, torch.float32, ((4, 3, 3, 3), (5, 7)))
    weight[0] = weight[0].to(memory_format=torch.channels_last)
    leaves = detached(weight)
    arguments = (leaves, u, v, iterations, 1e-12, coefficient)
    torch.library.opcheck(torch.ops.flowops.spectral_norm, arguments)
    sigma = torch.ones(2, device=device)
    backward = (weight, sigma, weight, u, v, sigma, coefficient)
    torch.library.opcheck(torch.ops.flowops.spectral_norm_backward, backward)


def test_transforms_take_the_reference(device: torch.device) -> None:
    (weight,), (u,), (v,) = make_layers(device, shapes=((3, 4),))

    def sigma(w: Tensor) -> Tensor:
        return ops.spectral_norm([w], [u], [v])[3][0]

    leaf = weight.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(sigma(leaf), leaf)
    assert_close(torch.func.grad(sigma)(weight), wanted, dtype=torch.float64)


def test_autocast_keeps_float32(device: torch.device) -> None:
    weight, u, v = make_layers(device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert all(t.dtype == torch.float32 for t in flat(ops.spectral_norm(weight, u, v)))


@pytest.mark.parametrize("coefficient", [None, 0.9])
def test_compiles_whole(coefficient: float | None, device: torch.device) -> None:
    weight, u, v = make_layers(device, torch.float32)
    leaves = detached(weight)

    def step() -> Tensor:
        results, _, _, sigma = ops.spectral_norm(leaves, u, v, coefficient=coefficient)
        return sum(t.square().sum() for t in results) + sigma.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(), leaves)
    want = torch.autograd.grad(step(), leaves)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, dtype=torch.float32)


M, U, V = torch.eye(3)[:2], torch.ones(2), torch.ones(3)
GOOD = {"weight": [M, M], "u": [U, U], "v": [V, V]}
BAD: dict[str, tuple[dict[str, object], str]] = {
    "empty": ({"weight": []}, "weight must hold at least one layer, got an empty list"),
    "vector": (
        {"weight": [M, V]},
        r"weight\[1\] must have at least two dimensions and one element, got shape \[3\]",
    ),
    "no_element": ({"weight": [M, M[:0]]}, r"weight\[1\] must have at least two .* shape \[0, 3\]"),
    "dtype": ({"weight": [M.long(), M.long()]}, "weight must be float64, .*, got Long"),
    "mixed": ({"weight": [M, M.double()]}, r"weight\[1\] must be Float, got Double"),
    "count": ({"u": [U]}, "u must have one tensor a layer, 2, got 1"),
    "u": (
        {"u": [U, V]},
        r"u\[1\] must have shape \[2\] \(one value a row of weight\[1\]\), got \[3\]",
    ),
    "v": ({"v": [U, V]}, r"v\[0\] must have shape \[3\] \(one value a column .*, got \[2\]"),
    "v_dtype": (
        {"v": [V.double(), V]},
        r"v\[0\] must be Float \(like weight\) or Float, got Double",
    ),
    "iterations": ({"n_power_iterations": -1}, "n_power_iterations must not be negative, got -1"),
    "eps": ({"eps": -1.0}, "eps must not be negative, got -1"),
    "coefficient": ({"coefficient": 0.0}, "coefficient must be positive, got 0"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {
        k: [t.to(device) for t in v] if isinstance(v, list) else v
        for k, v in (GOOD | changed).items()
    }
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="^spectral_norm: " + message),
    ):
        ops.spectral_norm(**arguments)  # pyright: ignore[reportArgumentType]
