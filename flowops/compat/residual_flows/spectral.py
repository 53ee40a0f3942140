"""Layers whose norm is iterated by every call in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowops.compat._normed import NormedConv2d, NormedLinear, pair

# Iterations of the layers that are told a tolerance alone.
_LIMIT = 20_000


class SpectralNormLinear(NormedLinear):
    r"""Fully connected layer with its norm bounded by ``coeff``, :math:`W / \max(1, \sigma / c)`.

    Unlike ``InducedNormLinear``, every call in training iterates :math:`\sigma`'s vectors.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether there is one.
        coeff: The bound c.
        n_iterations: Power iterations of an update; None for as many as the tolerances ask.
        atol: Absolute tolerance, which may end an update before ``n_iterations``.
        rtol: Relative tolerance.
    """

    limit = _LIMIT
    u_first = False
    tolerance_always = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        coeff: float = 0.97,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__()
        settings = {
            "in_features": in_features,
            "out_features": out_features,
            "coeff": coeff,
            "n_iterations": n_iterations,
            "atol": atol,
            "rtol": rtol,
        }
        self._set_up((out_features, in_features), bias, settings)

    def _moves(self) -> bool:
        return self.training and not self.held

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"in_features={self.weight.size(1)}, out_features={self.weight.size(0)}, "
            f"bias={self.bias is not None}, coeff={self.coeff}, n_iters={self.n_iterations}, "
            f"atol={self.atol}, rtol={self.rtol}"
        )


class SpectralNormConv2d(NormedConv2d):
    r"""Convolution with its norm, as a map of images, bounded by ``coeff``.

    See :class:`SpectralNormLinear`. The size of the images is that of the first batch, or of the
    state dict: a loaded layer goes on from its vectors, which there it draws anew.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Height and width of the kernel, or both.
        stride: Likewise.
        padding: Likewise.
        bias: Whether there is one.
        coeff: The bound c.
        n_iterations: Power iterations of an update; None for as many as the tolerances ask.
        atol: Absolute tolerance, which may end an update before ``n_iterations``.
        rtol: Relative tolerance.
    """

    limit = _LIMIT
    u_first = False
    tolerance_always = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        bias: bool = True,
        coeff: float = 0.97,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__()
        settings = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": pair(kernel_size),
            "stride": pair(stride),
            "padding": pair(padding),
            "coeff": coeff,
            "n_iterations": n_iterations,
            "atol": atol,
            "rtol": rtol,
        }
        self._set_up((out_channels, in_channels, *pair(kernel_size)), bias, settings)
        self.initialized = False
        self.register_buffer("spatial_dims", torch.tensor([1.0, 1.0]))
        self.register_buffer("u", None)
        self.register_buffer("v", None)

    def _moves(self) -> bool:
        return self.training and not self.held

    def _draw(self, size: int) -> Tensor:
        if self._is_matrix():
            return super()._draw(size)
        return torch.randn(size).to(self.weight)  # as there: the same numbers in any dtype

    def _initialize_u_v(self) -> None:
        super()._initialize_u_v()
        self.initialized = True
        self._note_out_shape()
        if not self.training:  # else the call does so, and there none: the bound would not hold
            self._iterate(None, None, None)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.initialized = self.initialized or prefix + "u" in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.initialized:
            self._note_out_shape()

    def _note_out_shape(self) -> None:
        """Keep what the peer's own iterations look for, should it get the layer back."""
        self.out_shape = torch.Size(self._image(self._out_size(), self.out_channels))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}, "
            f"coeff={self.coeff}, n_iters={self.n_iterations}, atol={self.atol}, rtol={self.rtol}"
        )
