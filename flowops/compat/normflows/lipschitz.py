"""normflows' networks of bounded Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops.compat._normed import Normed, NormedConv2d, NormedLinear, pair
from flowops.compat._twins import Twin, find_twin
from flowops.nn.lipschitz import lip_swish


class Swish(Twin):
    r"""Swish with slopes below 1, :math:`x \, \sigma(\mathrm{softplus}(\beta) x) / 1.1`."""

    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """Map each element."""
        return lip_swish(x, self.beta)


class _Induced(Normed):
    """What the two layers share: only the norm from Euclidean to Euclidean."""

    domain: Any
    codomain: Any

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`TwinBase`."""
        if _euclidean(peer.domain) and _euclidean(peer.codomain):
            return None
        return "its norms are not Euclidean (domain and codomain 2), or are learned"

    def _check(self) -> None:
        if not (_euclidean(self.domain) and _euclidean(self.codomain)):
            raise ValueError(
                f"{type(self).__name__}: domain and codomain must be 2, got {self.domain} and "
                f"{self.codomain}"
            )

    def compute_domain_codomain(self) -> tuple[Any, Any]:
        """Return the exponents of the norms, 2 and 2."""
        return self.domain, self.codomain


def _euclidean(exponent: Any) -> bool:
    return not isinstance(exponent, Tensor) and exponent == 2


class InducedNormLinear(_Induced, NormedLinear):
    r"""Fully connected layer with the norm of its weight bounded by ``coeff``.

    :math:`W / \max(1, \sigma / c)`; :func:`update_lipschitz` iterates :math:`\sigma`'s vectors, a
    call does not.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        bias: Whether there is one.
        coeff: The bound c.
        domain: 2; other norms are not covered.
        codomain: As ``domain``.
        n_iterations: Power iterations of an update; None for as many as the tolerances ask.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        zero_init: Begin with a thousandth of the weight.

    Raises:
        ValueError: If ``domain`` or ``codomain`` is not 2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        coeff: float = 0.97,
        domain: Any = 2,
        codomain: Any = 2,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        zero_init: bool = False,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__()
        settings = {
            "in_features": in_features,
            "out_features": out_features,
            "coeff": coeff,
            "domain": domain,
            "codomain": codomain,
            "n_iterations": n_iterations,
            "atol": atol,
            "rtol": rtol,
        }
        self.domain, self.codomain = domain, codomain
        self._check()
        self._set_up((out_features, in_features), bias, settings, small=zero_init)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"in_features={self.weight.size(1)}, out_features={self.weight.size(0)}, "
            f"bias={self.bias is not None}, coeff={self.coeff}, n_iters={self.n_iterations}, "
            f"atol={self.atol}, rtol={self.rtol}"
        )


class InducedNormConv2d(_Induced, NormedConv2d):
    r"""Convolution with its norm, as a map of images, bounded by ``coeff``.

    See :class:`InducedNormLinear`. The size of the images is that of the first batch, or of the
    state dict: state dicts load into layers that have seen no batch, as they do not in normflows.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: Height and width of the kernel, or both.
        stride: Likewise.
        padding: Likewise.
        bias: Whether there is one.
        coeff: The bound c.
        domain: 2; other norms are not covered.
        codomain: As ``domain``.
        n_iterations: Power iterations of an update; None for as many as the tolerances ask.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        zero_init: Begin with a thousandth of the weight.

    Raises:
        ValueError: If ``domain`` or ``codomain`` is not 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int],
        bias: bool = True,
        coeff: float = 0.97,
        domain: Any = 2,
        codomain: Any = 2,
        n_iterations: int | None = None,
        atol: float | None = None,
        rtol: float | None = None,
        zero_init: bool = False,
        **unused_kwargs: Any,
    ) -> None:
        super().__init__()
        settings = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": pair(kernel_size),
            "stride": pair(stride),
            "padding": pair(padding),
            "coeff": coeff,
            "domain": domain,
            "codomain": codomain,
            "n_iterations": n_iterations,
            "atol": atol,
            "rtol": rtol,
        }
        self.domain, self.codomain = domain, codomain
        self._check()
        shape = (out_channels, in_channels, *pair(kernel_size))
        self._set_up(shape, bias, settings, small=zero_init)
        self.register_buffer("initialized", torch.tensor(0))
        self.register_buffer("spatial_dims", torch.tensor([1.0, 1.0]))
        self.register_buffer("u", self.weight.detach().new_zeros(out_channels))
        self.register_buffer("v", self.weight.detach().new_zeros(in_channels))

    def _initialize_u_v(self) -> None:
        super()._initialize_u_v()
        self.initialized.fill_(1)
        self._iterate(None, None, None)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}, "
            f"coeff={self.coeff}, n_iters={self.n_iterations}, atol={self.atol}, rtol={self.rtol}"
        )


class LipschitzMLP(Twin):
    """Fully connected network; :class:`Swish` comes before each layer.

    Args:
        channels: Sizes of input, hidden layers and output.
        lipschitz_const: Bound of each layer's norm.
        max_lipschitz_iter: Power iterations of an update; None for the tolerance.
        lipschitz_tolerance: Absolute and relative tolerance of an update.
        init_zeros: Begin with a thousandth of the last weight.
    """

    net: Any

    def __init__(
        self,
        channels: Sequence[int],
        lipschitz_const: float = 0.97,
        max_lipschitz_iter: int | None = 5,
        lipschitz_tolerance: float | None = None,
        init_zeros: bool = True,
    ) -> None:
        super().__init__()
        self.n_layers = len(channels) - 1
        self.channels = channels
        self.lipschitz_const = lipschitz_const
        self.max_lipschitz_iter = max_lipschitz_iter
        self.lipschitz_tolerance = lipschitz_tolerance
        self.init_zeros = init_zeros
        layers: list[nn.Module] = []
        for i in range(self.n_layers):
            layer = InducedNormLinear(
                channels[i],
                channels[i + 1],
                coeff=lipschitz_const,
                n_iterations=max_lipschitz_iter,
                atol=lipschitz_tolerance,
                rtol=lipschitz_tolerance,
                zero_init=init_zeros and i == self.n_layers - 1,
            )
            layers += [Swish(), layer]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels[0]) to (N, channels[-1])."""
        return self.net(x)


class LipschitzCNN(Twin):
    """Convolutions that keep the images' size; :class:`Swish` comes before each.

    Args:
        channels: Of input, hidden maps and output.
        kernel_size: Of each layer, odd.
        lipschitz_const: Bound of each layer's norm.
        max_lipschitz_iter: Power iterations of an update; None for the tolerance.
        lipschitz_tolerance: Absolute and relative tolerance of an update.
        init_zeros: Begin with a thousandth of the last weight.
    """

    net: Any

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: Sequence[int],
        lipschitz_const: float = 0.97,
        max_lipschitz_iter: int | None = 5,
        lipschitz_tolerance: float | None = None,
        init_zeros: bool = True,
    ) -> None:
        super().__init__()
        self.n_layers = len(kernel_size)
        self.channels = channels
        self.kernel_size = kernel_size
        self.lipschitz_const = lipschitz_const
        self.max_lipschitz_iter = max_lipschitz_iter
        self.lipschitz_tolerance = lipschitz_tolerance
        self.init_zeros = init_zeros
        layers: list[nn.Module] = []
        for i, size in enumerate(kernel_size):
            layer = InducedNormConv2d(
                channels[i],
                channels[i + 1],
                size,
                stride=1,
                padding=size // 2,
                coeff=lipschitz_const,
                n_iterations=max_lipschitz_iter,
                atol=lipschitz_tolerance,
                rtol=lipschitz_tolerance,
                zero_init=init_zeros and i == self.n_layers - 1,
            )
            layers += [Swish(), layer]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels[0], H, W) to (N, channels[-1], H, W)."""
        return self.net(x)


def update_lipschitz(model: nn.Module, n_iterations: int) -> None:
    """Iterate the vectors of all induced-norm layers of a model, ours and normflows'.

    Args:
        model: Any module.
        n_iterations: Power iterations.
    """
    for module in model.modules():
        if find_twin(module) in (InducedNormLinear, InducedNormConv2d) or isinstance(
            module, _Induced
        ):
            layer: Any = module
            layer.compute_weight(update=True, n_iterations=n_iterations)
