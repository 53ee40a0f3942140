"""flowops: fast kernels, layers and models for invertible and latent-variable generative modelling."""

__version__ = "0.1.0"
