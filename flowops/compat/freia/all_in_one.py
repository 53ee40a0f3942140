"""FrEIA's block of coupling, global scaling and permutation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops import ops
from flowops.compat.freia.base import Dims, InvertibleModule, Result, condition_channels, couple
from flowops.compat.freia.coupling import Constructor, given
from flowops.ops import ScaleMap

_NAME = "AllInOneBlock"
# What the networks' outputs are multiplied by.
_RATE = 0.1


def _ten_sigmoids(a: Tensor) -> Tensor:
    return 10 * torch.sigmoid(a - 2.0)


def _tenth_softplus(a: Tensor) -> Tensor:
    return 0.1 * softplus(a, beta=0.5)


_GLOBAL_SCALES = {"SIGMOID": _ten_sigmoids, "SOFTPLUS": _tenth_softplus, "EXP": torch.exp}


class AllInOneBlock(InvertibleModule):
    r"""Affine coupling, global scale and offset, and permutation.

    .. math::
        y = R\, (\Psi(g) \odot [x_1, e^{c \tanh(0.1 s(x_1))} x_2 + 0.1\, t(x_1)] + o)

    Scale, offset and permutation are one product with a matrix. FrEIA 0.2 and its unreleased
    successor differ: there the exponent is :math:`c \tanh(0.1 s / c)`, and a hard permutation is
    kept as indices; checkpoints of either kind of permutation load here.

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list, of up to three pixel dimensions.
        dims_c: Shapes of the conditions, with the same pixels.
        subnet_constructor: Makes a network of the channels in and out.
        affine_clamping: c, the largest log-scale.
        gin_block: Keep volumes: log-scales minus their mean over a sample, no global scale.
        global_affine_init: First value of the global scale.
        global_affine_type: "SIGMOID", "SOFTPLUS" or "EXP": :math:`\Psi`.
        permute_soft: A random rotation R instead of a permutation.
        learned_householder_permutation: How many learned reflections R begins with.
        reverse_permutation: Undo R before the coupling.
        freia: "0.2" or "HEAD": whose exponent.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039; Sorrenson et al., GIN, 2020,
        arXiv:2001.04872; Putzky et al., Invert to learn to invert, 2019, arXiv:1911.10914.
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims = (),
        subnet_constructor: Constructor | None = None,
        affine_clamping: float = 2.0,
        gin_block: bool = False,
        global_affine_init: float = 1.0,
        global_affine_type: str = "SOFTPLUS",
        permute_soft: bool = False,
        learned_householder_permutation: int = 0,
        reverse_permutation: bool = False,
        *,
        freia: str = "0.2",
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels = self.dims_in[0][0]
        self.input_rank = len(self.dims_in[0]) - 1
        if self.input_rank > 3:
            raise ValueError(f"{_NAME}: dims_in must have up to 4 dimensions, got {self.dims_in}")
        if global_affine_type not in _GLOBAL_SCALES:
            names = ", ".join(_GLOBAL_SCALES)
            raise ValueError(
                f"{_NAME}: global_affine_type must be one of {names}, got {global_affine_type!r}"
            )
        if freia not in ("0.2", "HEAD"):
            raise ValueError(f"{_NAME}: freia must be '0.2' or 'HEAD', got {freia!r}")
        self.freia = freia
        self.condition_channels = condition_channels(_NAME, self.dims_in, self.dims_c)
        self.conditional = len(self.dims_c) > 0
        self.splits = [channels - channels // 2, channels // 2]
        self.in_channels = channels
        self.clamp = affine_clamping
        self.GIN = gin_block
        self.reverse_pre_permute = reverse_permutation
        self.householder = learned_householder_permutation
        self.global_scale_activation = _GLOBAL_SCALES[global_affine_type]
        shape = [1, channels, *[1] * self.input_rank]
        first = _first_global_scale(global_affine_type, global_affine_init)
        self.global_scale = nn.Parameter(torch.full(shape, first))
        self.global_offset = nn.Parameter(torch.zeros(shape))
        self._make_permutation(permute_soft)
        make = given(self, subnet_constructor)
        self.subnet = make(self.splits[0] + self.condition_channels, 2 * self.splits[1])
        self.last_jac = None

    def _make_permutation(self, soft: bool) -> None:
        channels = self.in_channels
        frozen = partial(nn.Parameter, requires_grad=False)
        if soft:
            matrix = _rotation(channels)
        else:  # drawn as FrEIA draws it, so that a seed gives the same
            order = np.random.permutation(channels)  # noqa: NPY002
            matrix = torch.eye(channels)[torch.from_numpy(order)]
        if self.householder:
            self.vk_householder = nn.Parameter(0.2 * torch.randn(self.householder, channels))
            self.w_perm = self.w_perm_inv = None
            self.w_0 = frozen(matrix)
        else:
            shape = (channels, channels, *[1] * self.input_rank)
            self.w_perm = frozen(matrix.view(shape))
            self.w_perm_inv = frozen(matrix.t().contiguous().view(shape))

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """See :mod:`flowops.compat.freia`."""
        data = x[0]
        if data.dim() < 2 or data.size(1) != self.in_channels:
            raise ValueError(
                f"{_NAME}: x must have {self.in_channels} channels, got {list(data.shape)}"
            )
        matrix = self._matrix(data)
        scale, log_scale = self._global_scale()
        if rev:
            offset = self.global_offset.flatten() / scale
            data = ops.invertible_conv1x1(data, matrix.t() / scale[:, None], -offset)
        elif self.reverse_pre_permute:
            data = ops.invertible_conv1x1(data, matrix.t())
        first, second = data.split(self.splits, 1)
        seen = torch.cat([first, *c], 1) if self.conditional else first
        second, logdet = self._affine(second, self.subnet(seen), rev)
        data = torch.cat([first, second], 1)
        if not rev:
            offset = matrix @ self.global_offset.flatten()
            data = ops.invertible_conv1x1(data, matrix * scale, offset)
        elif self.reverse_pre_permute:
            data = ops.invertible_conv1x1(data, matrix)
        pixels = math.prod(data.shape[2:])
        return (data,), logdet + (-pixels if rev else pixels) * log_scale

    def _affine(self, x: Tensor, raw: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        params = _RATE * raw
        limit, gain = self.clamp, 1 / self.clamp if self._is_head() else 1.0
        if not self.GIN:
            return couple(x, params, ScaleMap("tanh_exp", gain=gain, limit=limit), rev)
        raw, shift = params.chunk(2, 1)
        log_scale = limit * torch.tanh(gain * raw)
        mean = log_scale.flatten(1).mean(1).view(-1, *[1] * (raw.dim() - 1))
        return couple(x, torch.cat([log_scale - mean, shift], 1), "exp", rev)

    def _is_head(self) -> bool:
        """Whether this is, or stands for, an object of FrEIA's class after 0.2."""
        own: Any = getattr(self, "freia", None)
        return own == "HEAD" if own else hasattr(self, "_exp_global_scale_activation")

    def _global_scale(self) -> tuple[Tensor, Tensor]:
        """Return the scale of each channel, and the sum of its logarithms."""
        if self.GIN:
            ones = torch.ones_like(self.global_scale).flatten()
            return ones, ones.new_zeros(())
        scale = self.global_scale_activation(self.global_scale).flatten()
        return scale, scale.log().sum()

    def _matrix(self, x: Tensor) -> Tensor:
        """Return R, which is kept as reflections, a matrix, or indices."""
        if self.householder:
            matrix = self.w_0
            for v in self.vk_householder:
                matrix = matrix - 2 * torch.outer(matrix @ v, v) / torch.dot(v, v)
            return matrix
        kept: Any = self.w_perm
        if kept.dim() == 1:
            eye = torch.eye(self.in_channels, dtype=self.global_scale.dtype, device=x.device)
            return eye[kept]
        return kept.flatten(1)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Take a hard permutation that is kept as indices, or as a matrix, for the other."""
        for name in ("w_perm", "w_perm_inv"):
            given, own = state_dict.get(prefix + name), getattr(self, name, None)
            if given is None or own is None or given.dim() == own.dim():
                continue
            if given.dim() == 1:
                eye = torch.eye(len(given), dtype=own.dtype, device=given.device)
                state_dict[prefix + name] = eye[given].view(own.shape)
            else:
                state_dict[prefix + name] = given.flatten(1).argmax(1)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _first_global_scale(kind: str, value: float) -> float:
    """Return what the activation ``kind`` maps to ``value``."""
    if kind == "SIGMOID":
        return 2.0 - math.log(10.0 / value - 1.0)
    return 2.0 * math.log(math.expm1(5.0 * value)) if kind == "SOFTPLUS" else math.log(value)


def _rotation(size: int) -> Tensor:
    """Return a rotation, all being equally likely."""
    q, r = torch.linalg.qr(torch.randn(size, size))
    q = q * r.diagonal().sign()
    if torch.linalg.det(q) < 0:
        q[0] = -q[0]
    return q
