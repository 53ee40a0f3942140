"""The parts of NVAE: residual cells, squeeze-excitation, autoregressive shifts, regularisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, interpolate, normalize, silu

from flowops import ops
from flowops.nn import BatchNormSwish

#: Factor of a cell's change, so that a deep stack begins near the identity.
_RESIDUAL = 0.1
#: Of the running statistics.
_MOMENTUM = 0.05


class SqueezeExcitation(nn.Module):
    """Scales channels by what their means over the image say.

    Args:
        channels: of the map.

    Source: Hu, Shen and Sun, "Squeeze-and-excitation networks", 2017, arXiv:1709.01507.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``(B, C, H, W)``."""
        scale = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * scale[..., None, None]


class EncoderCell(nn.Module):
    """x + 0.1 SE(f(x)), f being twice normalisation, swish, 3x3 convolution.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm_swish(channels) for _ in range(2))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.gate = SqueezeExcitation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(norm(h))
        return x + _RESIDUAL * self.gate(h)


class DecoderCell(nn.Module):
    """x + 0.1 SE(f(x)), f being a wide depthwise 5x5 convolution between 1x1 ones.

    Args:
        channels: of the map.
        expansion: channels of the depthwise convolution, in units of ``channels``.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.before = _norm(channels)
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.wide_norms = nn.ModuleList(_norm_swish(wide) for _ in range(2))
        self.depthwise = nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.after = _norm(channels)
        self.gate = SqueezeExcitation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        first, second = self.wide_norms
        h = first(self.widen(self.before(x)))
        h = second(self.depthwise(h))
        return x + _RESIDUAL * self.gate(self.after(self.narrow(h)))


class Downsample(nn.Module):
    """Halves the sides: swish, then 1x1 convolutions of stride 2 at each of the four places.

    Args:
        n_in: channels in.
        n_out: channels out, divisible by 4.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n_in, n_out // 4, 1, stride=2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, n_in, H, W)``, sides even, to ``(B, n_out, H / 2, W / 2)``."""
        x = silu(x)
        places = [(row, column) for row in range(2) for column in range(2)]
        parts = [
            conv(x[:, :, row:, column:])
            for conv, (row, column) in zip(self.convs, places, strict=True)
        ]
        return torch.cat(parts, 1)


class Upsample(nn.Module):
    """Doubles the sides bilinearly, then a 1x1 convolution.

    Args:
        n_in: channels in.
        n_out: channels out.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, n_in, H, W)`` to ``(B, n_out, 2 H, 2 W)``."""
        # The convolution first: it commutes with the interpolation and costs a quarter there.
        return interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=False)


class AutoregressiveShift(nn.Module):
    r"""Moves each pixel by a function of those before it: :math:`z_i - m(z_{<i})`, volume kept.

    Args:
        channels: of the code.
        hidden: channels between the two convolutions.
        reverse: Pixels come in the opposite order.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016,
    arXiv:1606.04934, without the scale.
    """

    mask: Tensor

    def __init__(self, channels: int, hidden: int, *, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        self.before = nn.Conv2d(channels, hidden, 3, padding=1)
        self.shift = nn.Conv2d(hidden, channels, 1)
        mask = torch.zeros(3, 3)
        mask[0], mask[1, 0] = 1, 1
        self.register_buffer("mask", mask, persistent=False)
        for parameter in self.shift.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape; the log-determinant is 0."""
        seen = z.flip(2, 3) if self.reverse else z
        weight = self.before.weight * self.mask
        shift = self.shift(elu(conv2d(seen, weight, self.before.bias, padding=1)))
        return z - (shift.flip(2, 3) if self.reverse else shift)


class SpectralPenalty(nn.Module):
    r"""The largest singular value of every convolution plus the largest scale of every norm.

    .. math:: \sum_i \sigma_{\max}(W_i) + \sum_j \max_c |\gamma_{jc}|

    with :math:`W_i` as matrices of their output channels. The singular values come from
    :func:`flowops.ops.spectral_norm`, all layers in one call; in training each call goes on from
    the vectors of the one before.

    Args:
        model: Its convolutions and batch norms are meant.

    Source: Vahdat and Kautz, "NVAE", 2020, arXiv:2007.03898, section 3.2.
    """

    _FIRST_ITERATIONS, _ITERATIONS = 40, 4

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for i, conv in enumerate(_convolutions(model)):
            rows = conv.weight.flatten(1)
            for name, size in (("u", rows.size(0)), ("v", rows.size(1))):
                vector = normalize(torch.randn(size, dtype=rows.dtype, device=rows.device), dim=0)
                self.register_buffer(f"{name}{i}", vector)
        self._iterate(model, self._FIRST_ITERATIONS)

    def forward(self, model: nn.Module) -> Tensor:
        """Return the sum for ``model``, the one that this was made for; a 0-dim tensor."""
        sigma = self._iterate(model, self._ITERATIONS if self.training else 0)
        scales = [norm.weight.abs().amax() for norm in _norms(model)]
        return sigma.sum() + torch.stack(scales).sum()

    def _iterate(self, model: nn.Module, iterations: int) -> Tensor:
        weights = [conv.weight for conv in _convolutions(model)]
        u = [getattr(self, f"u{i}") for i in range(len(weights))]
        v = [getattr(self, f"v{i}") for i in range(len(weights))]
        # Only sigma is wanted; with a coefficient a weight of zeros is not divided by its norm.
        _, new_u, new_v, sigma = ops.spectral_norm(
            weights, u, v, n_power_iterations=iterations, coefficient=1.0
        )
        if iterations:
            with torch.no_grad():
                for old, new in zip(u + v, [*new_u, *new_v], strict=True):
                    old.copy_(new)
        return sigma


def _convolutions(model: nn.Module) -> Iterable[nn.Conv2d]:
    return (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))


def _norms(model: nn.Module) -> Iterable[nn.BatchNorm2d]:
    return (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=_MOMENTUM)


def _norm_swish(channels: int) -> BatchNormSwish:
    return BatchNormSwish(channels, momentum=_MOMENTUM)
