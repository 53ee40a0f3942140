"""Full models, one file a family."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowops.distributions import Flow

from .autoencoder import (
    AE,
    AEConfig,
    AutoEncoder,
    DenoisingAE,
    DenoisingAEConfig,
    LinearAE,
    LinearAEConfig,
    SparseAE,
    SparseAEConfig,
)
from .base import ImageModel, LatentVariableModel, Loss
from .cluster_vae import ClusterVAE, ClusterVAEConfig
from .fvae import FVAE, FVAEConfig
from .glow import Glow, GlowConfig
from .infomax import InfoMax, InfoMaxConfig
from .nice import NICE, NICEConfig
from .nsf import NSF, NSFConfig
from .nvae import NVAE, NVAEConfig
from .realnvp import RealNVP, RealNVPConfig
from .stacked import StackedAE, StackedAEConfig
from .vae import CVAE, VAE, CVAEConfig, VAEConfig
from .vib import VIB, VIBConfig

__all__ = [
    "AE",
    "CVAE",
    "FLOWS",
    "FVAE",
    "MODELS",
    "NICE",
    "NSF",
    "NVAE",
    "VAE",
    "VIB",
    "AEConfig",
    "AutoEncoder",
    "CVAEConfig",
    "ClusterVAE",
    "ClusterVAEConfig",
    "DenoisingAE",
    "DenoisingAEConfig",
    "FVAEConfig",
    "Glow",
    "GlowConfig",
    "ImageModel",
    "InfoMax",
    "InfoMaxConfig",
    "LatentVariableModel",
    "LinearAE",
    "LinearAEConfig",
    "Loss",
    "ModelEntry",
    "NICEConfig",
    "NSFConfig",
    "NVAEConfig",
    "RealNVP",
    "RealNVPConfig",
    "SparseAE",
    "SparseAEConfig",
    "StackedAE",
    "StackedAEConfig",
    "VAEConfig",
    "VIBConfig",
    "build",
]


class ModelEntry(NamedTuple):
    """A model family: its configuration dataclass and its class, called as ``model(config)``."""

    config: type[Any]
    model: type[Flow] | type[ImageModel]


#: Flows, which have an exact log-density, by the name that the command line knows them by.
FLOWS: dict[str, ModelEntry] = {
    "nice": ModelEntry(NICEConfig, NICE),
    "realnvp": ModelEntry(RealNVPConfig, RealNVP),
    "glow": ModelEntry(GlowConfig, Glow),
    "nsf": ModelEntry(NSFConfig, NSF),
}

#: All models by that name.
MODELS: dict[str, ModelEntry] = FLOWS | {
    "vae": ModelEntry(VAEConfig, VAE),
    "cvae": ModelEntry(CVAEConfig, CVAE),
    "cluster_vae": ModelEntry(ClusterVAEConfig, ClusterVAE),
    "vib": ModelEntry(VIBConfig, VIB),
    "infomax": ModelEntry(InfoMaxConfig, InfoMax),
    "fvae": ModelEntry(FVAEConfig, FVAE),
    "nvae": ModelEntry(NVAEConfig, NVAE),
    "linear_ae": ModelEntry(LinearAEConfig, LinearAE),
    "ae": ModelEntry(AEConfig, AE),
    "sparse_ae": ModelEntry(SparseAEConfig, SparseAE),
    "stacked_ae": ModelEntry(StackedAEConfig, StackedAE),
    "denoising_ae": ModelEntry(DenoisingAEConfig, DenoisingAE),
}


def build(name: str, event_shape: Sequence[int], **options: Any) -> Flow | ImageModel:
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
