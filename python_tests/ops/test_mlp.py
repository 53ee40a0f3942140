"""mlp against its float64 reference, autograd and op checks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ops.cases import DTYPES, same_for_any_threads, saved_bytes
from torch import Tensor

from flowops import ops, reference
from flowops.testing import assert_close

# Batch, then the widths of x and of each layer's output: residual where the layers are even and the
# hidden ones equal. Several tiles, one row, whole vectors and odd sizes, one layer alone.
# One with more rows of a weight than are multiplied together, and strides that are padded.
RESIDUAL = (
    (5, 3, 7, 7, 7, 11),
    (200, 16, 64, 64, 64, 64, 64, 48),
    (7, 600, 1024, 1024, 1024, 512),
    (1, 1, 1, 1),
    (300, 25, 37, 5),
)
PLAIN = ((5, 3, 7, 11), (200, 16, 64, 32, 130), (97, 6, 4), (1, 1, 1, 1, 1))
NETWORKS = [*((sizes, True) for sizes in RESIDUAL), *((sizes, False) for sizes in PLAIN)]
Network = tuple[Tensor, list[Tensor], list[Tensor]]


def make_network(
    sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float64
) -> Network:
    """Random x, weights and biases, of values about 1 in every layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(device, dtype)

    pairs = list(itertools.pairwise(sizes[1:]))
    weight = [normal(o, i) / max(i, 1) ** 0.5 for i, o in pairs]
    return normal(*sizes[:2]), weight, [normal(o) / 2 for _, o in pairs]


def leaves_of(network: Network) -> list[Tensor]:
    x, weight, bias = network
    return [t.requires_grad_() for t in (x, *weight, *bias)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "residual"), NETWORKS)
def test_matches_reference(
    sizes: tuple[int, ...], residual: bool, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias = make_network(sizes, device, dtype)
    wide = x.double(), [w.double() for w in weight], [b.double() for b in bias]
    out = ops.mlp(x, weight, bias, residual=residual)
    expected = reference.mlp(*wide, residual=residual)
    assert out.dtype == dtype
    # Every layer adds to the error, and products of 64 terms are summed.
    assert_close(out, expected, dtype=dtype, factor=5)
    if dtype in (torch.float16, torch.bfloat16):
        return  # a value rounded across 0 has another gradient
    ours, theirs = leaves_of((x, weight, bias)), leaves_of(wide)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad(ops.mlp(x, weight, bias, residual=residual), ours, weights)
    expected = reference.mlp(*wide, residual=residual)
    wanted = torch.autograd.grad(expected, theirs, weights.double())
    for grad, want in zip(grads, wanted, strict=True):
        assert_close(grad, want, dtype=dtype, factor=50)  # sums over up to 300 rows


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_of_halves(dtype: torch.dtype, device: torch.device) -> None:
    # Biases that keep all units on the same side of 0, whatever is rounded.
    x, weight, bias = make_network((100, 5, 8, 8, 8, 3), device, dtype)
    bias = [b + 20 * (-1) ** torch.arange(len(b), device=device) for b in bias[:-1]] + bias[-1:]
    weight = [w / 8 for w in weight]
    wide = x.double(), [w.double() for w in weight], [b.double() for b in bias]
    ours, theirs = leaves_of((x, weight, bias)), leaves_of(wide)
    out = ops.mlp(x, weight, bias, residual=True)
    weights = torch.randn_like(out)
    grads = torch.autograd.grad(out, ours, weights)
    wanted = torch.autograd.grad(reference.mlp(*wide, residual=True), theirs, weights.double())
    for grad, want in zip(grads, wanted, strict=True):
        assert grad.dtype == dtype
        # The unit roundoff of values about 20, in sums of 100 of them.
        bound = 100 * torch.finfo(dtype).eps * want.abs().max().clamp_min(1)
        assert ((grad.double() - want).abs() < bound).all()


@pytest.mark.parametrize("sizes", [(3, 0, 4, 2), (3, 2, 4, 0), (0, 2, 4, 3), (3, 2, 0, 3)])
def test_empty_sizes(sizes: tuple[int, ...], device: torch.device) -> None:
    network = make_network(sizes, device)
    leaves = leaves_of(network)
    ours, expected = ops.mlp(*network), reference.mlp(*network)
    assert_close(ours, expected, dtype=torch.float64)
    grads = torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, dtype=torch.float64)


@pytest.fixture
def our_products(request: pytest.FixtureRequest) -> None:
    """Skip where a library multiplies, which promises less."""
    if request.config.getoption("--device") != "cpu":
        pytest.skip("the products are those of a library")


@pytest.mark.usefixtures("our_products")
@pytest.mark.parametrize(("sizes", "residual"), NETWORKS)
def test_a_row_does_not_depend_on_the_others(sizes: tuple[int, ...], residual: bool) -> None:
    x, weight, bias = make_network(sizes, torch.device("cpu"), torch.float32)
    out = ops.mlp(x, weight, bias, residual=residual)
    for i in {0, len(x) // 2, len(x) - 1}:
        assert torch.equal(ops.mlp(x[i : i + 1], weight, bias, residual=residual)[0], out[i])


@pytest.mark.usefixtures("our_products")
def test_sums_do_not_depend_on_threads() -> None:
    network = make_network((700, 9, 33, 33, 33, 21), torch.device("cpu"), torch.float32)
    leaves = leaves_of(network)

    def run() -> list[Tensor]:
        out = ops.mlp(*network, residual=True)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    same_for_any_threads(run)


def test_a_unit_at_zero_has_no_gradient(device: torch.device) -> None:
    one, zero = torch.ones(1, 1, device=device), torch.zeros(1, device=device)
    x = torch.tensor([[0.0], [2.0], [-1.0]], device=device, requires_grad=True)
    out = ops.mlp(x, [one, one], [zero, zero])
    assert out.tolist() == [[0.0], [2.0], [0.0]]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0.0], [1.0], [0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(bad: float, device: torch.device) -> None:
    network = make_network((150, 5, 21, 21, 21, 7), device, torch.float32)
    x = network[0]
    x[100, 2] = bad
    leaves_of(network)
    out = ops.mlp(*network, residual=True)
    fine = torch.arange(150, device=device) != 100
    assert out[fine].isfinite().all()
    assert not out[100].isfinite().all()
    (grad,) = torch.autograd.grad(out[fine].sum(), x)
    assert grad[fine].isfinite().all()


def test_keeps_the_hidden_layers_alone(device: torch.device) -> None:
    network = make_network((10, 4, 8, 8, 8, 6), device, torch.float32)
    leaves = leaves_of(network)
    assert saved_bytes(lambda: ops.mlp(*network, residual=True), *leaves) == 10 * 24 * 4
    assert torch.ops.flowops.mlp(*network, True, False)[1].shape == (10, 24)
    with torch.no_grad():
        assert torch.ops.flowops.mlp(*network, True, False)[1].shape == (10, 0)


@pytest.mark.parametrize(
    ("sizes", "residual"), [((3, 2, 4, 4, 4, 3), True), ((3, 2, 4, 5, 2), False)]
)
def test_gradcheck_twice(sizes: tuple[int, ...], residual: bool, device: torch.device) -> None:
    network = make_network(sizes, device)
    layers = len(network[1])

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        weight, bias = list(parameters[:layers]), list(parameters[layers:])
        return ops.mlp(x, weight, bias, residual=residual)

    leaves = leaves_of(network)
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_opcheck(device: torch.device) -> None:
    network = make_network((5, 3, 4, 4, 4, 2), device, torch.float32)
    leaves_of(network)
    torch.library.opcheck(torch.ops.flowops.mlp, (*network, True, False))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, weight, bias = make_network((4, 3, 5, 2), device)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: ops.mlp(row[None], weight, bias)[0]))
    expected = torch.autograd.functional.jacobian(lambda x: ops.mlp(x, weight, bias), x)
    rows = torch.arange(4, device=device)
    assert_close(jacobian(x), expected[rows, :, rows], dtype=torch.float64)


def test_autocast_runs_in_the_lower_precision(device: torch.device) -> None:
    network = make_network((5, 3, 4, 2), device, torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert ops.mlp(*network).dtype == torch.bfloat16


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, *parameters: Tensor) -> Tensor:
        return ops.mlp(x, parameters[:4], parameters[4:], residual=True).square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        leaves = leaves_of(make_network((batch, 3, 4, 4, 4, 2), device, torch.float32))
        got = torch.autograd.grad(compiled(*leaves), leaves)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


X, W, B = (
    torch.randn(2, 3),
    [torch.zeros(4, 3), torch.zeros(5, 4)],
    [torch.zeros(4), torch.zeros(5)],
)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dim": ({"x": torch.randn(2, 3, 1)}, r"x must have shape \(batch, inputs\), got \[2, 3, 1\]"),
    "dtype": ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16, got Long"),
    "empty": ({"weight": []}, "weight must hold at least one layer, got an empty list"),
    "odd": (
        {"weight": [W[0]], "bias": [B[0]], "residual": True},
        "weight must hold an even number of layers for a residual network, got 1",
    ),
    "inputs": (
        {"x": torch.randn(2, 4)},
        r"weight\[0\] must have shape \[outputs, 4\], got \[4, 3\]",
    ),
    "chain": (
        {"weight": [W[0], W[0]]},
        r"weight\[1\] must have shape \[outputs, 4\], got \[4, 3\]",
    ),
    "skip": (
        {
            "weight": [W[0], W[1], torch.zeros(6, 5), torch.zeros(1, 6)],
            "bias": [*B, torch.zeros(6), torch.zeros(1)],
            "residual": True,
        },
        r"weight\[2\] must have 4 outputs, to which those of layer 0 are added, got 6",
    ),
    "weight_dtype": ({"weight": [W[0], W[1].double()]}, r"weight\[1\] must be Float .*got Double"),
    "bias_count": ({"bias": B[:1]}, "bias must have one tensor a layer, 2, got 1"),
    "bias_shape": ({"bias": [B[0], B[0]]}, r"bias\[1\] must have shape \[5\] .*got \[4\]"),
    "bias_dtype": ({"bias": [B[0].half(), B[1]]}, r"bias\[0\] must be Float .*got Half"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments: dict[str, Any] = {"x": X, "weight": W, "bias": B} | changed
    for name in ("weight", "bias"):
        arguments[name] = [t.to(device) for t in arguments[name]]
    arguments["x"] = arguments["x"].to(device)
    with torch.inference_mode(inference), pytest.raises(ValueError, match="mlp: " + message):
        ops.mlp(**arguments)
