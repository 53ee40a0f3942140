"""From discrete pixels to a continuous space: dequantisation, logit and centring."""

from __future__ import annotations

import torch
from torch import Tensor

from flowops import ops, reference
from flowops.nn.base import Bijector, constant_logdet


def dequantize(values: Tensor, levels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return ``y = (v + u) / levels`` with uniform noise ``u`` in [0, 1).

    The density of ``y`` bounds the probability of ``v``: see
    :func:`flowops.losses.bits_per_dim`. Rounding never carries ``v + u`` to the next level.
    :func:`flowops.ops.dequantize_logit` does it, the logit and its log-determinant in one pass.

    Args:
        values: pixels ``v`` in ``{0, ..., levels - 1}``, of any integer or floating dtype.
        levels: number of levels, at least 1: 256 for bytes, 17 for scikit-learn's digits.
        generator: where the noise is drawn from.

    Returns:
        float32 (float64 for float64 values), in [0, 1), shape of ``values``.

    Raises:
        ValueError: if ``levels`` is below 1.
    """
    if levels < 1:
        raise ValueError(f"dequantize: levels must be at least 1, got {levels}")
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    noise = torch.rand(values.shape, dtype=dtype, device=values.device, generator=generator)
    return reference.add_noise(values.to(dtype), noise, levels) / levels


def binarize(values: Tensor, levels: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return binary pixels, one with the probability ``v / (levels - 1)``.

    Dynamic binarisation, as VAEs of binary images train on: drawn anew each time. A likelihood of
    one draw says nothing about that of another, so a test set is binarised once, from a seed.

    Args:
        values: pixels ``v`` in ``{0, ..., levels - 1}``, of any integer or floating dtype.
        levels: number of levels, at least 2.
        generator: where the noise is drawn from.

    Returns:
        float32 (float64 for float64 values) zeros and ones, shape of ``values``.

    Raises:
        ValueError: if ``levels`` is below 2.

    Source: Salakhutdinov and Murray, "On the quantitative analysis of deep belief networks", 2008.
    """
    if levels < 2:
        raise ValueError(f"binarize: levels must be at least 2, got {levels}")
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    noise = torch.rand(values.shape, dtype=dtype, device=values.device, generator=generator)
    return (noise * (levels - 1) < values).to(dtype)


class Logit(Bijector):
    r"""Logit of pixels drawn towards the middle, ``z = logit(alpha + (1 - 2 alpha) x)``.

    .. math::
        \log|\det| = \sum [\mathrm{softplus}(z) + \mathrm{softplus}(-z) + \log(1 - 2\alpha)]

    ``inverse`` maps onto ``(-alpha, 1 + alpha) / (1 - 2 alpha)``, a little outside [0, 1]: clamp
    samples for display.

    Args:
        alpha: in (0, 0.5). It matters to the likelihood (models with 0.05 and 1e-6 are not
            comparable before convergence), so it is part of a model's configuration.

    Raises:
        ValueError: if ``alpha`` is out of range.

    Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2016,
    arXiv:1605.08803, section 4.1.
    """

    reversible = False  # the inverse loses the digits of x near 0 and 1

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"Logit: alpha must be in (0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`; ``x`` in [0, 1]."""
        return ops.logit(x, alpha=self.alpha, logdet=logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return ops.logit_inverse(z, alpha=self.alpha, logdet=logdet)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"alpha={self.alpha}"


class Shift(Bijector):
    """Add a constant, ``z = x + shift``; Glow centres pixels with -1/2. The log-determinant is 0.

    Args:
        shift: the constant.
    """

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return x + self.shift, constant_logdet(x, 0.0, logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return z - self.shift, constant_logdet(z, 0.0, logdet)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.shift}"


def preprocessing(kind: str, alpha: float) -> Bijector:
    """Return the first bijector of an image model, for ``x`` in [0, 1).

    Args:
        kind: ``"logit"`` or ``"center"`` (``x - 1/2``).
        alpha: of the logit.

    Raises:
        ValueError: if ``kind`` is neither.
    """
    if kind == "logit":
        return Logit(alpha)
    if kind == "center":
        return Shift(-0.5)
    raise ValueError(f"preprocessing: kind must be 'logit' or 'center', got {kind!r}")
