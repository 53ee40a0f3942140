"""Per-channel affine layers: actnorm, diagonal scaling, and batch normalisation as a bijector."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowops import ops
from flowops.nn.base import Bijector


class ActNorm(Bijector):
    """Per-channel scale and shift with data-dependent initialisation, ``z = (x + b) * exp(l)``.

    See :func:`flowops.ops.actnorm`. ``l = log_scale_factor * log_scale``: Glow stores a third of
    the log-scale (factor 3), which makes its learning rate three times as large.

    ``initialize(x)`` sets ``b = -mean`` and ``l = -log(std + eps)`` from the batch, once: the
    persistent buffer ``initialized`` records it, so that neither a second call nor a loaded
    state sets it again. Under ``torch.distributed`` the statistics are those of all ranks'
    batches together. A layer never initialised is the identity map.

    Args:
        channels: size of dimension 1.
        log_scale_factor: ratio between the log-scale used and the parameter stored, above 0.
        eps: added to the standard deviation, at least 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    bias: nn.Parameter
    log_scale: nn.Parameter
    initialized: Tensor

    def __init__(
        self,
        channels: int,
        *,
        log_scale_factor: float = 1.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"ActNorm: channels must be at least 1, got {channels}")
        if log_scale_factor <= 0:
            raise ValueError(f"ActNorm: log_scale_factor must be above 0, got {log_scale_factor}")
        if eps < 0:
            raise ValueError(f"ActNorm: eps must be at least 0, got {eps}")
        self.channels = channels
        self.log_scale_factor = log_scale_factor
        self.eps = eps
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bias = nn.Parameter(torch.empty(channels, **factory))
        self.log_scale = nn.Parameter(torch.empty(channels, **factory))
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the identity map, not initialised."""
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.log_scale)
        self.initialized.fill_(False)

    def effective_log_scale(self) -> Tensor:
        """Return ``l``, the log-scale that is applied."""
        return (
            self.log_scale if self.log_scale_factor == 1 else self.log_scale * self.log_scale_factor
        )

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return ops.actnorm(x, self.bias, self.effective_log_scale(), logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return ops.actnorm_inverse(z, self.bias, self.effective_log_scale(), logdet=logdet)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set bias and scale from the batch ``x``, unless already set; return the output.

        Raises:
            RuntimeError: in evaluation mode, if the layer is not initialised.
            ValueError: if there is no sample to take statistics of.
        """
        if not bool(self.initialized):
            if not self.training:
                raise RuntimeError(
                    "ActNorm: initialize must be called in training mode, got eval mode"
                )
            mean, std = _global_statistics(x)
            self.bias.copy_(-mean)
            self.log_scale.copy_(-torch.log(std + self.eps) / self.log_scale_factor)
            self.initialized.fill_(True)
        return self(x, context)[0]

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, log_scale_factor={self.log_scale_factor}, eps={self.eps}"


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel over the batches of all ranks."""
    count = x.size(0) * math.prod(x.shape[2:])
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not distributed:
        if count == 0:
            raise ValueError(
                f"ActNorm: initialize must be given at least one sample, got shape {tuple(x.shape)}"
            )
        return ops.actnorm_statistics(x)
    if count:
        mean, std = (s.double() for s in ops.actnorm_statistics(x))
    else:
        mean = std = x.new_zeros(x.size(1), dtype=torch.float64)
    total = torch.cat([mean * count, mean.new_tensor([count])])
    dist.all_reduce(total)
    if not total[-1] > 0:
        raise ValueError(
            "ActNorm: initialize must be given at least one sample, got none on any rank"
        )
    global_mean = total[:-1] / total[-1]
    # Squares about the global mean: sumsq / n - mean ** 2 would cancel where |mean| >> std.
    squares = count * (std.square() + (mean - global_mean).square())
    dist.all_reduce(squares)
    return global_mean, (squares / total[-1]).sqrt()


class DiagonalScale(Bijector):
    """Scale each channel, ``z = x * exp(log_scale)``: NICE's last layer. It begins as the identity.

    Args:
        channels: size of dimension 1.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if ``channels`` is below 1.
    """

    log_scale: nn.Parameter

    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"DiagonalScale: channels must be at least 1, got {channels}")
        self.channels = channels
        self.log_scale = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the identity map."""
        nn.init.zeros_(self.log_scale)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return ops.actnorm(x, torch.zeros_like(self.log_scale), self.log_scale, logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        bias = torch.zeros_like(self.log_scale)
        return ops.actnorm_inverse(z, bias, self.log_scale, logdet=logdet)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}"


class BatchNorm(Bijector):
    r"""Batch normalisation as a bijector, ``z = (x - mean) / sqrt(var + eps)`` per channel.

    .. math:: \log|\det| = -\tfrac12 \, HW \sum_c \log(\mathrm{var}_c + \epsilon)

    In training the statistics are the batch's own (biased variance) and the running ones follow
    them; in evaluation, and in ``inverse`` always, the running ones are used.

    Traps, all of which :class:`ActNorm` avoids: in training a sample's result depends on its
    batch, so ``logdet`` is not the sample's own likelihood and ``inverse`` does not undo
    ``forward``; running statistics that lag behind make the log-determinant explode in evaluation;
    statistics are per rank under ``torch.distributed``. Dinh's RealNVP takes the statistics over
    the masked output, its zeros included, which biases the variance; here they are of the whole
    input.

    Args:
        channels: size of dimension 1.
        eps: added to the variance, above 0.
        momentum: weight of the batch in the running statistics, in (0, 1].
        device: of the statistics.
        dtype: of the statistics.

    Raises:
        ValueError: if an argument is out of range.
    """

    reversible = False  # the inverse has other statistics than training
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-4,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"BatchNorm: channels must be at least 1, got {channels}")
        if eps <= 0:
            raise ValueError(f"BatchNorm: eps must be above 0, got {eps}")
        if not 0 < momentum <= 1:
            raise ValueError(f"BatchNorm: momentum must be in (0, 1], got {momentum}")
        self.channels = channels
        self.eps = eps
        self.momentum = momentum
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("running_mean", torch.empty(channels, **factory))
        self.register_buffer("running_var", torch.empty(channels, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the running statistics to mean 0 and variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; in training this updates the running statistics."""
        mean, var = self.running_mean, self.running_var
        if self.training and x.size(0):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            dims = [d for d in range(x.dim()) if d != 1]
            var, mean = torch.var_mean(wide, dims, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        return ops.actnorm(x, -mean, -0.5 * torch.log(var + self.eps), logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; always with the running statistics."""
        log_scale = -0.5 * torch.log(self.running_var + self.eps)
        return ops.actnorm_inverse(z, -self.running_mean, log_scale, logdet=logdet)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the normalised batch and leave the running statistics alone."""
        kept = self.running_mean.clone(), self.running_var.clone()
        z = self(x, context)[0]
        self.running_mean.copy_(kept[0])
        self.running_var.copy_(kept[1])
        return z

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"
