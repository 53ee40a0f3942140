"""Variational auto-encoders: a bound of the log-likelihood, in nats or bits per dimension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.cli.baselines import binary_baselines, trivial_baselines
from flowops.cli.noise import CODES, EVALUATION, generator, stream_seed
from flowops.cli.objectives.base import BATCH, Objective
from flowops.cli.objectives.pixels import grey_values, prepare_pixels
from flowops.data import ImageData, quantize
from flowops.losses import bits_per_dim
from flowops.models import FVAE, LatentVariableModel, Loss
from flowops.models.base import Pixels


class BoundObjective(Objective):
    """The evidence lower bound of images; see :class:`Objective`.

    Binarised images are judged in nats an image, others in bits per dimension: dequantised ones by
    a density, discrete ones (grey to the model) by a probability. Training draws binary pixels anew
    each time, judging once, from its seed.
    """

    def __init__(self, levels: int, pixels: Pixels) -> None:
        super().__init__(levels)
        self.pixels: Pixels = pixels
        self.binary = pixels == "binary"
        # A density of dequantised pixels is spread over that many bins, a probability over one.
        self.bins = levels if pixels == "dequantized" else 1
        self.unit = "nats" if self.binary else "bits_per_dim"
        self.unit_name = "nats an image" if self.binary else "bits/dim"

    def prepare(self, values: Tensor, dtype: torch.dtype, source: torch.Generator) -> Tensor:
        """Return binary or dequantised images."""
        return prepare_pixels(self.pixels, values, self.levels, dtype, source)

    def begin(self, model: LatentVariableModel, x: Tensor, labels: Tensor | None) -> None:
        """Set the actnorms of a flow over the codes."""
        if isinstance(model, FVAE):
            model.initialize(x)

    def loss(self, model: LatentVariableModel, x: Tensor, labels: Tensor | None, step: int) -> Loss:
        """Return the negative bound."""
        loss = model.loss(x, labels, step=step)
        if self.binary:
            return loss
        return Loss(bits_per_dim(-loss.total, model.event_shape, self.bins), loss.parts)

    def judge(
        self,
        model: LatentVariableModel,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        *,
        samples: int = 1,
        seed: int = 0,
        report: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Return the negative bound; see :meth:`Objective.judge`."""
        training = model.training
        model.eval()
        total = 0.0
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            source = generator(seed, EVALUATION, start)
            x = self.prepare(torch.from_numpy(images[part]), model.dtype, source)
            classes = None if labels is None else torch.from_numpy(labels[part]).to(model.device)
            codes = torch.Generator(model.device).manual_seed(stream_seed(seed, CODES, start))
            bound = model.importance_bound(
                x.to(model.device), classes, samples=samples, generator=codes
            )
            total -= bound.double().sum().item()
            if report is not None:
                report(len(x))
        model.train(training)
        return {self.unit: self._in_unit(total / len(images), model)}

    def figure(self, samples: int) -> str:
        """Return the name of the bound."""
        kinds = {
            "binary": "binarised once",
            "dequantized": "uniform dequantisation",
            "grey": "discrete pixels",
        }
        drawn = kinds[self.pixels]
        if samples == 1:
            return f"evidence lower bound, one code, {drawn}"
        return f"importance-weighted bound, {samples} codes, {drawn}"

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return figures of densities without a network."""
        return binary_baselines(data) if self.binary else trivial_baselines(data)

    def to_pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """Return the pixels nearest to mean images."""
        if self.pixels == "dequantized":
            return quantize(images.cpu(), self.levels).numpy()
        return grey_values(images, self.levels)

    def _in_unit(self, nats: float, model: LatentVariableModel) -> float:
        if self.binary:
            return nats
        return bits_per_dim(torch.tensor(-nats), model.event_shape, self.bins).item()
