"""The norm of a convolution as a linear map of images, and the parametrization that bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from flowops.ops._dispatch import accumulation_dtype

ConvType = TypeVar("ConvType", nn.Conv1d, nn.Conv2d, nn.Conv3d)

_CONVOLUTIONS = {
    1: (functional.conv1d, functional.conv_transpose1d),
    2: (functional.conv2d, functional.conv_transpose2d),
    3: (functional.conv3d, functional.conv_transpose3d),
}
# Where the vectors are drawn they are iterated until sigma settles, however many a step takes.
_FIRST_ITERATIONS = 200
_FIRST_TOLERANCE = 1e-5
_SETTLED_ITERATIONS = 2000
_SETTLED_TOLERANCE = 1e-6


class ConvSpectralNorm(nn.Module):
    r"""Parametrization that bounds the norm of a convolution on images of one size.

    The convolution is the linear map :math:`A` of images of ``input_size``, at the stride, padding,
    dilation and groups of its layer. :math:`\sigma = \|A\|_2` comes from the power iteration

    .. math::
        u \leftarrow \frac{A v}{\|A v\|}, \qquad v \leftarrow \frac{A^T u}{\|A^T u\|}, \qquad
        \sigma = u^T A v,

    :math:`A^T` being the transposed convolution. The weight becomes :math:`W / \sigma`, or with a
    coefficient c :math:`W / \max(1, \sigma / c)`.

    In training every access of the weight goes on from the vectors of the access before; in
    evaluation they are used as they are, and a state dict carries them, so that a loaded model is
    the same map. A kernel of one pixel is iterated as the matrix that it is. Gradients hold u and v
    fixed, which is exact where the iteration has converged.

    Args:
        convolution: The layer; gives shapes, strides and weight.
        input_size: Height and width (length; depth, height and width) of the layer's input.
        coefficient: c, positive; None divides by :math:`\sigma`.
        n_power_iterations: The most iterations an access in training, at least 1.
        tolerance: An access stops iterating when :math:`\sigma` moved by no more than this times
            :math:`\sigma`. That waits for the device at every iteration; None runs all of them.
        eps: A product no longer than this, or not finite, leaves its vector as it was.

    Raises:
        ValueError: If an argument is out of its range, or ``convolution`` does not pad with zeros.
    """

    _u: Tensor
    _v: Tensor

    def __init__(
        self,
        convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        input_size: Sequence[int],
        *,
        coefficient: float | None = None,
        n_power_iterations: int = 5,
        tolerance: float | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        _check(convolution, input_size, coefficient, n_power_iterations, tolerance)
        self.coefficient = coefficient
        self.n_power_iterations = n_power_iterations
        self.tolerance = tolerance
        self.eps = eps
        self.groups = convolution.groups
        pointwise = all(k == 1 for k in convolution.kernel_size)
        dims = len(convolution.kernel_size)
        self.input_size = (1,) * dims if pointwise else tuple(input_size)
        self.stride = (1,) * dims if pointwise else convolution.stride
        self.dilation = convolution.dilation
        self.padding = (0,) * dims if pointwise else _padding(convolution)
        weight = convolution.weight.detach()
        size = (1, convolution.in_channels, *self.input_size)
        v = torch.randn(size, dtype=weight.dtype, device=weight.device)
        self.register_buffer("_v", v / torch.linalg.vector_norm(v))
        self.register_buffer("_u", torch.zeros_like(self._map(self._v, weight)))
        u, v = self._iterate(weight, _FIRST_ITERATIONS, _FIRST_TOLERANCE)
        self._u.copy_(u)
        self._v.copy_(v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the bounded weight; ``weight`` is the parameter."""
        with torch.autocast(weight.device.type, enabled=False):
            sigma = self._sigma(weight)
            if self.coefficient is None:
                return (weight / sigma).to(weight.dtype)
            return (weight / (sigma / self.coefficient).clamp(min=1)).to(weight.dtype)

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the norm of the convolution with ``weight``, as far as the vectors know it.

        Differentiable; a 0-dim tensor, float64 for float64, else float32. Nothing is moved.
        """
        wide = accumulation_dtype(weight.dtype)
        # Copies: later iterations write to the buffers, which this pass may still have to read.
        u, v = self._u.to(wide, copy=True), self._v.to(wide, copy=True)
        return (u * self._map(v, weight.to(wide))).sum()

    @torch.no_grad()
    def measured(self, weight: Tensor) -> Tensor:
        """Return the norm of the convolution with ``weight``, iterated until it has settled.

        As :meth:`sigma`, but with vectors of its own.
        """
        u, v = self._iterate(weight, _SETTLED_ITERATIONS, _SETTLED_TOLERANCE)
        return (u * self._map(v, weight.to(u.dtype))).sum()

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Iterate the vectors for the parameter ``weight`` until the norm has settled."""
        u, v = self._iterate(weight, _SETTLED_ITERATIONS, _SETTLED_TOLERANCE)
        self._u.copy_(u)
        self._v.copy_(v)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return the parameter for an assigned weight: the weight itself."""
        return value

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"input_size={self.input_size}, coefficient={self.coefficient}, "
            f"n_power_iterations={self.n_power_iterations}, tolerance={self.tolerance}"
        )

    def _sigma(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                u, v = self._iterate(weight, self.n_power_iterations, self.tolerance)
                self._u.copy_(u)
                self._v.copy_(v)
        return self.sigma(weight)

    @torch.no_grad()
    def _iterate(
        self, weight: Tensor, iterations: int, tolerance: float | None
    ) -> tuple[Tensor, Tensor]:
        wide = accumulation_dtype(weight.dtype)
        weight, u, v = weight.to(wide), self._u.to(wide), self._v.to(wide)
        before = 0.0
        for _ in range(iterations):
            u, _ = self._direction(self._map(v, weight), u)
            v, sigma = self._direction(self._map_transposed(u, weight), v)
            if tolerance is None:
                continue
            now = sigma.item()
            if not abs(now - before) > tolerance * now:
                break
            before = now
        return u, v

    def _direction(self, product: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(product)
        moves = (norm > self.eps) & torch.isfinite(norm)
        return torch.where(moves, product / norm, before), norm

    def _map(self, image: Tensor, weight: Tensor) -> Tensor:
        convolve, _ = _CONVOLUTIONS[len(self.stride)]
        return convolve(image, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _map_transposed(self, image: Tensor, weight: Tensor) -> Tensor:
        _, convolve = _CONVOLUTIONS[len(self.stride)]
        # Rows and columns at the end that the strides leave unread: zero in the transposed map too.
        rest = [
            size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, out, s, p, d, k in zip(
                self.input_size, image.shape[2:], self.stride, self.padding, self.dilation,
                weight.shape[2:], strict=True,
            )
        ]  # fmt: skip
        return convolve(
            image, weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )


def conv_spectral_norm(
    module: ConvType,
    input_size: Sequence[int],
    *,
    coefficient: float | None = None,
    n_power_iterations: int = 5,
    tolerance: float | None = None,
    eps: float = 1e-12,
) -> ConvType:
    r"""Bound the norm of a convolution as a map of images, in place.

    What an invertible residual network needs: :func:`flowops.nn.utils.spectral_norm` and torch's
    own normalise the kernel reshaped to a matrix, and the convolution itself can exceed that norm
    by up to the square root of the number of the kernel's pixels. See :class:`ConvSpectralNorm`.

    Args:
        module: A convolution of one, two or three dimensions that pads with zeros.
        input_size: Height and width (length; depth, height and width) of its input.
        coefficient: Bound c of the norm, :math:`W / \max(1, \sigma / c)`; None divides by
            :math:`\sigma`.
        n_power_iterations: The most iterations an access in training, at least 1.
        tolerance: Relative change of :math:`\sigma` at which an access stops iterating; None runs
            all iterations and never waits for the device.
        eps: A product no longer than this, or not finite, leaves its vector as it was.

    Returns:
        The module.

    Raises:
        ValueError: If an argument is out of its range, or the module does not pad with zeros.

    Source:
        Behrmann et al., Invertible Residual Networks, 2019, arXiv:1811.00995, eq. 6; Gouk et al.,
        Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2018, arXiv:1804.04368.

    Example:
        >>> layer = conv_spectral_norm(nn.Conv2d(3, 8, 3, padding=1), (16, 16), coefficient=0.9)
        >>> bool(layer.parametrizations.weight[0].sigma(layer.weight) < 0.901)
        True
    """
    norm = ConvSpectralNorm(
        module,
        input_size,
        coefficient=coefficient,
        n_power_iterations=n_power_iterations,
        tolerance=tolerance,
        eps=eps,
    )
    parametrize.register_parametrization(module, "weight", norm)
    return module


def _check(
    convolution: nn.Module,
    input_size: Sequence[int],
    coefficient: float | None,
    n_power_iterations: int,
    tolerance: float | None,
) -> None:
    op = "conv_spectral_norm"
    if not isinstance(convolution, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise ValueError(f"{op}: module must be a Conv1d, Conv2d or Conv3d, got {convolution}")
    if convolution.padding_mode != "zeros":
        raise ValueError(f"{op}: padding_mode must be 'zeros', got {convolution.padding_mode!r}")
    dims = len(convolution.kernel_size)
    if len(input_size) != dims or min(input_size) < 1:
        raise ValueError(
            f"{op}: input_size must be {dims} positive numbers, got {tuple(input_size)}"
        )
    if coefficient is not None and not coefficient > 0:
        raise ValueError(f"{op}: coefficient must be positive, got {coefficient}")
    if n_power_iterations < 1:
        raise ValueError(f"{op}: n_power_iterations must be at least 1, got {n_power_iterations}")
    if tolerance is not None and tolerance < 0:
        raise ValueError(f"{op}: tolerance must not be negative, got {tolerance}")


def _padding(convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    if not isinstance(convolution.padding, str):
        return convolution.padding
    if convolution.padding == "valid":
        return (0,) * len(convolution.kernel_size)
    total = [
        d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)
    ]
    if any(t % 2 for t in total):
        raise ValueError(
            "conv_spectral_norm: padding 'same' must be even on both sides, got kernel_size "
            f"{convolution.kernel_size} with dilation {convolution.dilation}"
        )
    return tuple(t // 2 for t in total)
