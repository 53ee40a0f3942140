"""A module run a second time, in a backward pass, as it ran the first time."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class Replay:
    """What a module had when it ran: parameters, and the buffers that the run changed in place.

    ``tensors`` are its parameters, and tensors of a larger graph that its modules were handed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        modules = list(module.modules())
        self._slots = [slot for each in modules for slot in _slots(each)]
        self._buffers = [b for each in modules for b in each._buffers.values() if b is not None]
        self._changed: list[tuple[Tensor, Tensor]] = []
        self.tensors = [place[name] for place, name in self._slots]

    @contextlib.contextmanager
    def recording(self) -> Generator[None]:
        """Note how the buffers were before a run that changes them."""
        found = [(buffer, buffer.clone(), buffer._version) for buffer in self._buffers]
        yield
        # Torch's batch normalisation does not say that it writes to its running statistics, only
        # that it counts the batch: one buffer that changed stands for all of the module.
        if any(buffer._version != version for buffer, _, version in found):
            self._changed = [(buffer, before) for buffer, before, _ in found]

    @contextlib.contextmanager
    def as_recorded(self, leaves: Sequence[Tensor]) -> Generator[None]:
        """Give the module ``leaves`` for ``tensors``, and its earlier buffers, for a while.

        Other parameters: hooks of the true ones must see their gradient once, from the caller.

        Raises:
            RuntimeError: Within ``parametrize.cached()``, which would go on giving older weights.
        """
        if parametrize._cache_enabled:
            raise RuntimeError(
                "flowops.nn: a backward pass that evaluates a network again must not run within "
                "torch.nn.utils.parametrize.cached()"
            )
        now = [buffer.clone() for buffer, _ in self._changed]
        held = [place.get(name) for place, name in self._slots]
        try:
            for buffer, before in self._changed:
                buffer.copy_(before)
            for (place, name), leaf in zip(self._slots, leaves, strict=True):
                place[name] = leaf  # type: ignore[assignment]
            yield
        finally:
            for (place, name), tensor in zip(self._slots, held, strict=True):
                place[name] = tensor
            for (buffer, _), value in zip(self._changed, now, strict=True):
                buffer.copy_(value)


def _slots(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where a module has its parameters, and tensors of a larger graph that it was handed.

    Such as the weights that :func:`flowops.nn.utils.spectral_norm_model` makes for a whole model.
    """
    parameters = [(module._parameters, n) for n, t in module._parameters.items() if t is not None]
    return parameters + [
        (vars(module), name)
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.requires_grad
    ]
