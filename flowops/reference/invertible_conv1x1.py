"""Pure-PyTorch twin of :mod:`flowops.ops.invertible_conv1x1`: the executable specification.

LU of the 1x1 convolution (Glow): ``W = P L (U + diag(sign * exp(log_s)))``, L unit lower, U
strictly upper, P fixed, given as an index: ``(P A)[i] = A[permutation[i]]``; ``logdet = H W
sum(log_s)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Prepared = tuple[list[Tensor], list[Tensor], Tensor]


def invertible_conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`flowops.ops.invertible_conv1x1`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = torch.einsum("oc,bc...->bo...", weight.to(wide), x.to(wide))
    if bias is not None:
        z = z + bias.to(wide).view(-1, *[1] * (x.dim() - 2))
    return z.to(x.dtype)


def invertible_conv1x1_lu(
    lower: Sequence[Tensor],
    upper: Sequence[Tensor],
    log_s: Sequence[Tensor],
    sign: Sequence[Tensor],
    permutation: Sequence[Tensor],
    *,
    actnorm_bias: Sequence[Tensor] = (),
    actnorm_log_scale: Sequence[Tensor] = (),
    inverse: bool = False,
) -> Prepared:
    """See :func:`flowops.ops.invertible_conv1x1_lu`."""
    weights = []
    lower, upper, log_s, sign = _wide(lower), _wide(upper), _wide(log_s), _wide(sign)
    for low, up, log_diagonal, signs, index in zip(
        lower, upper, log_s, sign, permutation, strict=True
    ):
        eye = torch.eye(len(log_diagonal), dtype=low.dtype, device=low.device)
        triangle = torch.triu(up, 1) + torch.diag(signs * torch.exp(log_diagonal))
        weights.append(((torch.tril(low, -1) + eye) @ triangle)[index])
    logdet = torch.stack([s.sum() for s in log_s])
    return _fold(weights, logdet, actnorm_bias, actnorm_log_scale, inverse)


def invertible_conv1x1_full(
    weight: Sequence[Tensor],
    *,
    actnorm_bias: Sequence[Tensor] = (),
    actnorm_log_scale: Sequence[Tensor] = (),
    inverse: bool = False,
) -> Prepared:
    """See :func:`flowops.ops.invertible_conv1x1_full`."""
    weights = _wide(weight)
    logdet = torch.stack([torch.linalg.slogdet(w).logabsdet for w in weights])
    return _fold(weights, logdet, actnorm_bias, actnorm_log_scale, inverse)


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _fold(
    weights: list[Tensor],
    logdet: Tensor,
    actnorm_bias: Sequence[Tensor],
    actnorm_log_scale: Sequence[Tensor],
    inverse: bool,
) -> Prepared:
    if inverse:
        weights, logdet = [torch.linalg.inv_ex(w).inverse for w in weights], -logdet
    if not actnorm_bias:
        return weights, [], logdet
    actnorm_bias, actnorm_log_scale = _wide(actnorm_bias), _wide(actnorm_log_scale)
    log_scale_sum = torch.stack([s.sum() for s in actnorm_log_scale])
    if inverse:
        folded = [
            torch.exp(-s)[:, None] * w for w, s in zip(weights, actnorm_log_scale, strict=True)
        ]
        return folded, [-b for b in actnorm_bias], logdet - log_scale_sum
    folded = [w * torch.exp(s) for w, s in zip(weights, actnorm_log_scale, strict=True)]
    biases = [w @ b for w, b in zip(folded, actnorm_bias, strict=True)]
    return folded, biases, logdet + log_scale_sum
