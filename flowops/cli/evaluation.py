"""Held-out bits per dimension of a model, reproducible from the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flowops.cli.noise import EVALUATION, generator
from flowops.distributions import Flow
from flowops.losses import importance_weighted_bits_per_dim

# Part of the definition of the figure: the noise of an image depends on its place in the batch.
_BATCH = 256


def held_out_bits(
    model: Flow,
    images: NDArray[np.uint8],
    levels: int,
    *,
    labels: NDArray[np.int64] | None = None,
    importance_samples: int = 1,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> float:
    """Return the mean over ``images`` of an upper bound on bits per dimension.

    See :func:`flowops.losses.importance_weighted_bits_per_dim`; with one sample it is the
    uniform-dequantisation bound.

    Args:
        model: The flow; it is judged in evaluation mode.
        images: ``(n, channels, height, width)``.
        levels: Number of values a pixel can take.
        labels: ``(n,)``, for a class-conditional model: the bits are those given the class.
        importance_samples: Draws of the dequantisation noise an image.
        seed: Of the noise.
        report: Called with the number of images done since the last call.
    """
    total = 0.0
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        values = torch.from_numpy(images[part]).to(model.dtype)
        context = None if labels is None else torch.from_numpy(labels[part]).to(model.device)
        bits = importance_weighted_bits_per_dim(
            model,
            values,
            levels=levels,
            samples=importance_samples,
            context=context,
            generator=generator(seed, EVALUATION, start),
        )
        total += bits.sum().item()
        if report is not None:
            report(len(values))
    return total / len(images)
