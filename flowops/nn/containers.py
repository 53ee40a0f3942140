"""Bijectors made of bijectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.nn.actnorm import ActNorm
from flowops.nn.base import Bijector, constant_logdet, zeros_logdet
from flowops.nn.conv1x1 import InvertibleConv1x1, PreparedConv, prepare
from flowops.nn.split import Split


class Sequential(Bijector):
    """Bijectors one after another; ``inverse`` runs them backwards.

    The weights of all invertible 1x1 convolutions among its own layers come from one kernel call,
    and an :class:`ActNorm` right before such a convolution is folded into it, in training too: its
    output is never formed (its forward hooks do not run). See :func:`flowops.nn.prepare`.

    Args:
        *layers: the bijectors, in the order of the forward direction.
    """

    def __init__(self, *layers: Bijector) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._units = _group(layers)
        self.reversible = all(layer.reversible for layer in layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    def convolutions(self) -> list[tuple[ActNorm | None, InvertibleConv1x1]]:
        """Return the 1x1 convolutions of this container, each with the actnorm folded into it."""
        pairs: list[tuple[ActNorm | None, InvertibleConv1x1]] = []
        layers = list(self.layers)
        for actnorm, last in self._units:
            conv = layers[last]
            if isinstance(conv, InvertibleConv1x1):
                before = None if actnorm is None else layers[actnorm]
                pairs.append((before if isinstance(before, ActNorm) else None, conv))
        return pairs

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        logdet: Tensor | None = None,
        prepared: Sequence[PreparedConv] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; ``prepared`` gives the weights of ``convolutions()``."""
        if prepared is None:
            prepared = prepare(self.convolutions())
        return self._run(x, context, logdet, list(prepared), inverse=False)

    def inverse(
        self,
        z: Tensor,
        context: Tensor | None = None,
        *,
        logdet: Tensor | None = None,
        prepared: Sequence[PreparedConv] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; ``prepared`` gives the inverse weights of ``convolutions()``."""
        if prepared is None:
            prepared = prepare(self.convolutions(), inverse=True)
        return self._run(z, context, logdet, list(prepared), inverse=True)

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        logdet: Tensor | None,
        prepared: list[PreparedConv],
        *,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        # The convolutions' log-determinants are the same for all samples: summed as one scalar.
        constant: Tensor | None = None
        layers = list(self.layers)  # indexing a ModuleList takes 3 microseconds
        units, weights = (self._units, iter(prepared))
        if inverse:
            units, weights = units[::-1], iter(prepared[::-1])
        for _, last in units:
            layer = layers[last]
            if isinstance(layer, InvertibleConv1x1):
                weight, bias, rate = next(weights)
                pixels = math.prod(x.shape[2:])
                constant = rate * pixels if constant is None else constant.add(rate, alpha=pixels)
                x = ops.invertible_conv1x1(x, weight, bias)
            elif inverse:
                x, logdet = layer.inverse(x, context, logdet=logdet)  # type: ignore[operator]
            else:
                x, logdet = layer(x, context, logdet=logdet)
        if constant is not None:
            return x, constant_logdet(x, constant, logdet)
        return x, zeros_logdet(x) if logdet is None else logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """See :class:`Bijector`."""
        for layer in self.layers:
            x = layer.initialize(x, context)  # type: ignore[operator]
        return x


def _group(layers: Sequence[Bijector]) -> list[tuple[int | None, int]]:
    """Group layer indices into ``(folded actnorm or None, layer)``."""
    units: list[tuple[int | None, int]] = []
    for i, layer in enumerate(layers):
        previous = layers[i - 1] if i else None
        if isinstance(layer, InvertibleConv1x1) and type(previous) is ActNorm:
            units[-1] = (i - 1, i)
        else:
            units.append((None, i))
    return units


class Inverse(Bijector):
    """The inverse of a bijector: ``forward`` and ``inverse`` exchanged.

    Args:
        bijector: the map to invert. Its data-dependent layers must be initialised before: an
            inverse pass never initialises.
    """

    def __init__(self, bijector: Bijector) -> None:
        super().__init__()
        self.bijector = bijector
        self.reversible = bijector.reversible

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self.bijector.inverse(x, context, logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self.bijector(z, context, logdet=logdet)


class MultiScale(Bijector):
    """Levels with a part of the variables factored out after each but the last.

    ``forward`` returns a flat latent ``(B, D)``: the parts factored out, in order, then what the
    last level leaves. The weights of the 1x1 convolutions of all levels come from one kernel call.

    Args:
        levels: one :class:`Sequential` a level.
        splits: one :class:`Split` a level but the last.
        shapes: shape of each part of the latent, without the batch: those factored out, then the
            last level's output.

    Raises:
        ValueError: if the three do not go together.
    """

    def __init__(
        self,
        levels: Sequence[Sequential],
        splits: Sequence[Split],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__()
        if len(splits) != len(levels) - 1 or len(shapes) != len(levels):
            raise ValueError(
                f"MultiScale: splits and shapes must have {len(levels) - 1} and {len(levels)} "
                f"entries for {len(levels)} levels, got {len(splits)} and {len(shapes)}"
            )
        self.levels = nn.ModuleList(levels)
        self.splits = nn.ModuleList(splits)
        self.shapes = [tuple(shape) for shape in shapes]
        self.reversible = all(level.reversible for level in levels)

    def _prepared(self, inverse: bool) -> list[list[PreparedConv]]:
        pairs = [level.convolutions() for level in self.levels]  # type: ignore[operator]
        flat = prepare([pair for level in pairs for pair in level], inverse=inverse)
        weights = iter(flat)
        return [[next(weights) for _ in level] for level in pairs]

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; ``z`` is flat, ``(B, D)``."""
        parts: list[Tensor] = []
        for i, (level, weights) in enumerate(zip(self.levels, self._prepared(False), strict=True)):
            x, logdet = level(x, context, logdet=logdet, prepared=weights)
            if i < len(self.splits):
                x, noise, logdet = self.splits[i](x, context, logdet=logdet)
                parts.append(noise.flatten(1))
        parts.append(x.flatten(1))
        return torch.cat(parts, 1), zeros_logdet(x) if logdet is None else logdet

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; ``z`` is flat, ``(B, D)``."""
        parts = z.split([math.prod(shape) for shape in self.shapes], 1)
        shaped = [p.reshape(z.size(0), *s) for p, s in zip(parts, self.shapes, strict=True)]
        x = shaped[-1]
        weights = self._prepared(True)
        for i in reversed(range(len(self.levels))):
            if i < len(self.splits):
                x, logdet = self.splits[i].inverse(x, shaped[i], context, logdet=logdet)  # type: ignore[operator]
            x, logdet = self.levels[i].inverse(x, context, logdet=logdet, prepared=weights[i])  # type: ignore[operator]
        return x, zeros_logdet(x) if logdet is None else logdet

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """See :class:`Bijector`."""
        parts: list[Tensor] = []
        for i, level in enumerate(self.levels):
            x = level.initialize(x, context)  # type: ignore[operator]
            if i < len(self.splits):
                x, noise = self.splits[i].initialize(x, context)  # type: ignore[operator]
                parts.append(noise.flatten(1))
        return torch.cat([*parts, x.flatten(1)], 1)
