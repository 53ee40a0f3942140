"""Fixed permutations."""

from __future__ import annotations

import torch
from torch import Tensor

from flowops.compat.nflows._base import Transform, check_positive, reordered
from flowops.nn.base import zeros_logdet


class Permutation(Transform):
    """Fixed permutation of one dimension: ``outputs[:, i] = inputs[:, permutation[i]]``.

    Args:
        permutation: int64 vector.
        dim: The dimension, from 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    _permutation: Tensor

    def __init__(self, permutation: Tensor, dim: int = 1) -> None:
        super().__init__()
        if permutation.dim() != 1:
            raise ValueError(
                f"{type(self).__name__}: permutation must be a vector, "
                f"got shape {tuple(permutation.shape)}"
            )
        check_positive(self, "dim", dim, ValueError)
        self._dim = dim
        self.register_buffer("_permutation", permutation)

    @property
    def _inverse_permutation(self) -> Tensor:
        return torch.argsort(self._permutation)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._reorder(inputs, self._permutation)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._reorder(inputs, self._inverse_permutation)

    def _reorder(self, inputs: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        dim, size = self._dim, self._permutation.numel()
        if dim >= inputs.dim() or inputs.size(dim) != size:
            raise ValueError(
                f"{type(self).__name__}: inputs must have size {size} in dimension {dim}, "
                f"got shape {tuple(inputs.shape)}"
            )
        return reordered(inputs, order, dim), zeros_logdet(inputs)


class RandomPermutation(Permutation):
    """Random permutation, drawn once.

    Args:
        features: Size of the dimension.
        dim: The dimension, from 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, features: int, dim: int = 1) -> None:
        check_positive(self, "features", features, ValueError)
        super().__init__(torch.randperm(features), dim)


class ReversePermutation(Permutation):
    """Reversal of one dimension.

    Args:
        features: Size of the dimension.
        dim: The dimension, from 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, features: int, dim: int = 1) -> None:
        check_positive(self, "features", features, ValueError)
        super().__init__(torch.arange(features - 1, -1, -1), dim)
