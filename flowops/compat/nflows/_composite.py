"""Transforms made of transforms, and the squeeze between the levels of a multiscale one."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from flowops.compat.nflows._base import Transform, check_positive
from flowops.nn.base import zeros_logdet


class CompositeTransform(Transform):
    """Several transforms, one after the other.

    Log-determinants are added in float32 or wider; nflows adds in the dtype of the inputs, which
    costs nats in 16 bits.

    Args:
        transforms: In the order of ``forward``.
    """

    _transforms: nn.ModuleList

    def __init__(self, transforms: Iterable[nn.Module]) -> None:
        super().__init__()
        self._transforms = nn.ModuleList(transforms)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        total = zeros_logdet(inputs)
        for transform in self._transforms:
            inputs, logabsdet = transform(inputs, context)
            total = total + logabsdet
        return inputs, total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        total = zeros_logdet(inputs)
        for transform in reversed(self._transforms):
            inputs, logabsdet = transform.inverse(inputs, context)  # type: ignore[operator]
            total = total + logabsdet
        return inputs, total


class InverseTransform(Transform):
    """The inverse of a transform.

    Args:
        transform: It.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self._transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._transform.inverse(inputs, context)  # type: ignore[operator]

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._transform(inputs, context)


class MultiscaleCompositeTransform(Transform):
    """Transforms of which each, but the last, gives the first half of its outputs as noise.

    The other half goes on to the next. The noise of all of them is one vector a sample.

    Args:
        num_transforms: How many times :meth:`add_transform` will be called.
        split_dim: Dimension that is halved, from 1; the first half has the odd element.

    Raises:
        TypeError: If ``split_dim`` is not a positive integer.

    Source:
        Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803, section 3.6.
    """

    _transforms: nn.ModuleList

    def __init__(self, num_transforms: int, split_dim: int = 1) -> None:
        super().__init__()
        check_positive(self, "split_dim", split_dim)
        self._transforms = nn.ModuleList()
        self._output_shapes: list[tuple[int, ...]] = []
        self._num_transforms = num_transforms
        self._split_dim = split_dim

    def add_transform(
        self, transform: nn.Module, transform_output_shape: Iterable[int]
    ) -> tuple[int, ...] | None:
        """Append a transform.

        Args:
            transform: It.
            transform_output_shape: Of one sample of its outputs.

        Returns:
            The shape of one sample of the next one's inputs; None after the last.

        Raises:
            RuntimeError: If there are ``num_transforms`` already.
            ValueError: If the shape cannot be halved.
        """
        shape, dim = tuple(transform_output_shape), self._split_dim
        left = self._num_transforms - len(self._transforms)
        if left < 1:
            raise RuntimeError(
                f"{type(self).__name__}: transform must be one of {self._num_transforms}, "
                "got one more"
            )
        if dim > len(shape) or shape[dim - 1] < 2:
            raise ValueError(
                f"{type(self).__name__}: transform_output_shape must have size 2 or more in "
                f"dimension {dim} of a batch, got {shape}"
            )
        self._transforms.append(transform)
        if left == 1:
            self._output_shapes.append(shape)
            return None
        first, second = (
            (*shape[: dim - 1], half, *shape[dim:])
            for half in ((shape[dim - 1] + 1) // 2, shape[dim - 1] // 2)
        )
        self._output_shapes.append(first)
        return second

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`; the outputs are (N, D)."""
        self._check_complete()
        total, noise = zeros_logdet(inputs), []
        for transform, shape in zip(self._transforms, self._output_shapes, strict=True):
            outputs, logabsdet = transform(inputs, context)
            total = total + logabsdet
            if len(noise) < self._num_transforms - 1:
                outputs, inputs = outputs.chunk(2, self._split_dim)
            if outputs.shape[1:] != shape:
                raise ValueError(
                    f"{type(self).__name__}: outputs of transform {len(noise)} must have shape "
                    f"{(outputs.size(0), *shape)}, as announced, got {tuple(outputs.shape)}"
                )
            noise.append(outputs.flatten(1))
        return torch.cat(noise, 1), total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`; the inputs are (N, D)."""
        self._check_complete()
        sizes = [math.prod(shape) for shape in self._output_shapes]
        if inputs.dim() != 2 or inputs.size(1) != sum(sizes):
            raise ValueError(
                f"{type(self).__name__}: inputs must have shape (N, {sum(sizes)}), "
                f"got {tuple(inputs.shape)}"
            )
        total, hidden = zeros_logdet(inputs), None
        parts = zip(inputs.split(sizes, 1), self._output_shapes, self._transforms, strict=True)
        for flat, shape, transform in reversed(list(parts)):
            part = flat.reshape(flat.size(0), *shape)
            joined = part if hidden is None else torch.cat([part, hidden], self._split_dim)
            hidden, logabsdet = transform.inverse(joined, context)  # type: ignore[operator]
            total = total + logabsdet
        return hidden, total  # type: ignore[return-value]

    def _check_complete(self) -> None:
        if len(self._transforms) != self._num_transforms:
            raise RuntimeError(
                f"{type(self).__name__}: add_transform must have been called "
                f"{self._num_transforms} times, got {len(self._transforms)}"
            )


class SqueezeTransform(Transform):
    """Trade resolution for channels: (N, C, H, W) to (N, C f f, H / f, W / f).

    nflows' ``inverse`` wants C to be a multiple of 4 whatever the factor; here of its square.

    Args:
        factor: Side of the blocks, f, from 2.

    Raises:
        ValueError: If the factor is out of range, or the sides are not multiples of it.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if not isinstance(factor, int) or factor < 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"SqueezeTransform: factor must be an integer above 1, got {factor!r}")
        self.factor = factor

    def get_output_shape(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        """Return the shape of one sample of the outputs."""
        return c * self.factor**2, h // self.factor, w // self.factor

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        f = self.factor
        if inputs.dim() != 4 or inputs.size(2) % f or inputs.size(3) % f:
            raise ValueError(
                f"{type(self).__name__}: inputs must have shape (N, C, H, W) with H and W "
                f"multiples of {f}, got {tuple(inputs.shape)}"
            )
        # PyTorch's own gives an empty batch back in the shape that it came in.
        shape = (inputs.size(0), *self.get_output_shape(*inputs.shape[1:]))
        outputs = pixel_unshuffle(inputs, f) if len(inputs) else inputs.reshape(shape)
        return outputs, zeros_logdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        f = self.factor
        if inputs.dim() != 4 or inputs.size(1) % f**2:
            raise ValueError(
                f"{type(self).__name__}: inputs must have shape (N, C, H, W) with C a multiple of "
                f"{f**2}, got {tuple(inputs.shape)}"
            )
        count, channels, height, width = inputs.shape
        shape = (count, channels // f**2, height * f, width * f)
        outputs = pixel_shuffle(inputs, f) if count else inputs.reshape(shape)
        return outputs, zeros_logdet(inputs)
