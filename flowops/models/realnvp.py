"""RealNVP: affine couplings with checkerboard and channel masks, at several scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flowops.distributions import Flow, StandardNormal
from flowops.models.config import (
    CHAINS,
    PIXELS,
    check_at_least,
    check_choice,
    check_image,
    memory_option,
    option,
)
from flowops.nn import (
    ActNorm,
    AffineCoupling,
    BatchNorm,
    GatedResNet,
    MultiScale,
    Permutation,
    Sequential,
    Split,
    Squeeze,
    checkerboard_mask,
    ordered_squeeze_permutation,
    preprocessing,
)
from flowops.nn.base import Bijector


@dataclass(frozen=True)
class RealNVPConfig:
    """Configuration of :class:`RealNVP`."""

    event_shape: tuple[int, ...]
    levels: int = option(2, "scales; all but the last end in a squeeze and a split")
    hidden: int = option(32, "channels of the coupling networks, doubled at each scale")
    blocks: int = option(2, "residual blocks of a coupling network")
    couplings: int = option(3, "couplings of a kind in a scale; one more in the last")
    norm: str = option("actnorm", "normalisation after a coupling", ("actnorm", "batch", "none"))
    preprocess: str = option("logit", "first map of the pixels", ("logit", "center"))
    alpha: float = option(1e-4, "the logit sees alpha + (1 - 2 alpha) x")
    context_features: int = option(0, "size of the context vector, 0 for none")
    memory: str = memory_option()

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("levels", "hidden", "couplings"):
            check_at_least("RealNVP", name, getattr(self, name), 1)
        for name in ("blocks", "context_features"):
            check_at_least("RealNVP", name, getattr(self, name), 0)
        check_choice("RealNVP", "norm", self.norm, ("actnorm", "batch", "none"))
        check_choice("RealNVP", "preprocess", self.preprocess, ("logit", "center"))
        check_choice("RealNVP", "memory", self.memory, tuple(CHAINS))
        check_image("RealNVP", self.event_shape, self.levels - 1)


class RealNVP(Flow):
    """RealNVP of images.

    A scale is ``couplings`` checkerboard couplings, a squeeze, ``couplings`` channel couplings
    and a split that keeps a checkerboard of the scale's pixels (the paper's ordered squeeze); the
    last scale is ``couplings + 1`` checkerboard couplings. Couplings are ``z = x * exp(s) + t``,
    the paper's order, with ``s = a * tanh(.)``. The coupling networks are gated residual networks
    with actnorm, in place of the paper's batch-normalised ones; as their last layer begins at
    zero, the amplitude ``a`` begins at 1 everywhere (with both at zero neither would ever learn).
    The paper's ``alpha`` is 0.05; a small one costs less where many pixels are black.

    Args:
        config: sizes and choices.
        device: of the parameters.
        dtype: of the parameters.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2016,
    arXiv:1605.08803.
    """

    def __init__(
        self,
        config: RealNVPConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels, height, width = config.event_shape
        levels: list[Sequential] = []
        splits: list[Split] = []
        shapes: list[tuple[int, ...]] = []
        for level in range(config.levels):
            last = level == config.levels - 1
            count = config.couplings + last
            layers = [preprocessing(config.preprocess, config.alpha)] if level == 0 else []
            for i in range(count):
                layers += _checkerboard(config, channels, height, width, level, i % 2)
            if not last:
                height, width = height // 2, width // 2
                layers.append(Squeeze())
                for i in range(config.couplings):
                    layers += _channelwise(config, 4 * channels, level, i % 2)
                layers.append(Permutation(ordered_squeeze_permutation(channels)))
                splits.append(Split(4 * channels))
                channels *= 2
            shapes.append((channels, height, width))
            levels.append(CHAINS[config.memory](*layers))
        super().__init__(
            MultiScale(levels, splits, shapes),
            StandardNormal(math.prod(config.event_shape)),
            event_shape=config.event_shape,
            context_features=config.context_features,
            support=PIXELS,
        )
        self.config = config
        self.to(device=device, dtype=dtype)


def _checkerboard(
    config: RealNVPConfig, channels: int, height: int, width: int, level: int, parity: int
) -> list[Bijector]:
    mask = checkerboard_mask(height, width, parity=parity)
    network = GatedResNet(
        channels,
        2 * channels,
        hidden=config.hidden * 2**level,
        blocks=config.blocks,
        mask=mask,
        context_features=config.context_features,
    )
    coupling = AffineCoupling(channels, network, mask=mask, scale="tanh_exp")
    return [coupling, *_norm(config, channels)]


def _channelwise(config: RealNVPConfig, channels: int, level: int, parity: int) -> list[Bijector]:
    network = GatedResNet(
        channels // 2,
        channels,
        hidden=config.hidden * 2 ** (level + 1),
        blocks=config.blocks,
        context_features=config.context_features,
    )
    keep = ("first", "second")[parity]
    coupling = AffineCoupling(channels, network, keep=keep, scale="tanh_exp")
    return [coupling, *_norm(config, channels)]


def _norm(config: RealNVPConfig, channels: int) -> list[Bijector]:
    if config.norm == "actnorm":
        return [ActNorm(channels)]
    return [BatchNorm(channels)] if config.norm == "batch" else []
