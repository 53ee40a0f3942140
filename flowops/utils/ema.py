"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(AveragedModel):
    r"""Exponential moving average of the parameters of a model; buffers are copied.

    After each step of the optimiser, ``update_parameters(model)`` does

    .. math:: \Theta_t = \alpha_t \Theta_{t-1} + (1 - \alpha_t) \theta_t

    for each parameter, and gives buffers (running statistics, counters) the model's values. The
    first update copies the parameters too, so that data-dependent initialisation may run between
    construction and that update; to average from the initial weights on, update once before the
    first step. The model's own weights are never touched but inside of :meth:`applied_to`.

    This is PyTorch's ``AveragedModel`` with that rule: the averaged model is ``module``, calls of
    the average go to it, and the state dict has its weights as ``module.*`` beside the number of
    updates ``n_averaged``. Averages have the parameters' type: one of bfloat16 or float16 stands
    still where :math:`1 - \alpha` is below the type's resolution.

    Args:
        model: is copied.
        decay: :math:`\alpha`, in [0, 1).
        warm_up: whether a young average forgets faster, :math:`\alpha_t = \min(\alpha,
            (1 + n) / (10 + n))` with :math:`n` the updates before this one, so that a short run is
            not judged by its first weights.

    Raises:
        ValueError: if ``decay`` is out of range.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    the warm-up is that of TensorFlow's ``ExponentialMovingAverage(num_updates=)``.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> average = EMA(model, 0.99, warm_up=True)
        >>> # in the loop, after optimizer.step()
        >>> average.update_parameters(model)
        >>> with average.applied_to(model):
        ...     y = model(torch.zeros(3, 2))
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, *, warm_up: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be in [0, 1), got {decay}")
        super().__init__(model, multi_avg_fn=self._average)
        self.decay = decay
        self.warm_up = warm_up

    def _average(self, averaged: Any, current: Any, updates: Tensor | int) -> None:
        n = int(updates)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warm_up else self.decay
        get_ema_multi_avg_fn(decay)(averaged, current, updates)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Generator[None]:
        """Give ``model`` the averaged weights and buffers inside of a ``with``.

        Values are copied into the model's own tensors, which optimisers and compiled graphs hold.
        At the end, after an exception too, parameters and buffers are what they were, bit by bit;
        what is written to them inside is lost, and never reaches the average.

        Args:
            model: the model that is averaged. Its weights are kept in a second copy meanwhile.
        """
        own = [*chain(model.parameters(), model.buffers())]
        kept = [value.detach().clone() for value in own]
        try:
            _copy(own, chain(self.module.parameters(), self.module.buffers()))
            yield
        finally:
            _copy(own, kept)


@torch.no_grad()
def _copy(targets: list[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
