"""Neural spline flow: rational-quadratic splines between linear maps."""

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
    memory_option,
    option,
)
from flowops.nn import (
    ActNorm,
    AutoregressiveSpline,
    Flatten,
    InvertibleConv1x1,
    Permutation,
    RationalQuadraticSpline,
    ResidualMLP,
    preprocessing,
    random_permutation,
    reverse_permutation,
    spline_parameters,
)
from flowops.nn.base import Bijector

_KINDS = ("coupling", "autoregressive")
_MIXINGS = ("lu", "permutation")
_PREPROCESS = ("logit", "center", "none")


@dataclass(frozen=True)
class NSFConfig:
    """Configuration of :class:`NSF`."""

    event_shape: tuple[int, ...]
    transforms: int = option(5, "spline layers")
    kind: str = option("coupling", "kind of spline layer", _KINDS)
    bins: int = option(8, "pieces of a spline")
    bound: float = option(4.0, "splines act on [-bound, bound]")
    hidden: int = option(64, "width of the networks")
    blocks: int = option(2, "residual blocks of a network")
    passes: int = option(0, "groups of an autoregressive layer, 0 for one a feature")
    mixing: str = option("lu", "what comes between spline layers", _MIXINGS)
    preprocess: str = option("logit", "first map of the data", _PREPROCESS)
    alpha: float = option(1e-4, "the logit sees alpha + (1 - 2 alpha) x")
    context_features: int = option(0, "size of the context vector, 0 for none")
    memory: str = memory_option()

    def __post_init__(self) -> None:
        """Check the values."""
        size = math.prod(self.event_shape)
        if not self.event_shape or size < 2:
            raise ValueError(
                f"NSF: event_shape must have at least 2 elements, got {tuple(self.event_shape)}"
            )
        for name in ("transforms", "bins", "hidden"):
            check_at_least("NSF", name, getattr(self, name), 1)
        for name in ("blocks", "passes", "context_features"):
            check_at_least("NSF", name, getattr(self, name), 0)
        if self.passes > size:
            raise ValueError(f"NSF: passes must be at most {size}, got {self.passes}")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"NSF: bound must be positive and finite, got {self.bound}")
        check_choice("NSF", "kind", self.kind, _KINDS)
        check_choice("NSF", "mixing", self.mixing, _MIXINGS)
        check_choice("NSF", "preprocess", self.preprocess, _PREPROCESS)
        check_choice("NSF", "memory", self.memory, tuple(CHAINS))
        if self.memory == "reversible" and self.kind == "autoregressive":
            raise ValueError(
                "NSF: memory must be plain for autoregressive layers, whose inverse takes a pass "
                "of the network a feature, got reversible"
            )


class NSF(Flow):
    """Neural spline flow of vectors, or of images, flattened.

    Each spline layer is preceded by actnorm and a linear map (of LU form, with actnorm folded into
    it, beginning as a random permutation) or a fixed random permutation, and one more such pair
    ends the chain. Couplings keep the
    two halves in turn, their networks being residual; autoregressive layers take the order of the
    features and its reverse in turn.

    For data that are not pixels take ``preprocess="none"``; otherwise they are in [0, 1).

    Args:
        config: sizes and choices.
        device: of the parameters.
        dtype: of the parameters.

    Source: Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        config: NSFConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = math.prod(config.event_shape)
        pixels = config.preprocess != "none"
        layers = [preprocessing(config.preprocess, config.alpha)] if pixels else []
        layers.append(Flatten(config.event_shape))
        for i in range(config.transforms):
            layers += [*_mixing(config, size), _spline(config, size, i % 2)]
        layers += _mixing(config, size)
        super().__init__(
            CHAINS[config.memory](*layers),
            StandardNormal(size),
            event_shape=config.event_shape,
            context_features=config.context_features,
            support=PIXELS if pixels else (-math.inf, math.inf),
        )
        self.config = config
        self.to(device=device, dtype=dtype)


def _mixing(config: NSFConfig, size: int) -> list[Bijector]:
    if config.mixing == "lu":
        return [ActNorm(size), InvertibleConv1x1(size, initial="permutation")]
    return [ActNorm(size), Permutation(random_permutation(size))]


def _spline(config: NSFConfig, size: int, turn: int) -> Bijector:
    if config.kind == "autoregressive":
        return AutoregressiveSpline(
            size,
            hidden=config.hidden,
            blocks=config.blocks,
            context_features=config.context_features,
            order=reverse_permutation(size) if turn else None,
            passes=config.passes or None,
            bins=config.bins,
            bound=config.bound,
        )
    kept = size // 2 if turn else size - size // 2
    network = ResidualMLP(
        kept,
        (size - kept) * spline_parameters(config.bins),
        hidden=config.hidden,
        blocks=config.blocks,
        context_features=config.context_features,
    )
    return RationalQuadraticSpline(
        size,
        network,
        keep="second" if turn else "first",
        kept_channels=kept,
        bins=config.bins,
        bound=config.bound,
    )
