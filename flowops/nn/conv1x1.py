"""Invertible 1x1 convolution, and the weights of many of them in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.nn.actnorm import ActNorm
from flowops.nn.base import Bijector, constant_logdet


class PreparedConv(NamedTuple):
    """A convolution ready to apply: weight, bias or None, log-determinant in nats per pixel."""

    weight: Tensor
    bias: Tensor | None
    logdet: Tensor


class InvertibleConv1x1(Bijector):
    """Invertible 1x1 convolution, ``z = W x`` at each pixel; for vectors, a square linear map.

    See :func:`flowops.ops.invertible_conv1x1` for the product,
    :func:`flowops.ops.invertible_conv1x1_lu` and :func:`flowops.ops.invertible_conv1x1_full` for
    the weight. With ``parameterization="lu"``, ``W = P L (U + diag(sign * exp(log_s)))`` with P and
    sign fixed, so W cannot become singular and its log-determinant is ``sum(log_s)``; with
    ``"full"``, W is the parameter. Either begins as a random rotation, or as a random
    permutation, which suits data whose features mean something one by one.

    Args:
        channels: size of dimension 1.
        parameterization: ``"lu"`` or ``"full"``.
        initial: ``"rotation"`` or ``"permutation"``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: if an argument is out of range.

    Source: Kingma and Dhariwal, "Glow: generative flow with invertible 1x1 convolutions", 2018,
    arXiv:1807.03039, section 3.2.
    """

    lower: nn.Parameter
    upper: nn.Parameter
    log_s: nn.Parameter
    weight: nn.Parameter
    sign: Tensor
    permutation: Tensor

    def __init__(
        self,
        channels: int,
        *,
        parameterization: str = "lu",
        initial: str = "rotation",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"InvertibleConv1x1: channels must be at least 1, got {channels}")
        if parameterization not in ("lu", "full"):
            raise ValueError(
                "InvertibleConv1x1: parameterization must be 'lu' or 'full', "
                f"got {parameterization!r}"
            )
        if initial not in ("rotation", "permutation"):
            raise ValueError(
                f"InvertibleConv1x1: initial must be 'rotation' or 'permutation', got {initial!r}"
            )
        self.channels = channels
        self.parameterization = parameterization
        self.initial = initial
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if parameterization == "lu":
            self.lower = nn.Parameter(torch.empty(channels, channels, **factory))
            self.upper = nn.Parameter(torch.empty(channels, channels, **factory))
            self.log_s = nn.Parameter(torch.empty(channels, **factory))
            self.register_buffer("sign", torch.empty(channels, **factory))
            index = torch.empty(channels, dtype=torch.int64, device=device)
            self.register_buffer("permutation", index)
        else:
            self.weight = nn.Parameter(torch.empty(channels, channels, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw W, a rotation or reflection or a permutation, uniformly."""
        if self.initial == "permutation":
            start = torch.eye(self.channels, dtype=torch.float64)[torch.randperm(self.channels)]
        else:
            square = torch.randn(self.channels, self.channels, dtype=torch.float64)
            q, r = torch.linalg.qr(square)
            start = q * r.diagonal().sign()
        if self.parameterization == "full":
            self.weight.copy_(start)
            return
        p, lower, upper = torch.linalg.lu(start)
        diagonal = upper.diagonal()
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_s.copy_(diagonal.abs().log())
        self.sign.copy_(diagonal.sign())
        self.permutation.copy_(p.argmax(1))

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self._apply_prepared(x, prepare([(None, self)])[0], logdet)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, *, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Bijector`."""
        return self._apply_prepared(z, prepare([(None, self)], inverse=True)[0], logdet)

    def _apply_prepared(
        self, x: Tensor, prepared: PreparedConv, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out = ops.invertible_conv1x1(x, prepared.weight, prepared.bias)
        return out, constant_logdet(x, prepared.logdet * math.prod(x.shape[2:]), logdet)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{self.channels}, parameterization={self.parameterization!r}"


def prepare(
    layers: Sequence[tuple[ActNorm | None, InvertibleConv1x1]], *, inverse: bool = False
) -> list[PreparedConv]:
    """Return the weights of many 1x1 convolutions from one kernel call.

    An actnorm given with its convolution, and applied before it in the forward direction, is
    folded into weight and bias: ``W ((x + b) * exp(l)) = (W diag(exp(l))) x + W diag(exp(l)) b``.
    The actnorm's output is then never formed. With ``inverse`` the results describe the inverse
    of the pair. Layers of one model are alike and take one call; each further mixture of
    parameterisation and presence of an actnorm takes one more.

    Args:
        layers: pairs of an :class:`ActNorm` or None, and an :class:`InvertibleConv1x1`.
        inverse: prepare the inverse maps.

    Returns:
        One :class:`PreparedConv` a layer, in the order given.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for i, (actnorm, conv) in enumerate(layers):
        groups.setdefault((conv.parameterization, actnorm is not None), []).append(i)
    prepared: list[PreparedConv | None] = [None] * len(layers)
    for (parameterization, _), members in groups.items():
        convs = [layers[i][1] for i in members]
        actnorms = [layers[i][0] for i in members]
        fold = {
            "actnorm_bias": [a.bias for a in actnorms if a is not None],
            "actnorm_log_scale": [a.effective_log_scale() for a in actnorms if a is not None],
        }
        if parameterization == "lu":
            weights, biases, logdets = ops.invertible_conv1x1_lu(
                [c.lower for c in convs],
                [c.upper for c in convs],
                [c.log_s for c in convs],
                [c.sign for c in convs],
                [c.permutation for c in convs],
                inverse=inverse,
                **fold,
            )
        else:
            weights, biases, logdets = ops.invertible_conv1x1_full(
                [c.weight for c in convs], inverse=inverse, **fold
            )
        padded = biases or [None] * len(members)
        for i, weight, bias, logdet in zip(members, weights, padded, logdets.unbind(), strict=True):
            prepared[i] = PreparedConv(weight, bias, logdet)
    return [p for p in prepared if p is not None]
