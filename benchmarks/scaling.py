"""How costs grow with a size: times over a sweep, and the exponent of the power law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.case import Case, ModelCase, Sweep, with_backward
from benchmarks.models import trainee
from benchmarks.operators import Variant, exact_outputs, gate
from benchmarks.settings import Settings
from flowops.timing import measure


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Least-squares slope of log seconds over log size: cost grows as size to this power."""
    return float(np.polynomial.polynomial.polyfit(np.log(sizes), np.log(seconds), 1)[1])


def run_sweep(sweep: Sweep, settings: Settings) -> dict[str, Any]:
    """Time forward+backward, or training steps, at every size, and fit the exponents."""
    seconds: dict[str, list[float]] = {}
    result: dict[str, Any] = {"op": sweep.op, "axis": sweep.axis, "sizes": list(sweep.sizes)}
    for size in sweep.sizes:
        calls, failure = _calls(sweep.case_of(size), settings)
        if failure:
            return result | {"failed": f"{sweep.axis} {size}: {failure}"}
        timings = measure(calls, budget=settings.budget, device=settings.device)
        for name, timing in timings.items():
            seconds.setdefault(name, []).append(timing.median)
    fits = {name: exponent(sweep.sizes, medians) for name, medians in seconds.items()}
    return result | {"seconds": seconds, "exponents": fits}


def _calls(
    case: Case | ModelCase, settings: Settings
) -> tuple[dict[str, Callable[[], object]], str]:
    """Return ours and the eager way, and what the gate has against ours."""
    names = ["ours"] if settings.ours_only else ["eager", "ours"]
    if isinstance(case, ModelCase):
        with settings.device:
            data = case.data()
            built = {name: case.models[name](*data) for name in names}
        return {name: trainee(model, data).step for name, model in built.items()}, ""
    with settings.device:
        inputs = case.inputs()
    functions = {"eager": case.eager, "ours": case.ours}
    _, failure = gate(case, Variant(case.ours, inputs), exact_outputs(case, inputs))
    return {name: with_backward(functions[name], inputs) for name in names}, failure
