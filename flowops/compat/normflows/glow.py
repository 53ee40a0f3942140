"""normflows' block of a Glow, and the network in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin
from flowops.compat.normflows._common import may_skip
from flowops.compat.normflows.affine import ActNorm, AffineCouplingBlock, chain
from flowops.compat.normflows.mixing import Invertible1x1Conv, prepared
from flowops.compat.normflows.reshape import check_mode

__all__ = ["ConvNet2d", "GlowBlock"]


class _NetActNorm(nn.Module):
    """An :class:`ActNorm` that forgets its log-determinant."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.actNorm = ActNorm((channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.actNorm(x)[0]


class ConvNet2d(nn.Module):
    """Convolutions with leaky ReLU between them.

    Args:
        channels: Of the input and of every layer.
        kernel_size: Of every layer, odd.
        leaky: Slope of the ReLUs below 0.
        init_zeros: Whether the last layer begins with zeros.
        actnorm: Whether an actnorm follows each layer but the last, in place of its bias.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: Sequence[int],
        leaky: float = 0.0,
        init_zeros: bool = True,
        actnorm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        sizes = zip(channels, channels[1:], kernel_size, strict=False)
        for i, (inputs, outputs, size) in enumerate(sizes):
            last = i == len(kernel_size) - 1
            biased = last or not actnorm
            layers.append(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=biased))
            if not biased:
                layers.append(_NetActNorm(outputs))
            if not last:
                layers.append(nn.LeakyReLU(leaky))
        if init_zeros:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to images of the same size."""
        return self.net(x)


class GlowBlock(Twin):
    """Affine coupling, invertible 1x1 convolution and actnorm: ``forward`` from latent to data.

    Convolution and actnorm are one product with one matrix and bias, in either direction, unless
    somebody's hooks wait for the single layers.

    Args:
        channels: Of the images.
        hidden_channels: Of the coupling's network.
        scale: See :class:`~flowops.compat.normflows.AffineCoupling`.
        scale_map: See there.
        split_mode: See :class:`~flowops.compat.normflows.Split`.
        leaky: Slope of the network's ReLUs below 0.
        init_zeros: Whether the network's last layer begins with zeros.
        use_lu: See :class:`~flowops.compat.normflows.Invertible1x1Conv`, which is left out for one
            channel.
        net_actnorm: Whether the network has actnorms.

    Raises:
        ValueError: If an argument is not known or does not fit.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, table 1.
    """

    flows: Any

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        scale: bool = True,
        scale_map: str = "sigmoid",
        split_mode: str = "channel",
        leaky: float = 0.0,
        init_zeros: bool = True,
        use_lu: bool = True,
        net_actnorm: bool = False,
    ) -> None:
        super().__init__()
        check_mode("GlowBlock", split_mode)
        half, rest = (channels + 1) // 2, channels // 2
        seen, moved = {"channel": (half, rest), "channel_inv": (rest, half)}.get(
            split_mode, (channels, channels)
        )
        outputs = 2 * moved if scale else moved
        sizes = (seen, hidden_channels, hidden_channels, outputs)
        net = ConvNet2d(sizes, (3, 1, 3), leaky, init_zeros, actnorm=net_actnorm)
        layers: list[nn.Module] = [AffineCouplingBlock(net, scale, scale_map, split_mode)]
        if channels > 1:
            layers.append(Invertible1x1Conv(channels, use_lu))
        layers.append(ActNorm((channels, 1, 1)))
        self.flows = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the data and the log-determinant, (N,), nats."""
        if not self._folds():
            return chain(self.flows, z, inverse=False)
        z, coupled = self.flows[0](z)
        z, mixed = self._mix(z, inverse=False)
        return z, coupled + mixed

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        if not self._folds():
            return chain(self.flows, z, inverse=True)
        z, mixed = self._mix(z, inverse=True)
        z, coupled = self.flows[0].inverse(z)
        return z, coupled + mixed

    def _folds(self) -> bool:
        if len(self.flows) != 3:
            return False
        _, conv, actnorm = self.flows
        known = may_skip(conv, Invertible1x1Conv) and may_skip(actnorm, ActNorm)
        channelwise = known and actnorm.s.shape == (1, conv.num_channels, 1, 1)
        return channelwise and bool(actnorm.data_dep_init_done > 0)

    def _mix(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Run convolution and actnorm as one."""
        _, conv, actnorm = self.flows
        weight, bias, logdet = prepared(
            conv, inverse=not inverse, actnorm=(-actnorm.t.flatten(), -actnorm.s.flatten())
        )
        return ops.invertible_conv1x1(z, weight, bias), logdet * (z.size(2) * z.size(3))
