"""The contract between a kind of model and the commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowops.data import ImageData
from flowops.models import Loss

#: Images judged at once; part of the definition of a figure, since an image's noise depends on its
#: place in the batch.
BATCH = 256


class Objective:
    """What one kind of model is trained, judged and shown by.

    Args:
        levels: Number of values of a pixel.
    """

    #: The headline's key in metrics, after ``train_`` and ``test_``; less of it is better.
    unit: str
    #: The headline in words.
    unit_name: str
    #: The part of a training loss that is in the unit; None for the loss itself.
    headline_part: str | None = None
    #: Whether the held-out figure has a version with many importance samples.
    has_importance_bound = True
    #: Images that a batch must have.
    least_batch = 1
    #: Whether the model draws images; of one that does not, neighbours of codes are shown.
    makes_images = True

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def prepare(self, values: Tensor, dtype: torch.dtype, source: torch.Generator) -> Tensor:
        """Return images for the model from pixels ``(B, *event_shape)`` of uint8."""
        raise NotImplementedError

    def begin(self, model: Any, x: Tensor, labels: Tensor | None) -> None:
        """Take data-dependent initial values from prepared images; by default there are none."""

    def loss(self, model: Any, x: Tensor, labels: Tensor | None, step: int) -> Loss:
        """Return what step ``step`` minimises, and the parts to report."""
        raise NotImplementedError

    def judge(
        self,
        model: Any,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        *,
        samples: int = 1,
        seed: int = 0,
        report: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Return figures of held-out images, the headline first, by their keys.

        Args:
            model: Judged in evaluation mode, and left in the mode it was in.
            images: ``(n, channels, height, width)``.
            labels: ``(n,)`` or None.
            samples: Importance samples an image.
            seed: Of the noise.
            report: Called with the number of images done since the last call.
        """
        raise NotImplementedError

    def conclude(self, model: Any, data: ImageData, seed: int) -> dict[str, float]:
        """Return figures that take long, for the end of training and for `flowops evaluate`.

        ``model`` is in evaluation mode. By default there are none.
        """
        return {}

    def figure(self, samples: int) -> str:
        """Return what exactly the headline is with so many importance samples."""
        raise NotImplementedError

    def baselines(self, data: ImageData) -> dict[str, float]:
        """Return trivial figures in the unit, by name, to hold the headline against."""
        raise NotImplementedError

    def to_pixels(self, images: Tensor) -> NDArray[np.uint8]:
        """Return the pixels, in ``[0, levels)``, of images that the model drew."""
        raise NotImplementedError
