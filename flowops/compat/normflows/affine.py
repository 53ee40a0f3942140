"""Affine layers of normflows: constants, actnorm and couplings.

``forward`` goes from the latent to the data, as everywhere in normflows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin
from flowops.compat.normflows._common import may_skip, promoted, zeros_like_batch
from flowops.compat.normflows.reshape import Merge, Split, merge, split
from flowops.ops._dispatch import accumulation_dtype

__all__ = [
    "ActNorm",
    "AffineConstFlow",
    "AffineCoupling",
    "AffineCouplingBlock",
    "MaskedAffineFlow",
]

_SCALES = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}


class AffineConstFlow(Twin):
    r"""Scale and shift by learned constants, :math:`z' = z e^s + t`.

    The log-determinant is one number for the batch, of dimension 0.

    Args:
        shape: Of a sample, with 1 where all positions share their constants.
        scale: Whether s is learned; otherwise it is a buffer of zeros.
        shift: Whether t is learned; otherwise it is a buffer of zeros.

    Raises:
        ValueError: If a batch has other dimensions than ``shape`` and one more.
    """

    s: Tensor
    t: Tensor
    batch_dims: list[int]

    def __init__(
        self, shape: int | tuple[int, ...], scale: bool = True, shift: bool = True
    ) -> None:
        super().__init__()
        for name, learned in (("s", scale), ("t", shift)):
            zeros = torch.zeros(shape)[None]
            if learned:
                self.register_parameter(name, nn.Parameter(zeros))
            else:
                self.register_buffer(name, zeros)
        self.n_dim = self.s.dim()
        self.batch_dims = [i for i, size in enumerate(self.s.shape) if size == 1]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z e^s + t and the log-determinant, 0-dim, nats."""
        return self._scale(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        return self._scale(z, inverse=True)

    def _scale(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        z, s, t = promoted(z, self.s, self.t)
        fits = z.dim() == s.dim() > 1 and all(
            mine in (1, theirs) for mine, theirs in zip(s.shape[1:], z.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{type(self).__name__}: z must have samples of shape {list(s.shape[1:])} (or more "
                f"where that is 1), got {list(z.shape)}"
            )
        each = math.prod(z.shape[1:]) // s.numel()
        if all(size == 1 for size in s.shape[2:]):
            rows, shape = z, (1, z.size(1), *s.shape[2:])
        else:
            rows, shape = z.flatten(1), (1, *z.shape[1:])
        # The op's map from noise to data is z e^-l - b.
        op = ops.actnorm if inverse else ops.actnorm_inverse
        out, _ = op(rows, -t.expand(shape).flatten(), -s.expand(shape).flatten())
        total = each * self.s.sum(dtype=accumulation_dtype(self.s.dtype))
        return out.view_as(z), -total if inverse else total


class ActNorm(AffineConstFlow):
    """An :class:`AffineConstFlow` that sets its constants from the first batch that it sees.

    Whatever the direction of the first call, its result then has mean 0 and deviation 1 in
    ``forward``, and its input has in ``inverse``. The buffer ``data_dep_init_done`` records it.

    Args:
        shape: See :class:`AffineConstFlow`.
        scale: See there.
        shift: See there.

    Raises:
        ValueError: See there, and if the first batch has less than two values for a constant.
    """

    data_dep_init_done: Tensor

    def __init__(
        self, shape: int | tuple[int, ...], scale: bool = True, shift: bool = True
    ) -> None:
        super().__init__(shape, scale, shift)
        self.register_buffer("data_dep_init_done", torch.tensor(0.0))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z e^s + t and the log-determinant, 0-dim, nats."""
        if not self.data_dep_init_done > 0:
            mean, log_std = self._statistics(z)
            self._set(-log_std, -mean * torch.exp(-log_std))
        return super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        if not self.data_dep_init_done > 0:
            mean, log_std = self._statistics(z)
            self._set(log_std, mean)
        return super().inverse(z)

    @torch.no_grad()
    def _statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if z.numel() < 2 * self.s.numel():
            raise ValueError(
                f"ActNorm: the first z must have at least two values for each of the "
                f"{self.s.numel()} constants, got {list(z.shape)}"
            )
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        std, mean = torch.std_mean(wide, self.batch_dims, keepdim=True)
        return mean, torch.log(std + 1e-6)

    @torch.no_grad()
    def _set(self, s: Tensor, t: Tensor) -> None:
        self.s.copy_(s)
        self.t.copy_(t)
        self.data_dep_init_done.fill_(1.0)


class AffineCoupling(Twin):
    r"""Affine coupling of two parts, of which the first gives the second scale and shift.

    .. math:: z_2' = s z_2 + t

    with :math:`s = e^h` for "exp", :math:`1 / \operatorname{sigmoid}(h + 2)` for "sigmoid" and
    :math:`\operatorname{sigmoid}(h + 2)` for "sigmoid_inv"; t and h alternate along dimension 1 of
    what ``param_map`` gives.

    Args:
        param_map: Maps ``z1`` to the parameters, two for each channel of ``z2``, or one.
        scale: Whether there is a scale.
        scale_map: See above.

    Raises:
        ValueError: If ``scale_map`` is not known, or the parameters do not fit.
    """

    param_map: nn.Module
    scale: bool
    scale_map: str

    def __init__(self, param_map: nn.Module, scale: bool = True, scale_map: str = "exp") -> None:
        super().__init__()
        self.add_module("param_map", param_map)
        self.scale = scale
        self.scale_map = scale_map
        problem = self.refusal(self)
        if problem:
            raise ValueError(problem)

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`~flowops.compat._twins.Twin`."""
        if peer.scale_map in _SCALES:
            return None
        known = ", ".join(_SCALES)
        return f"AffineCoupling: scale_map must be one of {known}, got {peer.scale_map!r}"

    def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return ``[z1, z2']`` and the log-determinant, (N,), nats."""
        return self._move(z, inverse=False)

    def inverse(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Undo ``forward``."""
        return self._move(z, inverse=True)

    def _move(self, z: list[Tensor], *, inverse: bool) -> tuple[list[Tensor], Tensor]:
        z1, z2 = z
        z2, logdet = couple(self, z2, self.param_map(z1), inverse=inverse)
        return [z1, z2], logdet


def couple(
    coupling: Any,
    z: Tensor,
    params: Tensor,
    *,
    moved: tuple[int, int] | None = None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Move the channels of ``z`` from ``moved[0]`` up to ``moved[1]``, by default all."""
    start, end = moved or (0, z.size(1))
    count = (1 + bool(coupling.scale)) * (end - start)
    if params.dim() < 2 or params.size(1) != count:
        raise ValueError(
            f"AffineCoupling: param_map must give {count} channels for {end - start}, "
            f"got {list(params.shape)}"
        )
    z, params = promoted(z, params)
    op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
    return op(
        z,
        params,
        scale=_SCALES[coupling.scale_map] if coupling.scale else "additive",
        layout="shift_scale_interleaved",
        start=start,
    )


class AffineCouplingBlock(Twin):
    """An :class:`AffineCoupling` between :class:`~flowops.compat.normflows.Split` and its opposite.

    Halves of channels are moved in one pass over the batch, without a split or a concatenation.

    Args:
        param_map: See :class:`AffineCoupling`.
        scale: See there.
        scale_map: See there.
        split_mode: See :class:`~flowops.compat.normflows.Split`.

    Raises:
        ValueError: See both.
    """

    flows: Any

    def __init__(
        self,
        param_map: nn.Module,
        scale: bool = True,
        scale_map: str = "exp",
        split_mode: str = "channel",
    ) -> None:
        super().__init__()
        coupling = AffineCoupling(param_map, scale, scale_map)
        self.flows = nn.ModuleList([Split(split_mode), coupling, Merge(split_mode)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved batch and the log-determinant, (N,), nats."""
        return self._run(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        return self._run(z, inverse=True)

    def _run(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        kinds = (Split, AffineCoupling, Merge)
        if len(self.flows) != 3 or not all(map(may_skip, self.flows, kinds)):
            return chain(self.flows, z, inverse=inverse)
        mode, coupling = self.flows[0].mode, self.flows[1]
        parts = split(z, mode)
        params = coupling.param_map(parts[0])
        if "checkerboard" in mode:
            parts[1], logdet = couple(coupling, parts[1], params, inverse=inverse)
            return merge(parts, mode), logdet
        half = (z.size(1) + 1) // 2
        moved = (0, half) if mode == "channel_inv" else (half, z.size(1))
        return couple(coupling, z, params, moved=moved, inverse=inverse)


def chain(flows: Any, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Run layers one after the other, in ``inverse`` from the last to the first."""
    total = zeros_like_batch(z)
    for flow in reversed(flows) if inverse else flows:
        z, logdet = flow.inverse(z) if inverse else flow(z)
        total = total + logdet
    return z, total


class MaskedAffineFlow(Twin):
    r"""RealNVP's masked coupling, :math:`b z + (1 - b) (z e^{s(bz)} + t(bz))`.

    Where a network gives a number that is not finite the result is NaN, so that it shows; elements
    that the mask keeps are spared, and do not enter the log-determinant.

    Args:
        b: Mask of zeros and ones, of the shape of one sample: 1 is kept.
        t: Network of the shifts; None for none.
        s: Network of the log-scales; None for none.

    Raises:
        ValueError: If the mask has other values, or does not fit.
    """

    b: Tensor
    s: Any
    t: Any

    def __init__(self, b: Tensor, t: nn.Module | None = None, s: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("b", b[None])
        self.s = torch.zeros_like if s is None else s
        self.t = torch.zeros_like if t is None else t
        problem = self.refusal(self)
        if problem:
            raise ValueError(problem)

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`~flowops.compat._twins.Twin`."""
        binary = bool(((peer.b == 0) | (peer.b == 1)).all())
        return None if binary else "MaskedAffineFlow: b must be 0 or 1 everywhere"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved batch and the log-determinant, (N,), nats."""
        return self._move(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        return self._move(z, inverse=True)

    def _move(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if z.shape[1:] != self.b.shape[1:]:
            raise ValueError(
                f"MaskedAffineFlow: z must have samples of shape {list(self.b.shape[1:])} (like "
                f"b), got {list(z.shape)}"
            )
        seen, scaled = self.b * z, self.s is not torch.zeros_like
        nets = (self.s, self.t) if scaled else (self.t,)
        z, *outputs = promoted(z, *[net(seen).expand_as(z) for net in nets])
        nan = math.nan
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        return op(
            z,
            torch.nan_to_num(torch.cat(outputs, 1), nan=nan, posinf=nan, neginf=nan),
            scale="exp" if scaled else "additive",
            mask=self.b[0] != 0,
        )
