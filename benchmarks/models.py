"""Runs one model: training steps and samples of every way to write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Model, ModelCase, installed
from benchmarks.memory import footprint, operator_calls
from benchmarks.settings import Settings, first_line, rows, versions
from flowops.timing import measure

#: Steps after which a model must have learned something.
_WARM_UP = 20
#: Seconds of consecutive steps in one sample: a step finds the caches and the heap as its like left
#: them, not as another library did.
_STEPS_BLOCK = 0.1


@dataclass(frozen=True)
class Trainee:
    """A model with its optimiser, as functions without arguments."""

    loss: Callable[[], Tensor]
    step: Callable[[], Tensor]
    sample: Callable[[], Tensor] | None


def trainee(
    model: Model, data: Sequence[Tensor], *, autocast: bool = False, compiled: str = ""
) -> Trainee:
    """Train ``model`` on one batch, the optimiser the same for everyone.

    Args:
        model: The model.
        data: The batch.
        autocast: Whether the forward pass runs in bfloat16.
        compiled: Mode of ``torch.compile``; empty for none.
    """

    def compiling(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(function, mode=compiled) if compiled else function

    device = data[0].device.type
    inner, draw = compiling(model.loss), model.sample and compiling(model.sample)
    optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-3, fused=True)

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            return inner(*data)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return Trainee(loss, step, draw)


def run_model_case(case: ModelCase, settings: Settings) -> dict[str, Any]:
    """Gate every model on its loss, which must fall, then measure them side by side."""
    torch.compiler.reset()
    names = ["ours"] if settings.ours_only else installed(case.models)
    packages = [name for name in names if name not in ("ours", "eager")]
    with settings.device:
        trainees, left_out = _trainees(case, names, settings)
    result: dict[str, Any] = {
        "op": case.op,
        "case": case.name,
        "absent": [] if settings.ours_only else [n for n in case.models if n not in names],
        "left_out": left_out,
        "versions": versions(packages),
    }
    if "ours" in left_out:
        return result | {"failed": left_out["ours"]}
    result["memory"] = {
        name: asdict(footprint(t.loss, t.step, settings.device)) for name, t in trainees.items()
    }
    # What a compiled graph runs are no operators.
    result["calls"] = {
        name: operator_calls(t.step, settings.device)
        for name, t in trainees.items()
        if "compiled" not in name or settings.device.type == "cuda"
    }
    steps = {name: t.step for name, t in trainees.items()}
    result["step"] = _measure(steps, settings)
    samples = {name: t.sample for name, t in trainees.items() if t.sample is not None}
    if samples:
        with torch.no_grad():
            result["sample"] = _measure(samples, settings)
    return result


def _trainees(
    case: ModelCase, names: Sequence[str], settings: Settings
) -> tuple[dict[str, Trainee], dict[str, str]]:
    """Build and warm up the models; return those that learn, and what ails the others."""
    data = case.data()
    trainees: dict[str, Trainee] = {}
    left_out: dict[str, str] = {}
    for name, (model, mode) in _variants(case, names, settings).items():
        try:
            torch.manual_seed(0)
            candidate = trainee(
                case.models[model](*data), data, autocast=case.autocast, compiled=mode
            )
            failure = _loss_gate(candidate)
            with torch.no_grad():
                _ = candidate.sample and candidate.sample()
        except Exception as error:  # another project's code must not end the run
            failure = first_line(error)
        if failure:
            left_out[name] = failure
        else:
            trainees[name] = candidate
    return trainees, left_out


def _variants(
    case: ModelCase, names: Sequence[str], settings: Settings
) -> dict[str, tuple[str, str]]:
    """Variant to its model and the mode of ``torch.compile``."""
    variants = {name: (name, "") for name in names}
    if settings.compile and not settings.ours_only:
        chosen = [name for name in names if name in case.compiled]
        variants |= {f"{name} compiled": (name, "default") for name in chosen}
        if settings.device.type == "cuda" and "ours" in chosen:
            variants["ours compiled, CUDA graphs"] = ("ours", "reduce-overhead")
    return variants


def _loss_gate(candidate: Trainee) -> str:
    losses = [candidate.step().item() for _ in range(_WARM_UP)]
    fallen = losses[-1] < losses[0]
    return "" if fallen else f"loss {losses[0]:.3f} became {losses[-1]:.3f}"


def _measure(calls: dict[str, Callable[[], Tensor]], settings: Settings) -> dict[str, Any]:
    return rows(measure(calls, block=_STEPS_BLOCK, budget=settings.budget, device=settings.device))
