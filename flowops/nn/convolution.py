"""The convolutions that conditioners are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from flowops.nn.actnorm import ActNorm
from flowops.nn.split import check_context


class _Convolution(nn.Module):
    """A convolution that keeps the resolution.

    With ``edge_bias`` the weight has one more input channel, last, which is 1 on the padding and 0
    on the image: a bias that only pixels near the border see.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        edge_bias: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f"{name}: in_channels and out_channels must be at least 1, "
                f"got {in_channels} and {out_channels}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"{name}: kernel_size must be odd, got {kernel_size}")
        self.in_channels = in_channels
        self.edge_bias = edge_bias
        self.padding = kernel_size // 2
        shape = (out_channels, in_channels + edge_bias, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, **factory))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # channels_last: forward and backward take 0.6 times as long on a CPU as NCHW (2-96-96-4
        # channels, 14 x 14), and one such operand makes the convolution choose it.
        weight = weight.contiguous(memory_format=torch.channels_last)
        if not self.edge_bias:
            return conv2d(x, weight, bias, padding=self.padding)
        around = [self.padding] * 4
        border = pad(x.new_zeros(1, 1, *x.shape[2:]), around, value=1.0)
        if self.in_channels < len(weight):
            framed = torch.cat([pad(x, around), border.expand(x.size(0), -1, -1, -1)], 1)
            return conv2d(framed, weight, bias)
        # The border's map is the same for all samples: few channels out, cheap to add.
        inner, edge = weight.split([self.in_channels, 1], 1)
        return conv2d(x, inner, bias, padding=self.padding) + conv2d(border, edge)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        size = f"{self.in_channels}, {self.weight.size(0)}, kernel_size={self.weight.size(2)}"
        return f"{size}, edge_bias={self.edge_bias}"


class ActNormConv2d(_Convolution):
    """Convolution followed by actnorm, as one convolution: the actnorm is folded into its weight.

    The weight begins as N(0, 0.05^2) (Glow's); actnorm then sets the scale from the first batch.
    A context vector adds a linear map of itself to each pixel of the output, zero at first.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd; the padding keeps the resolution.
        context_features: size of the context vector; 0 for none.
        edge_bias: learn a bias for the pixels whose window reaches over the border.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range, or the context has not the size promised.
    """

    context_weight: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        context_features: int = 0,
        edge_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, edge_bias, factory)
        self.context_features = context_features
        self.actnorm = ActNorm(out_channels, log_scale_factor=3.0, **factory)
        mixer = torch.empty(out_channels, context_features, **factory)
        self.register_parameter("context_weight", nn.Parameter(mixer) if context_features else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew; the actnorm is not initialised then."""
        nn.init.normal_(self.weight, std=0.05)
        self.actnorm.reset_parameters()
        if self.context_weight is not None:
            nn.init.zeros_(self.context_weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``."""
        scale = torch.exp(self.actnorm.effective_log_scale())
        weight = self.weight * scale[:, None, None, None]
        y = self._convolve(x, weight, self.actnorm.bias * scale)
        if self.context_weight is None:
            return y
        context = check_context(self, context, self.context_features)
        return y + linear(context.to(y.dtype), self.context_weight)[:, :, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set the actnorm from the batch, once; return the output."""
        self.actnorm.initialize(self._convolve(x, self.weight))
        return self(x, context)


class ZeroConv2d(_Convolution):
    """Convolution that begins at zero, ``(conv(x) + bias) * exp(factor * gain)``: Glow's last.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: odd; the padding keeps the resolution.
        log_scale_factor: ``factor``.
        edge_bias: learn a bias for the pixels whose window reaches over the border.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        log_scale_factor: float = 3.0,
        edge_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, edge_bias, factory)
        self.log_scale_factor = log_scale_factor
        self.bias = nn.Parameter(torch.empty(out_channels, **factory))
        self.gain = nn.Parameter(torch.empty(out_channels, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``; ``context`` is unused."""
        scale = torch.exp(self.log_scale_factor * self.gain)
        weight = self.weight * scale[:, None, None, None]
        return self._convolve(x, weight, self.bias * scale)
