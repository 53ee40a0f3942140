"""Full models, one file a family."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowops.distributions import Flow

from .glow import Glow, GlowConfig
from .nice import NICE, NICEConfig
from .nsf import NSF, NSFConfig
from .realnvp import RealNVP, RealNVPConfig

__all__ = [
    "MODELS",
    "NICE",
    "NSF",
    "Glow",
    "GlowConfig",
    "ModelEntry",
    "NICEConfig",
    "NSFConfig",
    "RealNVP",
    "RealNVPConfig",
    "build",
]


class ModelEntry(NamedTuple):
    """A model family: its configuration dataclass and its class, called as ``model(config)``."""

    config: type[Any]
    model: type[Flow]


#: Model families by the name that the command line knows them by.
MODELS: dict[str, ModelEntry] = {
    "nice": ModelEntry(NICEConfig, NICE),
    "realnvp": ModelEntry(RealNVPConfig, RealNVP),
    "glow": ModelEntry(GlowConfig, Glow),
    "nsf": ModelEntry(NSFConfig, NSF),
}


def build(name: str, event_shape: Sequence[int], **options: Any) -> Flow:
    """Return a model by name.

    Args:
        name: a key of :data:`MODELS`.
        event_shape: shape of one sample, ``(C, H, W)`` for images.
        **options: fields of the family's configuration.

    Raises:
        ValueError: if the name is unknown, or a value is out of range.
    """
    if name not in MODELS:
        raise ValueError(f"build: name must be one of {', '.join(MODELS)}, got {name!r}")
    entry = MODELS[name]
    return entry.model(entry.config(event_shape=tuple(event_shape), **options))  # type: ignore[call-arg]
