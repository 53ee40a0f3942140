"""A chain of bijectors whose backward pass rebuilds activations instead of keeping them."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from flowops import ops
from flowops.nn._replay import Replay
from flowops.nn.actnorm import ActNorm
from flowops.nn.base import Bijector, constant_logdet, zeros_logdet
from flowops.nn.containers import Sequential
from flowops.nn.conv1x1 import InvertibleConv1x1, PreparedConv, prepare
from flowops.ops._dispatch import transforms_active
from flowops.ops.invertible_conv1x1 import invertible_conv1x1_backward


class ReversibleSequential(Sequential):
    r"""A :class:`Sequential` whose activations take the memory of one layer, whatever its depth.

    The forward pass keeps the output of the chain; the backward pass goes through the layers from
    the last to the first, rebuilds each one's input, :math:`x_{i-1} = f_i^{-1}(x_i)`, and
    differentiates that layer alone. Layers, parameters and state are those of :class:`Sequential`,
    outputs are equal, and gradients differ by the rounding of the inverses.

    - Layers with ``reversible = False`` (autoregressive ones, :class:`Logit`, :class:`BatchNorm`)
      run as in :class:`Sequential`, keep what they keep there, and cut the chain in two.
    - Gradients reach ``x``, ``context``, ``logdet``, and the parameters and tensors that are
      attributes of the layers' modules; not what a function has from elsewhere. They get theirs at
      the end of the backward pass, so data parallel training cannot hide its communication.
    - A layer that draws random numbers (dropout) or changes its buffers in place (batch
      normalisation in a conditioner) finds both as they were, and leaves both as it found them.
    - Under autocast the conditioners run in the lower precision, the state in float32.
    - Without gradients, in ``inverse`` and under ``torch.func`` transforms or forward-mode AD the
      chain is a plain :class:`Sequential`. ``torch.compile`` breaks its graph at the chain.

    Args:
        *layers: the bijectors, in the order of the forward direction.
        preserve_rng_state: read the state of the random number generators around each layer. Set
            it to False where no layer draws random numbers, for CUDA graphs.

    Raises:
        ValueError: if ``x`` has 16 bits: its rounding would grow from layer to layer.
        RuntimeError: in the backward pass, under ``create_graph``.

    Cost:
        One more evaluation of each conditioner, about a third of a training step, and one inverse
        of each 1x1 convolution's weight.

    Source: Gomez, Ren, Urtasun and Grosse, "The reversible residual network: backpropagation
    without storing activations", 2017, arXiv:1707.04585.
    """

    def __init__(self, *layers: Bijector, preserve_rng_state: bool = True) -> None:
        super().__init__(*layers)
        self.preserve_rng_state = preserve_rng_state

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        logdet: Tensor | None,
        prepared: list[PreparedConv],
        *,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        if inverse or not torch.is_grad_enabled() or transforms_active():
            return super()._run(x, context, logdet, prepared, inverse=inverse)
        if torch.compiler.is_compiling():
            # Not a decorator: it would import the compiler, which takes a second.
            uncompiled = torch.compiler.disable(self._run_parts)
            return uncompiled(x, context, logdet, prepared)  # type: ignore[return-value]
        return self._run_parts(x, context, logdet, prepared)

    def _run_parts(
        self,
        x: Tensor,
        context: Tensor | None,
        logdet: Tensor | None,
        prepared: list[PreparedConv],
    ) -> tuple[Tensor, Tensor]:
        if x.dtype in (torch.float16, torch.bfloat16):
            if not torch.is_autocast_enabled(x.device.type):
                raise ValueError(
                    "ReversibleSequential: x must be float32 or float64, for rounding grows from "
                    f"layer to layer (torch.autocast keeps the state in float32), got {x.dtype}"
                )
            x = x.float()
        parts = self._parts(prepared)
        for reversible, members in itertools.groupby(parts, lambda part: part.reversible):
            if reversible:
                chain = _Chain(list(members), x.device, self.preserve_rng_state)
                x, logdet = chain(x, context, logdet)
            else:
                for part in members:
                    x, logdet = part.run(x, context, logdet)
        constant = sum(p.logdet * p.pixels for p in parts if isinstance(p, _Convolution))
        return x, constant_logdet(x, constant, logdet)

    def _parts(self, prepared: list[PreparedConv]) -> list[_Layer | _Convolution]:
        layers = list(self.layers)
        convolutions = itertools.starmap(
            _Convolution, zip(self.convolutions(), prepared, strict=True)
        )
        return [
            next(convolutions)
            if isinstance(layers[last], InvertibleConv1x1)
            else _Layer(layers[last])  # type: ignore[arg-type]
            for _, last in self._units
        ]


class _Convolution:
    """A 1x1 convolution in a chain, its weight prepared; its log-determinant is not counted."""

    reversible = True
    inverse: PreparedConv

    def __init__(
        self, pair: tuple[ActNorm | None, InvertibleConv1x1], prepared: PreparedConv
    ) -> None:
        self.pair = pair
        self.tensors = [t for t in (prepared.weight, prepared.bias) if t is not None]
        self.logdet = prepared.logdet
        self.pixels = 0

    def run(
        self, x: Tensor, context: Tensor | None, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self.pixels = math.prod(x.shape[2:])
        return ops.invertible_conv1x1(x, *self.tensors), logdet

    def undo(
        self, z: Tensor, context: Tensor | None, grads: _Pair, leaves: Sequence[Tensor]
    ) -> _Undone:
        """Return the input, its gradient and those of the leaves, from output and its gradient."""
        x = ops.invertible_conv1x1(z, self.inverse.weight, self.inverse.bias)
        grad_x, *others = invertible_conv1x1_backward(grads[0], x, leaves[0], len(leaves) == 2)
        return x, grad_x, zip(leaves, others, strict=False)


class _Layer:
    """Another bijector in a chain: what its forward pass drew, and the buffers that it changed."""

    def __init__(self, layer: Bijector) -> None:
        self.layer = layer
        self.reversible = layer.reversible
        self.replay = Replay(layer)
        self.tensors = self.replay.tensors
        self.random: list[Tensor] = []

    def run(
        self, x: Tensor, context: Tensor | None, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        with self.replay.recording():
            return self.layer(x, context, logdet=logdet)

    def undo(
        self, z: Tensor, context: Tensor | None, grads: _Pair, leaves: Sequence[Tensor]
    ) -> _Undone:
        """Return the input, its gradient and those of the leaves, from output and its gradient."""
        wanted = [t for t in (*leaves, context) if t is not None and t.requires_grad]
        with self.replay.as_recorded(leaves), _rng(self.random, z.device):
            x, grad_x, others = self.layer.undo(z, context, grads, wanted)
        return x, grad_x, zip(wanted, others, strict=True)


_Part = _Convolution | _Layer
_Pair = tuple[Tensor, Tensor]
_Undone = tuple[Tensor, Tensor, Iterable[tuple[Tensor, Tensor | None]]]


def _rng_states(x: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *([] if x.is_cpu else get_device_states(x)[1])]


@contextlib.contextmanager
def _rng(states: list[Tensor], device: torch.device) -> Generator[None]:
    """Draw as from ``states`` for a while; not from elsewhere where there are none."""
    if not states:
        yield
        return
    devices = [device.index] * (len(states) - 1)
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.set_rng_state(states[0])
        set_device_states(devices, states[1:], device_type=device.type)
        yield


class _Chain:
    """Reversible parts one after another, and under what conditions they ran."""

    def __init__(self, parts: list[_Part], device: torch.device, preserve_rng_state: bool) -> None:
        self.parts = parts
        self.device = device
        self.preserve_rng_state = preserve_rng_state
        self.tensors = list({id(t): t for part in parts for t in part.tensors}.values())
        index = {id(t): i for i, t in enumerate(self.tensors)}
        self.indices = [[index[id(t)] for t in part.tensors] for part in parts]
        kind = device.type
        self._autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def autocast(self) -> torch.autocast:
        """Return the autocast of the forward pass; a cache would keep the weights of all layers."""
        enabled, dtype = self._autocast
        return torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False)

    def __call__(
        self, x: Tensor, context: Tensor | None, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return output and log-determinant, with one node of the graph behind them."""
        return _Rebuilding.apply(self, x, context, logdet, *self.tensors)  # type: ignore[misc]

    def run(
        self, x: Tensor, context: Tensor | None, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return output and log-determinant, and note what each layer drew."""
        before = _rng_states(x) if self.preserve_rng_state else []
        for part in self.parts:
            x, logdet = part.run(x, context, logdet)
            if self.preserve_rng_state and isinstance(part, _Layer):
                after = _rng_states(x)
                if not all(map(torch.equal, before, after)):
                    part.random = before
                before = after
        return x, zeros_logdet(x) if logdet is None else logdet

    @torch.no_grad()
    def prepare_inverses(self) -> None:
        """Invert the weights of all 1x1 convolutions in one call."""
        convolutions = [part for part in self.parts if isinstance(part, _Convolution)]
        inverses = prepare([part.pair for part in convolutions], inverse=True)
        for part, inverse in zip(convolutions, inverses, strict=True):
            part.inverse = inverse


class _Rebuilding(torch.autograd.Function):
    """The chain as one node of the graph, which keeps its output."""

    @staticmethod
    def forward(
        ctx: Any,
        chain: _Chain,
        x: Tensor,
        context: Tensor | None,
        logdet: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with chain.autocast():
            z, total = chain.run(x, context, logdet)
        ctx.chain = chain
        ctx.save_for_backward(z, context, *tensors)
        return z, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "ReversibleSequential: gradients must be taken without create_graph, for its "
                "backward pass has no graph; use Sequential for gradients of gradients"
            )
        chain: _Chain = ctx.chain
        z, context, *tensors = ctx.saved_tensors
        z = z.detach()  # the saved output has this very node behind it
        wanted = ctx.needs_input_grad
        leaves = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted[4:], strict=True)]
        leaf_context = None if context is None else context.detach().requires_grad_(wanted[2])
        found: dict[Tensor | None, Tensor] = {}
        grad, grad_logdet = grads
        with chain.autocast():
            chain.prepare_inverses()
            for part, indices in zip(reversed(chain.parts), reversed(chain.indices), strict=True):
                inner = [leaves[i] for i in indices]
                z, grad, pairs = part.undo(z, leaf_context, (grad, grad_logdet), inner)
                for leaf, more in pairs:
                    if more is not None:
                        found[leaf] = found[leaf] + more if leaf in found else more
        grad_total = grad_logdet if wanted[3] else None
        return None, grad, found.get(leaf_context), grad_total, *map(found.get, leaves)
