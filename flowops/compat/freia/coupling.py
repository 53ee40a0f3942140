"""FrEIA's coupling blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowops.compat.freia.base import (
    CLAMPS,
    Clamp,
    Dims,
    InvertibleModule,
    Result,
    additive,
    clamp_scale,
    condition_channels,
    couple,
)

Constructor = Callable[[int, int], nn.Module]


class _Coupling(InvertibleModule):
    r"""What FrEIA's couplings share: two parts of the channels, conditions, and bounded scales.

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list.
        dims_c: Shapes of the conditions, with the same pixels; the networks see them as further
            channels.
        subnet_constructor: Makes a network of the channels in and out.
        clamp: c, the largest log-scale.
        clamp_activation: f: "ATAN" (0.636 arctan), "TANH", "SIGMOID" (2 sigmoid - 1), or a function
            of tensors.
        split_len: Channels of the first part, or their share.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims = (),
        subnet_constructor: Constructor | None = None,
        clamp: float = 2.0,
        clamp_activation: str | Clamp = "ATAN",
        split_len: float = 0.5,
    ) -> None:
        super().__init__(dims_in, dims_c)
        name = type(self).__name__
        self.channels, self.ndims = self.dims_in[0][0], len(self.dims_in[0])
        most = 1 if isinstance(split_len, float) else self.channels
        if not 0 <= split_len <= most:
            raise ValueError(f"{name}: split_len must be from 0 to {most}, got {split_len}")
        share = isinstance(split_len, float)
        self.split_len1 = round(self.channels * split_len) if share else int(split_len)
        self.split_len2 = self.channels - self.split_len1
        self.clamp = clamp
        self.condition_length = condition_channels(name, self.dims_in, self.dims_c)
        self.conditional = len(self.dims_c) > 0
        if isinstance(clamp_activation, str):
            if clamp_activation not in CLAMPS:
                raise ValueError(
                    f"{name}: clamp_activation must be one of {', '.join(CLAMPS)} or a function, "
                    f"got {clamp_activation!r}"
                )
            clamp_activation = CLAMPS[clamp_activation][0]
        self.f_clamp = clamp_activation
        self._make_networks(given(self, subnet_constructor))

    def _make_networks(self, make: Constructor) -> None:
        """Set the networks, each made of the numbers of channels in and out."""
        raise NotImplementedError

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """Move both parts in turn; see :mod:`flowops.compat.freia`."""
        first, second = self._split(x[0])
        if rev:
            second, logdet = self._coupling2(second, self._seen(first, c), rev)
            first, logdet = self._coupling1(first, self._seen(second, c), rev, logdet)
        else:
            first, logdet = self._coupling1(first, self._seen(second, c), rev)
            second, logdet = self._coupling2(second, self._seen(first, c), rev, logdet)
        return (torch.cat([first, second], 1),), 0.0 if logdet is None else logdet

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() < 2 or x.size(1) != self.channels:
            raise ValueError(
                f"{type(self).__name__}: x must have {self.channels} channels, got {list(x.shape)}"
            )
        first, second = x.split([self.split_len1, self.split_len2], 1)
        return first, second

    def _seen(self, x: Tensor, c: Sequence[Tensor]) -> Tensor:
        """Return what a subnetwork sees."""
        return torch.cat([x, *c], 1) if self.conditional else x

    def _coupling1(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Move the first part, and add to the log-determinant."""
        raise NotImplementedError

    def _coupling2(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Move the second part, and add to the log-determinant."""
        raise NotImplementedError

    def _affine(
        self, x: Tensor, params: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        scale = clamp_scale(self.f_clamp, self.clamp)
        if scale is not None:
            return couple(x, params, scale, rev, logdet)
        raw, shift = params.chunk(2, 1)
        bounded = torch.cat([self.clamp * self.f_clamp(raw), shift], 1)
        return couple(x, bounded, "exp", rev, logdet)


class NICECouplingBlock(_Coupling):
    """Two additive couplings; the log-Jacobian is the number 0.

    Args:
        dims_in: See :class:`GLOWCouplingBlock`.
        dims_c: See there.
        subnet_constructor: Makes a network of the channels in and out; two are made.
        split_len: See there.

    Source:
        Dinh et al., NICE, 2014, arXiv:1410.8516.
    """

    def __init__(
        self,
        dims_in: Dims,
        dims_c: Dims = (),
        subnet_constructor: Constructor | None = None,
        split_len: float = 0.5,
    ) -> None:
        super().__init__(dims_in, dims_c, subnet_constructor, split_len=split_len)

    def _make_networks(self, make: Constructor) -> None:
        self.F = make(self.split_len2 + self.condition_length, self.split_len1)
        self.G = make(self.split_len1 + self.condition_length, self.split_len2)

    def _coupling1(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, None]:
        return additive(x, self.F(seen), rev), None

    def _coupling2(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, None]:
        return additive(x, self.G(seen), rev), None


class GLOWCouplingBlock(_Coupling):
    r"""Two affine couplings, each with one network for scales and shifts.

    .. math::
        y_1 = e^{c f(s_2(x_2))} x_1 + t_2(x_2), \qquad y_2 = e^{c f(s_1(y_1))} x_2 + t_1(y_1)

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list.
        dims_c: Shapes of the conditions, with the same pixels; the networks see them as further
            channels.
        subnet_constructor: Makes a network of the channels in and out; two are made.
        clamp: c, the largest log-scale.
        clamp_activation: f: "ATAN" (0.636 arctan), "TANH", "SIGMOID" (2 sigmoid - 1), or a function
            of tensors.
        split_len: Channels of the first part, or their share.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039; Ardizzone et al., Guided image
        generation with conditional invertible neural networks, 2019, arXiv:1907.02392.
    """

    def _make_networks(self, make: Constructor) -> None:
        self.subnet1 = make(self.split_len1 + self.condition_length, 2 * self.split_len2)
        self.subnet2 = make(self.split_len2 + self.condition_length, 2 * self.split_len1)

    def _coupling1(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self._affine(x, self.subnet2(seen), rev, logdet)

    def _coupling2(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self._affine(x, self.subnet1(seen), rev, logdet)


class GINCouplingBlock(GLOWCouplingBlock):
    """Two affine couplings that keep volumes: log-scales minus their mean over the channels.

    The log-Jacobian is the number 0. Arguments as for :class:`GLOWCouplingBlock`.

    Source:
        Sorrenson, Rother and Koethe, Disentanglement by nonlinear ICA with general incompressible-
        flow networks (GIN), 2020, arXiv:2001.04872.
    """

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """See :mod:`flowops.compat.freia`."""
        moved, _ = super().forward(x, c, rev, jac)
        return moved, 0.0

    def _affine(
        self, x: Tensor, params: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        raw, shift = params.chunk(2, 1)
        raw = self.clamp * self.f_clamp(raw)
        return couple(x, torch.cat([raw - raw.mean(1, keepdim=True), shift], 1), "exp", rev)


class RNVPCouplingBlock(_Coupling):
    """As :class:`GLOWCouplingBlock`, with networks of their own for scales and shifts: four."""

    def _make_networks(self, make: Constructor) -> None:
        of_first = self.split_len1 + self.condition_length, self.split_len2
        of_second = self.split_len2 + self.condition_length, self.split_len1
        self.subnet_s1, self.subnet_t1 = make(*of_first), make(*of_first)
        self.subnet_s2, self.subnet_t2 = make(*of_second), make(*of_second)

    def _coupling1(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        params = torch.cat([self.subnet_s2(seen), self.subnet_t2(seen)], 1)
        return self._affine(x, params, rev, logdet)

    def _coupling2(
        self, x: Tensor, seen: Tensor, rev: bool, logdet: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        params = torch.cat([self.subnet_s1(seen), self.subnet_t1(seen)], 1)
        return self._affine(x, params, rev, logdet)


class AffineCouplingOneSided(_Coupling):
    """The second step of :class:`GLOWCouplingBlock` alone; the first part passes through."""

    def _make_networks(self, make: Constructor) -> None:
        self.subnet = make(self.split_len1 + self.condition_length, 2 * self.split_len2)

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """See :mod:`flowops.compat.freia`."""
        first, second = self._split(x[0])
        second, logdet = self._affine(second, self.subnet(self._seen(first, c)), rev)
        return (torch.cat([first, second], 1),), logdet


class ConditionalAffineTransform(_Coupling):
    """Scale and shift of everything, from the conditions alone.

    Arguments as for :class:`GLOWCouplingBlock`; one network is made.

    Raises:
        ValueError: If there is no condition.

    Source:
        Park et al., Semantic image synthesis with spatially-adaptive normalization, 2019,
        arXiv:1903.07291.
    """

    def _make_networks(self, make: Constructor) -> None:
        if not self.conditional:
            raise ValueError("ConditionalAffineTransform: dims_c must hold a condition, got []")
        self.subnet = make(self.condition_length, 2 * self.channels)

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        """See :mod:`flowops.compat.freia`."""
        seen = torch.cat(list(c), 1) if len(c) > 1 else c[0]
        moved, logdet = self._affine(x[0], self.subnet(seen), rev)
        return (moved,), logdet


def given(block: nn.Module, constructor: Constructor | None) -> Constructor:
    """Return the constructor.

    Raises:
        ValueError: If there is none.
    """
    if constructor is None:
        raise ValueError(
            f"{type(block).__name__}: subnet_constructor must be a function of the channels in and "
            "out, got None"
        )
    return constructor
