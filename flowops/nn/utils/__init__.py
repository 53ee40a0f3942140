"""Tools for modules that are not layers of flows themselves."""

from .conv_spectral_norm import ConvSpectralNorm, conv_spectral_norm
from .spectral_norm import SpectralNorm, spectral_norm, spectral_norm_model

__all__ = [
    "ConvSpectralNorm",
    "SpectralNorm",
    "conv_spectral_norm",
    "spectral_norm",
    "spectral_norm_model",
]
