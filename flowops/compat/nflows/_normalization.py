"""Actnorm and batch normalisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

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


class InverseNotAvailable(RuntimeError):
    """A transform has no inverse, or none in its present mode."""


class BatchNorm(Transform):
    """Batch normalisation, ``outputs = weight (inputs - mean) / sqrt(var + eps) + bias``.

    In training the statistics are the batch's own, with the unbiased variance, so that a sample's
    result depends on its batch. The weight is softplus of its parameter, plus ``eps``.

    Args:
        features: Size of the vectors.
        eps: See above.
        momentum: Of the running statistics, which begin at zeros.
        affine: Without effect, as in nflows.

    Raises:
        TypeError: If ``features`` is not a positive integer.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__()
        check_positive(self, "features", features)
        self.momentum = momentum
        self.eps = eps
        self.unconstrained_weight = nn.Parameter(
            torch.full((features,), math.log(math.expm1(1 - eps)))
        )
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.zeros(features))

    @property
    def weight(self) -> Tensor:
        """The scale after normalisation."""
        return softplus(self.unconstrained_weight) + self.eps

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`; in training it moves the running statistics."""
        check_inputs(self, inputs, self.bias.numel(), (2,))
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self._batch_statistics(inputs)
        return ops.actnorm(inputs, *self._actnorm(mean, var))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`.

        Raises:
            InverseNotAvailable: In training.
        """
        if self.training:
            raise InverseNotAvailable(
                f"{type(self).__name__}: inverse must be called in evaluation mode, "
                "got training mode"
            )
        check_inputs(self, inputs, self.bias.numel(), (2,))
        parameters = self._actnorm(self.running_mean, self.running_var)
        return ops.actnorm_inverse(inputs, *parameters)

    def _actnorm(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shift before the scale, and the log-scale."""
        log_scale = torch.log(self.weight) - 0.5 * torch.log(var + self.eps)
        return self.bias * torch.exp(-log_scale) - mean, log_scale

    def _batch_statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.size(0) < 2:
            raise ValueError(
                f"{type(self).__name__}: inputs must have at least 2 samples in training, "
                f"got shape {tuple(inputs.shape)}"
            )
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        var, mean = torch.var_mean(wide, 0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        return mean, var
