"""Runs one case of an op: gate, times and bytes of every way to compute it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Case, Function, Rival, installed, recording, with_backward
from benchmarks.memory import Footprint, footprint
from benchmarks.settings import Settings, first_line, rows, versions
from flowops.timing import measure

#: Rows of the square matrices whose product is the roof of what multiplies.
GEMM_SIDE = 768
GEMM_FLOPS = 2 * GEMM_SIDE**3


class Variant(NamedTuple):
    """A way to compute a case, and the inputs in its own form."""

    function: Function
    inputs: Sequence[Tensor]


def error_against(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest element of each reference."""
    errors = [torch.zeros((), dtype=torch.float64)]
    for want, got in zip(reference, outputs, strict=True):
        scale = want.double().abs().max().clamp_min(1e-30)
        errors.append(((want.double() - got.double()).abs().max() / scale).cpu())
    return torch.stack(errors).max().item()  # Python's max would lose NaN


def exact_outputs(case: Case, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """What ``eager`` gives in float64, as far as it can be compared."""
    doubles = [t.double() if t.is_floating_point() else t for t in inputs]
    return case.eager(*doubles)[case.first_compared :]


def gate(case: Case, variant: Variant, exact: Sequence[Tensor]) -> tuple[float, str]:
    """Return the variant's error, and why no figure may be shown for it, or nothing."""
    error = error_against(exact, variant.function(*variant.inputs)[case.first_compared :])
    # Written so that NaN does not pass.
    return error, "" if error <= case.tolerance else f"error {error:.1e} above {case.tolerance:.0e}"


def run_case(case: Case, settings: Settings) -> dict[str, Any]:
    """Gate the case on its correctness, then measure every variant side by side."""
    with settings.device:
        inputs = case.inputs()
    exact = exact_outputs(case, inputs)
    ours = Variant(case.ours, inputs)
    error, failure = gate(case, ours, exact)
    result: dict[str, Any] = {"op": case.op, "case": case.name, "error": error}
    if failure:
        return result | {"failed": failure}
    result |= {"traffic": case.traffic, "flops": case.flops}
    variants = {"ours": ours}
    if not settings.ours_only:
        variants = {"eager": Variant(case.eager, inputs), **variants}
        with settings.device:  # where the packages' layers keep their constants
            rivals, remarks = rivals_of(case, inputs, exact, settings.device)
        result |= remarks
        result["memory"] = _memory(case, variants | rivals, settings.device)
        variants |= _compiled(case, inputs, settings) | rivals
    result["forward"] = _forward_times(case, variants, settings)
    if case.backward:
        both = {name: with_backward(*variant) for name, variant in variants.items()}
        result["forward_backward"] = rows(
            measure(both, budget=settings.budget, device=settings.device)
        )
    return result


def rivals_of(
    case: Case, inputs: Sequence[Tensor], exact: Sequence[Tensor], device: torch.device
) -> tuple[dict[str, Variant], dict[str, Any]]:
    """Return the packages' variants that passed the gate, and what is to be said of the others."""
    here = {rival.package: rival for rival in case.rivals if device.type in rival.devices}
    present = installed(here)
    variants: dict[str, Variant] = {}
    left_out: dict[str, str] = {}
    for package in present:
        variant, failure = _try_rival(case, here[package], inputs, exact)
        if failure or variant is None:
            left_out[package] = failure
        else:
            variants[package] = variant
    return variants, {
        "absent": [package for package in here if package not in present],
        "left_out": left_out,
        "not_compared": {name: here[name].differs for name in variants if here[name].differs},
        "versions": versions(variants),
    }


def _try_rival(
    case: Case, rival: Rival, inputs: Sequence[Tensor], exact: Sequence[Tensor]
) -> tuple[Variant | None, str]:
    try:
        variant = Variant(rival.load(), rival.adapt(*inputs))
        if rival.differs:
            variant.function(*variant.inputs)
            return variant, ""
        return variant, gate(case, variant, exact)[1]
    except Exception as error:  # another project's code must not end the run
        return None, first_line(error)


def _compiled(case: Case, inputs: Sequence[Tensor], settings: Settings) -> dict[str, Variant]:
    if not settings.compile:
        return {}
    torch.compiler.reset()
    return {"compile": Variant(torch.compile(case.eager, fullgraph=True, dynamic=False), inputs)}


def _forward_times(
    case: Case, variants: dict[str, Variant], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Time the forward passes, between a copy of as many bytes and a matrix product."""
    calls: dict[str, Callable[[], object]] = {
        name: (lambda v=variant: v.function(*v.inputs)) for name, variant in variants.items()
    }
    calls |= _roofs(case, settings.device)
    with torch.no_grad():
        return rows(measure(calls, budget=settings.budget, device=settings.device))


def _roofs(case: Case, device: torch.device) -> dict[str, Callable[[], object]]:
    source = torch.empty(max(1, case.traffic // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    roofs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    if case.flops:
        left, right = torch.randn(2, GEMM_SIDE, GEMM_SIDE, device=device)
        roofs["gemm"] = lambda: left @ right
    return roofs


def _memory(case: Case, variants: dict[str, Variant], device: torch.device) -> dict[str, Any]:
    gc.collect()  # a cycle that dies while bytes are counted would be subtracted from them

    def count(variant: Variant) -> Footprint:
        if case.backward:
            return footprint(recording(*variant), with_backward(*variant), device)
        with torch.no_grad():
            call = lambda: variant.function(*variant.inputs)
            return footprint(call, call, device)

    return {name: asdict(count(variant)) for name, variant in variants.items()}
