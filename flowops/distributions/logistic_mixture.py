"""Images under a discretised mixture of logistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from flowops import ops
from flowops.distributions.base import logistic_noise
from flowops.reference.logistic_mixture_log_prob import CHANNELS_OF_COMPONENT


class LogisticMixture(Distribution):
    r"""Images of discrete values, each pixel a discretised mixture of logistics.

    The likelihood of PixelCNN++, VDVAE and NVAE: ``log_prob`` is
    :func:`flowops.ops.logistic_mixture_log_prob`, where formula and layout stand, and ``sample``
    draws what it gives the probabilities of, colour after colour.

    Shapes:
        ``params`` (B, P, \*S) gives the batch shape (B,) and the event shape (colours, \*S).

    Args:
        params: What a net gives, P = 3 K for one colour and 10 K for three.
        colours: 1 or 3.
        levels: Values are 0, ..., levels - 1.
        min_log_scale: What log-scales below count as.

    Raises:
        ValueError: If ``params`` does not fit ``colours``.

    Source:
        Salimans et al., PixelCNN++, 2017, arXiv:1701.05517.
    """

    def __init__(
        self,
        params: Tensor,
        colours: int = 3,
        *,
        levels: int = 256,
        min_log_scale: float = -7.0,
    ) -> None:
        each = CHANNELS_OF_COMPONENT.get(colours)
        if each is None:
            raise ValueError(f"LogisticMixture: colours must be 1 or 3, got {colours}")
        if params.dim() < 2 or params.size(1) == 0 or params.size(1) % each:
            raise ValueError(
                f"LogisticMixture: params must have shape (batch, {each} a component, ...), "
                f"got {list(params.shape)}"
            )
        self.params, self.levels, self.min_log_scale = params, levels, min_log_scale
        self.components = params.size(1) // each
        event = torch.Size((colours, *params.shape[2:]))
        super().__init__(params.shape[:1], event, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Return none: the parameters may be any numbers."""
        return {}

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Return the log-probability of images (..., B, colours, \*S), nats, shape (..., B).

        They are uint8 or of the dtype of ``params``.

        Raises:
            ValueError: If ``value`` has another shape or type.
        """
        expected = self.batch_shape + self.event_shape
        if value.shape[-len(expected) :] != expected:
            raise ValueError(
                f"LogisticMixture: value must have shape (..., {', '.join(map(str, expected))}), "
                f"got {list(value.shape)}"
            )
        draws = value.shape[: value.dim() - self.params.dim()]
        params = self.params.expand(*draws, *self.params.shape)
        total = ops.logistic_mixture_log_prob(
            value.flatten(0, len(draws)),
            params.flatten(0, len(draws)),
            levels=self.levels,
            min_log_scale=self.min_log_scale,
        )
        return total.view(*draws, *self.batch_shape)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw images ``(*sample_shape, B, colours, *S)``.

        Args:
            sample_shape: Draws for each of the batch.
            temperature: Below 1 for likelier images: logits are divided by it, and scales
                multiplied.
            generator: Where the numbers are drawn from.

        Returns:
            uint8 for up to 256 levels, else the dtype of ``params``.

        Raises:
            ValueError: If ``temperature`` is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"LogisticMixture: temperature must be positive, got {temperature}")
        draws = torch.Size(sample_shape)
        params = self.params.to(torch.promote_types(self.params.dtype, torch.float32))
        params = params[..., None].flatten(2)
        params = params.expand(draws.numel(), *params.shape).flatten(0, 1)
        mean, scale, q = self._chosen(params, temperature, generator)
        spread = scale * temperature * logistic_noise(mean.shape, mean, generator)
        top, images, units = self.levels - 1, [], []
        for colour in range(mean.size(1)):
            centre = mean[:, colour]
            for earlier, unit in enumerate(units):
                centre = centre + q[:, colour - 1 + earlier].tanh() * unit
            images.append(((centre + spread[:, colour] + 1) * (top / 2)).round().clamp(0, top))
            units.append(images[-1] * (2 / top) - 1)
        dtype = torch.uint8 if self.levels <= 256 else self.params.dtype
        images = torch.stack(images, 1).to(dtype)
        return images.view(*draws, *self.batch_shape, *self.event_shape)

    def _chosen(
        self, params: Tensor, temperature: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a component for each pixel: mean, scale and last kind, (N, colours, pixels) each."""
        count = self.components
        weights = torch.softmax(params[:, :count] / temperature, 1).movedim(1, -1)
        rows = weights.reshape(-1, count)
        index = torch.multinomial(rows, 1, generator=generator).view(weights.shape[:-1])
        kinds = params[:, count:].unflatten(1, (self.event_shape[0], -1, count))
        index = index[:, None, None, None].expand(*kinds.shape[:3], 1, -1)
        kinds = kinds.gather(3, index).squeeze(3)
        scale = kinds[:, :, 1].clamp(min=self.min_log_scale).exp()
        return kinds[:, :, 0], scale, kinds[:, :, -1]
