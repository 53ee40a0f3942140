"""Layers of normflows that only move elements; their log-determinant is the number 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowops import nn as layers
from flowops.compat._twins import Twin

__all__ = ["Merge", "Split", "Squeeze", "check_mode", "merge", "split"]

_MODES = ("channel", "channel_inv", "checkerboard", "checkerboard_inv")
_SQUEEZE = layers.Squeeze()


def wrong_mode(name: str, mode: object) -> str | None:
    """Return what is wrong with ``mode``, or None."""
    known = mode in _MODES
    return None if known else f"{name}: mode must be one of {', '.join(_MODES)}, got {mode!r}"


def check_mode(name: str, mode: str) -> None:
    """Raise ValueError unless ``mode`` is one of those that :class:`Split` knows."""
    problem = wrong_mode(name, mode)
    if problem:
        raise ValueError(problem)


class Split(Twin):
    """Split a batch into two parts, ``[z1, z2]``.

    "channel" halves dimension 1, the first part taking the larger half. "checkerboard" puts the
    elements whose indices, those of the batch aside, have an odd sum into ``z1``, along the last
    dimension. With "_inv" the parts change places.

    Args:
        mode: See above.

    Raises:
        ValueError: If the mode is not known, or the batch has no two parts.
    """

    mode: str

    def __init__(self, mode: str = "channel") -> None:
        super().__init__()
        check_mode("Split", mode)
        self.mode = mode

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`~flowops.compat._twins.Twin`."""
        return wrong_mode("Split", peer.mode)

    def forward(self, z: Tensor) -> tuple[list[Tensor], int]:
        """Return ``[z1, z2]``, views where the mode allows, and 0."""
        return split(z, self.mode), 0

    def inverse(self, z: list[Tensor]) -> tuple[Tensor, int]:
        """Return the batch of ``[z1, z2]``, and 0."""
        return merge(z, self.mode), 0


class Merge(Twin):
    """The opposite of :class:`Split`.

    Args:
        mode: See there.

    Raises:
        ValueError: See there.
    """

    mode: str

    def __init__(self, mode: str = "channel") -> None:
        super().__init__()
        check_mode("Merge", mode)
        self.mode = mode

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`~flowops.compat._twins.Twin`."""
        return wrong_mode("Merge", peer.mode)

    def forward(self, z: list[Tensor]) -> tuple[Tensor, int]:
        """Return the batch of ``[z1, z2]``, and 0."""
        return merge(z, self.mode), 0

    def inverse(self, z: Tensor) -> tuple[list[Tensor], int]:
        """Return ``[z1, z2]``, views where the mode allows, and 0."""
        return split(z, self.mode), 0


class Squeeze(Twin):
    """Trade channels for resolution: (N, C, H, W) to (N, C / 4, 2 H, 2 W), and back in ``inverse``.

    Raises:
        ValueError: If the sizes are not multiples of 4 or 2.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, int]:
        """Return the larger image, and 0."""
        return _SQUEEZE.inverse(z)[0], 0

    def inverse(self, z: Tensor) -> tuple[Tensor, int]:
        """Return the image of more channels, and 0."""
        return _SQUEEZE(z)[0], 0


def split(z: Tensor, mode: str) -> list[Tensor]:
    """Return the parts ``[z1, z2]`` of ``z``, see :class:`Split`."""
    if "checkerboard" in mode:
        parts = _from_board(z)
    elif z.size(1) < 2:
        raise ValueError(f"Split: z must have at least 2 channels, got {list(z.shape)}")
    else:
        parts = list(z.chunk(2, 1))
    return parts[::-1] if mode.endswith("_inv") else parts


def merge(parts: list[Tensor], mode: str) -> Tensor:
    """Undo :func:`split`."""
    z1, z2 = parts[::-1] if mode.endswith("_inv") else parts
    return _to_board(z1, z2) if "checkerboard" in mode else torch.cat([z1, z2], 1)


def _from_board(z: Tensor) -> list[Tensor]:
    if z.dim() < 2 or z.size(-1) % 2:
        raise ValueError(f"Split: z must have an even last dimension, got {list(z.shape)}")
    even, odd = z[..., 0::2], z[..., 1::2]
    if z.dim() == 2:
        return [odd, even]
    rows = _odd_rows(z)
    return [torch.where(rows, even, odd), torch.where(rows, odd, even)]


def _to_board(z1: Tensor, z2: Tensor) -> Tensor:
    if z1.dim() == 2:
        even, odd = z2, z1
    else:
        rows = _odd_rows(z1)
        even, odd = torch.where(rows, z1, z2), torch.where(rows, z2, z1)
    return torch.stack([even, odd], -1).flatten(-2)


def _odd_rows(z: Tensor) -> Tensor:
    """Return which rows have indices of an odd sum, bool, (C, .., H, 1)."""
    total = torch.zeros(1, dtype=torch.int64, device=z.device)
    for size in z.shape[1:-1]:
        total = total[..., None] + torch.arange(size, device=z.device)
    return (total % 2 == 1)[0, ..., None]
