"""A normal distribution that compiles whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from flowops import ops

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
