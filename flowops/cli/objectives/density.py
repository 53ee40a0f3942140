"""Flows: bits per dimension of dequantised images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.cli.baselines import trivial_baselines
from flowops.cli.evaluation import held_out_bits
from flowops.cli.objectives.base import Objective
from flowops.data import ImageData, quantize
from flowops.distributions import Flow
from flowops.losses import bits_per_dim
from flowops.models import Loss
from flowops.nn.preprocess import dequantize


class DensityObjective(Objective):
    """Maximum likelihood of dequantised images; see :class:`Objective`."""

    unit = "bits_per_dim"
    unit_name = "bits/dim"

    def prepare(self, values: Tensor, dtype: torch.dtype, source: torch.Generator) -> Tensor:
        """Return dequantised images, in [0, 1)."""
        return dequantize(values.to(dtype), self.levels, generator=source)

    def begin(self, model: Flow, x: Tensor, labels: Tensor | None) -> None:
        """Set actnorms from ``x``."""
        model.initialize(x, labels)

    def loss(self, model: Flow, x: Tensor, labels: Tensor | None, step: int) -> Loss:
        """Return the mean of bits per dimension."""
        log_prob = model.log_prob(x, labels)
        return Loss(bits_per_dim(log_prob, model.event_shape, self.levels).mean(), {})

    def judge(
        self,
        model: Flow,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        *,
        samples: int = 1,
        seed: int = 0,
        report: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Return bits per dimension; see :meth:`Objective.judge`."""
        bits = held_out_bits(
            model,
            images,
            self.levels,
            labels=labels,
            importance_samples=samples,
            seed=seed,
            report=report,
        )
        return {self.unit: bits}

    def figure(self, samples: int) -> str:
        """Return the name of the bound."""
        if samples == 1:
            return "uniform-dequantisation bound"
        return f"importance-weighted bound, {samples} samples"

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return bits/dim of densities without a network."""
        return trivial_baselines(data)

    def to_pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """Return the pixels whose bins hold ``images``."""
        return quantize(images.cpu(), self.levels).numpy()
