"""Bytes read and written, against counts by hand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import traffic
from benchmarks.case import Case
from benchmarks.cases import affine_coupling
from benchmarks.memory import operator_bytes

CPU = torch.device("cpu")
N = 4096  # bytes of 32 x 32 float32


def square() -> list[torch.Tensor]:
    return [torch.randn(32, 32)]


def counts(case: Case) -> dict:
    return traffic.count_case(case, CPU)["bytes"]


def test_operators_read_their_arguments_and_write_their_results():
    x, y = torch.randn(2, 32, 32)
    assert operator_bytes(lambda: (x + y).exp()) == 5 * N
    assert operator_bytes(lambda: x.sum(1)) == N + N // 32
    assert operator_bytes(lambda: x.add_(y)) == 3 * N
    assert operator_bytes(lambda: torch.exp(x, out=y)) == 2 * N
    assert operator_bytes(lambda: y.fill_(1)) == N
    assert operator_bytes(lambda: torch.cat([x[:16], y[16:]])) == 2 * N
    assert operator_bytes(lambda: x.double()) == 3 * N


def test_views_move_nothing_and_an_element_counts_once():
    x, row = torch.randn(32, 32), torch.randn(1, 32)
    assert operator_bytes(lambda: x.t()[3:].view(29, 32, 1).detach()) == 0
    assert operator_bytes(lambda: x * x) == 2 * N
    assert operator_bytes(lambda: x * row.expand(32, 32)) == 2 * N + 128
    assert operator_bytes(lambda: torch.empty_like(x)) == 0
    assert operator_bytes(lambda: torch.zeros_like(x)) == N


def test_a_chain_in_eager_operators_and_in_one_loop_of_inductors():
    case = Case("a", "b", square, lambda x: [(x.sin() * 2).exp()], lambda x: [x.sin()], 2 * N)
    # Backward in eager: times exp's output, times 2, cos, times cos: 3 + 2 + 2 + 3.
    # Inductor's: x, its result and a gradient in, a gradient out.
    assert counts(case) == {
        "forward": {"ours": 2 * N, "compile": 2 * N, "eager": 6 * N},
        "forward_backward": {"ours": 7 * N, "compile": 6 * N, "eager": 16 * N},
    }


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # A product is a kernel of its own, and stands between two loops.
        (lambda x: [((x + 1) @ x).exp()], 2 * N + 3 * N + 2 * N),
        # One loop with two results reads the half that it needs and no more.
        (lambda x: [x[:16].exp(), x[:16].cos()], 3 * N // 2),
    ],
    ids=["product", "half"],
)
def test_inductors_loops(function, expected):
    case = Case("a", "b", square, function, function, 0, backward=False)
    assert counts(case)["forward"]["compile"] == expected


def test_ours_is_the_formula_and_both_passes_by_hand():
    case = affine_coupling.case((32, 32))
    counted, logdet = counts(case), 32 * 4
    assert counted["forward"]["ours"] == case.traffic + logdet
    # Backward: x, the parameters and z's gradient in, two gradients out.
    assert counted["forward_backward"]["ours"] == 8 * N + 2 * logdet
    assert counted["forward"]["eager"] > 2 * counted["forward"]["ours"]


def test_the_report_is_written_and_printed(tmp_path, capsys, monkeypatch):
    case = Case("exp", "(32, 32)", square, lambda x: [x.exp() + 1], lambda x: [x.exp()], 2 * N)
    monkeypatch.setattr(traffic, "op_cases", lambda: [case])
    out = tmp_path / "t.json"
    assert traffic.main(["--op", "exp", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert {"torch", "commit"} <= set(report["environment"])
    assert report["results"][0]["bytes"]["forward"] == {
        "ours": 2 * N, "compile": 2 * N, "eager": 4 * N,
    }  # fmt: skip
    assert "| `exp` | (32, 32) | 0.00819 | 0.00819 | 0.00819 (1.0) |" in capsys.readouterr().out


FAKED = """
import json, torch
from benchmarks import faked_h100, traffic
from benchmarks.cases import affine_coupling, gaussian_rsample

for case in affine_coupling.case((64, 12, 16, 16)), gaussian_rsample.case((32, 32)):
    counted = traffic.count_case(case, torch.device("cpu"), faked_h100.backend)["bytes"]
    print(json.dumps([counted[phase]["compile"] for phase in counted]))
"""


@pytest.mark.skipif(shutil.which("ninja") is None, reason="builds a guard for FakeTensors")
def test_inductors_triton_code_for_a_faked_h100():
    # A process of its own: Inductor keeps what it once asked a device.
    done = subprocess.run([sys.executable, "-c", FAKED], capture_output=True, text=True, check=True)
    coupling, sampled = map(json.loads, done.stdout.splitlines())
    half, logdet = 64 * 6 * 256 * 4, 64 * 4
    # The scale and the sum leave a first kernel for two more: training reads and writes 11 halves.
    assert coupling == [7 * half + logdet, (11 + 10) * half + 2 * logdet]
    assert sampled[0] // N == 3  # mean and log-variance in, z out, the noise drawn in between
    assert sampled[1] // N == 4 + 6  # the noise is kept for the backward pass
