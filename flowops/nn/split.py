"""Factoring variables out, and learned Gaussian priors written as bijectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flowops import ops
from flowops.nn.base import Bijector, zeros_logdet

_LAYOUT = "shift_scale_interleaved"


class Split(nn.Module):
    r"""Factor the second half of the channels out, standardised under a learned prior.

    .. math:: \epsilon = (x_2 - \mu(x_1)) \, e^{-\log\sigma(x_1)}

    With the density of :math:`\epsilon` standard normal this is Glow's ``split2d``:
    :math:`x_2 \sim N(\mu(x_1), \sigma(x_1)^2)`. It splits one tensor in two, so it is not a
    :class:`Bijector`, but keeps its conventions.

    Args:
        channels: size of dimension 1, at least 2.
        conditioner: module called as ``conditioner(kept, context)`` giving means and log standard
            deviations on even and odd channels; None splits without a prior.

    Raises:
        ValueError: if ``channels`` is below 2.
    """

    def __init__(self, channels: int, conditioner: nn.Module | None = None) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"Split: channels must be at least 2, got {channels}")
        self.channels = channels
        self.kept_channels = channels // 2
        self.conditioner = conditioner

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(kept, noise, logdet)``."""
        return self._forward(x, context, logdet, self.conditioner)

    def _forward(
        self, x: Tensor, context: Tensor | None, logdet: Tensor | None, conditioner: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept, moved = x.split([self.kept_channels, self.channels - self.kept_channels], 1)
        if conditioner is None:
            return kept, moved, zeros_logdet(x) if logdet is None else logdet
        # Data = noise * sigma + mu is the coupling; standardising is its inverse.
        noise, total = ops.affine_coupling_inverse(
            moved, conditioner(kept, context), layout=_LAYOUT, logdet=logdet
        )
        return kept, noise, total

    def inverse(
        self,
        kept: Tensor,
        noise: Tensor,
        context: Tensor | None = None,
        *,
        logdet: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return ``(x, logdet)``."""
        if self.conditioner is None:
            return torch.cat([kept, noise], 1), zeros_logdet(kept) if logdet is None else logdet
        moved, total = ops.affine_coupling(
            noise, self.conditioner(kept, context), layout=_LAYOUT, logdet=logdet
        )
        return torch.cat([kept, moved], 1), total

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Initialise the conditioner and return ``(kept, noise)``."""
        conditioner = getattr(self.conditioner, "initialize", self.conditioner)
        return self._forward(x, context, None, conditioner)[:2]

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, learned={self.conditioner is not None}"


class LearnedPrior(Bijector):
    """Standardise under a learned Gaussian, ``z = (x - mu) * exp(-log_sigma)``, per channel.

    Glow's learned top. Mean and log standard deviation are parameters, to which a linear map of
    the context is added where there is one; all begin at 0, so the layer begins as the identity.

    Args:
        channels: size of dimension 1.
        context_features: size of the context vector; 0 for none.
        log_scale_factor: mean and log standard deviation are multiplied by ``exp(factor * g)``,
            ``g`` learned from 0, as in Glow's zero-initialised convolution.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range, or the context has not the size promised.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        *,
        context_features: int = 0,
        log_scale_factor: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"LearnedPrior: channels must be at least 1, got {channels}")
        if context_features < 0:
            raise ValueError(
                f"LearnedPrior: context_features must be at least 0, got {context_features}"
            )
        self.channels = channels
        self.context_features = context_features
        self.log_scale_factor = log_scale_factor
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bias = nn.Parameter(torch.empty(2 * channels, **factory))
        self.gain = nn.Parameter(torch.empty(2 * channels, **factory))
        weight = torch.empty(2 * channels, context_features, **factory)
        self.register_parameter("weight", nn.Parameter(weight) if context_features else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the identity map."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        params = self.bias
        if self.weight is not None:
            context = check_context(self, context, self.context_features)
            params = linear(context.to(self.bias.dtype), self.weight, self.bias)
        params = params * torch.exp(self.log_scale_factor * self.gain)
        params = params.reshape(-1, 2 * self.channels, *[1] * (x.dim() - 2))
        return params.expand(x.size(0), -1, *x.shape[2:])

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        params = self._params(x, context)
        return ops.affine_coupling_inverse(x, params, layout=_LAYOUT, logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return ops.affine_coupling(z, self._params(z, context), layout=_LAYOUT, logdet=logdet)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, context_features={self.context_features}"


def check_context(module: nn.Module, context: Tensor | None, features: int) -> Tensor:
    """Return ``context``, or raise ValueError unless its shape is ``(batch, features)``."""
    if context is None or context.dim() != 2 or context.size(1) != features:
        got = None if context is None else tuple(context.shape)
        raise ValueError(
            f"{type(module).__name__}: context must have shape (batch, {features}), got {got}"
        )
    return context


def append_context(module: nn.Module, x: Tensor, context: Tensor | None, features: int) -> Tensor:
    """Return ``x``, shape ``(batch, n)``, with ``context`` beside it; raises as `check_context`."""
    return torch.cat([x, check_context(module, context, features).to(x.dtype)], 1)
