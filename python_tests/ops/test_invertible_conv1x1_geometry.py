"""invertible_conv1x1 on the sizes and layouts that pick another path through the kernels."""

from __future__ import annotations

import pytest
import torch
from ops.cases import DTYPES

from flowops import ops, reference
from flowops.testing import assert_close

# Channels below and above every switch of kernel, one and several tiles of positions, images that
# end within a tile, and nothing at all.
SHAPES = (
    (300, 7),
    (5, 60),
    (2, 3, 7),
    (4, 12, 8, 8),
    (3, 16, 16, 16),
    (2, 31, 5, 3),
    (3, 32, 5, 3),
    (3, 33, 5, 3),
    (2, 48, 16, 3),
    (3, 49, 6, 3),
    (1, 1, 1, 1),
    (0, 3, 4),
    (3, 4, 0),
    (2, 0, 4),
)
LAYERS = ((1, 2, 5, 12), (33,), (48, 96, 64), (97, 3), (7,) * 50)


def layouts(x):
    """``x`` in memory as it is, as a slice of channels, and with the channels innermost."""
    yield x
    yield torch.cat([x, x, x], 1)[:, x.size(1) : 2 * x.size(1)]
    if x.dim() == 4:
        yield x.to(memory_format=torch.channels_last)


def check_product(x, weight, bias, wanted):
    """Output and the ``wanted`` gradients of x, weight, bias against the reference in float64."""
    arguments = [t for t in (x, weight, bias) if t is not None]
    wants = [w for t, w in zip((x, weight, bias), wanted, strict=True) if t is not None]
    ours = [t.detach().requires_grad_(w) for t, w in zip(arguments, wants, strict=True)]
    theirs = [t.detach().double().requires_grad_(w) for t, w in zip(arguments, wants, strict=True)]
    got, want = ops.invertible_conv1x1(*ours), reference.invertible_conv1x1(*theirs)
    # Sums of up to 60 products.
    assert_close(got, want, dtype=x.dtype, factor=5)
    grad = torch.randn_like(got)
    got_grads = torch.autograd.grad(got, [t for t in ours if t.requires_grad], grad)
    want_grads = torch.autograd.grad(want, [t for t in theirs if t.requires_grad], grad.double())
    for a, b in zip(got_grads, want_grads, strict=True):
        # Sums over up to 768 positions.
        assert_close(a, b, dtype=a.dtype, factor=5 if a.dim() == x.dim() > 2 else 30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_matches_reference(shape, dtype, device):
    channels = shape[1]
    weight = torch.randn(channels, channels, device=device, dtype=torch.float64)
    weight = (weight / max(channels, 1) ** 0.5).to(dtype)
    bias = torch.randn(channels, device=device).to(dtype)
    for x in layouts(torch.randn(shape, device=device, dtype=torch.float64).to(dtype)):
        check_product(x, weight, bias, (True, True, True))
        check_product(x, weight, None, (True, True, False))


@pytest.mark.parametrize("channels", [6, 52])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_product_gradients_that_are_wanted(wanted, channels, device):
    x = torch.randn(3, channels, 9, 5, device=device)
    weight = torch.randn(channels, channels, device=device) / channels**0.5
    check_product(x, weight, torch.randn(channels, device=device), tuple(map(bool, wanted)))


def test_product_over_many_tiles(device):
    x = torch.randn(2, 2, 260, 128, device=device)
    check_product(
        x, torch.randn(2, 2, device=device), torch.randn(2, device=device), (True, True, True)
    )
    grads = []
    for _ in range(2):
        ones = torch.ones(2, 2, device=device, requires_grad=True)
        grads += torch.autograd.grad(ops.invertible_conv1x1(x, ones).sum(), ones)
    assert torch.equal(*grads)
    assert_close(grads[0], x.double().sum((0, 2, 3)).expand(2, 2), dtype=torch.float32, factor=1000)


def make_layers(sizes, dtype, device, full, folded):
    """Lists of parameters, and keyword lists of the actnorm before each layer."""

    def random(*shape):
        return torch.randn(shape, device=device, dtype=torch.float64)

    if full:
        noise = [random(n, n) / 10 / n**0.5 for n in sizes]
        matrices = [torch.linalg.qr(random(n, n))[0] + e for n, e in zip(sizes, noise, strict=True)]
        lists = [matrices]
    else:
        lists = [[random(n, n) / 2 / n**0.5 for n in sizes] for _ in range(2)]
        lists += [[random(n) / 3 for n in sizes], [random(n).sign() for n in sizes]]
    lists = [[t.to(dtype) for t in values] for values in lists]
    if not full:
        lists.append([torch.randperm(n, device=device) for n in sizes])
    names = ("actnorm_bias", "actnorm_log_scale") if folded else ()
    return lists, {name: [(random(n) / 3).to(dtype) for n in sizes] for name in names}


def flatten(prepared):
    weights, biases, logdet = prepared
    return [*weights, *biases, logdet]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("sizes", LAYERS)
def test_layers_match_reference(sizes, full, folded, inverse, device):
    name = "invertible_conv1x1_full" if full else "invertible_conv1x1_lu"
    for dtype in (torch.float64, torch.float32):
        lists, keywords = make_layers(sizes, dtype, device, full, folded)

        def run(module, convert, lists=lists, keywords=keywords):
            lists = [[convert(t) for t in values] for values in lists]
            named = {k: [convert(t) for t in values] for k, values in keywords.items()}
            leaves = [t for v in (*lists[: 1 if full else 3], *named.values()) for t in v]
            outputs = flatten(getattr(module, name)(*lists, **named, inverse=inverse))
            return leaves, outputs

        def leaf(t, target=dtype):
            return t.detach().to(target).requires_grad_() if t.is_floating_point() else t

        ours, got = run(ops, leaf)
        theirs, want = run(reference, lambda t, leaf=leaf: leaf(t, torch.float64))
        weights = [torch.randn_like(t) for t in got]
        got_grads = torch.autograd.grad(got, ours, weights)
        want_grads = torch.autograd.grad(want, theirs, [w.double() for w in weights])
        for a, b in zip(got, want, strict=True):
            # Chains of up to 97 products.
            assert_close(a, b, dtype=dtype, factor=30)
        for a, b in zip(got_grads, want_grads, strict=True):
            assert_close(a, b, dtype=dtype, factor=300)


def test_singular_weight_has_logdet_of_minus_infinity(device):
    weight = torch.ones(5, 5, device=device)
    assert ops.invertible_conv1x1_full([weight])[2].item() == -torch.inf
    weights, _, logdet = ops.invertible_conv1x1_full([weight], inverse=True)
    assert logdet.item() == torch.inf
    assert not weights[0].isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
def test_pivoting_takes_the_largest_of_a_column(inverse, device):
    matrix = torch.tensor([[1e-12, 1.0], [1.0, 1.0]], device=device, dtype=torch.float64)
    # Several layers, which on a GPU run their threads in different orders.
    layers = [matrix.clone().requires_grad_() for _ in range(8)]
    weights, _, logdet = ops.invertible_conv1x1_full(layers, inverse=inverse)
    sign = -1 if inverse else 1
    expected = torch.linalg.inv(matrix) if inverse else matrix
    log_abs_det = sign * torch.linalg.slogdet(matrix).logabsdet
    grads = torch.autograd.grad(logdet.sum(), layers)
    for i in range(8):
        assert_close(weights[i], expected, dtype=torch.float64)
        assert_close(logdet[i], log_abs_det, dtype=torch.float64)
        assert_close(grads[i], sign * torch.linalg.inv(matrix).T, dtype=torch.float64)
