"""A flow as a distribution: a base density and a bijector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints
from torch.distributions.transforms import Transform

from flowops.distributions.base import StandardLogistic, StandardNormal
from flowops.nn._placed import Placed
from flowops.nn.base import Bijector


class Flow(Placed):
    r"""A distribution over data: a bijector to noise, and the density of that noise.

    .. math:: \log p(x) = \log p_Z(f(x)) + \log|\det \partial f / \partial x|

    Data have shape ``(*batch, *event_shape)``, any number of batch dimensions; noise is flat,
    ``(B, D)``.

    Args:
        transform: from data ``(B, *event_shape)`` to noise ``(B, D)``.
        base: density of the noise.
        event_shape: shape of one sample.
        context_features: size of the context vector; 0 for an unconditional flow.
        support: least and greatest value of data, to which ``sample`` clamps what it draws.

    Raises:
        ValueError: if the context does not fit the flow, or the data do not fit the event shape.
    """

    def __init__(
        self,
        transform: Bijector,
        base: StandardNormal | StandardLogistic,
        *,
        event_shape: Sequence[int],
        context_features: int = 0,
        support: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        super().__init__()
        self.support = support
        self.transform = transform
        self.base = base
        self.event_shape = tuple(event_shape)
        self.context_features = context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data ``(B, *event_shape)`` to ``(noise, logdet)``, ``(B, D)`` and ``(B,)``."""
        return self.transform(x, self._embed(context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise ``(B, D)`` to ``(data, logdet)``, ``(B, *event_shape)`` and ``(B,)``."""
        return self.transform.inverse(z, self._embed(context))

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set data-dependent parameters from the batch ``x``, once. See :class:`Bijector`.

        Call it with the first training batch, before the optimiser's first step (and before
        wrapping the model for distributed training or compiling it); with many images in it,
        256 or so. A second call changes nothing, nor does one after ``load_state_dict``.
        """
        batch, _ = self._batch(x)
        self.transform.initialize(batch, self._embed(context))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density of data, nats, shape ``(*batch,)``, float32 or wider.

        Args:
            x: data, shape ``(*batch, *event_shape)``.
            context: ``(*batch, F)``, for a conditional flow.
        """
        batch, shape = self._batch(x)
        context = self._flat_context(context, len(shape))
        z, logdet = self(batch, context)
        return (self.base.log_prob(z) + logdet).reshape(shape)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = (1,),
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw data, shape ``(*sample_shape, *event_shape)``, clamped to ``support``.

        Args:
            sample_shape: how many; with a context of n samples, the first entry is n.
            context: ``(n, F)``, for a conditional flow.
            temperature: standard deviation of the noise, at least 0: below 1 samples are nearer
                the mode, and no longer follow the density.
            generator: where the noise is drawn from.
        """
        if temperature < 0:
            raise ValueError(f"sample: temperature must be at least 0, got {temperature}")
        shape = tuple(sample_shape)
        noise = self.base.sample(self._like, math.prod(shape), generator) * temperature
        x = self.inverse(noise, self._flat_context(context, len(shape)))[0]
        return x.clamp(*self.support).reshape(*shape, *self.event_shape)

    def rsample_and_log_prob(
        self,
        sample_shape: Sequence[int] = (1,),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw data and their log-density in one pass, differentiable in the parameters.

        Nothing is clamped, so that the density is that of the values returned.

        Returns:
            ``(*sample_shape, *event_shape)`` and nats, ``(*sample_shape,)``.
        """
        shape = tuple(sample_shape)
        noise = self.base.sample(self._like, math.prod(shape), generator)
        x, logdet = self.inverse(noise, self._flat_context(context, len(shape)))
        log_prob = self.base.log_prob(noise) - logdet
        return x.reshape(*shape, *self.event_shape), log_prob.reshape(shape)

    def distribution(self, context: Tensor | None = None) -> TransformedDistribution:
        """Return this flow as a ``torch.distributions.TransformedDistribution``.

        Args:
            context: one context vector ``(F,)``, for a conditional flow.
        """
        return TransformedDistribution(
            self.base.distribution(self._like), [FlowTransform(self, context)]
        )

    def _embed(self, context: Tensor | None) -> Tensor | None:
        """Turn the context given by the user into the vector that the layers see."""
        if self.context_features == 0 and context is not None:
            raise ValueError(
                f"{type(self).__name__}: context must be None for an unconditional flow, "
                f"got shape {tuple(context.shape)}"
            )
        if self.context_features and (
            context is None or context.shape[1:] != (self.context_features,)
        ):
            got = None if context is None else tuple(context.shape)
            raise ValueError(
                f"{type(self).__name__}: context must have shape (batch, {self.context_features}), "
                f"got {got}"
            )
        return context

    def _batch(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        split = x.dim() - len(self.event_shape)
        if split < 0 or tuple(x.shape[split:]) != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}: x must have shape (*batch, "
                f"{', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}"
            )
        shape = tuple(x.shape[:split])
        return (x if split == 1 else x.reshape(math.prod(shape), *self.event_shape)), shape

    def _flat_context(self, context: Tensor | None, batch_dims: int) -> Tensor | None:
        if context is None or batch_dims == 1:
            return context
        return context.reshape(-1, *context.shape[batch_dims:])


class FlowTransform(Transform):
    """A flow's inverse as a ``torch.distributions`` transform, from noise to data.

    Args:
        flow: the flow.
        context: one context for all samples, without a batch dimension.
    """

    bijective = True

    def __init__(self, flow: Flow, context: Tensor | None = None) -> None:
        super().__init__(cache_size=1)
        self.flow = flow
        self.context = context
        self.domain = constraints.independent(constraints.real, 1)
        self.codomain = constraints.independent(constraints.real, len(flow.event_shape))

    def _batched(self, count: int) -> Tensor | None:
        return None if self.context is None else self.context.expand(count, *self.context.shape)

    def _call(self, x: Tensor) -> Tensor:
        noise = x.reshape(-1, x.size(-1))
        data = self.flow.inverse(noise, self._batched(len(noise)))[0]
        return data.reshape(*x.shape[:-1], *self.flow.event_shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._normalise(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log|det dy / dx| at data ``y``, noise ``x``."""
        return -self._normalise(y)[1]

    def _normalise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        batch_shape = y.shape[: y.dim() - len(self.flow.event_shape)]
        batch = y.reshape(-1, *self.flow.event_shape)
        noise, logdet = self.flow(batch, self._batched(len(batch)))
        return noise.reshape(*batch_shape, -1), logdet.reshape(batch_shape)

    def forward_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of data for a shape of noise."""
        return (*shape[:-1], *self.flow.event_shape)

    def inverse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of noise for a shape of data."""
        batch = shape[: len(shape) - len(self.flow.event_shape)]
        return (*batch, self.flow.base.features)
