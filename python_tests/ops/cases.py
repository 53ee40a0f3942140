"""Dtypes and shapes that the tests of several ops run over."""

from __future__ import annotations

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Vectors, images and volumes; several samples a tile, samples of several chunks, odd sizes.
SAMPLE_SHAPES = (
    (3, 5),
    (500, 63),
    (103, 5),
    (4, 700),
    (2, 3, 7),
    (2, 12, 8, 8),
    (2, 3, 83, 81),
    (2, 3, 2, 3, 2),
    (1, 1),
)
