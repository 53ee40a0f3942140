"""Coupling layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flowops import ops
from flowops.compat.nflows._base import Transform, check_inputs, reordered
from flowops.compat.nflows._splines import (
    DEFAULT_MIN_BIN_HEIGHT,
    DEFAULT_MIN_BIN_WIDTH,
    DEFAULT_MIN_DERIVATIVE,
    PiecewiseRationalQuadraticCDF,
    SplineTransform,
)
from flowops.ops._dispatch import transforms_active

NetFactory = Callable[[int, int], nn.Module]
Mask = Tensor | Sequence[int]


class CouplingTransform(Transform):
    """What couplings share: some features pass through and set the transform of the others.

    Inputs are (N, D), or (N, C, H, W) with the channels in the place of features. Where the
    features kept come all before or all after the others nothing is gathered; the halves are
    slices.

    Args:
        mask: One number a feature; those above 0 are transformed.
        transform_net_create_fn: Called with the numbers of features kept and of parameters, returns
            a module that is called as ``net(kept, context)``.
        unconditional_transform: Called with ``features=``, returns a transform of those kept.

    Raises:
        ValueError: If the mask is not one.
    """

    identity_features: Tensor
    transform_features: Tensor
    # The features that `_kept_end` looked at, their version, and what it found.
    _found: tuple[Tensor, int, str | None] | None = None

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """See :class:`Twin`."""
        moved: Any = peer.transform_features
        return None if len(moved) else "no feature is transformed"

    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: NetFactory,
        unconditional_transform: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        if mask.dim() != 1 or not bool((mask > 0).any()):
            raise ValueError(
                f"{type(self).__name__}: mask must be a vector with an element above 0, "
                f"got {mask.tolist()}"
            )
        self.features = mask.numel()
        self.register_buffer("identity_features", (mask <= 0).nonzero().flatten())
        self.register_buffer("transform_features", (mask > 0).nonzero().flatten())
        self.transform_net = transform_net_create_fn(
            self.num_identity_features,
            self.num_transform_features * self._transform_dim_multiplier(),
        )
        self.unconditional_transform = (
            None
            if unconditional_transform is None
            else unconditional_transform(features=self.num_identity_features)
        )

    @property
    def num_identity_features(self) -> int:
        """How many features pass through."""
        return self.identity_features.numel()

    @property
    def num_transform_features(self) -> int:
        """How many features are transformed."""
        return self.transform_features.numel()

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._couple(inputs, context, False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :class:`Transform`."""
        return self._couple(inputs, context, True)

    def _couple(
        self, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        check_inputs(self, inputs, self.features)
        end = self._kept_end()
        if end is not None:
            return self._couple_blocks(inputs, context, inverse, end == "first")
        order = torch.cat([self.identity_features, self.transform_features])
        outputs, logabsdet = self._couple_blocks(reordered(inputs, order), context, inverse, True)
        return reordered(outputs, order.argsort()), logabsdet

    def _couple_blocks(
        self, x: Tensor, context: Tensor | None, inverse: bool, keep_first: bool
    ) -> tuple[Tensor, Tensor]:
        """Transform ``x``, whose first or last channels are those kept."""
        sizes = [self.num_identity_features, self.num_transform_features]
        kept, moved = x.split(sizes, 1) if keep_first else x.split(sizes[::-1], 1)[::-1]
        own = self.unconditional_transform
        if own is None:
            params = self.transform_net(kept, context)
            return self._move_in(x, kept, moved, params, inverse, keep_first)
        if inverse:
            passed, logdet = own.inverse(kept, context)  # type: ignore[operator]
            params = self.transform_net(passed, context)
        else:
            params = self.transform_net(kept, context)
            passed, logdet = own(kept, context)
        logdet = logdet.to(torch.promote_types(logdet.dtype, torch.float32))
        outputs, logabsdet = self._move(moved, params, inverse, logdet)
        return _side_by_side(passed, outputs, keep_first), logabsdet

    def _move_in(
        self,
        x: Tensor,
        kept: Tensor,
        moved: Tensor,
        params: Tensor,
        inverse: bool,
        keep_first: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return ``x`` with ``moved``, a part of it, transformed; ``kept`` is the rest."""
        outputs, logabsdet = self._move(moved, params, inverse, None)
        return _side_by_side(kept, outputs, keep_first), logabsdet

    def _move(
        self, moved: Tensor, params: Tensor, inverse: bool, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Transform ``moved`` by what the network gave."""
        raise NotImplementedError

    def _transform_dim_multiplier(self) -> int:
        """Return how many parameters a transformed feature takes."""
        raise NotImplementedError

    def _kept_end(self) -> str | None:
        """Return where the features kept lie, "first" or "last", or None if among the others.

        The buffers may be on a GPU, so that they are read once, and again when they have changed.
        """
        kept, found = self.identity_features, self._found
        if torch.compiler.is_compiling():
            return None if found is None else found[2]
        version = -1 if kept.is_inference() else kept._version
        if found is None or found[0] is not kept or found[1] != version:
            if transforms_active():
                return None
            found = self._found = (kept, version, _end_of(kept.tolist(), self.features))
        return found[2]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._found = None  # compiled code does not see versions
        super()._load_from_state_dict(*args, **kwargs)


def _end_of(kept: list[int], features: int) -> str | None:
    if kept == list(range(len(kept))):
        return "first"
    return "last" if kept == list(range(features - len(kept), features)) else None


def _side_by_side(kept: Tensor, moved: Tensor, keep_first: bool) -> Tensor:
    return torch.cat([kept, moved] if keep_first else [moved, kept], 1)


def _default_scale(raw: Tensor) -> Tensor:
    return torch.sigmoid(raw + 2) + 1e-3


def _general_scale(raw: Tensor) -> Tensor:
    return (softplus(raw) + 1e-3).clamp(0, 3)


class AffineCouplingTransform(CouplingTransform):
    """Affine coupling, ``outputs = scale * inputs + shift`` on the transformed features.

    See :func:`flowops.ops.affine_coupling`. The network gives shifts, then raw scales.

    Args:
        mask: One number a feature; those above 0 are transformed.
        transform_net_create_fn: See :class:`CouplingTransform`.
        unconditional_transform: See :class:`CouplingTransform`.
        scale_activation: From raw scales to scales, above 0. ``DEFAULT_SCALE_ACTIVATION``,
            sigmoid(u + 2) + 0.001, and ``GENERAL_SCALE_ACTIVATION``, softplus(u) + 0.001 up to 3,
            are part of the kernel; others cost a pass over the parameters.

    Raises:
        ValueError: If the mask is not one.

    Source:
        Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803.
    """

    DEFAULT_SCALE_ACTIVATION = staticmethod(_default_scale)
    GENERAL_SCALE_ACTIVATION = staticmethod(_general_scale)

    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: NetFactory,
        unconditional_transform: Callable[..., nn.Module] | None = None,
        scale_activation: Callable[[Tensor], Tensor] = _default_scale,
    ) -> None:
        super().__init__(mask, transform_net_create_fn, unconditional_transform)
        self.scale_activation = scale_activation

    def _transform_dim_multiplier(self) -> int:
        return 2

    def _move_in(
        self,
        x: Tensor,
        kept: Tensor,
        moved: Tensor,
        params: Tensor,
        inverse: bool,
        keep_first: bool,
    ) -> tuple[Tensor, Tensor]:
        start = kept.size(1) if keep_first else 0
        return self._affine(x, params, inverse, start=start)

    def _move(
        self, moved: Tensor, params: Tensor, inverse: bool, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._affine(moved, params, inverse, logdet=logdet)

    def _affine(
        self, x: Tensor, params: Tensor, inverse: bool, **options: Any
    ) -> tuple[Tensor, Tensor]:
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        scale = self._scale_map()
        if scale is None:
            shift, raw = params.chunk(2, 1)
            params = torch.cat([shift, torch.log(self.scale_activation(raw))], 1)
        return op(x, params, scale=scale or "exp", layout="shift_scale", **options)

    def _scale_map(self) -> ops.ScaleMap | None:
        """Return the kernel's scale map that is the activation, or None."""
        activation = getattr(self, "scale_activation", None)  # nflows 0.14 has none
        if activation is None or self._is_named(activation, "DEFAULT_SCALE_ACTIVATION"):
            return ops.ScaleMap("sigmoid", floor=1e-3)
        if self._is_named(activation, "GENERAL_SCALE_ACTIVATION"):
            return ops.ScaleMap("softplus", floor=1e-3, limit=3.0)
        return None

    def _is_named(self, activation: object, name: str) -> bool:
        """Tell whether ``activation`` is the constant of this class or of nflows'."""
        return any(getattr(kind, name, None) is activation for kind in type(self).__mro__)


class AdditiveCouplingTransform(AffineCouplingTransform):
    """Additive coupling, ``outputs = inputs + shift`` on the transformed features.

    The log-determinant is 0. Arguments as :class:`AffineCouplingTransform`; the scale activation
    has no use.

    Source:
        Dinh, Krueger and Bengio, NICE, 2014, arXiv:1410.8516.
    """

    def _transform_dim_multiplier(self) -> int:
        return 1

    def _affine(
        self, x: Tensor, params: Tensor, inverse: bool, **options: Any
    ) -> tuple[Tensor, Tensor]:
        op = ops.affine_coupling_inverse if inverse else ops.affine_coupling
        return op(x, params, scale="additive", **options)


class PiecewiseRationalQuadraticCouplingTransform(SplineTransform, CouplingTransform):
    """Spline coupling. See :func:`flowops.ops.rational_quadratic_spline`.

    The network gives 3 ``num_bins`` - 1 parameters for each transformed feature with linear tails,
    else 3 ``num_bins`` + 1, feature by feature. Where it has an attribute ``hidden_features`` or
    ``hidden_channels`` the logits of bins are divided by its root; what it returned stays as it is.

    Args:
        mask: One number a feature; those above 0 are transformed.
        transform_net_create_fn: See :class:`CouplingTransform`.
        num_bins: Pieces of a spline, K.
        tails: "linear": the identity outside of [-tail_bound, tail_bound]. None: splines of [0, 1].
        tail_bound: See ``tails``.
        apply_unconditional_transform: Whether splines of their own move the features kept.
        img_shape: (H, W) of images, for those splines.
        min_bin_width: Least width of a bin, as a share of the domain.
        min_bin_height: Least height of a bin.
        min_derivative: Least slope at a knot.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """See :class:`Twin`."""
        return SplineTransform.refusal(peer) or CouplingTransform.refusal(peer)

    def __init__(
        self,
        mask: Mask,
        transform_net_create_fn: NetFactory,
        num_bins: int = 10,
        tails: str | None = None,
        tail_bound: float = 1.0,
        apply_unconditional_transform: bool = False,
        img_shape: Sequence[int] | None = None,
        min_bin_width: float = DEFAULT_MIN_BIN_WIDTH,
        min_bin_height: float = DEFAULT_MIN_BIN_HEIGHT,
        min_derivative: float = DEFAULT_MIN_DERIVATIVE,
    ) -> None:
        self.num_bins = num_bins
        self._set_options(tails, tail_bound, min_bin_width, min_bin_height, min_derivative)

        def splines(features: int) -> nn.Module:
            return PiecewiseRationalQuadraticCDF(
                [features, *(img_shape or [])],
                num_bins,
                tails,
                tail_bound,
                min_bin_width=min_bin_width,
                min_bin_height=min_bin_height,
                min_derivative=min_derivative,
            )

        own = splines if apply_unconditional_transform else None
        CouplingTransform.__init__(self, mask, transform_net_create_fn, own)

    def _transform_dim_multiplier(self) -> int:
        return 3 * self.num_bins + self._slopes_beyond_bins()

    def _move(
        self, moved: Tensor, params: Tensor, inverse: bool, logdet: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sizes = (moved.size(1), self._transform_dim_multiplier())
        params = params.unflatten(1, sizes).movedim(2, -1)
        net = self.transform_net
        width = getattr(net, "hidden_features", getattr(net, "hidden_channels", None))
        return self._spline(moved, self._scaled_logits(params, width), inverse, logdet)
