"""The SIMT shim finds the mistakes it is there to find, and runs sound kernels right."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import build

INVALID_VALUE, INVALID_CONFIGURATION = 1, 9


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(build.link("probe", [Path(__file__).with_name("probe.cu")])))


@pytest.fixture
def probe(library):
    def run(name, data=None, result=None, option=0):
        message = ctypes.create_string_buffer(1000)
        data = np.zeros(32, np.float32) if data is None else data
        pointers = [a if a is None else a.ctypes.data_as(ctypes.c_void_p) for a in (data, result)]
        size = ctypes.c_size_t(len(message))
        code = library.probe(name.encode(), *pointers, option, message, size)
        if code == -1:
            raise RuntimeError(message.value.decode())
        return code

    return run


def test_barrier_orders_shared_memory(probe):
    data = np.arange(256, dtype=np.float32)
    assert probe("reverse", data, option=1) == 0
    np.testing.assert_array_equal(data, np.arange(256)[::-1])


def test_removed_barrier_shows(probe):
    data = np.arange(256, dtype=np.float32)
    probe("reverse", data, option=0)
    assert np.isnan(data).any()


def test_block_sum_over_several_blocks(probe):
    data = np.random.default_rng(0).integers(-8, 8, 768).astype(np.float32)
    sums = np.zeros(3)
    probe("block_sum", data, sums)
    np.testing.assert_array_equal(sums, 3 * data.reshape(3, 256).sum(1))


def test_shared_memory_starts_as_nan_in_every_block(probe):
    data = np.zeros(2, np.float32)
    probe("stale_shared", data)
    assert np.isnan(data).all()


def test_warp_barrier_orders_lanes(probe):
    data = np.arange(32, dtype=np.float32)
    probe("neighbour", data, option=1)
    np.testing.assert_array_equal(data, np.roll(np.arange(32), -1))


def test_removed_warp_barrier_shows(probe):
    data = np.arange(32, dtype=np.float32)
    probe("neighbour", data, option=0)
    assert np.isnan(data).any()


def test_shuffle_broadcasts(probe):
    data = np.arange(32, dtype=np.float32)
    probe("shuffle", data, option=5)
    np.testing.assert_array_equal(data, np.full(32, 5))


def _product(probe, a, b, option=0):
    data = np.concatenate([a.ravel(), b.ravel()]).astype(np.float32)
    result = np.zeros((16, 8), np.float32)
    assert probe("mma", data, result, option) == 0
    return result


def _to_tf32(x):
    """Ties away from zero, as cvt.rna does."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    scaled = mantissa * 2.0**11
    return np.sign(scaled) * np.floor(np.abs(scaled) + 0.5) * 2.0 ** (exponent - 11.0)


def test_tensor_cores_multiply_what_tf32_keeps(probe):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (8, 8)))
    a[0, 0] = 1 + 2.0**-11  # a tie
    kept = _to_tf32(a), _to_tf32(b)
    np.testing.assert_allclose(_product(probe, a, b), kept[0] @ kept[1], atol=2e-6)
    rest = _to_tf32(a - kept[0]), _to_tf32(b - kept[1])
    assert np.abs(rest[0] @ rest[1]).max() > 1e-8
    np.testing.assert_allclose(_product(probe, a, b, 1), rest[0] @ rest[1], atol=1e-13)


def test_tensor_cores_keep_nan_and_infinity(probe):
    ones = np.ones((16, 8), np.float32), np.ones((8, 8), np.float32)
    for value in (np.nan, -np.inf):
        a = ones[0].copy()
        a[3, 5] = value
        product = _product(probe, a, ones[1])
        np.testing.assert_array_equal(product[3], np.full(8, value))
        np.testing.assert_array_equal(np.delete(product, 3, 0), 8)


def test_blocks_run_once_each_in_random_order(probe):
    order = np.zeros(101, np.int32)
    probe("order", result=order)
    assert sorted(order[:100]) == list(range(100))
    assert list(order[:100]) != list(range(100))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divergent_barrier", "divergent barrier: .* waits at .*probe.cu:.* at .*probe.cu"),
        ("early_exit", r"divergent barrier: .*thread \(7, 0, 0\) of block \(0, 0, 0\) has left"),
        ("missing_lane", "for lane 31, which has left"),
        ("divergent_shuffle", "for lanes that wait elsewhere"),
        ("masked_source", "reads a lane outside its mask"),
        ("divergent_mma", "for lane 31, which has left"),
        ("misaligned", "misaligned 16-byte load"),
    ],
)
def test_mistakes_are_errors(probe, name, message):
    with pytest.raises(RuntimeError, match="simt: .*" + message):
        probe(name, result=np.zeros(32, np.float32))
    test_barrier_orders_shared_memory(probe)


@pytest.mark.parametrize(
    ("name", "most", "error"),
    [
        ("threads", 1024, INVALID_CONFIGURATION),
        ("grid_y", 65535, INVALID_CONFIGURATION),
        ("grid_z", 65535, INVALID_CONFIGURATION),
        ("shared_bytes", 227 * 1024, INVALID_VALUE),
    ],
)
def test_launch_limits(probe, name, most, error):
    assert probe(name, option=most) == 0
    assert probe(name, option=most + 1) == error


def test_empty_launch_is_an_error(probe):
    assert probe("threads", option=0) == INVALID_CONFIGURATION


@pytest.mark.parametrize(
    ("name", "message"),
    [("out_of_bounds", "heap-buffer-overflow"), ("static_out_of_bounds", "heap-buffer-overflow")],
)
def test_sanitizer_sees_an_access_beyond_shared_memory(name, message):
    library = build.link("probe", [Path(__file__).with_name("probe.cu")], sanitize=True)
    call = (
        "import ctypes; data = (ctypes.c_float * 256)(); "
        f"ctypes.CDLL({str(library)!r}).probe({{name!r}}, data, None, 1, None, 0)"
    )
    sound = _run_sanitized(call.format(name=b"reverse"))
    assert sound.returncode == 0, sound.stderr
    wrong = _run_sanitized(call.format(name=name.encode()))
    assert wrong.returncode != 0
    assert message in wrong.stderr


def _run_sanitized(program):
    asan = subprocess.check_output(["c++", "-print-file-name=libasan.so"], text=True).strip()
    environment = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
