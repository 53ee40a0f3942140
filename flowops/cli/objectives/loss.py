"""Models judged by their own loss, and by what their codes are good for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.cli.baselines import principal_errors
from flowops.cli.noise import CODES, stream_seed
from flowops.cli.objectives.base import BATCH, Objective
from flowops.cli.objectives.pixels import grey_values, prepare_pixels
from flowops.cli.objectives.scores import linear_probe, match_clusters
from flowops.data import ImageData
from flowops.models import VIB, AutoEncoder, ClusterVAE, ImageModel, InfoMax, Loss

_Labels = NDArray[np.int64]


class LossObjective(Objective):
    """The model's own loss on held-out images; see :class:`Objective`."""

    has_importance_bound = False

    def prepare(self, values: Tensor, dtype: torch.dtype, source: torch.Generator) -> Tensor:
        """Return grey images."""
        return prepare_pixels("grey", values, self.levels, dtype, source)

    def loss(self, model: ImageModel, x: Tensor, labels: Tensor | None, step: int) -> Loss:
        """Return the model's loss."""
        return model.loss(x, labels, step=step)

    def judge(
        self,
        model: ImageModel,
        images: NDArray[np.uint8],
        labels: _Labels | None,
        *,
        samples: int = 1,
        seed: int = 0,
        report: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Return the loss and its parts; see :meth:`Objective.judge`."""
        training = model.training
        model.eval()
        totals: dict[str, float] = {}
        with torch.no_grad(), torch.random.fork_rng():
            for start, x, classes in self._batches(model, images, labels):
                torch.manual_seed(stream_seed(seed, CODES, start))
                loss = self.loss(model, x, classes, 0)
                for name, value in self._figures(loss).items():
                    totals[name] = totals.get(name, 0.0) + value.item() * len(x)
                if report is not None:
                    report(len(x))
        model.train(training)
        return {name: total / len(images) for name, total in totals.items()}

    def _figures(self, loss: Loss) -> dict[str, Tensor]:
        """Return the headline, then the other parts."""
        parts = dict(loss.parts)
        headline = loss.total if self.headline_part is None else parts.pop(self.headline_part)
        return {self.unit: headline, **parts}

    def to_pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """Return the pixels nearest to mean images."""
        return grey_values(images, self.levels)

    def figure(self, samples: int) -> str:
        """Return what the headline is."""
        return "the loss"

    def _batches(
        self, model: ImageModel, images: NDArray[np.uint8], labels: _Labels | None
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield the place of each batch, its images and labels on the model's device."""
        # No batch of one image, where there are more: some losses need others beside each.
        starts = range(0, max(1, len(images) - 1), BATCH)
        for start, end in itertools.pairwise([*starts, len(images)]):
            part = slice(start, end)
            classes = None if labels is None else torch.from_numpy(labels[part]).to(model.device)
            yield start, self._images(model, images[part]), classes

    def _images(self, model: ImageModel, pixels: NDArray[np.uint8]) -> Tensor:
        """Return grey images on the model's device."""
        x = prepare_pixels("grey", torch.from_numpy(pixels), self.levels, model.dtype, None)
        return x.to(model.device)

    @torch.no_grad()
    def _map(
        self, model: ImageModel, images: NDArray[np.uint8], function: Callable[[Tensor], Tensor]
    ) -> NDArray[np.generic]:
        """Return ``function`` of all images, batch by batch."""
        batches = self._batches(model, images, None)
        return torch.cat([function(x).cpu() for _, x, _ in batches]).numpy()


class ReconstructionObjective(LossObjective):
    """Auto-encoders: squared error of a pixel in [0, 1]."""

    unit = "mse"
    unit_name = "squared error of a pixel"
    headline_part = "mse"

    def __init__(self, levels: int, model: AutoEncoder) -> None:
        super().__init__(levels)
        self.features = len(model.moments.mean)

    def conclude(self, model: AutoEncoder, data: ImageData, seed: int) -> dict[str, float]:
        """Return the error of the training images, which bounds of optima are about."""
        errors = self.judge(model, data.train, None, seed=seed)
        return {"training_mse": errors[self.unit]}

    def figure(self, samples: int) -> str:
        """Return what the headline is."""
        return "reconstructed without noise"

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return the errors of the mean image and of as many principal components."""
        return principal_errors(data, self.features)


class BottleneckObjective(LossObjective):
    """VIB: bits of the prediction and of the code, accuracy."""

    unit = "bits"
    unit_name = "bits"
    makes_images = False
    #: Images whose codes are told apart.
    _TOLD_APART = 1000

    def conclude(self, model: VIB, data: ImageData, seed: int) -> dict[str, float]:
        """Return accuracies by codes and by their means, and bits that tell images apart."""
        figures: dict[str, float] = {}
        source = torch.Generator(model.device).manual_seed(stream_seed(seed, CODES))
        for name, samples in (("accuracy", 12), ("accuracy_of_the_mean", 0)):

            def predict(x: Tensor, samples: int = samples) -> Tensor:
                return model.predict(x, samples=samples, generator=source).argmax(1)

            right = self._map(model, data.test, predict) == data.test_labels
            figures[name] = float(right.mean())
        some = self._images(model, data.test[: self._TOLD_APART])
        figures["information"] = model.information(some, generator=source).item()
        return figures

    def figure(self, samples: int) -> str:
        """Return what the headline is."""
        return "prediction + beta x rate, one code"

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return the bits of a guess that knows how frequent the classes are."""
        if data.train_labels is None or data.test_labels is None:
            raise ValueError("BottleneckObjective: data must have labels")
        counts = np.bincount(data.train_labels, minlength=data.classes) + 1
        bits = -np.log2(counts / counts.sum())
        return {"guess by frequency": float(bits[data.test_labels].mean())}


class ClusterObjective(LossObjective):
    """The clustering VAE: its loss in nats, and accuracies where labels are known."""

    unit = "nats"
    unit_name = "nats an image, grey pixels"

    def __init__(self, levels: int, model: ClusterVAE) -> None:
        super().__init__(levels)
        self.config = model.config

    def conclude(self, model: ClusterVAE, data: ImageData, seed: int) -> dict[str, float]:
        """Return accuracies; the clusters' classes are found on the training images."""
        if data.train_labels is None or data.test_labels is None:
            return {}
        train = self._map(model, data.train, model.cluster)
        test = self._map(model, data.test, model.cluster)
        size = model.config.clusters
        return match_clusters(train, data.train_labels, test, data.test_labels, size)

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return the nats of the mean training image, under the same variance of pixels."""
        scale = data.levels - 1
        mean = data.train.mean(0, dtype=np.float64) / scale
        error = np.mean((data.test / np.float32(scale) - mean) ** 2)
        precision = self.config.precision
        nats = 0.5 * (precision * error - math.log(precision / (2 * math.pi))) * mean.size
        return {"the mean image": float(nats)}


class InfoMaxObjective(LossObjective):
    """Deep InfoMax: its loss, and a linear classifier of its codes beside one of pixels."""

    unit = "loss"
    unit_name = "loss"
    makes_images = False
    least_batch = 2

    def __init__(self, levels: int, model: InfoMax) -> None:
        super().__init__(levels)
        self.config = model.config

    def conclude(self, model: InfoMax, data: ImageData, seed: int) -> dict[str, float]:
        """Return held-out accuracies of linear classifiers of codes and of pixels."""
        if data.train_labels is None or data.test_labels is None:
            return {}
        figures: dict[str, float] = {}
        probes = {"codes": model.encode, "pixels": torch.nn.Flatten()}
        for name, features in probes.items():
            train = self._map(model, data.train, features)
            test = self._map(model, data.test, features)
            score = linear_probe(train, data.train_labels, test, data.test_labels)
            figures[f"linear_accuracy_of_{name}"] = score
        return figures

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return the loss of codes that say nothing and follow the prior."""
        nothing = 2 * math.log(2) * (self.config.alpha + self.config.beta)
        return {"codes that say nothing": nothing}
