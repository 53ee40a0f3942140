"""Linear layers of normflows over the channels.

``forward`` goes from the latent to the data, as everywhere in normflows: it applies the inverse of
the matrix that the parameters are of.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops import ops
from flowops.compat._twins import Twin
from flowops.nn.base import constant_logdet

__all__ = ["Invertible1x1Conv", "InvertibleAffine", "LULinearPermute"]


class _Mixing(Twin):
    """A square matrix W, as it is or as P L (U + diag(sign_S e^log_S)), drawn as a rotation."""

    use_lu: bool
    W: Tensor
    P: Tensor
    L: Tensor
    U: Tensor
    log_S: Tensor
    sign_S: Tensor
    eye: Tensor

    def __init__(self, num_channels: int, use_lu: bool) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(
                f"{type(self).__name__}: num_channels must be at least 1, got {num_channels}"
            )
        self.num_channels = num_channels
        self.use_lu = use_lu
        rotation, _ = torch.linalg.qr(torch.randn(num_channels, num_channels))
        if not use_lu:
            self.register_parameter("W", nn.Parameter(rotation))
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("P", permutation)
        self.register_buffer("sign_S", diagonal.sign())
        self.register_buffer("eye", torch.eye(num_channels))
        self.register_parameter("L", nn.Parameter(lower))
        self.log_S = nn.Parameter(diagonal.abs().log())
        self.register_parameter("U", nn.Parameter(upper.triu(1)))


def prepared(
    layer: Any, *, inverse: bool, actnorm: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return W or its inverse, its bias where an actnorm is folded in, and log|det| a pixel.

    Args:
        layer: A layer of this module, or its peer.
        inverse: Whether the inverse of W is wanted.
        actnorm: Bias and log-scale of an actnorm before W.
    """
    bias, log_scale = ([actnorm[0]], [actnorm[1]]) if actnorm else ((), ())
    if layer.use_lu:
        weights, biases, logdets = ops.invertible_conv1x1_lu(
            [layer.L],
            [layer.U],
            [layer.log_S],
            [layer.sign_S],
            [layer.P.argmax(1)],
            actnorm_bias=bias,
            actnorm_log_scale=log_scale,
            inverse=inverse,
        )
    else:
        weights, biases, logdets = ops.invertible_conv1x1_full(
            [layer.W], actnorm_bias=bias, actnorm_log_scale=log_scale, inverse=inverse
        )
    return weights[0], biases[0] if biases else None, logdets[0]


class Invertible1x1Conv(_Mixing):
    """Invertible 1x1 convolution; ``forward`` multiplies by the inverse of W.

    The log-determinant is one number for the batch, of dimension 0. Inverses are solved in float64
    on the CPU.

    Args:
        num_channels: Of the images.
        use_lu: Whether the parameters are the factors of W = P L (U + diag(sign_S e^log_S)).

    Raises:
        ValueError: If a batch is not of images of so many channels.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, section 3.2.
    """

    def __init__(self, num_channels: int, use_lu: bool = False) -> None:
        super().__init__(num_channels, use_lu)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return W^-1 z and the log-determinant, 0-dim, nats."""
        return self._mix(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return W z and the log-determinant, 0-dim, nats."""
        return self._mix(z, inverse=True)

    def _mix(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if z.dim() != 4:
            raise ValueError(
                f"Invertible1x1Conv: z must have shape [N, {self.num_channels}, H, W], "
                f"got {list(z.shape)}"
            )
        weight, _, logdet = prepared(self, inverse=not inverse)
        return ops.invertible_conv1x1(z, weight), logdet * math.prod(z.shape[2:])


class InvertibleAffine(_Mixing):
    """Product of the last dimension, a row vector, with an invertible matrix, or its inverse.

    The log-determinant is that of one vector, of dimension 0.

    Args:
        num_channels: Size of the vectors.
        use_lu: See :class:`Invertible1x1Conv`.

    Raises:
        ValueError: If the vectors have another size.
    """

    def __init__(self, num_channels: int, use_lu: bool = True) -> None:
        super().__init__(num_channels, use_lu)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z W^-1 and the log-determinant, 0-dim, nats."""
        return self._mix(z, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z W and the log-determinant, 0-dim, nats."""
        return self._mix(z, inverse=True)

    def _mix(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if z.size(-1) != self.num_channels:
            raise ValueError(
                f"InvertibleAffine: z must have a last dimension of {self.num_channels}, "
                f"got {list(z.shape)}"
            )
        weight, _, logdet = prepared(self, inverse=not inverse)
        rows = z.reshape(-1, self.num_channels)
        return ops.invertible_conv1x1(rows, weight.t()).view(z.shape), logdet


class _Permutation(nn.Module):
    """Holder of the state of a random permutation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("_permutation", torch.randperm(features))


class _LULinear(nn.Module):
    """Holder of the parameters of a linear layer with weight L U."""

    def __init__(self, features: int, identity_init: bool, eps: float = 1e-3) -> None:
        super().__init__()
        self.features = features
        self.eps = eps
        entries = features * (features - 1) // 2
        self.bias = nn.Parameter(torch.zeros(features))
        self.lower_entries = nn.Parameter(torch.zeros(entries))
        self.upper_entries = nn.Parameter(torch.zeros(entries))
        one = math.log(math.expm1(1 - eps))
        self.unconstrained_upper_diag = nn.Parameter(torch.full((features,), one))
        if not identity_init:
            bound = features**-0.5
            for values in (self.lower_entries, self.upper_entries, self.unconstrained_upper_diag):
                nn.init.uniform_(values, -bound, bound)


class LULinearPermute(Twin):
    """A fixed permutation and a linear layer of weight L U, in the way of neural spline flows.

    Data are permuted, then multiplied, in ``inverse``. Permutation, matrix and bias make one
    product.

    Args:
        num_channels: Size of the vectors.
        identity_init: Whether the matrix begins as the identity.

    Raises:
        ValueError: If a batch does not consist of vectors of that size.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    permutation: Any
    linear: Any

    def __init__(self, num_channels: int, identity_init: bool = True) -> None:
        super().__init__()
        self.permutation = _Permutation(num_channels)
        self.linear = _LULinear(num_channels, identity_init)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the data and the log-determinant, (N,), nats."""
        _check_vectors(z, self.linear.features)
        weight, logdet = _lu_weight(self.linear, inverse=True)
        weight = weight.index_select(0, self.permutation._permutation.argsort())
        bias = weight @ -self.linear.bias.to(weight.dtype)
        return ops.invertible_conv1x1(z, weight, bias), constant_logdet(z, logdet, None)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Undo ``forward``."""
        _check_vectors(z, self.linear.features)
        weight, logdet = _lu_weight(self.linear, inverse=False)
        weight = weight.index_select(1, self.permutation._permutation.argsort())
        bias = self.linear.bias.to(weight.dtype)
        return ops.invertible_conv1x1(z, weight, bias), constant_logdet(z, logdet, None)


def _check_vectors(z: Tensor, features: int) -> None:
    if z.dim() != 2 or z.size(1) != features:
        raise ValueError(f"LULinearPermute: z must have shape [N, {features}], got {list(z.shape)}")


def _lu_weight(linear: Any, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return the weight of a :class:`_LULinear`, ours or normflows', and its log-determinant."""
    diagonal = softplus(linear.unconstrained_upper_diag) + linear.eps
    size, device = linear.features, diagonal.device
    zeros = diagonal.new_zeros(size, size)
    low = torch.tril_indices(size, size, -1, device=device)
    up = torch.triu_indices(size, size, 1, device=device)
    weights, _, logdets = ops.invertible_conv1x1_lu(
        [zeros.index_put((low[0], low[1]), linear.lower_entries)],
        [zeros.index_put((up[0], up[1]), linear.upper_entries)],
        [torch.log(diagonal)],
        [torch.ones_like(diagonal)],
        [torch.arange(size, device=device)],
        inverse=inverse,
    )
    return weights[0], logdets[0]
