"""Linear layers of products of reflections: QR and SVD."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops.compat.nflows._base import Transform, check_inputs, check_positive
from flowops.compat.nflows._linear import Linear, triangle, wide
from flowops.nn.base import zeros_logdet


class HouseholderSequence(Transform):
    r"""Product of K reflections, each at the plane that a vector :math:`q_k` is normal to.

    .. math::
        H_1 \cdots H_K = 1 - Q^T S^{-1} Q, \qquad
        S = \operatorname{triu}(Q Q^T) - \tfrac12 \operatorname{diag}(Q Q^T),

    acts on rows: two products and a triangular solve, where nflows takes K steps.

    Args:
        features: Size of the vectors, D.
        num_transforms: K.

    Raises:
        TypeError: If an argument is not a positive integer.

    Cost:
        O(K D (N + K)).

    Source:
        Joffrain et al., Accumulating Householder transformations, revisited, 2006.
    """

    def __init__(self, features: int, num_transforms: int) -> None:
        super().__init__()
        check_positive(self, "features", features)
        check_positive(self, "num_transforms", num_transforms)
        self.features = features
        self.num_transforms = num_transforms
        # Pairs of the same reflection, which undo each other, and one more where K is odd.
        axes = torch.arange(num_transforms) // 2 % features
        self.q_vectors = nn.Parameter(torch.eye(features)[axes])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._reflected(inputs, False), zeros_logdet(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._reflected(inputs, True), zeros_logdet(inputs)

    def matrix(self) -> Tensor:
        """Return the orthogonal matrix M of the map, ``outputs = M inputs`` of columns."""
        q = self.q_vectors
        return self._reflected(torch.eye(self.features, dtype=q.dtype, device=q.device), True)

    def _reflected(self, rows: Tensor, inverse: bool) -> Tensor:
        check_inputs(self, rows, self.features, (2,))
        with torch.autocast(rows.device.type, enabled=False):  # halves are not solved for
            q, x = wide(self.q_vectors), wide(rows)
            products = q @ q.T
            s = products.triu() - torch.diag(products.diagonal() / 2)
            s = s.T if inverse else s
            mixed = torch.linalg.solve_triangular(s, x @ q.T, upper=not inverse, left=False)
            return (x - mixed @ q).to(rows.dtype)


class QRLinear(Linear):
    """Linear layer with W = Q R, Q a product of reflections, R upper with a positive diagonal.

    Args:
        features: Size of the vectors.
        num_householder: Number of reflections.
        using_cache: See :class:`Linear`.

    Raises:
        TypeError: If ``features`` or ``num_householder`` is not a positive integer.
    """

    def __init__(self, features: int, num_householder: int, using_cache: bool = False) -> None:
        super().__init__(features, using_cache)
        self.upper_entries = nn.Parameter(torch.empty(features * (features - 1) // 2))
        self.log_upper_diag = nn.Parameter(torch.empty(features))
        spread = 1 / math.sqrt(features)
        for parameter in (self.upper_entries, self.log_upper_diag):
            nn.init.uniform_(parameter, -spread, spread)
        self.orthogonal = HouseholderSequence(features, num_householder)

    def logabsdet(self) -> Tensor:
        """Return log|det W|, nats."""
        return wide(self.log_upper_diag).sum()

    def weight_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return W and log|det W|."""
        return self.orthogonal(self._upper().T)[0].T, self.logabsdet()

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of W, and log|det W|, of W itself."""
        upper = self._upper()
        one = torch.eye(self.features, dtype=upper.dtype, device=upper.device)
        inverse = torch.linalg.solve_triangular(upper, one, upper=True)
        return self.orthogonal(inverse)[0], self.logabsdet()

    def _upper(self) -> Tensor:
        above = triangle(self.upper_entries, self.features, upper=True)
        return above + torch.diag(torch.exp(wide(self.log_upper_diag)))


class SVDLinear(Linear):
    """Linear layer with W = U S V, U and V products of reflections, S a positive diagonal.

    The diagonal is softplus of its parameters, plus ``eps``.

    Args:
        features: Size of the vectors.
        num_householder: Number of reflections of U, and of V; even.
        using_cache: See :class:`Linear`.
        identity_init: Begin as the identity, rather than with a random diagonal.
        eps: Least element of the diagonal.

    Raises:
        TypeError: If ``features`` or ``num_householder`` is not a positive integer.
        ValueError: If ``num_householder`` is odd.
    """

    def __init__(
        self,
        features: int,
        num_householder: int,
        using_cache: bool = False,
        identity_init: bool = True,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(features, using_cache)
        if num_householder % 2:
            raise ValueError(f"SVDLinear: num_householder must be even, got {num_householder}")
        self.eps = eps
        self.identity_init = identity_init
        self.orthogonal_1 = HouseholderSequence(features, num_householder)
        flat = math.log(math.expm1(1 - eps))
        self.unconstrained_diagonal = nn.Parameter(torch.full((features,), flat))
        self.orthogonal_2 = HouseholderSequence(features, num_householder)
        if not identity_init:
            spread = 1 / math.sqrt(features)
            nn.init.uniform_(self.unconstrained_diagonal, -spread, spread)

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of S, float32 or wider."""
        return softplus(wide(self.unconstrained_diagonal)) + self.eps

    @property
    def log_diagonal(self) -> Tensor:
        """Its logarithm."""
        return torch.log(self.diagonal)

    def logabsdet(self) -> Tensor:
        """Return log|det W|, nats."""
        return self.log_diagonal.sum()

    def weight_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return W and log|det W|."""
        right = self.orthogonal_2.inverse(torch.diag(self.diagonal))[0]
        return self.orthogonal_1(right.T)[0].T, self.logabsdet()

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        """Return the inverse of W, and log|det W|, of W itself."""
        left = self.orthogonal_1(torch.diag(self.diagonal.reciprocal()))[0]
        return self.orthogonal_2.inverse(left.T)[0].T, self.logabsdet()
