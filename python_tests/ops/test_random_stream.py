"""The random stream: Random123's vectors, exactness, statistics, and independence of calls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import flowops
from flowops import ops, reference
from flowops.reference.gaussian_rsample import philox4x32
from flowops.testing import assert_close

# Random123, kat_vectors: philox4x32 with 10 rounds; counter, key, result.
VECTORS = tuple(
    tuple([int(word, 16) for word in part.split()] for part in vector.split("/"))
    for vector in (
        "0 0 0 0 / 0 0 / 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "ffffffff ffffffff ffffffff ffffffff / ffffffff ffffffff / "
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "243f6a88 85a308d3 13198a2e 03707344 / a4093822 299f31d0 / "
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    )
)
COUNT = 1_000_003


def as_int64(low: int, high: int) -> int:
    value = high << 32 | low
    return value - (1 << 64) if value >= 1 << 63 else value


@pytest.mark.parametrize("vector", VECTORS)
def test_reference_gives_the_published_vectors(vector: tuple[list[int], ...]) -> None:
    counter, key, result = vector
    block = philox4x32([torch.tensor(w) for w in counter], [torch.tensor(w) for w in key])
    assert [int(w) for w in block] == result


def test_stream_is_box_muller_of_the_published_block(device: torch.device) -> None:
    a, b, c, d = VECTORS[0][2]
    key = torch.zeros(2, dtype=torch.int64, device=device)
    expected = []
    for u, v in ((a, b), (c, d)):
        radius = math.sqrt(-2 * math.log((u + 0.5) / 2**32))
        turn = 2 * math.pi * v / 2**32
        expected += [radius * math.cos(turn), radius * math.sin(turn)]
    assert_close(
        flowops.randn(4, key=key), torch.tensor(expected, device=device), dtype=torch.float32
    )
    radius = math.sqrt(-2 * math.log((b << 32 | a) / 2**64))
    turn = 2 * math.pi * (d << 32 | c) / 2**64
    expected = [radius * math.cos(turn), radius * math.sin(turn)]
    wide = flowops.randn(2, key=key, dtype=torch.float64)
    assert_close(wide, torch.tensor(expected, device=device).double(), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1, as_int64(0xA4093822, 0x299F31D0), -1])
def test_equals_the_reference_everywhere(
    seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    # An offset whose low word is all ones, and sizes that end inside blocks, vectors and tiles.
    key = torch.tensor([seed, as_int64(0xFFFFFFFF, 0x80000000)], device=device)
    for count in (1, 3, 4, 5, 63, 64, 511, 513, 2050, 40_001):
        got = flowops.randn(count, key=key, dtype=dtype)
        assert got.dtype == dtype
        assert_close(got, reference.randn((count,), key=key, dtype=dtype), dtype=dtype)


def test_any_draw_is_a_prefix_of_a_longer_one(device: torch.device) -> None:
    key = ops.random_key(device=device)
    whole = flowops.randn(5000, key=key)
    for count in (1, 2, 63, 64, 65, 999, 4097):
        assert torch.equal(flowops.randn(count, key=key), whole[:count])
    assert torch.equal(flowops.randn(50, 100, key=key).flatten(), whole)
    assert torch.equal(flowops.randn([50, 100], key=key).flatten(), whole)
    assert flowops.randn(0, 3, key=key).shape == (0, 3)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(flowops.randn(5000, key=key, dtype=dtype), whole.to(dtype))


def test_does_not_depend_on_threads(device: torch.device) -> None:
    key, threads = ops.random_key(device=device), torch.get_num_threads()
    draws = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            draws.append(flowops.randn(100_001, key=key))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def kolmogorov_smirnov(ranks: Tensor) -> float:
    """sqrt(n) times the largest distance from the uniform distribution function."""
    uniform = ranks.double().sort().values
    n = uniform.numel()
    steps = torch.arange(n, device=uniform.device, dtype=torch.float64) / n
    return float(torch.maximum(uniform - steps, steps + 1 / n - uniform).max()) * math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_are_standard_normal(dtype: torch.dtype, device: torch.device) -> None:
    key = ops.random_key(generator=torch.Generator().manual_seed(11), device=device)
    x = flowops.randn(COUNT, key=key, dtype=dtype).double()
    n = x.numel()
    # Five standard errors: of the mean, and of the moments whose variances are 2, 15 and 96.
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(x.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(x.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    # 2.2 is passed with probability 1e-4.
    ranks = torch.special.ndtr(x)
    assert kolmogorov_smirnov(ranks) < 2.2
    for place in range(4):
        assert kolmogorov_smirnov(ranks[place::4]) < 2.2
    # A tail beyond what 24 bits of radius could give is 5.8; the largest of a million is about 4.9.
    assert 4.2 < float(x.abs().max()) < 6.3
    far = 2 * n * float(torch.special.ndtr(torch.tensor(-4.0, dtype=torch.float64)))
    assert abs(int((x.abs() > 4).sum()) - far) < 5 * math.sqrt(far)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_are_uniform(dtype: torch.dtype, device: torch.device) -> None:
    key = ops.random_key(generator=torch.Generator().manual_seed(13), device=device)
    x = flowops.rand(COUNT, key=key, dtype=dtype)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert kolmogorov_smirnov(x) < 2.2
    for place in range(4):
        assert kolmogorov_smirnov(x[place::4]) < 2.2
    # Each of 16 bits is set in half of the numbers, and by itself.
    bits = torch.stack([(x * 2**k).floor().remainder(2) for k in range(1, 17)]).double() - 0.5
    correlation = 4 * (bits @ bits.T) / COUNT - torch.eye(16, device=device)
    assert float(correlation.abs().max()) < 5 / math.sqrt(COUNT)
    assert float(bits.mean(1).abs().max()) < 2.5 / math.sqrt(COUNT)
    for lag in (1, 2, 4, 16, 512):
        product = (x[lag:].double() - 0.5) * (x[:-lag].double() - 0.5)
        assert abs(float(product.mean())) < 5 / 12 / math.sqrt(COUNT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uniform_numbers_are_words_of_the_published_block(
    dtype: torch.dtype, device: torch.device
) -> None:
    words = VECTORS[0][2]
    key = torch.zeros(2, dtype=torch.int64, device=device)
    if dtype == torch.float32:
        expected = [(word >> 8) / 2**24 for word in words]
    else:
        pairs = (words[:2], words[2:])
        expected = [((high << 32 | low) >> 11) / 2**53 for low, high in pairs]
    got = flowops.rand(len(expected), key=key, dtype=dtype)
    assert got.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_uniform_numbers_equal_the_reference_and_are_prefixes(
    dtype: torch.dtype, device: torch.device
) -> None:
    key = torch.tensor([-1, as_int64(0xFFFFFFFF, 0x80000000)], device=device)
    whole = flowops.rand(40_001, key=key, dtype=dtype)
    assert torch.equal(whole, reference.rand((40_001,), key=key, dtype=dtype))
    for count in (1, 3, 4, 5, 63, 64, 511, 513, 2050):
        assert torch.equal(flowops.rand(count, key=key, dtype=dtype), whole[:count])
    assert torch.equal(flowops.rand(20, [50], key=key, dtype=dtype).flatten(), whole[:1000])
    assert flowops.rand(0, 3, key=key).shape == (0, 3)


def test_neighbours_are_independent(device: torch.device) -> None:
    key = ops.random_key(generator=torch.Generator().manual_seed(12), device=device)
    x = flowops.randn(COUNT, key=key).double()
    for lag in (1, 2, 3, 4, 8, 16, 64, 512):
        a, b = x[:-lag], x[lag:]
        for power in (1, 2):
            c, d = (t.pow(power) - t.pow(power).mean() for t in (a, b))
            correlation = float((c * d).mean() / (c.std() * d.std()))
            assert abs(correlation) < 5 / math.sqrt(a.numel()), (lag, power)


def blocks_of(x: Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, x.reshape(-1, 4).tolist()))


def test_no_block_comes_twice(device: torch.device) -> None:
    blocks = 25_000
    draws = {
        "one call": flowops.randn(4 * blocks, device=device),
        "the next call": flowops.randn(4 * blocks, device=device),
        "a neighbouring seed": flowops.randn(4 * blocks, key=torch.tensor([1, 0], device=device)),
        "a neighbouring offset": flowops.randn(4 * blocks, key=torch.tensor([0, 1], device=device)),
    }
    for rank in range(3):
        generator = torch.Generator().manual_seed(1000 + rank)
        draws[f"rank {rank}"] = flowops.randn(4 * blocks, generator=generator, device=device)
    union: set[tuple[float, ...]] = set()
    for count, draw in enumerate(draws.values(), 1):
        union |= blocks_of(draw)
        assert len(union) == count * blocks


def test_streams_of_different_keys_are_uncorrelated(device: torch.device) -> None:
    base = torch.tensor([5, 9], device=device)
    x = flowops.randn(200_000, key=base)
    for change in ([1, 0], [0, 1], [1 << 32, 0], [0, 1 << 32]):
        y = flowops.randn(200_000, key=base + torch.tensor(change, device=device))
        assert abs(float((x * y).mean())) < 5 / math.sqrt(200_000)


def test_random_key_uses_all_bits(device: torch.device) -> None:
    keys = torch.stack([ops.random_key(device=device) for _ in range(400)])
    for bit in range(64):
        ones = int(((keys >> bit) & 1).sum())
        assert abs(ones - 400) < 5 * math.sqrt(200), bit


def test_default_type_and_device() -> None:
    x = flowops.randn(3)
    assert x.dtype == torch.get_default_dtype()
    assert x.device == torch.empty(0).device
    key = ops.random_key(generator=torch.Generator().manual_seed(0))
    assert torch.equal(key, ops.random_key(generator=torch.Generator().manual_seed(0)))
