"""Tools for training and looking into any PyTorch model."""

from .capture import capture
from .ema import EMA
from .generators import SharedIterator, serve, share
from .init import delta_orthogonal_

__all__ = ["EMA", "SharedIterator", "capture", "delta_orthogonal_", "serve", "share"]
