"""Every random number of a run as a pure function of the seed and a place in the run.

A resumed run therefore needs no history: the images of step n and their dequantisation noise are
the same whichever process computes it, and on every device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

INITIALISATION, ORDER, DEQUANTISATION, EVALUATION, SAMPLES, CODES = range(6)


def generator(seed: int, purpose: int, index: int = 0) -> torch.Generator:
    """Return a CPU generator whose stream depends on all three arguments."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, index))


def stream_seed(seed: int, purpose: int, index: int = 0) -> int:
    """Return a 63-bit seed; different arguments give unrelated streams."""
    state = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


class BatchOrder:
    """Which images each step sees: a fresh permutation an epoch, whole batches only.

    Args:
        count: Training images.
        batch_size: At most ``count``.
        seed: Of the permutations.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = count // batch_size
        self._count = count
        self._seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def epoch(self, step: int) -> int:
        """Return the 0-based epoch of 0-based ``step``."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> Tensor:
        """Return the image indices of 0-based ``step``."""
        epoch = self.epoch(step)
        if epoch != self._epoch:
            source = generator(self._seed, ORDER, epoch)
            self._permutation = torch.randperm(self._count, generator=source)
            self._epoch = epoch
        start = step % self.steps_per_epoch * self.batch_size
        return self._permutation[start : start + self.batch_size]
