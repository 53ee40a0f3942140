"""Flows as distributions: base densities, and :class:`Flow`, which joins one to a bijector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Independent, TransformedDistribution, constraints
from torch.distributions.kl import register_kl
from torch.distributions.transforms import Transform
from torch.nn.functional import softplus

from flowops import ops
from flowops.nn.base import Bijector

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Normal(torch.distributions.Normal):
    r"""Normal distribution whose sampling is one kernel, and which compiles whole.

    A ``torch.distributions.Normal`` in all but this: ``sample`` and ``rsample`` draw from the
    stream of :func:`flowops.randn`, which the backward pass makes again instead of keeping it;
    ``rsample``, ``log_prob`` and ``torch.distributions.kl_divergence`` trace under
    ``torch.compile(fullgraph=True)`` and never wait for the device; densities and divergences of
    16-bit parameters are float32. For the KL summed per sample in the same pass as the sample use
    :func:`flowops.ops.gaussian_rsample_kl`.

    Args:
        loc: mean.
        scale: standard deviation, above 0.
        validate_args: whether to check values, which costs a wait for the device; None for no.
    """

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        super().__init__(loc, scale, validate_args=bool(validate_args))

    def expand(
        self, batch_shape: Sequence[int], _instance: torch.distributions.Distribution | None = None
    ) -> torch.distributions.Distribution:
        """Return the distribution with its parameters expanded to ``batch_shape``."""
        return super().expand(torch.Size(batch_shape), self.__new__(type(self)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch_shape)``, differentiable in the parameters."""
        shape = torch.Size(sample_shape) + self.batch_shape
        rows = shape if len(shape) > 1 else torch.Size((1, math.prod(shape)))
        loc, scale = self.loc.expand(shape).reshape(rows), self.scale.expand(shape).reshape(rows)
        return ops.gaussian_rsample(loc, scale, form="std").reshape(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch_shape)`` without a gradient."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each value, nats, float32 or wider."""
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = _wide(self.loc), _wide(self.scale)
        return -0.5 * ((value - loc) / scale).square() - torch.log(scale) - _HALF_LOG_2PI


@register_kl(Normal, Normal)
def _kl_normal(p: Normal, q: Normal) -> Tensor:
    """KL(p | q) of each element, nats, float32 or wider."""
    p_scale, q_scale = _wide(p.scale), _wide(q.scale)
    ratio = p_scale / q_scale
    distance = (_wide(p.loc) - _wide(q.loc)) / q_scale
    return 0.5 * (ratio.square() + distance.square() - 1) - torch.log(ratio)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StandardNormal(nn.Module):
    """Standard normal density of vectors ``(B, D)``, ``log p = -|z|^2 / 2 - D log(2 pi) / 2``.

    Args:
        features: ``D``.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, nats, shape ``(B,)``, float32 or wider."""
        return ops.gaussian_log_prob(z)

    def sample(self, like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``(count, D)`` with the dtype and device of ``like``."""
        shape = (count, self.features)
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def distribution(self, like: Tensor) -> torch.distributions.Distribution:
        """Return the torch distribution of one vector."""
        zeros = like.new_zeros(self.features)
        return Independent(Normal(zeros, torch.ones_like(zeros)), 1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.features}"


class StandardLogistic(nn.Module):
    """Standard logistic density, ``log p = -sum(softplus(z) + softplus(-z))``.

    Args:
        features: ``D``.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density, nats, shape ``(B,)``, float32 or wider."""
        size = z.to(torch.promote_types(z.dtype, torch.float32)).abs()
        return -(size + 2 * softplus(-size)).sum(1)

    def sample(self, like: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw ``(count, D)`` with the dtype and device of ``like``."""
        # In float64, so that neither tail is cut short, and u = 0 is all but impossible.
        u = torch.rand(
            (count, self.features), dtype=torch.float64, device=like.device, generator=generator
        )
        return torch.logit(u, eps=1e-300).to(like.dtype)

    def distribution(self, like: Tensor) -> torch.distributions.Distribution:
        """Return the torch distribution of one vector."""
        zeros = like.new_zeros(self.features)
        uniform = torch.distributions.Uniform(zeros, torch.ones_like(zeros))
        to_logistic = torch.distributions.SigmoidTransform().inv
        return Independent(TransformedDistribution(uniform, [to_logistic]), 1)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.features}"


class Flow(nn.Module):
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

    _like: Tensor

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
        # Says on what device and in what dtype to draw noise, also where there is no parameter.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which noise is drawn; it follows ``.to()``."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device on which noise is drawn; it follows ``.to()``."""
        return self._like.device

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
