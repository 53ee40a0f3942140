"""Tools for modules that are not layers of flows themselves."""

from .spectral_norm import SpectralNorm, spectral_norm, spectral_norm_model

__all__ = ["SpectralNorm", "spectral_norm", "spectral_norm_model"]
