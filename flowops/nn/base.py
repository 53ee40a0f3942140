"""The contract that every invertible layer keeps."""

from __future__ import annotations

from collections.abc import Sequence

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

    @torch.enable_grad()
    def undo(
        self,
        z: Tensor,
        context: Tensor | None,
        grads: tuple[Tensor, Tensor],
        wanted: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Return the input of ``forward`` for its output ``z``, with its gradient and more.

        For :class:`ReversibleSequential`'s backward pass. ``grads`` are the gradients of ``z`` and
        of the log-determinant; the last result has those of ``wanted``, parameters or the context,
        None where nothing depends on one. By default this is ``inverse``, ``forward`` with a graph,
        and its gradients; a layer that can share work between them defines its own. Forward hooks
        of the layer do not run a second time.
        """
        with torch.no_grad():
            x = self.inverse(z, context)[0]
        x = x.detach().requires_grad_()
        grad_x, *others = gradients(self.forward(x, context), [x, *wanted], grads)
        return x.detach(), torch.zeros_like(x) if grad_x is None else grad_x, others

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set data-dependent parameters from the batch ``x``, once, and return ``forward(x)[0]``.

        Layers are visited in the order of execution, each seeing the output of the ones already
        set. Layers that were initialised before, or whose state was loaded, keep their values.
        """
        return self(x, context)[0]


def gradients(
    outs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients of ``inputs``; what has no graph or no gradient adds nothing."""
    ends = [
        (out, grad)
        for out, grad in zip(outs, grads, strict=True)
        if grad is not None and out.requires_grad
    ]
    if not ends:
        return [None] * len(inputs)
    outs, grads = zip(*ends, strict=True)
    return list(torch.autograd.grad(outs, inputs, grads, allow_unused=True))


def zeros_logdet(x: Tensor) -> Tensor:
    """Return a log-determinant of zero for the batch ``x``: shape ``(B,)``, float32 or wider."""
    return x.new_zeros(x.size(0), dtype=torch.promote_types(x.dtype, torch.float32))


def constant_logdet(x: Tensor, value: Tensor | float, logdet: Tensor | None) -> Tensor:
    """Return ``logdet + value``, ``value`` being the same for every sample of the batch ``x``."""
    return (zeros_logdet(x) if logdet is None else logdet) + value
