"""Bijectors that only move elements: squeeze and permutations. Their log-determinant is 0."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from flowops.nn.base import Bijector, zeros_logdet


class Squeeze(Bijector):
    """Trade resolution for channels: ``(B, C, H, W)`` to ``(B, C f f, H / f, W / f)``.

    The order is channel-major, as in RealNVP's and Glow's own code: output channel
    ``c * f * f + dy * f + dx`` holds pixel ``(dy, dx)`` of each block of channel ``c``.

    Args:
        factor: side of the blocks, at least 1.

    Raises:
        ValueError: if an argument is out of range, or the input's sides are not multiples of it.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"Squeeze: factor must be at least 1, got {factor}")
        self.factor = factor

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        if x.dim() != 4 or x.size(2) % self.factor or x.size(3) % self.factor:
            raise ValueError(
                f"Squeeze: x must have shape (B, C, H, W) with H and W multiples of {self.factor}, "
                f"got {tuple(x.shape)}"
            )
        f, (count, channels, height, width) = self.factor, x.shape
        shape = (count, channels * f * f, height // f, width // f)
        # PyTorch's own gives an empty batch back in the shape that it came in.
        z = pixel_unshuffle(x, f) if count else x.reshape(shape)
        return z, zeros_logdet(x) if logdet is None else logdet

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        if z.dim() != 4 or z.size(1) % self.factor**2:
            raise ValueError(
                f"Squeeze: z must have shape (B, C, H, W) with C a multiple of {self.factor**2}, "
                f"got {tuple(z.shape)}"
            )
        f, (count, channels, height, width) = self.factor, z.shape
        shape = (count, channels // (f * f), height * f, width * f)
        x = pixel_shuffle(z, f) if count else z.reshape(shape)
        return x, zeros_logdet(z) if logdet is None else logdet

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"factor={self.factor}"


class Flatten(Bijector):
    """Reshape ``(B, *shape)`` to vectors ``(B, D)``, row-major.

    Args:
        shape: of one sample.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return x.flatten(1), zeros_logdet(x) if logdet is None else logdet

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return z.reshape(z.size(0), *self.shape), zeros_logdet(z) if logdet is None else logdet

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.shape}"


class Permutation(Bijector):
    """Fixed permutation of dimension 1: ``z[:, i] = x[:, index[i]]``.

    Args:
        index: int64, shape ``(channels,)``, a permutation of ``range(channels)``. See
            :func:`reverse_permutation`, :func:`random_permutation`, :func:`even_odd_permutation`
            and :func:`ordered_squeeze_permutation`.

    Raises:
        ValueError: if ``index`` is not a permutation.
    """

    index: Tensor
    inverse_index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        identity = torch.arange(index.numel(), device=index.device)
        if index.dim() != 1 or not torch.equal(index.sort().values, identity):
            raise ValueError(
                f"Permutation: index must be a permutation of range({index.numel()}), "
                f"got {index.tolist()}"
            )
        self.register_buffer("index", index.clone())
        self.register_buffer("inverse_index", index.argsort())

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return x.index_select(1, self.index), zeros_logdet(x) if logdet is None else logdet

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return z.index_select(1, self.inverse_index), zeros_logdet(z) if logdet is None else logdet

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"channels={self.index.numel()}"


def reverse_permutation(channels: int) -> Tensor:
    """Return the index that reverses ``channels`` channels."""
    return torch.arange(channels - 1, -1, -1)


def random_permutation(channels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return a random index of ``channels`` channels, drawn from ``generator``."""
    return torch.randperm(channels, generator=generator)


def even_odd_permutation(channels: int) -> Tensor:
    """Return the index that puts the even channels first, then the odd ones."""
    return torch.cat([torch.arange(0, channels, 2), torch.arange(1, channels, 2)])


def ordered_squeeze_permutation(channels: int) -> Tensor:
    """Return RealNVP's order of squeezed channels: the diagonal pixels of each block first.

    After :class:`Squeeze` of ``channels`` channels by 2, this index groups the pixels (0, 0) of
    all channels, then (1, 1), (0, 1) and (1, 0); the first half is then a checkerboard of the
    image, at half its resolution along the diagonals.
    """
    offsets = torch.tensor([0, 3, 1, 2])
    return (offsets[:, None] + 4 * torch.arange(channels)).flatten()
