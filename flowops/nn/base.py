"""The contract that every invertible layer keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bijector(nn.Module):
    """An invertible map of batches, with its log-determinant.

    ``forward`` goes from data to noise, ``inverse`` from noise to data; both return
    ``(out, logdet)``. Every layer of :mod:`flowops.nn` keeps this contract:

    - Batches have one leading dimension: ``(B, C, *S)``, vectors being ``(B, D)``. ``B`` may be 0.
    - ``logdet`` is log|det d out / d in| of the direction evaluated, per sample: nats, shape
      ``(B,)``, float32 (float64 for float64 inputs), never averaged over the batch.
    - ``context`` is ``None`` or a vector per sample, ``(B, F)``. Layers built without
      ``context_features`` ignore it.
    - ``logdet=`` is added to the result, so that a chain accumulates in the kernels' own pass.
    - A sample's result does not depend on the rest of its batch (batch normalisation in training
      is the one exception, and says so).
    - Data-dependent initialisation happens in ``initialize`` and nowhere else: ``forward`` and
      ``inverse`` read no flag, so a training step is the same graph from the first to the last.

    Subclasses write ``forward`` and ``inverse``; those that hold layers with data-dependent
    parameters also write ``initialize``. Inverting to rounding is promised, being differentiable in
    both directions too; neither is checked at run time.

    ``reversible`` says whether :class:`ReversibleSequential` may rebuild the layer's input from its
    output; layers whose inverse is slow, loses digits or has other statistics set it to False.
    """

    reversible: bool = True

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map data to noise: ``(z, logdet)``. See :class:`Bijector`."""
        raise NotImplementedError(f"{type(self).__name__}: forward must be defined")

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map noise to data: ``(x, logdet)``. See :class:`Bijector`."""
        raise NotImplementedError(f"{type(self).__name__}: inverse must be defined")

    def rebuild(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(x, z, logdet)`` for an output ``z``: its input, and a graph from there.

        For :class:`ReversibleSequential`'s backward pass, with gradients enabled. ``x`` is a new
        leaf that requires a gradient; ``z`` and ``logdet`` are ``forward(x, context)`` again. By
        default this is ``inverse``, then ``forward``; a layer that can share work between the two
        defines its own. Forward hooks of the layer do not run a second time.
        """
        with torch.no_grad():
            x = self.inverse(z, context)[0]
        x = x.detach().requires_grad_()
        return x, *self.forward(x, context)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set data-dependent parameters from the batch ``x``, once, and return ``forward(x)[0]``.

        Layers are visited in the order of execution, each seeing the output of the ones already
        set. Layers that were initialised before, or whose state was loaded, keep their values.
        """
        return self(x, context)[0]


def zeros_logdet(x: Tensor) -> Tensor:
    """Return a log-determinant of zero for the batch ``x``: shape ``(B,)``, float32 or wider."""
    return x.new_zeros(x.size(0), dtype=torch.promote_types(x.dtype, torch.float32))


def constant_logdet(x: Tensor, value: Tensor | float, logdet: Tensor | None) -> Tensor:
    """Return ``logdet + value``, ``value`` being the same for every sample of the batch ``x``."""
    return (zeros_logdet(x) if logdet is None else logdet) + value
