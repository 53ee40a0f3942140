"""Affine couplings whose log-determinant is subtracted from what comes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin
from flowops.compat.normflows._common import promoted

_CHANNELS = ("channel0", "channel1")
_CHECKERBOARDS = ("checkerboard0", "checkerboard1")


class _Coupling(Twin):
    """What the couplings share."""

    nnet: Any
    d: int

    def forward(self, x: Tensor, logpx: Any = None) -> Any:
        """Return y, and with ``logpx`` ``logpx`` less the log-determinant, (N, 1), nats."""
        y, logdet = self._move(x, inverse=False)
        return y if logpx is None else (y, logpx - logdet[:, None])

    def inverse(self, y: Tensor, logpy: Any = None) -> Any:
        """Return x, and with ``logpy`` ``logpy`` plus the log-determinant at x, (N, 1), nats."""
        x, logdet = self._move(y, inverse=True)
        return x if logpy is None else (x, logpy - logdet[:, None])

    def _move(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def _couple(x: Tensor, params: Tensor, *, inverse: bool, **where: Any) -> tuple[Tensor, Tensor]:
    x, params = promoted(x, params)
    op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
    return op(x, params, scale="sigmoid", layout="scale_shift", **where)


class CouplingBlock(_Coupling):
    r"""Affine coupling of two halves, :math:`y_2 = \operatorname{sigmoid}(s + 2) x_2 + t`.

    s and t are the first and the second half of ``nnet(x_1)``, along dimension 1 like the halves.

    Args:
        dim: Features or channels, even.
        nnet: Maps ``dim / 2`` of them to ``dim``.
        swap: Whether the first half is the one that is moved, rather than the second.

    Raises:
        ValueError: If ``dim`` is odd; in a call, if ``nnet`` or the input does not fit.
    """

    swap: bool

    def __init__(self, dim: int, nnet: nn.Module, swap: bool = False) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"{type(self).__name__}: dim must be even, got {dim}")
        self.d = dim // 2
        self.nnet = nnet
        self.swap = swap

    def _move(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.size(1) != 2 * self.d:
            raise ValueError(
                f"{type(self).__name__}: input must have {2 * self.d} channels, got {x.size(1)}"
            )
        params = self.nnet(x[:, self.d :] if self.swap else x[:, : self.d])
        return _couple(x, params, inverse=inverse, start=0 if self.swap else self.d)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"dim={self.d}, swap={self.swap}"


class ChannelCouplingBlock(CouplingBlock):
    """:class:`CouplingBlock` of images.

    Args:
        dim: Channels, even.
        nnet: See there.
        mask_type: ``"channel0"``, or ``"channel1"`` to swap the halves.

    Raises:
        ValueError: If ``mask_type`` is not known.
    """

    mask_type: str

    def __init__(self, dim: int, nnet: nn.Module, mask_type: str = "channel0") -> None:
        if mask_type not in _CHANNELS:
            raise ValueError(
                f"ChannelCouplingBlock: mask_type must be one of {', '.join(_CHANNELS)}, "
                f"got {mask_type!r}"
            )
        super().__init__(dim, nnet, swap=mask_type == "channel1")
        self.mask_type = mask_type

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"dim={self.d}, mask_type={self.mask_type}"


class MaskedCouplingBlock(_Coupling):
    r"""Affine coupling of the pixels that a mask leaves free, see :class:`CouplingBlock`.

    Args:
        dim: Channels.
        nnet: Maps the masked image, free pixels being 0, to 2 ``dim`` channels.
        mask_type: ``"checkerboard0"``, whose first pixel is kept, ``"checkerboard1"``,
            ``"channel0"``, of which the first half of the channels is kept, ``"channel1"``, or None
            to keep nothing.

    Raises:
        ValueError: If ``mask_type`` is not known.
    """

    mask_type: str | None

    def __init__(self, dim: int, nnet: nn.Module, mask_type: str | None = "checkerboard0") -> None:
        super().__init__()
        self.d = dim
        self.nnet = nnet
        self.mask_type = mask_type
        problem = self.refusal(self)
        if problem:
            raise ValueError(problem)

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`TwinBase`."""
        if peer.mask_type in (None, *_CHANNELS, *_CHECKERBOARDS):
            return None
        known = ", ".join((*_CHANNELS, *_CHECKERBOARDS))
        return f"MaskedCouplingBlock: mask_type must be None or {known}, got {peer.mask_type!r}"

    def _move(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        kept = self._kept(x)
        params = self.nnet(x.where(kept, 0))
        return _couple(x, params, inverse=inverse, mask=kept)

    def _kept(self, x: Tensor) -> Tensor:
        """Return where the input passes through, (C, H, W) or broadcastable to it."""
        c, h, w = x.shape[1:]
        if self.mask_type is None:
            return torch.zeros(1, 1, 1, dtype=torch.bool, device=x.device)
        swap = self.mask_type.endswith("1")
        if self.mask_type in _CHANNELS:
            return ((torch.arange(c, device=x.device) < c // 2) != swap).view(c, 1, 1)
        rows = torch.arange(h, device=x.device).view(1, h, 1)
        columns = torch.arange(w, device=x.device)
        return (rows + columns) % 2 == int(swap)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"dim={self.d}, mask_type={self.mask_type}"
