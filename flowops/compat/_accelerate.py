"""Twins in the place of the layers that a model has, or that a library is about to build."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules import module as registration

from flowops.compat._twins import LIBRARIES, Joined, foreign, full_name, swap, tables, unswap
from flowops.compat._verify import check, run


@dataclass(frozen=True)
class Layer:
    """A layer that was met: where, of what class, and why it was left alone, if it was."""

    name: str
    kind: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.name or '(the model)'} ({self.kind}){reason}"


@dataclass
class Report:
    """What :func:`accelerate` and :func:`patch` did.

    Attributes:
        swapped: Layers that run on flowops now.
        kept: Layers of a known library that do not, each with the reason.
        errors: With ``verify``, how far outputs and gradients are from what they were, by name, as
            shares of their norms.
    """

    swapped: list[Layer] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    _objects: list[Any] = field(default_factory=list, repr=False)
    _kept: dict[int, Layer] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> list[Layer]:
        """Layers that were left alone; not those that are but parameters of a swapped one."""
        inside = {id(m) for x in self._objects if x.whole for m in x.modules()}
        return [layer for key, layer in self._kept.items() if key not in inside]

    def restore(self) -> None:
        """Give every layer its own class back; parameters stay as they are."""
        while self._objects:
            unswap(self._objects.pop())
        self.swapped.clear()

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, kept {len(self.kept)}"]
        lines += [f"  swapped {layer}" for layer in self.swapped]
        lines += [f"  kept    {layer}" for layer in self.kept]
        lines += [f"  error   {name}: {error:.1e}" for name, error in self.errors.items()]
        return "\n".join(lines)

    def take(self, name: str, module: Any, libraries: Collection[str]) -> None:
        """Swap ``module``, or a hook of it, if it can be, and note what became of it."""
        if isinstance(module, Joined):
            return
        kind = full_name(type(module))
        twin = next((tables()[x][kind] for x in libraries if kind in tables()[x]), None)
        if twin is None:
            if any(kind.partition(".")[0] in foreign(library) for library in libraries):
                self._kept[id(module)] = Layer(name, kind, "flowops has no twin of this class")
        elif reason := twin.refusal(module):
            self._kept[id(module)] = Layer(name, kind, reason)
        else:
            self._objects.append(swap(module, twin))
            self.swapped.append(Layer(name, kind))

    def take_all(self, root: nn.Module, libraries: Collection[str], prefix: str = "") -> None:
        """Take the modules inside of ``root``, and their hooks."""
        for name, module in list(root.named_modules(prefix=prefix)):
            self.take(name, module, libraries)
            for hook in module._forward_pre_hooks.values():
                self.take(name, hook, libraries)


def accelerate(
    model: nn.Module,
    inputs: tuple[Any, ...] = (),
    *,
    verify: bool = False,
    call: Callable[..., Any] | None = None,
    tolerance: float | None = None,
) -> Report:
    """Let flowops run the layers of ``model`` that it knows, in place.

    Each layer of nflows, normflows, zuko and the other libraries of :mod:`flowops.compat` that has
    a twin there changes its class; parameters, buffers, hooks, the state dict and whoever holds the
    layer stay, and ``isinstance`` goes on holding. Nothing but the model given is touched. Copies
    and pickles of the model stay swapped where flowops is installed.

    Args:
        model: Any module.
        inputs: What the model is run on with ``verify``.
        verify: Run the model before and after, from the same random numbers, and compare every
            output and the gradients of all inputs and parameters. Buffers are as before in the end.
        call: What is run, as ``call(model, *inputs)``; by default the model itself.
        tolerance: Largest difference with ``verify``, as a share of a tensor's norm: by default
            1e-9 in float64, 1e-3 in float32, and 0.05 below.

    Returns:
        A report of what was swapped, what not, and why; its ``restore()`` undoes it.

    Raises:
        ValueError: If a difference is larger; the model is as it was then.

    Example:
        >>> report = accelerate(nn.Linear(2, 2))
        >>> print(report)
        swapped 0, kept 0
    """
    call = call or _call
    before = run(model, inputs, call) if verify else {}
    report = Report()
    try:
        report.take_all(model, LIBRARIES)
        if verify:
            report.errors = check(before, run(model, inputs, call), tolerance)
    except Exception:
        report.restore()
        raise
    return report


def _call(model: nn.Module, *inputs: Any) -> Any:
    return model(*inputs)


_building: ContextVar[Report | None] = ContextVar("flowops building", default=None)


@contextmanager
def patch(*libraries: str) -> Generator[Report]:
    """Swap the layers that are built inside of the ``with``, for libraries that build their own.

    A layer is swapped when it becomes a part of another module, so that models run on flowops
    while still inside, or else at the end. Other threads are not touched, and classes and modules
    of the libraries stay as they are.

    Args:
        libraries: Names as in :mod:`flowops.compat`, such as "nflows" and "zuko".

    Yields:
        The report, which grows. Names are those inside of the part that was built.

    Raises:
        ValueError: If a library is not known.
    """
    if not libraries or not set(libraries) <= set(LIBRARIES):
        raise ValueError(f"patch: libraries must be among {', '.join(LIBRARIES)}, got {libraries}")
    report = Report()
    unfinished: dict[int, nn.Module] = {}

    def take(module: nn.Module, name: str) -> None:
        for part in module.modules():
            unfinished.pop(id(part), None)
        report.take_all(module, libraries, name)

    def registered(module: nn.Module, name: str, value: Any) -> None:
        if _building.get() is not report:
            return
        # The module is not yet built to its end; what it is given is.
        unfinished[id(module)] = module
        if isinstance(value, nn.Module):
            take(value, name)

    hooks = [
        registration.register_module_module_registration_hook(registered),
        registration.register_module_parameter_registration_hook(registered),
        registration.register_module_buffer_registration_hook(registered),
    ]
    token = _building.set(report)
    try:
        yield report
        for module in list(unfinished.values()):
            take(module, type(module).__name__)
    finally:
        _building.reset(token)
        for hook in hooks:
            hook.remove()
