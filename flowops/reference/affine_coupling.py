"""Pure-PyTorch twin of :mod:`flowops.ops.affine_coupling`: the executable specification."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softsign


class ScaleMap(NamedTuple):
    r"""How the raw scale :math:`h` of a conditioner becomes the scale s, with constants.

    ==================== =====================================================
    kind                 scale
    ==================== =====================================================
    "additive"           :math:`s = 1`
    "exp"                :math:`\log s = h`
    "tanh_exp"           :math:`\log s = a \tanh(c h)`
    "atan_exp"           :math:`\log s = a \arctan(c h)`
    "softsign_exp"       :math:`\log s = a c h / (1 + |c h|)`
    "sigmoid"            :math:`s = \operatorname{sigmoid}(h + 2) + m`
    "reciprocal_sigmoid" :math:`s = 1 / \operatorname{sigmoid}(h + 2)`
    "softplus"           :math:`s = \min(\operatorname{softplus}(h) + m, a)`
    ==================== =====================================================

    Args:
        kind: See above.
        gain: c, not 0.
        limit: a, positive; by default 1, and with "softplus" infinite.
        floor: m; by default 0, and with "softplus", where it must be positive, 0.001.
    """

    kind: str
    gain: float = 1.0
    limit: float | None = None
    floor: float | None = None

    @property
    def constants(self) -> tuple[float, float, float]:
        """Gain, limit and floor, with the defaults of the kind."""
        softplus = self.kind == "softplus"
        limit = (math.inf if softplus else 1.0) if self.limit is None else self.limit
        floor = (1e-3 if softplus else 0.0) if self.floor is None else self.floor
        return self.gain, limit, floor


def split_params(params: Tensor, scale: str, layout: str) -> tuple[Tensor | None, Tensor]:
    """Return ``(raw_scale, shift)``; ``raw_scale`` is None for an additive coupling."""
    if scale == "additive":
        return None, params
    if layout.endswith("_interleaved"):
        first, second = params[:, 0::2], params[:, 1::2]
    else:
        first, second = params.chunk(2, dim=1)
    return (first, second) if layout.startswith("scale") else (second, first)


def log_scale_of(raw: Tensor, scale: ScaleMap, amplitude: Tensor | None) -> Tensor:
    """Map the conditioner's raw output to the log of the scale."""
    kind = scale.kind
    gain, limit, floor = scale.constants
    if kind == "exp":
        return raw
    if kind == "sigmoid":
        return torch.log(torch.sigmoid(raw + 2) + floor) if floor else logsigmoid(raw + 2)
    if kind == "reciprocal_sigmoid":
        return -logsigmoid(raw + 2)
    if kind == "softplus":
        return torch.log(torch.clamp_max(floor - logsigmoid(-raw), limit))
    if amplitude is not None and amplitude.dim() == 1:
        amplitude = amplitude.view(-1, *[1] * (raw.dim() - 2))
    bounded = {"tanh_exp": torch.tanh, "atan_exp": torch.atan, "softsign_exp": softsign}[kind]
    return (limit if amplitude is None else amplitude) * bounded(gain * raw)


def affine_coupling(
    x: Tensor,
    params: Tensor,
    *,
    scale: str | ScaleMap = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.affine_coupling`."""
    return _transform(x, params, scale, order, layout, amplitude, start, mask, logdet, False)


def affine_coupling_inverse(
    z: Tensor,
    params: Tensor,
    *,
    scale: str | ScaleMap = "exp",
    order: str = "scale_then_shift",
    layout: str = "scale_shift",
    amplitude: Tensor | None = None,
    start: int = 0,
    mask: Tensor | None = None,
    logdet: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`flowops.ops.affine_coupling_inverse`."""
    return _transform(z, params, scale, order, layout, amplitude, start, mask, logdet, True)


def _transform(
    x: Tensor,
    params: Tensor,
    scale: str | ScaleMap,
    order: str,
    layout: str,
    amplitude: Tensor | None,
    start: int,
    mask: Tensor | None,
    logdet: Tensor | None,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = ScaleMap(scale) if isinstance(scale, str) else scale
    raw, shift = split_params(params.to(wide), scale.kind, layout)
    moved = x.to(wide).narrow(1, start, shift.size(1))
    log_scale = torch.zeros_like(moved)
    if raw is not None:
        log_scale = log_scale_of(raw, scale, amplitude).expand_as(moved)
    if (order == "scale_then_shift") != inverse:
        shift_in, shift_out = 0.0, shift
    else:
        shift_in, shift_out = shift, 0.0
    if inverse:
        shift_in, shift_out, log_scale = -shift_in, -shift_out, -log_scale
    z = (moved + shift_in) * torch.exp(log_scale) + shift_out
    if mask is not None:
        z = torch.where(mask, moved, z)
        log_scale = torch.where(mask, 0.0, log_scale)
    total = log_scale.flatten(1).sum(1)
    if logdet is not None:
        total = total + logdet
    z = z.to(x.dtype)
    if z.size(1) != x.size(1):
        end = start + shift.size(1)
        z = torch.cat([x[:, :start], z, x[:, end:]], dim=1)
    return z, total
