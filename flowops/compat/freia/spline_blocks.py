"""FrEIA's blocks of splines, which came after its release 0.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops.compat.freia.base import Dims, InvertibleModule, Result, condition_channels
from flowops.compat.freia.coupling import Constructor, _Coupling, given
from flowops.compat.freia.spline import rational_quadratic_spline


class BinnedSplineBase(InvertibleModule):
    """What a block's splines have in common, held in buffers.

    Args:
        dims_in: Shape of a sample, in a list.
        dims_c: Shapes of the conditions.
        bins: See :func:`rational_quadratic_spline`, as what follows.
        min_bin_sizes: See there.
        default_domain: See there.
        identity_tails: See there.
        domain_clamping: See there.

    Raises:
        ValueError: If the bins do not fit the domain.
    """

    bins: Tensor
    min_bin_sizes: Tensor
    default_domain: Tensor
    identity_tails: Tensor
    # The numbers of the buffers, which may be on a GPU.
    _numbers: dict[str, Any] | None = None

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        bins: int = 10,
        min_bin_sizes: tuple[float, float] = (0.1, 0.1),
        default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
        identity_tails: bool = False,
        domain_clamping: float | None = None,
    ) -> None:
        super().__init__(dims_in, dims_c)
        left, right, bottom, top = default_domain
        spare = min(right - left - bins * min_bin_sizes[0], top - bottom - bins * min_bin_sizes[1])
        if bins < 1 or min(min_bin_sizes) < 0 or spare < 0:
            raise ValueError(
                f"BinnedSplineBase: bins must be at least 1 and fit the domain {default_domain} "
                f"with sizes from {min_bin_sizes}, got {bins}"
            )
        self.domain_clamping = domain_clamping
        self.register_buffer("bins", torch.tensor(bins, dtype=torch.int32))
        self.register_buffer("min_bin_sizes", torch.tensor(min_bin_sizes))
        self.register_buffer("default_domain", torch.tensor(default_domain))
        self.register_buffer("identity_tails", torch.tensor(identity_tails))
        self.register_buffer("default_width", torch.tensor(float(right - left)))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._numbers = None
        super()._load_from_state_dict(*args, **kwargs)


def spline_options(base: Any) -> dict[str, Any]:
    """Return the arguments of :func:`rational_quadratic_spline` that ``base`` holds."""
    if getattr(base, "_numbers", None) is None:
        base._numbers = {
            "bins": int(base.bins),
            "min_bin_sizes": tuple(base.min_bin_sizes.tolist()),
            "default_domain": tuple(base.default_domain.tolist()),
            "identity_tails": bool(base.identity_tails),
        }
    return {**base._numbers, "domain_clamping": base.domain_clamping}


def _parameter_count(options: dict[str, Any]) -> int:
    return 3 * options["bins"] + (not options["identity_tails"])


class RationalQuadraticSpline(_Coupling):
    r"""Two couplings in turn whose maps are the splines of :func:`rational_quadratic_spline`.

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list.
        dims_c: Shapes of the conditions, with the same pixels.
        subnet_constructor: Makes a network of the channels in and out; two are made.
        split_len: Channels of the first part, or their share.
        bins: See :func:`rational_quadratic_spline`, as what follows.
        min_bin_sizes: See there.
        default_domain: See there.
        identity_tails: See there.
        domain_clamping: See there.

    Raises:
        ValueError: If an argument is out of range.
    """

    spline_base: Any

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims | None = None,
        subnet_constructor: Constructor | None = None,
        split_len: float = 0.5,
        bins: int = 10,
        min_bin_sizes: tuple[float, float] = (0.1, 0.1),
        default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
        identity_tails: bool = False,
        domain_clamping: float | None = None,
    ) -> None:
        self._options = (bins, min_bin_sizes, default_domain, identity_tails, domain_clamping)
        super().__init__(dims_in, dims_c or (), subnet_constructor, split_len=split_len)

    def _make_networks(self, make: Constructor) -> None:
        self.spline_base = BinnedSplineBase(self.dims_in, self.dims_c, *self._options)
        count = _parameter_count(spline_options(self.spline_base))
        self.subnet1 = make(self.split_len2 + self.condition_length, self.split_len1 * count)
        self.subnet2 = make(self.split_len1 + self.condition_length, self.split_len2 * count)

    def _coupling1(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self._move(x, self.subnet1(seen), rev, logdet)

    def _coupling2(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self._move(x, self.subnet2(seen), rev, logdet)

    def _move(
        self, x: Tensor, parameters: Tensor, rev: bool, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        options = spline_options(self.spline_base)
        moved, more = rational_quadratic_spline(x, parameters, rev=rev, **options)
        return moved, more if logdet is None else logdet + more


class ElementwiseRationalQuadraticSpline(BinnedSplineBase):
    r"""A spline for every element, of learned parameters or of those that the conditions give.

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list.
        dims_c: Shapes of the conditions, with the same pixels.
        subnet_constructor: Makes a network of the channels in and out; with conditions alone.
        bins: See :func:`rational_quadratic_spline`, as what follows.
        min_bin_sizes: See there.
        default_domain: See there.
        identity_tails: See there.
        domain_clamping: See there.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims = (),
        subnet_constructor: Constructor | None = None,
        bins: int = 10,
        min_bin_sizes: tuple[float, float] = (0.1, 0.1),
        default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
        identity_tails: bool = False,
        domain_clamping: float | None = None,
    ) -> None:
        super().__init__(
            dims_in, dims_c, bins, min_bin_sizes, default_domain, identity_tails, domain_clamping
        )
        name = type(self).__name__
        self.channels, *pixels = self.dims_in[0]
        self.condition_length = condition_channels(name, self.dims_in, self.dims_c)
        self.conditional = len(self.dims_c) > 0
        count = self.channels * _parameter_count(spline_options(self))
        if self.conditional:
            self.subnet = given(self, subnet_constructor)(self.condition_length, count)
        else:
            self.spline_parameters = nn.Parameter(torch.zeros(count, *pixels))

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """See :mod:`flowops.compat.freia`."""
        if self.conditional:
            parameters = self.subnet(torch.cat(list(c), 1))
        else:
            parameters = self.spline_parameters.expand(x[0].size(0), *self.spline_parameters.shape)
        moved, logdet = rational_quadratic_spline(x[0], parameters, rev=rev, **spline_options(self))
        return (moved,), logdet
