"""Spectral normalisation as a parametrization, one layer or all of a model at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from flowops import ops
from flowops.ops._dispatch import accumulation_dtype

ModuleType = TypeVar("ModuleType", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
# Power iterations when the vectors are drawn, as many as torch's parametrization runs.
_FIRST_ITERATIONS = 15


class SpectralNorm(nn.Module):
    r"""Parametrization that divides a weight by its largest singular value.

    See :func:`flowops.ops.spectral_norm` for the formula. In training every access of the weight
    runs the power iteration and writes the new vectors into the buffers ``_u`` and ``_v``; in
    evaluation they are used as they are. The vectors that the backward pass needs are not the
    buffers, so that any number of forward passes may come before it.

    Args:
        weight: The weight that is to be normalised; gives shape, dtype and device, and the vectors
            are fitted to it.
        n_power_iterations: Iterations an access in training, at least 1.
        dim: Dimension of the weight that becomes the rows of the matrix.
        eps: See :func:`flowops.ops.spectral_norm`.
        coefficient: See :func:`flowops.ops.spectral_norm`; None divides by the singular value.

    Raises:
        IndexError: If ``weight`` has no dimension ``dim``.
        ValueError: If an argument is out of its range.
    """

    _u: Tensor
    _v: Tensor

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        *,
        coefficient: float | None = None,
    ) -> None:
        super().__init__()
        if not -weight.dim() <= dim < weight.dim():
            raise IndexError(
                f"SpectralNorm: dim must be from {-weight.dim()} to {weight.dim() - 1}, got {dim}"
            )
        if n_power_iterations < 1:
            raise ValueError(
                f"SpectralNorm: n_power_iterations must be at least 1, got {n_power_iterations}"
            )
        if coefficient is not None and not coefficient > 0:
            raise ValueError(f"SpectralNorm: coefficient must be positive, got {coefficient}")
        self.n_power_iterations = n_power_iterations
        self.dim = dim % weight.dim()
        self.eps = eps
        self.coefficient = coefficient
        self._prepared: Tensor | None = None
        if weight.dim() > 1:
            matrix = weight.detach().movedim(self.dim, 0)
            for name, size in (("_u", len(matrix)), ("_v", matrix[0].numel())):
                vector = matrix.new_empty(size).normal_(0, 1)
                self.register_buffer(name, functional.normalize(vector, dim=0, eps=eps))
            _, (u,), (v,), _ = ops.spectral_norm(
                [matrix], [self._u], [self._v], n_power_iterations=_FIRST_ITERATIONS, eps=eps
            )
            self._u.copy_(u)
            self._v.copy_(v)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the normalised weight; ``weight`` is the parameter."""
        if self._prepared is not None:
            return self._prepared
        if weight.dim() == 1:
            if self.coefficient is None:
                return functional.normalize(weight, dim=0, eps=self.eps)
            norm = torch.linalg.vector_norm(weight)
            return weight / (norm / self.coefficient).clamp(min=1)
        return _normalize([self], [weight])[0]

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Set the vectors to the singular ones of the parameter ``weight``."""
        if weight.dim() > 1:
            matrix = weight.movedim(self.dim, 0).flatten(1)
            u, _, v = torch.linalg.svd(
                matrix.to(accumulation_dtype(matrix.dtype)), full_matrices=False
            )
            self._u.copy_(u[:, 0])
            self._v.copy_(v[0])

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return the parameter for an assigned weight: the weight itself."""
        return value

    def extra_repr(self) -> str:
        """Show the settings."""
        shown = f"n_power_iterations={self.n_power_iterations}, dim={self.dim}, eps={self.eps}"
        return shown if self.coefficient is None else f"{shown}, coefficient={self.coefficient}"


def spectral_norm(
    module: ModuleType,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    coefficient: float | None = None,
) -> ModuleType:
    r"""Normalise a parameter of a module by its largest singular value, in place.

    A drop-in for :func:`torch.nn.utils.parametrizations.spectral_norm`: the same arguments, the
    same names in the state dict (``parametrizations.weight.original``, ``.0._u``, ``.0._v``), the
    same values for the same seed. State dicts of the older :func:`torch.nn.utils.spectral_norm`
    (``weight_orig``, ``weight_u``, ``weight_v``) load too.

    Args:
        module: The module.
        name: The parameter.
        n_power_iterations: Iterations an access in training, at least 1.
        eps: See :func:`flowops.ops.spectral_norm`.
        dim: Dimension of the outputs: 0, and 1 for transposed convolutions, unless given.
        coefficient: Bound of the norm, :math:`W / \max(1, \sigma / c)`; None divides by
            :math:`\sigma`. Both are norms of the matrix, which a convolution itself can exceed.

    Returns:
        The module.

    Raises:
        ValueError: If the module has no such parameter, or an argument is out of its range.

    Example:
        >>> layer = spectral_norm(torch.nn.Linear(4, 3))
        >>> list(layer.parametrizations.weight.state_dict())
        ['original', '0._u', '0._v']
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"spectral_norm: module must have a parameter {name!r}, got {module}")
    if dim is None:
        dim = 1 if isinstance(module, _TRANSPOSED) else 0
    norm = SpectralNorm(weight, n_power_iterations, dim, eps, coefficient=coefficient)
    parametrize.register_parametrization(module, name, norm)
    module.register_load_state_dict_pre_hook(partial(_rename_hook_keys, name))
    return module


def spectral_norm_model(
    model: ModuleType,
    *,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    coefficient: float | None = None,
    types: tuple[type[nn.Module], ...] = _LAYERS,
) -> ModuleType:
    r"""Normalise the weights of all layers of a model, in place, in one call a forward pass.

    :func:`spectral_norm` on every layer of ``types`` that does not have it yet. When the model is
    called, the weights of all layers with a :class:`SpectralNorm` are normalised together by
    :func:`flowops.ops.spectral_norm`, and each layer uses its own until the call ends. A layer that
    is called without the model normalises its own weight, as ever. A layer that is called several
    times in one pass then uses one weight, where it alone would iterate each time.

    Args:
        model: The model.
        n_power_iterations: Iterations a call in training, at least 1.
        eps: See :func:`flowops.ops.spectral_norm`.
        coefficient: See :func:`flowops.ops.spectral_norm`.
        types: The classes of layers whose ``weight`` is normalised.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        if isinstance(module, types) and not parametrize.is_parametrized(module, "weight"):
            spectral_norm(
                module,
                n_power_iterations=n_power_iterations,
                eps=eps,
                coefficient=coefficient,
            )
    model.register_forward_pre_hook(_prepare)
    model.register_forward_hook(_forget, always_call=True)
    return model


def _normalize(norms: list[SpectralNorm], weights: list[Tensor]) -> list[Tensor]:
    """The weights of layers of one kind; moves the vectors of those in training."""
    first = norms[0]
    matrices = [w.movedim(n.dim, 0) if n.dim else w for n, w in zip(norms, weights, strict=True)]
    results, new_u, new_v, _ = ops.spectral_norm(
        matrices,
        [n._u for n in norms],
        [n._v for n in norms],
        n_power_iterations=first.n_power_iterations if first.training else 0,
        eps=first.eps,
        coefficient=first.coefficient,
    )
    if first.training:
        with torch.no_grad():
            vectors = [n._u for n in norms] + [n._v for n in norms]
            torch._foreach_copy_(vectors, new_u + new_v)  # pyright: ignore[reportPrivateImportUsage]
    return [r.movedim(0, n.dim) if n.dim else r for n, r in zip(norms, results, strict=True)]


def _layers(model: nn.Module) -> Iterable[tuple[SpectralNorm, Tensor]]:
    """The norms of all parameters that have one before any other parametrization."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            norm, weight = module[0], module.original
            if isinstance(norm, SpectralNorm) and weight.dim() > 1:
                yield norm, weight


def _prepare(model: nn.Module, arguments: object) -> None:
    groups: dict[Any, tuple[list[SpectralNorm], list[Tensor]]] = {}
    for norm, weight in _layers(model):
        key = (norm.n_power_iterations, norm.eps, norm.coefficient, norm.training)
        norms, weights = groups.setdefault((*key, weight.dtype, weight.device), ([], []))
        norms.append(norm)
        weights.append(weight)
    for norms, weights in groups.values():
        for norm, result in zip(norms, _normalize(norms, weights), strict=True):
            norm._prepared = result


def _forget(model: nn.Module, arguments: object, output: object) -> None:
    for norm, _ in _layers(model):
        norm._prepared = None


def _rename_hook_keys(
    name: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: object
) -> None:
    """Give the keys of torch's older form the names of the newer one."""
    target = f"{prefix}parametrizations.{name}."
    names: Mapping[str, str] = {"orig": "original", "u": "0._u", "v": "0._v"}
    for old, new in names.items():
        key = f"{prefix}{name}_{old}"
        if key in state_dict:
            state_dict[target + new] = state_dict.pop(key)
