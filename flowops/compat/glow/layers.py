"""The layers of rosinality's Glow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from flowops import ops

__all__ = ["ActNorm", "AffineCoupling", "InvConv2d", "InvConv2dLU", "ZeroConv2d"]


class ActNorm(nn.Module):
    """Shift and scale of each channel, ``scale * (x + loc)``, set from the first batch.

    Args:
        in_channel: Channels.
        logdet: Whether ``forward`` returns the log-determinant too.

    Raises:
        ValueError: If the first batch has less than two values a channel.
    """

    initialized: Tensor

    def __init__(self, in_channel: int, logdet: bool = True) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, in_channel, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, in_channel, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self.logdet = logdet

    @torch.no_grad()
    def initialize(self, input: Tensor) -> None:
        """Make ``scale * (input + loc)`` of mean 0 and deviation 1 in each channel."""
        count = input.numel() // max(input.size(1), 1)
        if count < 2:
            raise ValueError(
                f"ActNorm: the first batch must have at least two values a channel, "
                f"got {list(input.shape)}"
            )
        mean, std = ops.actnorm_statistics(input)
        std = std * (count / (count - 1)) ** 0.5
        self.loc.copy_(-mean.view_as(self.loc))
        self.scale.copy_(1 / (std + 1e-6).view_as(self.scale))

    def initialize_once(self, input: Tensor) -> None:
        """Call :meth:`initialize` unless ``initialized``, and record that."""
        if self.initialized.item() == 0:
            self.initialize(input)
            self.initialized.fill_(1)

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the moved batch, and with ``logdet`` the log-determinant, 0-dim, nats."""
        self.initialize_once(input)
        log_scale = torch.log(self.scale.abs()).flatten()
        # The kernel's scale is positive.
        out, _ = ops.actnorm(input, self.loc.flatten(), log_scale)
        out = out * self.scale.detach().sign()
        return (out, pixels(input) * log_scale.sum()) if self.logdet else out

    def reverse(self, output: Tensor) -> Tensor:
        """Undo ``forward``."""
        log_scale = torch.log(self.scale.abs()).flatten()
        signed = output * self.scale.detach().sign()
        return ops.actnorm_inverse(signed, self.loc.flatten(), log_scale)[0]


class InvConv2d(nn.Module):
    """Invertible 1x1 convolution with the parameter W, which begins as a rotation.

    Args:
        in_channel: Channels.
    """

    def __init__(self, in_channel: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(in_channel, in_channel))
        self.weight = nn.Parameter(rotation[:, :, None, None].contiguous())

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return W x and the log-determinant, 0-dim, nats."""
        weight, logdet = weights_of([self], inverse=False)
        return ops.invertible_conv1x1(input, weight[0]), pixels(input) * logdet

    def reverse(self, output: Tensor) -> Tensor:
        """Undo ``forward``."""
        return ops.invertible_conv1x1(output, weights_of([self], inverse=True)[0][0])


class InvConv2dLU(nn.Module):
    """Invertible 1x1 convolution with W = w_p w_l (w_u + diag(s_sign e^w_s)).

    Args:
        in_channel: Channels.
    """

    w_p: Tensor
    s_sign: Tensor

    def __init__(self, in_channel: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(in_channel, in_channel))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        above = torch.ones(in_channel, in_channel).triu(1)
        self.register_buffer("w_p", permutation)
        self.register_buffer("u_mask", above)
        self.register_buffer("l_mask", above.t().contiguous())
        self.register_buffer("s_sign", diagonal.sign())
        self.register_buffer("l_eye", torch.eye(in_channel))
        self.w_l = nn.Parameter(lower)
        self.w_s = nn.Parameter(diagonal.abs().log())
        self.w_u = nn.Parameter(upper.triu(1))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return W x and the log-determinant, 0-dim, nats."""
        weight, logdet = weights_of([self], inverse=False)
        return ops.invertible_conv1x1(input, weight[0]), pixels(input) * logdet

    def calc_weight(self) -> Tensor:
        """Return W, (C, C, 1, 1)."""
        return weights_of([self], inverse=False)[0][0, :, :, None, None]

    def reverse(self, output: Tensor) -> Tensor:
        """Undo ``forward``."""
        return ops.invertible_conv1x1(output, weights_of([self], inverse=True)[0][0])


def weights_of(convs: Sequence[Any], *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return the matrices (n, C, C) of layers of one kind, and the sum of their log|det|."""
    if isinstance(convs[0], InvConv2dLU):
        weights, _, logdets = ops.invertible_conv1x1_lu(
            [conv.w_l for conv in convs],
            [conv.w_u for conv in convs],
            [conv.w_s for conv in convs],
            [conv.s_sign for conv in convs],
            [conv.w_p.argmax(1) for conv in convs],
            inverse=inverse,
        )
    else:
        weights, _, logdets = ops.invertible_conv1x1_full(
            [conv.weight[:, :, 0, 0] for conv in convs], inverse=inverse
        )
    return torch.stack(weights), logdets.sum()


class ZeroConv2d(nn.Module):
    """3x3 convolution that begins at zero, ``(conv(x) + bias) e^(3 scale)``.

    The image is surrounded by ones. Scale and surroundings enter through the weight and a map of
    the border that all samples share, so that the input is not copied.

    Args:
        in_channel: Channels in.
        out_channel: Channels out.
        padding: Not used, as in rosinality's code: the frame is one pixel wide.
    """

    def __init__(self, in_channel: int, out_channel: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channel, out_channel, 3, padding=0)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.scale = nn.Parameter(torch.zeros(1, out_channel, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_channel, H, W) to (N, out_channel, H, W)."""
        scale = torch.exp(3 * self.scale[0, :, 0, 0])
        weight = self.conv.weight * scale[:, None, None, None]
        bias: Any = self.conv.bias
        frame = pad(input.new_zeros(1, 1, *input.shape[2:]), [1, 1, 1, 1], value=1.0)
        edge = conv2d(frame, weight.sum(1, keepdim=True))
        return conv2d(input, weight, bias * scale, padding=1) + edge


class AffineCoupling(nn.Module):
    """Coupling that moves the second half of the channels, ``(x2 + t) sigmoid(h + 2)``.

    Args:
        in_channel: Channels, even.
        filter_size: Channels of the network's hidden layers.
        affine: Whether there is a scale; otherwise ``x2 + t``.

    Raises:
        ValueError: If the channels have no two halves.
    """

    def __init__(self, in_channel: int, filter_size: int = 512, affine: bool = True) -> None:
        super().__init__()
        if in_channel < 2 or in_channel % 2:
            raise ValueError(f"AffineCoupling: in_channel must be even, got {in_channel}")
        half = in_channel // 2
        self.affine = affine
        self.net = nn.Sequential(
            nn.Conv2d(half, filter_size, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(filter_size, filter_size, 1),
            nn.ReLU(inplace=True),
            ZeroConv2d(filter_size, in_channel if affine else half),
        )
        for hidden in (self.net[0], self.net[2]):
            nn.init.normal_(hidden.weight, std=0.05)  # type: ignore[arg-type]
            nn.init.zeros_(hidden.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the moved batch and the log-determinant, (N,), nats, or None without a scale."""
        out, logdet = self._move(input, inverse=False)
        return out, logdet if self.affine else None

    def reverse(self, output: Tensor) -> Tensor:
        """Undo ``forward``."""
        return self._move(output, inverse=True)[0]

    def _move(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        half = x.size(1) // 2
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        return op(
            x,
            self.net(x[:, :half]).to(x.dtype),
            scale="sigmoid" if self.affine else "additive",
            order="shift_then_scale",
            start=half,
        )


def pixels(x: Tensor) -> int:
    """Return the number of pixels of an image."""
    return x.size(2) * x.size(3)
