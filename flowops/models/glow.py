"""Glow: actnorm, invertible 1x1 convolution and affine coupling, at several scales."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
    AdditiveCoupling,
    AffineCoupling,
    GlowConvNet,
    InvertibleConv1x1,
    LearnedPrior,
    MultiScale,
    Sequential,
    Split,
    Squeeze,
    ZeroConv2d,
    preprocessing,
)
from flowops.nn.base import Bijector
from flowops.ops._dispatch import transforms_active


@dataclass(frozen=True)
class GlowConfig:
    """Configuration of :class:`Glow`."""

    event_shape: tuple[int, ...]
    levels: int = option(2, "scales, each beginning with a squeeze")
    steps: int = option(8, "flow steps a level")
    hidden: int = option(64, "channels of the coupling networks")
    coupling: str = option("affine", "kind of coupling", ("affine", "additive"))
    conv1x1: str = option("lu", "parameterisation of the 1x1 convolutions", ("lu", "full"))
    edge_bias: bool = option(True, "3x3 convolutions have a bias at the border")
    learn_top: bool = option(True, "learn mean and scale of the last level's noise")
    preprocess: str = option("logit", "first map of the pixels", ("logit", "center"))
    alpha: float = option(1e-4, "the logit sees alpha + (1 - 2 alpha) x")
    classes: int = option(0, "number of classes, 0 for an unconditional model")
    context_features: int = option(0, "size of the context vector, 0 for none")
    condition: str = option("top", "what sees the class or context", ("top", "all"))
    memory: str = memory_option()

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("levels", "steps", "hidden"):
            check_at_least("Glow", name, getattr(self, name), 1)
        for name in ("classes", "context_features"):
            check_at_least("Glow", name, getattr(self, name), 0)
        check_choice("Glow", "coupling", self.coupling, ("affine", "additive"))
        check_choice("Glow", "conv1x1", self.conv1x1, ("lu", "full"))
        check_choice("Glow", "preprocess", self.preprocess, ("logit", "center"))
        check_choice("Glow", "memory", self.memory, tuple(CHAINS))
        check_choice("Glow", "condition", self.condition, ("top", "all"))
        if self.classes and self.context_features:
            raise ValueError(
                f"Glow: context_features must be 0 with classes, got {self.context_features} "
                f"with {self.classes} classes"
            )
        if self.conditional and not self.learn_top and self.condition == "top":
            raise ValueError("Glow: learn_top must be True for a class or context, got False")
        check_image("Glow", self.event_shape, self.levels)

    @property
    def conditional(self) -> bool:
        """Whether the model takes a context."""
        return self.classes > 0 or self.context_features > 0


class Glow(Flow):
    """Glow of images.

    A level is a squeeze and ``steps`` steps of actnorm, invertible 1x1 convolution and coupling;
    each level but the last ends by factoring half of the channels out under a learned Gaussian
    of the other half. The affine coupling is that of Glow's own code: ``z = (x + t) * s`` with
    ``s = sigmoid(h + 2)``, shift and scale interleaved. Actnorm is folded into the convolution,
    and the weights of all steps of all levels come from one kernel call.

    Two defaults differ from Glow's own code: pixels pass a logit (its ``preprocess`` is "center"),
    and the sizes are small enough to train on a CPU (Glow's are 32 steps, 512 hidden channels).

    With ``classes`` the context is int64 labels ``(B,)``, with ``context_features`` a vector
    ``(B, F)``; it sets mean and scale of the top prior, and with ``condition="all"`` it also
    enters the coupling networks.

    Args:
        config: sizes and choices.
        device: of the parameters.
        dtype: of the parameters.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", 2018,
    arXiv:1807.03039.
    """

    def __init__(
        self,
        config: GlowConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels, height, width = config.event_shape
        features = config.classes or config.context_features
        inner = features if config.condition == "all" else 0
        levels: list[Sequential] = []
        splits: list[Split] = []
        shapes: list[tuple[int, ...]] = []
        for level in range(config.levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers = [preprocessing(config.preprocess, config.alpha)] if level == 0 else []
            layers.append(Squeeze())
            for _ in range(config.steps):
                layers += glow_step(
                    channels,
                    hidden=config.hidden,
                    coupling=config.coupling,
                    conv1x1=config.conv1x1,
                    edge_bias=config.edge_bias,
                    context_features=inner,
                )
            if level < config.levels - 1:
                kept = channels // 2
                prior = ZeroConv2d(kept, 2 * (channels - kept), edge_bias=config.edge_bias)
                splits.append(Split(channels, prior))
                channels = kept
            elif config.learn_top:
                layers.append(LearnedPrior(channels, context_features=features))
            shapes.append((channels, height, width))
            levels.append(CHAINS[config.memory](*layers))
        super().__init__(
            MultiScale(levels, splits, shapes),
            StandardNormal(math.prod(config.event_shape)),
            event_shape=config.event_shape,
            context_features=features,
            support=PIXELS,
        )
        self.config = config
        self.to(device=device, dtype=dtype)

    def _embed(self, context: Tensor | None) -> Tensor | None:
        if self.config.classes == 0:
            return super()._embed(context)
        if context is None or context.dim() != 1 or context.dtype != torch.int64:
            got = None if context is None else f"{context.dtype} of shape {tuple(context.shape)}"
            raise ValueError(f"Glow: context must be int64 labels of shape (batch,), got {got}")
        # Elsewhere the check would wait for the device, or break the graph.
        if context.is_cpu and not (torch.compiler.is_compiling() or transforms_active()):
            wrong = context[(context < 0) | (context >= self.config.classes)]
            if wrong.numel():
                raise ValueError(
                    f"Glow: context must be labels from 0 to {self.config.classes - 1}, "
                    f"got {int(wrong[0])}"
                )
        classes = torch.arange(self.config.classes, device=context.device)
        return (context[:, None] == classes).to(self.dtype)


def glow_step(
    channels: int,
    *,
    hidden: int,
    coupling: str,
    conv1x1: str,
    edge_bias: bool,
    context_features: int = 0,
) -> list[Bijector]:
    """Return actnorm, invertible 1x1 convolution and coupling of maps with so many channels."""
    kept = channels // 2
    moved = channels - kept
    affine = coupling == "affine"
    network = GlowConvNet(
        kept,
        2 * moved if affine else moved,
        hidden=hidden,
        context_features=context_features,
        edge_bias=edge_bias,
    )
    if affine:
        layer = AffineCoupling(
            channels,
            network,
            scale="sigmoid",
            order="shift_then_scale",
            layout="shift_scale_interleaved",
        )
    else:
        layer = AdditiveCoupling(channels, network)
    return [
        ActNorm(channels, log_scale_factor=3.0),
        InvertibleConv1x1(channels, parameterization=conv1x1),
        layer,
    ]
