"""actnorm on the sizes and layouts that pick another path through the kernels."""

from __future__ import annotations

import pytest
import torch
from ops.cases import DTYPES

from flowops import ops, reference
from flowops.testing import assert_close

# Positions of one and of several blocks a channel, more channels than a block has threads, rows
# that take 16-byte vectors or do not, and nothing at all.
SHAPES = (
    (3, 5),
    (300, 7),
    (40, 300),
    (2, 3, 7),
    (4, 12, 8, 8),
    (2, 8, 65, 65),
    (9, 2, 33, 32),
    (1, 1, 1, 1),
    (0, 3, 4),
    (3, 4, 0),
    (2, 0, 4),
)


def layouts(x):
    """``x`` in memory as it is, as a slice of channels, and with the channels innermost."""
    yield x
    yield torch.cat([x, x, x], 1)[:, x.size(1) : 2 * x.size(1)]
    if x.dim() == 4:
        yield x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, inverse, device):
    run = ops.actnorm_inverse if inverse else ops.actnorm
    twin = reference.actnorm_inverse if inverse else reference.actnorm
    wide = torch.promote_types(dtype, torch.float32)
    bias, log_scale = torch.randn(2, shape[1], device=device, dtype=wide) / 2
    before = torch.randn(shape[0], device=device, dtype=wide)
    grads = torch.randn(shape, device=device).to(dtype), torch.randn_like(before)
    for x in layouts(torch.randn(shape, device=device, dtype=torch.float64).to(dtype)):
        ours = [t.detach().requires_grad_() for t in (x, bias, log_scale)]
        theirs = [t.detach().double().requires_grad_() for t in (x, bias, log_scale)]
        got = run(*ours, logdet=before)
        want = twin(*theirs, logdet=before.double())
        assert_close(got[0], want[0], dtype=dtype, factor=2)
        assert_close(got[1], want[1], dtype=wide, factor=10)
        got_grads = torch.autograd.grad(got, ours, grads)
        want_grads = torch.autograd.grad(want, theirs, [g.double() for g in grads])
        assert_close(got_grads[0], want_grads[0], dtype=dtype, factor=2)
        for a, b in zip(got_grads[1:], want_grads[1:], strict=True):
            # Sums of up to 8,450 terms of either sign.
            assert_close(a, b, dtype=wide, factor=300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_match_reference(shape, dtype, device):
    for x in layouts((3 + 2 * torch.randn(shape, device=device, dtype=torch.float64)).to(dtype)):
        for got, want in zip(
            ops.actnorm_statistics(x), reference.actnorm_statistics(x.double()), strict=True
        ):
            assert_close(got, want, dtype=got.dtype, factor=2)


def test_statistics_of_a_large_mean_do_not_cancel(device):
    x = 1e4 + torch.randn(8, 3, 20, 20, device=device)
    for view in layouts(x):
        _, std = ops.actnorm_statistics(view)
        assert_close(
            std, reference.actnorm_statistics(x.double())[1], dtype=torch.float32, factor=20
        )


def test_results_do_not_change_between_runs(device):
    x = torch.randn(5, 6, 40, 40, device=device)
    parameters = torch.randn(2, 6, device=device)

    def run():
        leaves = [x.detach().requires_grad_(), *parameters.detach().requires_grad_().unbind()]
        outputs = ops.actnorm(*leaves)
        grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])
        return [*outputs, *grads, *ops.actnorm_statistics(x)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
