"""Layers whose weight is divided by max(1, sigma / coeff), as residual-flows and normflows have."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear, normalize

from flowops import ops
from flowops.compat._twins import Twin


class Normed(Twin):
    r"""Base of layers that use :math:`W / \max(1, \sigma / c)` for their weight W.

    :math:`\sigma = u^T W v` is the norm that the power iteration knows, from Euclidean norm to
    Euclidean norm; u and v are flat buffers. ``scale`` holds the :math:`\sigma` of the last call.
    """

    #: Most iterations where a tolerance is to end them.
    limit: ClassVar[int] = 200
    #: Whether an iteration begins with u, or with v.
    u_first: ClassVar[bool] = True
    #: Whether a tolerance ends a given number of iterations too.
    tolerance_always: ClassVar[bool] = False
    #: Whether calls in training leave u and v as they are, see :func:`held`.
    held: bool = False

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    u: Tensor
    v: Tensor
    coeff: float
    n_iterations: int | None
    atol: float | None
    rtol: float | None

    def _set_up(
        self, shape: tuple[int, ...], bias: bool, settings: dict[str, Any], *, small: bool = False
    ) -> None:
        """Make parameters and settings."""
        for name, value in settings.items():
            setattr(self, name, value)
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_parameter("bias", nn.Parameter(torch.empty(shape[0])) if bias else None)
        self.reset_parameters(small)
        self.register_buffer("scale", torch.tensor(0.0))

    def reset_parameters(self, zero_init: bool = False) -> None:
        """Draw weight and bias; with ``zero_init`` the weight is divided by 1000."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if zero_init:
            with torch.no_grad():
                self.weight.div_(1000)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def compute_weight(
        self,
        update: bool = True,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> Tensor:
        """Return the weight that is used.

        Args:
            update: Whether to iterate u and v first.
            n_iterations: How often; None for the layer's own setting.
            atol: A step that moves u and v less than ``atol + rtol * max`` is the last.
            rtol: See there.

        Raises:
            ValueError: If neither a number nor both tolerances are set.
        """
        if update:
            self._iterate(n_iterations, atol, rtol)
        weight, sigma = self._normalised()
        with torch.no_grad():
            self.scale.copy_(sigma)
        return weight

    @torch.no_grad()
    def compute_one_iter(self) -> Tensor:
        """Return what sigma would be after one more iteration; nothing is moved."""
        u, v = self._step(self.u, self.v)
        return torch.dot(u, self._map(v))

    @torch.no_grad()
    def _iterate(self, n_iterations: int | None, atol: float | None, rtol: float | None) -> None:
        times = self.n_iterations if n_iterations is None else n_iterations
        atol = self.atol if atol is None else atol
        rtol = self.rtol if rtol is None else rtol
        tolerant = atol is not None and rtol is not None
        if times is None and not tolerant:
            raise ValueError(
                f"{type(self).__name__}: n_iterations, or atol and rtol, must be set, got "
                f"n_iterations={times}, atol={atol}, rtol={rtol}"
            )
        ends = tolerant and (times is None or self.tolerance_always)
        for _ in range(self.limit if times is None else times):
            u, v = self._step(self.u, self.v)
            settled = ends and _near(u, self.u, atol, rtol) and _near(v, self.v, atol, rtol)
            self.u.copy_(u)
            self.v.copy_(v)
            if settled:
                break

    def _step(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.u_first:
            u = normalize(self._map(v), dim=0)
            return u, normalize(self._map_transposed(u), dim=0)
        v = normalize(self._map_transposed(u), dim=0)
        return normalize(self._map(v), dim=0), v

    def _normalised(self) -> tuple[Tensor, Tensor]:
        """Return the weight that is used, and sigma, both with a graph."""
        # Copies: an update may come before the backward pass that needs them.
        u, v = self.u.clone(), self.v.clone()
        if not self._is_matrix():
            sigma = torch.dot(u, self._map(v))
            return self.weight / (sigma / self.coeff).clamp(min=1), sigma
        (weight,), _, _, (sigma,) = ops.spectral_norm(
            [self.weight.flatten(1)], [u], [v], n_power_iterations=0, coefficient=self.coeff
        )
        return weight.view_as(self.weight), sigma

    def _is_matrix(self) -> bool:
        return True

    def _map(self, v: Tensor) -> Tensor:
        return torch.mv(self.weight.flatten(1), v)

    def _map_transposed(self, u: Tensor) -> Tensor:
        return torch.mv(self.weight.flatten(1).t(), u)


class NormedLinear(Normed):
    """Fully connected layer; u and v are iterated 200 times when it is made."""

    def _set_up(
        self, shape: tuple[int, ...], bias: bool, settings: dict[str, Any], *, small: bool = False
    ) -> None:
        super()._set_up(shape, bias, settings, small=small)
        for name, size in zip("uv", shape, strict=True):
            drawn = self.weight.new_empty(size).normal_(0, 1)
            self.register_buffer(name, normalize(drawn, dim=0))
        self.compute_weight(True, n_iterations=200)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_features) to (N, out_features)."""
        return linear(input, self.compute_weight(update=self._moves()), self.bias)

    def _moves(self) -> bool:
        """Whether a call iterates u and v."""
        return False


class NormedConv2d(Normed):
    """Convolution; u and v are images of the size that the first batch has."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    in_channels: int
    out_channels: int
    spatial_dims: Tensor
    initialized: Any

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        if not self.initialized:
            self.spatial_dims.copy_(torch.tensor(input.shape[2:4]))
        weight = self.compute_weight(update=self._moves())
        return conv2d(input, weight, self.bias, self.stride, self.padding)

    def compute_weight(
        self,
        update: bool = True,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
    ) -> Tensor:
        """See :meth:`Normed.compute_weight`."""
        if not self.initialized:
            self._initialize_u_v()
        return super().compute_weight(update, n_iterations, atol, rtol)

    def _moves(self) -> bool:
        """Whether a call iterates u and v."""
        return False

    def _is_matrix(self) -> bool:
        return self.kernel_size == (1, 1)

    @torch.no_grad()
    def _initialize_u_v(self) -> None:
        """Draw u and v for images of ``spatial_dims``."""
        rows = {"u": math.prod(self._image(self._out_size(), self.out_channels))}
        columns = {"v": math.prod(self._image(self._in_size(), self.in_channels))}
        # The order of the peers' draws.
        for name, size in (rows | columns if self._is_matrix() else columns | rows).items():
            self._replace(name, normalize(self._draw(size), dim=0))

    def _draw(self, size: int) -> Tensor:
        return self.weight.new_empty(size).normal_(0, 1)

    def _replace(self, name: str, value: Tensor) -> None:
        """Fill a buffer that may have, or get, another size."""
        buffer = self._buffers.get(name)
        if buffer is None:
            self._buffers[name] = value.clone()
        else:
            buffer.resize_(value.shape).copy_(value)

    def _in_size(self) -> list[int]:
        return [int(size) for size in self.spatial_dims.tolist()]

    def _out_size(self) -> list[int]:
        return [
            (size + 2 * p - k) // s + 1
            for size, p, k, s in zip(
                self._in_size(), self.padding, self.kernel_size, self.stride, strict=True
            )
        ]

    def _image(self, size: list[int], channels: int) -> list[int]:
        return [1, channels, *([1, 1] if self._is_matrix() else size)]

    def _map(self, v: Tensor) -> Tensor:
        if self._is_matrix():
            return super()._map(v)
        image = v.view(self._image(self._in_size(), self.in_channels))
        return conv2d(image, self.weight, None, self.stride, self.padding).flatten()

    def _map_transposed(self, u: Tensor) -> Tensor:
        if self._is_matrix():
            return super()._map_transposed(u)
        out = self._out_size()
        # Rows and columns at the end that the strides leave unread.
        rest = [
            size - ((o - 1) * s - 2 * p + k)
            for size, o, s, p, k in zip(
                self._in_size(), out, self.stride, self.padding, self.kernel_size, strict=True
            )
        ]
        image = u.view(self._image(out, self.out_channels))
        return conv_transpose2d(image, self.weight, None, self.stride, self.padding, rest).flatten()

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Take u and v of any size, which a layer that has seen no batch cannot know."""
        for name in ("u", "v"):
            value = state_dict.get(prefix + name)
            if value is not None:
                self._replace(name, value.detach().to(self.weight))
        super()._load_from_state_dict(state_dict, prefix, *args)


@contextmanager
def held(network: nn.Module) -> Generator[None]:
    """Let calls leave u and v as they are, once drawn: of a batch that is shown for its size."""
    layers = [module for module in network.modules() if isinstance(module, Normed)]
    for layer in layers:
        layer.held = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.held


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a number twice, and a pair as it is."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _near(new: Tensor, old: Tensor, atol: float | None, rtol: float | None) -> bool:
    if atol is None or rtol is None:
        return False
    error = torch.linalg.vector_norm(new - old) / new.numel() ** 0.5
    return bool(error < atol + rtol * new.max())
