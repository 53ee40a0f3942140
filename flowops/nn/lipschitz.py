"""Networks whose Lipschitz constant is bounded, for invertible residual layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parametrize

from flowops.nn.utils import ConvSpectralNorm, SpectralNorm, conv_spectral_norm, spectral_norm

# The largest slope of x sigmoid(x) is 1.0998.
_SWISH_SLOPE = 1.1


class LipSwish(nn.Module):
    r"""Swish with slopes below 1: :math:`x \, \sigma(\mathrm{softplus}(\beta) x) / 1.1`.

    Its derivative is smooth, and far from constant: what the series of a log-determinant, whose
    gradient has second derivatives, needs of an activation.

    Args:
        beta: Initial value of :math:`\beta`, which is learned.
        device: Of the parameter.
        dtype: Of the parameter.

    Source: Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative
    modeling", 2019, arXiv:1906.02735, section 3.3.
    """

    def __init__(
        self,
        beta: float = 0.5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(beta, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map each element."""
        return lip_swish(x, self.beta)


def lip_swish(x: Tensor, beta: Tensor) -> Tensor:
    """Return what :class:`LipSwish` does, for any beta that fits."""
    return x * torch.sigmoid(softplus(beta) * x) / _SWISH_SLOPE


Activation = Callable[[], nn.Module]


class LipschitzMLP(nn.Module):
    r"""Fully connected network with a Lipschitz constant of at most ``lipschitz``.

    Each of its n layers has the norm of its weight bounded by ``lipschitz`` to the power 1 / n: see
    :func:`flowops.nn.utils.spectral_norm`. The last layer begins at zero. Torch copies parametrized
    modules, but pickles their state dicts alone.

    Args:
        in_features: Size of the input vector.
        out_features: Size of the output vector.
        hidden: Sizes of the hidden layers.
        lipschitz: Bound of the Lipschitz constant of the whole, in the Euclidean norm; positive.
        activation: Makes each activation, whose slopes must lie in [-1, 1].
        n_power_iterations: Of every call in training, at least 1.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019,
    arXiv:1811.00995, section 2.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        lipschitz: float = 0.9,
        activation: Activation = LipSwish,
        n_power_iterations: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden, out_features]
        _check("LipschitzMLP", sizes, lipschitz)
        self.lipschitz = lipschitz
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = [nn.Linear(n_in, n_out, **factory) for n_in, n_out in itertools.pairwise(sizes)]
        coefficient = _start(layers, lipschitz)
        for layer in layers:
            spectral_norm(layer, n_power_iterations=n_power_iterations, coefficient=coefficient)
        self.layers = _with_activations(layers, activation, factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_features)`` to ``(B, out_features)``."""
        return self.layers(x)


class LipschitzConvNet(nn.Module):
    r"""Convolutions of images of one size with a Lipschitz constant of at most ``lipschitz``.

    Each of its n layers has its norm, as a map of whole images, bounded by ``lipschitz`` to the
    power 1 / n: see :func:`flowops.nn.utils.conv_spectral_norm`. The last layer begins at zero.
    Torch copies parametrized modules, but pickles their state dicts alone.

    Args:
        channels: In and out.
        input_size: Height and width of the images.
        hidden: Channels of the hidden maps.
        kernel_sizes: Sizes of the square kernels, odd, one a layer.
        lipschitz: Bound of the Lipschitz constant of the whole, in the Euclidean norm; positive.
        activation: Makes each activation, whose slopes must lie in [-1, 1].
        n_power_iterations: Of every call in training, at least 1.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019,
    arXiv:1811.00995, section 2.1 and appendix D.
    """

    def __init__(
        self,
        channels: int,
        input_size: tuple[int, int],
        *,
        hidden: int = 512,
        kernel_sizes: Sequence[int] = (3, 1, 3),
        lipschitz: float = 0.9,
        activation: Activation = LipSwish,
        n_power_iterations: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = [channels, *[hidden] * (len(kernel_sizes) - 1), channels]
        _check("LipschitzConvNet", sizes, lipschitz)
        if not kernel_sizes or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"LipschitzConvNet: kernel_sizes must be odd numbers, got {tuple(kernel_sizes)}"
            )
        self.lipschitz = lipschitz
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = [
            nn.Conv2d(n_in, n_out, k, padding=k // 2, **factory)
            for (n_in, n_out), k in zip(itertools.pairwise(sizes), kernel_sizes, strict=True)
        ]
        coefficient = _start(layers, lipschitz)
        for layer in layers:
            conv_spectral_norm(
                layer, input_size, coefficient=coefficient, n_power_iterations=n_power_iterations
            )
        self.layers = _with_activations(layers, activation, factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape."""
        return self.layers(x)


@torch.no_grad()
def lipschitz_constant(network: nn.Module) -> float:
    r"""Return the product of the norms of all layers whose weight has a spectral norm, as they are.

    An upper bound of the Lipschitz constant of a chain of such layers and of activations with
    slopes in [-1, 1]: for logs, and to check what :class:`InvertibleResidual` was promised after
    training, where a few power iterations a step may lag behind the weights. Norms of matrices are
    exact, those of convolutions as exact as a power iteration of relative tolerance 1e-6. Nothing
    is changed.

    Args:
        network: Such as :class:`LipschitzMLP` or :class:`LipschitzConvNet`.

    Raises:
        ValueError: If no layer of it has a spectral norm.
    """
    norms = [_norm(weight) for weight in _normalised(network)]
    if not norms:
        raise ValueError(
            f"lipschitz_constant: network must have layers with a spectral norm, got {network}"
        )
    return math.prod(norms)


def settle_spectral_norms(network: nn.Module) -> None:
    """Let the vectors of all spectral norms catch up with the weights.

    A few power iterations a step underestimate norms, by some per cent while weights move fast.
    After this :func:`lipschitz_constant` is what was asked for, until the weights move again.
    :class:`InvertibleResidual` does so whenever it leaves training mode.

    Args:
        network: Layers without a spectral norm stay as they are.

    Cost:
        The singular values of each matrix, and up to 2000 power iterations of each convolution.
    """
    for weight in _normalised(network):
        norm: Any = weight[0]
        norm.settle(weight.original)


def _normalised(network: nn.Module) -> Iterator[parametrize.ParametrizationList]:
    for part in network.modules():
        if isinstance(part, parametrize.ParametrizationList) and isinstance(
            part[0], (SpectralNorm, ConvSpectralNorm)
        ):
            yield part


def _norm(weight: parametrize.ParametrizationList) -> float:
    norm: Any = weight[0]
    training = norm.training
    norm.eval()  # an access must not move its vectors
    try:
        used = weight()
    finally:
        norm.train(training)
    if isinstance(norm, ConvSpectralNorm):
        return norm.measured(used).item()
    return torch.linalg.matrix_norm(used.movedim(norm.dim, 0).flatten(1), 2).item()


def _check(name: str, sizes: Sequence[int], lipschitz: float) -> None:
    if min(sizes) < 1:
        raise ValueError(f"{name}: sizes must be at least 1, got {tuple(sizes)}")
    if not lipschitz > 0:
        raise ValueError(f"{name}: lipschitz must be positive, got {lipschitz}")


def _start(layers: Sequence[nn.Linear | nn.Conv2d], lipschitz: float) -> float:
    """Set the last layer to zero; return the bound of each layer's norm."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return lipschitz ** (1 / len(layers))


def _with_activations(
    layers: Sequence[nn.Module], activation: Activation, factory: dict[str, Any]
) -> nn.Sequential:
    between = [activation().to(**factory) for _ in layers[1:]]
    rest = itertools.chain.from_iterable(zip(between, layers[1:], strict=True))
    return nn.Sequential(layers[0], *rest)
