"""Actnorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat.nflows._base import Transform, check_inputs, check_positive


class ActNorm(Transform):
    """Scale and shift of each channel, ``outputs = exp(log_scale) inputs + shift``.

    See :func:`flowops.ops.actnorm`. The first batch in training mode sets both, so that its outputs
    have mean 0 and (unbiased) variance 1.

    Args:
        features: Size of dimension 1 of (N, D) or (N, C, H, W).

    Raises:
        TypeError: If ``features`` is not a positive integer.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039.
    """

    initialized: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_positive(self, "features", features)
        self.register_buffer("initialized", torch.tensor(False))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))

    @property
    def scale(self) -> Tensor:
        """The scale, exp(log_scale)."""
        return torch.exp(self.log_scale)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        check_inputs(self, inputs, self.shift.numel())
        if self.training and not self.initialized:
            self._initialize(inputs)
        # The op shifts before it scales, so that this is the inverse of what it does.
        return ops.actnorm_inverse(inputs, -self.shift, -self.log_scale)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        check_inputs(self, inputs, self.shift.numel())
        return ops.actnorm(inputs, -self.shift, -self.log_scale)

    @torch.no_grad()
    def _initialize(self, inputs: Tensor) -> None:
        count = inputs.size(0) * math.prod(inputs.shape[2:])
        if count < 2:
            raise ValueError(
                f"{type(self).__name__}: inputs must have at least 2 values a channel to "
                f"initialize from, got shape {tuple(inputs.shape)}"
            )
        mean, std = ops.actnorm_statistics(inputs)
        std = std * math.sqrt(count / (count - 1))
        self.log_scale.copy_(-torch.log(std))
        self.shift.copy_(-mean / std)
        self.initialized.fill_(True)
