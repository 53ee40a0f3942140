"""NICE: additive couplings and one diagonal scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flowops.distributions import Flow, StandardLogistic, StandardNormal
from flowops.models.config import (
    CHAINS,
    PIXELS,
    check_at_least,
    check_choice,
    memory_option,
    option,
)
from flowops.nn import (
    MLP,
    AdditiveCoupling,
    DiagonalScale,
    Flatten,
    Permutation,
    even_odd_permutation,
    preprocessing,
)
from flowops.nn.base import Bijector


@dataclass(frozen=True)
class NICEConfig:
    """Configuration of :class:`NICE`."""

    event_shape: tuple[int, ...]
    couplings: int = option(4, "additive couplings")
    hidden: int = option(512, "units of a hidden layer")
    depth: int = option(5, "hidden layers of a coupling network")
    prior: str = option("normal", "density of the noise", ("normal", "logistic"))
    preprocess: str = option("logit", "first map of the pixels", ("logit", "center"))
    alpha: float = option(1e-4, "the logit sees alpha + (1 - 2 alpha) x")
    context_features: int = option(0, "size of the context vector, 0 for none")
    memory: str = memory_option()

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.event_shape or math.prod(self.event_shape) < 2:
            raise ValueError(
                f"NICE: event_shape must have at least 2 elements, got {tuple(self.event_shape)}"
            )
        check_at_least("NICE", "couplings", self.couplings, 1)
        check_at_least("NICE", "hidden", self.hidden, 1)
        check_at_least("NICE", "depth", self.depth, 0)
        check_at_least("NICE", "context_features", self.context_features, 0)
        check_choice("NICE", "prior", self.prior, ("normal", "logistic"))
        check_choice("NICE", "preprocess", self.preprocess, ("logit", "center"))
        check_choice("NICE", "memory", self.memory, tuple(CHAINS))


class NICE(Flow):
    """NICE of vectors or images, flattened.

    Even and odd elements of the row-major vector are the two parts; the couplings keep them in
    turn, and a learned diagonal scaling ends the chain, the only layer (after the preprocessing)
    with a log-determinant. Its log-scales rank the noise dimensions: a dimension with a large one
    varies little.

    Args:
        config: sizes and choices.
        device: of the parameters.
        dtype: of the parameters.

    Source: Dinh, Krueger and Bengio, "NICE: non-linear independent components estimation", 2014,
    arXiv:1410.8516. The paper models pixels in [0, 1] without a logit, which its published
    figures reflect.
    """

    def __init__(
        self,
        config: NICEConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = math.prod(config.event_shape)
        layers: list[Bijector] = [
            preprocessing(config.preprocess, config.alpha),
            Flatten(config.event_shape),
            Permutation(even_odd_permutation(size)),
        ]
        even = (size + 1) // 2
        for i in range(config.couplings):
            kept = even if i % 2 == 0 else size - even
            network = MLP(
                kept,
                size - kept,
                hidden=[config.hidden] * config.depth,
                context_features=config.context_features,
            )
            keep = "first" if i % 2 == 0 else "second"
            layers.append(AdditiveCoupling(size, network, keep=keep, kept_channels=kept))
        layers.append(DiagonalScale(size))
        base = StandardNormal(size) if config.prior == "normal" else StandardLogistic(size)
        super().__init__(
            CHAINS[config.memory](*layers),
            base,
            event_shape=config.event_shape,
            context_features=config.context_features,
            support=PIXELS,
        )
        self.config = config
        self.to(device=device, dtype=dtype)
