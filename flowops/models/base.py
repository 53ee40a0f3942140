"""The contract of the models of images that are not flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from flowops.nn._placed import Placed

#: How training prepares pixels of ``v`` in {0, ..., n - 1}: "grey", v / (n - 1); "binary", drawn
#: anew each time from Bernoulli(v / (n - 1)); "dequantized", (v + u) / n with uniform noise u.
Pixels = Literal["grey", "binary", "dequantized"]


#: Codes decoded at once for importance samples.
_ROWS = 4096


class Loss(NamedTuple):
    """What a training step minimises, and what it reports.

    Attributes:
        total: The scalar to differentiate, a mean over the batch.
        parts: Scalars by name, of the same batch, without a graph.
    """

    total: Tensor
    parts: dict[str, Tensor]


class ImageModel(Placed):
    """Base of the models of images that are not flows: auto-encoders, VAEs and their kin.

    Every model has ``loss`` and ``encode``; those that make images have ``decode`` and
    ``sample_codes``, and by them ``reconstruct`` and ``sample``.
    Images are ``(B, *event_shape)`` floats in [0, 1], prepared as :attr:`pixels` says. ``labels``
    is ``(B,)``, int64 classes counted from 0, for the models that want them.

    Args:
        event_shape: ``(channels, height, width)`` of an image.
    """

    #: See :data:`Pixels`.
    pixels: Pixels = "grey"
    #: What labels are: unknown to the model, its condition, what it predicts, or known to its
    #: judge alone.
    labels: ClassVar[Literal["unused", "condition", "target", "judge"]] = "unused"

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @property
    def dims(self) -> int:
        """Number of pixels of an image, over all channels."""
        return math.prod(self.event_shape)

    def loss(self, x: Tensor, labels: Tensor | None = None, *, step: int = 0) -> Loss:
        """Return what to minimise on the batch ``x``; schedules follow ``step``, from 0."""
        raise NotImplementedError(f"{type(self).__name__}: loss must be defined")

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the code of each image, without noise, ``(B, features)``."""
        raise NotImplementedError(f"{type(self).__name__}: encode must be defined")

    def decode(self, code: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of each code ``(B, features)``: ``(B, *event_shape)``."""
        raise NotImplementedError(f"{type(self).__name__}: decode must be defined")

    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image of the code of each image."""
        return self.decode(self.encode(x, labels), labels)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = (1,),
        labels: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw codes and return their mean images, ``(*sample_shape, *event_shape)``, in [0, 1].

        Args:
            sample_shape: How many.
            labels: Of that shape, where they are the condition.
            temperature: Factor of the standard deviation of the codes, at least 0; a distribution
                that has none takes no notice.
            generator: Where the noise is drawn from, on the model's device.

        Raises:
            ValueError: If the temperature is negative, or labels are needed that are not given.
        """
        if not temperature >= 0:
            raise ValueError(
                f"{type(self).__name__}.sample: temperature must be at least 0, got {temperature}"
            )
        shape = tuple(sample_shape)
        flat = None if labels is None else labels.flatten()
        code = self.sample_codes(math.prod(shape), flat, temperature, generator)
        return self.decode(code, flat).clamp(0, 1).reshape(*shape, *self.event_shape)

    def for_sampling(self, temperature: float, generator: torch.Generator | None) -> ImageModel:
        """Return the model to sample from at ``temperature``: this one, or a copy made ready."""
        return self

    def sample_codes(
        self,
        count: int,
        labels: Tensor | None,
        temperature: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw ``count`` codes, ``(count, features)``; see :meth:`sample`."""
        raise NotImplementedError(f"{type(self).__name__}: sample_codes must be defined")

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is a batch of this model's images."""
        if tuple(x.shape[1:]) != self.event_shape or x.dim() != len(self.event_shape) + 1:
            shape = ", ".join(map(str, self.event_shape))
            raise ValueError(
                f"{type(self).__name__}: x must have shape (batch, {shape}), got {tuple(x.shape)}"
            )


class LatentVariableModel(ImageModel):
    """Base of the models with a tractable bound of log q(x): the VAE and what it became.

    Subclasses define ``log_weights``, the logarithms of importance weights.
    """

    def log_weights(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return log q(x|z) q(z) / p(z|x) for so many codes of each image, ``(samples, B)``.

        Nats, differentiable where the codes are. The mean over codes is the evidence lower bound,
        the logarithm of the mean weight approaches log q(x).
        """
        raise NotImplementedError(f"{type(self).__name__}: log_weights must be defined")

    @torch.no_grad()
    def importance_bound(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Return the importance-weighted bound of log q(x), nats, ``(B,)``.

        .. math:: \log \frac1K \sum_k \frac{q(x|z_k) q(z_k)}{p(z_k|x)} \le \log q(x)

        It grows with ``samples`` = K in expectation, to log q(x) itself; a figure from it must say
        how many they were. Some thousand codes are drawn and decoded at a time.

        Raises:
            ValueError: If ``samples`` is below 1, or ``x`` is no batch of images.

        Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2015,
        arXiv:1509.00519.
        """
        self.check_images(x)
        if samples < 1:
            raise ValueError(
                f"{type(self).__name__}.importance_bound: samples must be at least 1, got {samples}"
            )
        most = max(1, _ROWS // max(1, len(x)))
        parts = [
            self.log_weights(
                x, labels, samples=min(most, samples - done), generator=generator
            ).logsumexp(0)
            for done in range(0, samples, most)
        ]
        return torch.stack(parts).logsumexp(0) - math.log(samples)


def log_mean_exp(weights: Tensor) -> Tensor:
    """Return the logarithm of the mean of exp(weights) over dimension 0."""
    return weights.logsumexp(0) - math.log(len(weights))
