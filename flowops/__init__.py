"""flowops: fast kernels, layers and models for latent-variable generative models in PyTorch."""

from flowops import _library as _library  # loads the native modules
from flowops.compat._accelerate import accelerate as accelerate
from flowops.ops import rand as rand
from flowops.ops import randn as randn

__version__ = "0.1.0"
