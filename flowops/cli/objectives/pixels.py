"""Pixels to what a model sees, and back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.models.base import Pixels
from flowops.nn.preprocess import binarize, dequantize


def prepare_pixels(
    kind: Pixels,
    values: Tensor,
    levels: int,
    dtype: torch.dtype,
    source: torch.Generator | None,
) -> Tensor:
    """Return images for a model whose :attr:`~flowops.models.ImageModel.pixels` is ``kind``.

    Args:
        kind: See :data:`flowops.models.base.Pixels`.
        values: Pixels in ``[0, levels)``.
        levels: Number of values of a pixel.
        dtype: Of the result.
        source: Of the noise, where there is any.
    """
    if kind == "binary":
        return binarize(values.to(dtype), levels, generator=source)
    if kind == "dequantized":
        return dequantize(values.to(dtype), levels, generator=source)
    return values.to(dtype) / (levels - 1)


def grey_values(images: Tensor, levels: int) -> NDArray[np.uint8]:
    """Return the pixels nearest to grey images in [0, 1]."""
    return images.cpu().mul(levels - 1).round().clamp(0, levels - 1).to(torch.uint8).numpy()
