"""affine_coupling on the shapes and alignments that pick another path through the kernels."""

from __future__ import annotations

import math

import pytest
import torch
from ops.cases import DTYPES
from test_affine_coupling import SCALES, compare, make_inputs

from flowops import ops

# Few and many threads a sample, one and several blocks; rows that take 16-byte vectors or do not.
SHAPES = (
    (70, 1),
    (3, 8),
    (37, 24),
    (3, 8, 16),
    (2, 16, 8, 8),
    (2, 16, 8, 16),
    (2, 16, 24, 24),
    (1, 8, 32, 33),
    (1, 13, 27, 49),
)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape, dtype, inverse, device):
    for scale in SCALES:
        x, params, options = make_inputs(shape, scale, device, dtype)
        # Scales near one, so that no gradient is a small difference of large terms.
        compare(x, params / 2, options, inverse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 8])
def test_kept_channels_of_any_size(start, dtype, device):
    _, params, options = make_inputs((3, 8, 4, 4), "sigmoid", device, dtype)
    for channels in (16, 19, 400):
        x = torch.randn(3, channels, 4, 4, device=device).to(dtype)
        compare(x, params / 2, options | {"start": start}, False)
        last = x.to(memory_format=torch.channels_last)
        compare(last, params / 2, options | {"start": start}, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_off_the_vector_boundary(dtype, device):
    flat = torch.randn(3 * 16 * 16 + 1, device=device).to(dtype)
    _, params, _ = make_inputs((3, 16, 16), "exp", device, dtype)
    options = {
        "scale": "tanh_exp",
        "amplitude": torch.randn(16, device=device).to(torch.promote_types(dtype, torch.float32)),
    }
    options["mask"] = torch.rand(16, 16, device=device) < 0.3
    compare(flat[1:].view(3, 16, 16), params / 2, options, False)
    compare(flat[:-1].view(3, 16, 16), params / 2, options, False)


def test_logdet_of_a_sample_does_not_depend_on_its_batch(device):
    for shape in ((9, 3), (9, 40), (9, 8, 20, 20), (9, 8, 40, 40)):
        x, params, _ = make_inputs(shape, "sigmoid", device, torch.float32)
        logdet = ops.affine_coupling(x, params, scale="sigmoid")[1]
        alone = ops.affine_coupling(x[5:6], params[5:6], scale="sigmoid")[1]
        assert torch.equal(logdet[5:6], alone)


def test_product_of_many_factors_of_two_does_not_overflow(device):
    """The log-det of sigmoid scales is the log of a product, cut before float32 overflows."""
    x = torch.randn(2, 700, device=device)
    params = torch.cat([torch.full_like(x, -2.0), torch.zeros_like(x)], 1)
    _, logdet = ops.affine_coupling(x, params, scale="sigmoid")
    expected = torch.full_like(logdet, 700 * math.log(0.5))
    torch.testing.assert_close(logdet, expected)


def test_sample_beyond_32_bit_offsets_is_refused(request, device):
    if request.config.getoption("--device") == "cpu":
        pytest.skip("the CPU kernels take samples of any size")
    x = torch.empty(2**30 + 1, dtype=torch.float16, device=device).as_strided((1, 2), (1, 2**30))
    params = torch.zeros(1, 4, dtype=torch.float16, device=device)
    message = "affine_coupling: a sample must span at most 2.30 elements of memory on CUDA"
    with pytest.raises(ValueError, match=message):
        ops.affine_coupling(x, params)
