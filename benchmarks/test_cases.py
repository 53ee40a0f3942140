"""The per-op cases under pytest-benchmark: ``pytest benchmarks -k linear_attention``.

Not among the tests: nothing is asserted about time.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.case import Case, with_backward
from benchmarks.operators import Variant, exact_outputs, gate
from benchmarks.run import op_cases


@pytest.mark.parametrize("phase", ["forward", "forward_backward"])
@pytest.mark.parametrize("variant", ["eager", "ours"])
@pytest.mark.parametrize("case", op_cases(), ids=lambda case: f"{case.op}: {case.name}")
def test_case(case: Case, variant: str, phase: str, benchmark: BenchmarkFixture) -> None:
    if phase == "forward_backward" and not case.backward:
        pytest.skip("this case has no backward pass")
    torch.manual_seed(0)
    inputs = case.inputs()
    failure = gate(case, Variant(case.ours, inputs), exact_outputs(case, inputs))[1]
    if failure:
        pytest.fail(failure)
    function = case.ours if variant == "ours" else case.eager
    benchmark.group = f"{case.op}: {case.name}, {phase}"
    if phase == "forward_backward":
        benchmark(with_backward(function, inputs))
    else:
        with torch.no_grad():
            benchmark(function, *inputs)
