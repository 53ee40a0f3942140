"""Linear layers: LU, 1x1 convolution, full matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops import ops
from flowops.compat.nflows._base import Transform, check_inputs, check_positive
from flowops.compat.nflows._permutations import RandomPermutation
from flowops.nn.base import constant_logdet


class LinearCache:
    """The matrix of a linear layer, its inverse and its log-determinant, as far as known."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.inverse: Tensor | None = None
        self.logabsdet: Tensor | None = None

    def invalidate(self) -> None:
        """Forget everything."""
        self.weight = self.inverse = self.logabsdet = None


class Linear(Transform):
    """What the linear layers share, ``outputs = W inputs + bias`` on vectors.

    W and its log-determinant are made of the parameters by one kernel, the product and the bias are
    another: two launches, whatever the parameterization.

    Args:
        features: Size of the vectors.
        using_cache: Keep W, its inverse and its log-determinant in evaluation mode, until
            ``train()`` is called; a change of the parameters before that is not seen.

    Raises:
        TypeError: If ``features`` is not a positive integer.
    """

    _dims: tuple[int, ...] = (2,)

    def __init__(self, features: int, using_cache: bool = False) -> None:
        super().__init__()
        check_positive(self, "features", features)
        self.features = features
        self.bias = nn.Parameter(torch.zeros(features))
        self.using_cache = using_cache
        self.cache = LinearCache()

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        if self.training or not self.using_cache:
            return self.forward_no_cache(inputs)
        cache = self.cache
        if cache.weight is None:
            cache.weight, cache.logabsdet = self.weight_and_logabsdet()
        elif cache.logabsdet is None:
            cache.logabsdet = self.logabsdet()
        return self._forward(inputs, cache.weight, cache.logabsdet)  # type: ignore[arg-type]

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        if self.training or not self.using_cache:
            return self.inverse_no_cache(inputs)
        cache = self.cache
        if cache.inverse is None:
            cache.inverse, cache.logabsdet = self.weight_inverse_and_logabsdet()
        elif cache.logabsdet is None:
            cache.logabsdet = self.logabsdet()
        return self._inverse(inputs, cache.inverse, cache.logabsdet)  # type: ignore[arg-type]

    def forward_no_cache(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise with W of the present parameters."""
        return self._forward(inputs, *self.weight_and_logabsdet())

    def inverse_no_cache(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data with W of the present parameters."""
        return self._inverse(inputs, *self.weight_inverse_and_logabsdet())

    def train(self, mode: bool = True) -> Linear:
        """Set the mode; training forgets the cache."""
        if mode:
            self.cache.invalidate()
        return super().train(mode)

    def use_cache(self, mode: bool = True) -> None:
        """Set ``using_cache``.

        Raises:
            TypeError: If ``mode`` is not a bool.
        """
        if not isinstance(mode, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{type(self).__name__}: mode must be a bool, got {mode!r}")
        self.using_cache = mode

    def weight(self) -> Tensor:
        """Return W."""
        return self.weight_and_logabsdet()[0]

    def weight_inverse(self) -> Tensor:
        """Return the inverse of W."""
        return self.weight_inverse_and_logabsdet()[0]

    def logabsdet(self) -> Tensor:
        """Return log|det W|, nats."""
        return self.weight_and_logabsdet()[1]

    def weight_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return W and log|det W|."""
        raise NotImplementedError

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of W, and log|det W|, of W itself."""
        raise NotImplementedError

    def _forward(self, inputs: Tensor, weight: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
        check_inputs(self, inputs, self.features, self._dims)
        bias = self.bias.to(weight.dtype)
        outputs = ops.invertible_conv1x1(inputs, weight, bias)
        return outputs, _per_sample(inputs, logabsdet)

    def _inverse(self, inputs: Tensor, weight: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
        """Undo with the inverse matrix ``weight``; the bias joins it, at C^2 instead of a pass."""
        check_inputs(self, inputs, self.features, self._dims)
        bias = -(weight * self.bias).sum(1).to(weight.dtype)
        outputs = ops.invertible_conv1x1(inputs, weight, bias)
        return outputs, _per_sample(inputs, -logabsdet)


def _per_sample(inputs: Tensor, logabsdet: Tensor) -> Tensor:
    return constant_logdet(inputs, math.prod(inputs.shape[2:]) * logabsdet, None)


class LULinear(Linear):
    """Linear layer with W = L U, L unit lower triangular, U upper with a positive diagonal.

    See :func:`flowops.ops.invertible_conv1x1_lu`. The diagonal of U is softplus of its parameters,
    plus ``eps``.

    Args:
        features: Size of the vectors.
        using_cache: See :class:`Linear`.
        identity_init: Begin as the identity, rather than at random.
        eps: Least element of the diagonal.

    Raises:
        TypeError: If ``features`` is not a positive integer.
    """

    def __init__(
        self,
        features: int,
        using_cache: bool = False,
        identity_init: bool = True,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(features, using_cache)
        self.eps = eps
        entries = features * (features - 1) // 2
        self.lower_entries = nn.Parameter(torch.zeros(entries))
        self.upper_entries = nn.Parameter(torch.zeros(entries))
        flat = math.log(math.expm1(1 - eps))
        self.unconstrained_upper_diag = nn.Parameter(torch.full((features,), flat))
        if not identity_init:
            spread = 1 / math.sqrt(features)
            for parameter in (
                self.lower_entries, self.upper_entries, self.unconstrained_upper_diag,
            ):  # fmt: skip
                nn.init.uniform_(parameter, -spread, spread)

    @property
    def upper_diag(self) -> Tensor:
        """The diagonal of U, float32 or wider."""
        return softplus(wide(self.unconstrained_upper_diag)) + self.eps

    def logabsdet(self) -> Tensor:
        """Return log|det W|, nats."""
        return torch.log(self.upper_diag).sum()

    def weight_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return W and log|det W|."""
        return self._prepared(False)

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of W, and log|det W|, of W itself."""
        inverse, logabsdet = self._prepared(True)
        return inverse, -logabsdet

    def _prepared(self, inverse: bool) -> tuple[Tensor, Tensor]:
        log_diagonal = torch.log(self.upper_diag)
        device = log_diagonal.device
        weights, _, logdets = ops.invertible_conv1x1_lu(
            [triangle(self.lower_entries, self.features, upper=False)],
            [triangle(self.upper_entries, self.features, upper=True)],
            [log_diagonal],
            [torch.ones_like(log_diagonal)],
            [torch.arange(self.features, device=device)],
            inverse=inverse,
        )
        return weights[0], logdets[0]


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def triangle(entries: Tensor, size: int, *, upper: bool) -> Tensor:
    """Return the square matrix with ``entries`` row by row strictly above or below its diagonal.

    It is float32 or wider.
    """
    entries = wide(entries)
    indices = torch.triu_indices if upper else torch.tril_indices
    rows, columns = indices(size, size, 1 if upper else -1, device=entries.device)
    return entries.new_zeros(size, size).index_put((rows, columns), entries)


class OneByOneConvolution(LULinear):
    """Invertible 1x1 convolution of images: a fixed permutation of channels, then W = L U and bias.

    The permutation is one of W's columns, so that the layer is one pass over the images.

    Args:
        num_channels: C.
        using_cache: See :class:`Linear`.
        identity_init: Begin with W = 1, rather than at random.

    Raises:
        TypeError: If ``num_channels`` is not a positive integer.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039.
    """

    _dims = (4,)

    def __init__(
        self, num_channels: int, using_cache: bool = False, identity_init: bool = True
    ) -> None:
        super().__init__(num_channels, using_cache, identity_init)
        self.permutation = RandomPermutation(num_channels, dim=1)

    def _forward(self, inputs: Tensor, weight: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
        return super()._forward(inputs, weight.index_select(1, self._places()), logabsdet)

    def _inverse(self, inputs: Tensor, weight: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
        return super()._inverse(inputs, weight.index_select(0, self._places()), logabsdet)

    def _places(self) -> Tensor:
        return torch.argsort(self.permutation._permutation)  # type: ignore[arg-type]


class NaiveLinear(Linear):
    """Linear layer whose matrix is the parameter. See :func:`flowops.ops.invertible_conv1x1_full`.

    Args:
        features: Size of the vectors.
        orthogonal_initialization: Begin with a random orthogonal matrix, rather than uniform
            numbers.
        using_cache: See :class:`Linear`.

    Raises:
        TypeError: If ``features`` is not a positive integer.

    Cost:
        O(D^3) for the log-determinant and for the inverse, whatever the batch.
    """

    def __init__(
        self, features: int, orthogonal_initialization: bool = True, using_cache: bool = False
    ) -> None:
        super().__init__(features, using_cache)
        if orthogonal_initialization:
            start = torch.linalg.qr(torch.randn(features, features)).Q
        else:
            spread = 1 / math.sqrt(features)
            start = torch.empty(features, features).uniform_(-spread, spread)
        self._weight = nn.Parameter(start)

    def weight(self) -> Tensor:
        """Return W."""
        return self._weight

    def weight_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return W and log|det W|."""
        return self._weight, ops.invertible_conv1x1_full([self._weight])[2][0]

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of W, and log|det W|, of W itself."""
        weights, _, logdets = ops.invertible_conv1x1_full([self._weight], inverse=True)
        return weights[0], -logdets[0]
