"""Coupling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.nn.base import Bijector, gradients
from flowops.ops.affine_coupling import SCALES, ScaleMap, affine_coupling_backward


class Coupling(Bijector):
    """What couplings share: part of ``x`` passes through and sets the transform of the rest.

    Without a mask the first (or second) channels are kept and seen by the conditioner. With a mask
    the conditioner sees ``x * mask`` and speaks for all channels. A subclass defines ``_move``.

    Args:
        channels: size of dimension 1.
        conditioner: any module called as ``conditioner(kept, context)``. Where it has a method
            ``initialize``, data-dependent initialisation calls that instead.
        keep: which channels pass through, ``"first"`` or ``"second"``; ignored with a mask.
        kept_channels: how many; default ``channels // 2``.
        mask: bool, broadcastable to ``(channels, *S)``, True = kept.
        device: of the mask.

    Raises:
        ValueError: if an argument is out of range.
    """

    mask: Tensor | None

    def __init__(
        self,
        channels: int,
        conditioner: nn.Module,
        *,
        keep: str = "first",
        kept_channels: int | None = None,
        mask: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        kept = channels // 2 if kept_channels is None else kept_channels
        if keep not in ("first", "second"):
            raise ValueError(f"{name}: keep must be 'first' or 'second', got {keep!r}")
        if mask is None and not 0 < kept < channels:
            raise ValueError(
                f"{name}: kept_channels must be between 1 and channels - 1 = {channels - 1}, "
                f"got {kept}"
            )
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"{name}: mask must have dtype torch.bool, got {mask.dtype}")
        self.channels = channels
        self.kept_channels = kept if mask is None else 0
        self.keep = keep
        self.conditioner = conditioner
        self.register_buffer("mask", None if mask is None else mask.to(device))

    @property
    def moved_channels(self) -> int:
        """How many channels the kernel moves: all of them with a mask."""
        return self.channels - self.kept_channels

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self._couple(x, context, logdet, self.conditioner, inverse=False)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self._couple(z, context, logdet, self.conditioner, inverse=True)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """See :class:`Bijector`."""
        condition = getattr(self.conditioner, "initialize", self.conditioner)
        return self._couple(x, context, None, condition, inverse=False)[0]

    @torch.enable_grad()
    def undo(
        self,
        z: Tensor,
        context: Tensor | None,
        grads: tuple[Tensor, Tensor],
        wanted: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """See :class:`Bijector`; the conditioner runs once, and the coupling only backwards."""
        kept, moved_z = self._parts(z)
        kept = kept.detach().requires_grad_()
        raw = self.conditioner(kept, context)
        params = raw.detach().to(z.dtype)  # 16 bits under autocast
        with torch.no_grad():
            moved = self._move(moved_z, params, None, inverse=True)[0]
        grad_kept, grad_z = self._parts(grads[0])
        grad_x, grad_params, own = self._move_backward(moved, moved_z, params, (grad_z, grads[1]))
        ends, end_grads = zip((raw, grad_params.to(raw.dtype)), *own, strict=True)
        more, *others = gradients(ends, [kept, *wanted], end_grads)
        if self.mask is None:
            grad_x = self._join(grad_kept if more is None else grad_kept + more, grad_x)
        elif more is not None:
            grad_x = grad_x + more * self.mask  # which has what the kept part gave to z
        return self._join(kept.detach(), moved), grad_x, others

    def _couple(
        self,
        x: Tensor,
        context: Tensor | None,
        logdet: Tensor | None,
        condition: Any,
        *,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        kept, moved = self._parts(x)
        moved, total = self._move(moved, condition(kept, context), logdet, inverse=inverse)
        return self._join(kept, moved), total

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the conditioner sees of ``x``, and what the kernel moves."""
        if self.mask is not None:
            return x * self.mask, x
        # Both halves stay strided views; the backward of `split` is one concatenation.
        if self.keep == "first":
            kept, moved = x.split([self.kept_channels, self.moved_channels], 1)
        else:
            moved, kept = x.split([self.moved_channels, self.kept_channels], 1)
        return kept, moved

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        if self.mask is not None:
            return moved
        return torch.cat([kept, moved] if self.keep == "first" else [moved, kept], 1)

    def _move(
        self, moved: Tensor, raw: Tensor, logdet: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Transform ``moved``, where the mask is False, as ``raw`` of the conditioner says."""
        raise NotImplementedError

    def _move_backward(
        self, moved: Tensor, z: Tensor, raw: Tensor, grads: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]]:
        """Return the gradients of ``moved``, of ``raw``, and of own parameters, each beside it.

        ``z`` and a log-determinant, which have the gradients ``grads``, were made of ``moved``.
        """
        own = [p for p in self.parameters(recurse=False) if p.requires_grad]
        leaves = [moved.detach().requires_grad_(), raw.detach().requires_grad_()]
        outs = self._move(leaves[0], leaves[1], None, inverse=False)
        found = gradients(outs, [*leaves, *own], grads)
        grad_moved, grad_raw = (
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(leaves, found, strict=False)
        )
        more = [(p, g) for p, g in zip(own, found[2:], strict=True) if g is not None]
        return grad_moved, grad_raw, more

    def _part(self) -> str:
        return "mask" if self.mask is not None else f"keep={self.keep!r}"


class AffineCoupling(Coupling):
    """Affine coupling: part of ``x`` passes through and sets scale and shift of the rest.

    See :func:`flowops.ops.affine_coupling` for scale maps, orders and layouts of the parameters.
    Without a mask the first (or second) channels are kept and seen by the conditioner, which maps
    ``(B, kept, *S)`` to ``(B, 2 * moved, *S)``. With a mask the conditioner maps ``x * mask``,
    ``(B, C, *S)``, to ``(B, 2 * C, *S)``.

    Args:
        channels: size of dimension 1.
        conditioner: any module called as ``conditioner(kept, context)``. Where it has a method
            ``initialize``, data-dependent initialisation calls that instead.
        keep: which channels pass through, ``"first"`` or ``"second"``; ignored with a mask.
        kept_channels: how many; default ``channels // 2``.
        mask: bool, broadcastable to ``(channels, *S)``, True = kept. See
            :func:`checkerboard_mask`.
        scale: a kind of :class:`flowops.ops.ScaleMap`, or one with constants. ``"tanh_exp"``
            without constants learns its amplitude.
        order: ``"scale_then_shift"`` or ``"shift_then_scale"``.
        layout: of the conditioner's output on dimension 1: ``"scale_shift"``, ``"shift_scale"``,
            or either with ``"_interleaved"``.
        amplitude: initial value of the learned amplitude of ``"tanh_exp"``.
        amplitude_per_channel: learn one amplitude a moved channel, rather than one in all.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    amplitude: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        conditioner: nn.Module,
        *,
        keep: str = "first",
        kept_channels: int | None = None,
        mask: Tensor | None = None,
        scale: str | ScaleMap = "exp",
        order: str = "scale_then_shift",
        layout: str = "scale_shift",
        amplitude: float = 1.0,
        amplitude_per_channel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            conditioner,
            keep=keep,
            kept_channels=kept_channels,
            mask=mask,
            device=device,
        )
        name = type(self).__name__
        if (scale if isinstance(scale, str) else scale.kind) not in SCALES:
            raise ValueError(f"{name}: scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if order not in ("scale_then_shift", "shift_then_scale"):
            raise ValueError(
                f"{name}: order must be 'scale_then_shift' or 'shift_then_scale', got {order!r}"
            )
        if layout.removesuffix("_interleaved") not in ("scale_shift", "shift_scale"):
            raise ValueError(
                f"{name}: layout must be 'scale_shift' or 'shift_scale', with or without "
                f"'_interleaved', got {layout!r}"
            )
        self.scale = scale
        self.order = order
        self.layout = layout
        self.amplitude_init = amplitude
        shape = (self.moved_channels,) if amplitude_per_channel else ()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        learned = nn.Parameter(torch.empty(shape, **factory)) if scale == "tanh_exp" else None
        self.register_parameter("amplitude", learned)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the amplitude to its initial value; the conditioner keeps its parameters."""
        if self.amplitude is not None:
            nn.init.constant_(self.amplitude, self.amplitude_init)

    def _move(
        self, moved: Tensor, raw: Tensor, logdet: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        return op(moved, raw, logdet=logdet, **self._options())

    def _move_backward(
        self, moved: Tensor, z: Tensor, raw: Tensor, grads: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Sequence[tuple[Tensor, Tensor]]]:
        grad_moved, grad_raw, grad_amplitude = affine_coupling_backward(
            *grads, moved, z, raw, **self._options()
        )
        own = [] if self.amplitude is None else [(self.amplitude, grad_amplitude)]
        return grad_moved, grad_raw, own

    def _options(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "order": self.order,
            "layout": self.layout,
            "amplitude": self.amplitude,
            "mask": self.mask,
        }

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, {self._part()}, scale={self.scale!r}, order={self.order!r}"


class AdditiveCoupling(AffineCoupling):
    """Additive coupling, ``z = x + t`` on the moved part; its log-determinant is 0.

    As :class:`AffineCoupling`, with a conditioner that gives one channel for each moved one.

    Args:
        channels: size of dimension 1.
        conditioner: any module called as ``conditioner(kept, context)``.
        keep: which channels pass through, ``"first"`` or ``"second"``; ignored with a mask.
        kept_channels: how many; default ``channels // 2``.
        mask: bool, broadcastable to ``(channels, *S)``, True = kept.

    Raises:
        ValueError: if an argument is out of range.

    Source: Dinh, Krueger and Bengio, "NICE: non-linear independent components estimation", 2014,
    arXiv:1410.8516.
    """

    def __init__(
        self,
        channels: int,
        conditioner: nn.Module,
        *,
        keep: str = "first",
        kept_channels: int | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(
            channels,
            conditioner,
            keep=keep,
            kept_channels=kept_channels,
            mask=mask,
            scale="additive",
        )


def checkerboard_mask(
    height: int, width: int, *, parity: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return the mask of :class:`AffineCoupling` that keeps every second pixel.

    Args:
        height: number of rows.
        width: number of columns.
        parity: pixels with ``(row + column) % 2 == parity`` are kept (True).
        device: of the result.

    Returns:
        bool, shape ``(1, height, width)``.

    Raises:
        ValueError: if ``parity`` is neither 0 nor 1.
    """
    if parity not in (0, 1):
        raise ValueError(f"checkerboard_mask: parity must be 0 or 1, got {parity}")
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)[None]
    return ((rows + columns) % 2 == parity)[None]
