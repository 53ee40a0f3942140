"""Bytes and operators are counted exactly, those of C++ kernels included."""

from __future__ import annotations

import torch

from benchmarks.memory import Footprint, footprint, operator_calls
from flowops import ops

CPU = torch.device("cpu")


def test_peak_and_kept_bytes():
    def chain() -> torch.Tensor:
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        del second
        return third

    assert footprint(chain, chain, CPU) == Footprint(peak=16_000, kept=2_000)


def test_what_is_saved_for_the_backward_pass_is_kept():
    x = torch.randn(1000, requires_grad=True)

    def forward() -> torch.Tensor:
        return x.exp().sin()

    def whole() -> object:
        return torch.autograd.grad(forward(), [x], torch.ones_like(x))

    counted = footprint(forward, whole, CPU)
    # exp saves its output, which is the input that sin saves; then sin's output.
    assert counted.kept == 8_000
    assert counted.peak >= 16_000


def test_allocations_of_our_kernels_are_seen():
    x, vector = torch.randn(8, 4), torch.zeros(4)

    def forward() -> object:
        return ops.actnorm(x, vector, vector)

    counted = footprint(forward, forward, CPU)
    assert counted.kept == 8 * 4 * 4 + 8 * 4


def test_what_was_allocated_before_is_not_counted():
    held = [torch.empty(10_000)]

    def replace() -> torch.Tensor:
        held[0] = torch.empty(1000)
        return held[0]

    assert footprint(replace, replace, CPU).peak == 4_000


def test_what_a_first_call_keeps_for_good_is_not_counted():
    cache: list[torch.Tensor] = []

    def call() -> torch.Tensor:
        if not cache:
            cache.append(torch.empty(10_000))
        return torch.empty(100)

    assert footprint(call, call, CPU) == Footprint(peak=400, kept=400)


def test_operators_are_counted():
    x = torch.randn(4)
    assert operator_calls(lambda: (x * x).exp(), CPU) == 2
    weight = torch.randn(4, requires_grad=True)
    forward = operator_calls(lambda: (weight * x).sum(), CPU)
    both = operator_calls(lambda: (weight * x).sum().backward(), CPU)
    assert both > forward
    assert operator_calls(lambda: ops.gaussian_log_prob(x[None]), CPU) == 2
