"""PyTorch's own spectral normalisation, in both its forms, on flowops kernels.

:func:`spectral_norm` and :func:`spectral_norm_model` are those of :mod:`flowops.nn.utils`: with the
arguments and keys of ``torch.nn.utils.parametrizations.spectral_norm``, and reading the keys of the
older ``torch.nn.utils.spectral_norm``. :func:`flowops.accelerate` takes over layers that already
have either.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat._twins import Twin, TwinBase
from flowops.nn.utils import SpectralNorm, spectral_norm, spectral_norm_model

__all__ = ["spectral_norm", "spectral_norm_model"]

_COMPLEX = "its weight is complex"


class _SpectralNorm(Twin, SpectralNorm):
    """Twin of the parametrization."""

    coefficient = None
    _prepared = None

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """See :class:`Twin`."""
        vector = getattr(peer, "_u", None)
        return _COMPLEX if vector is not None and vector.is_complex() else None


class _Hook(TwinBase):
    """Twin of the hook of the older form, which iterates on v before u.

    That is the newer form's iteration on the transposed matrix, u and v in each other's place.
    """

    name: str
    dim: int
    n_power_iterations: int
    eps: float

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        """Return the weight over its largest singular value; the vectors of ``module`` move."""
        weight, u, v = (getattr(module, f"{self.name}_{end}") for end in ("orig", "u", "v"))
        matrix = weight.movedim(self.dim, 0).flatten(1).t()
        (result,), (new_v,), (new_u,), _ = ops.spectral_norm(
            [matrix],
            [v],
            [u],
            n_power_iterations=self.n_power_iterations if do_power_iteration else 0,
            eps=self.eps,
        )
        if do_power_iteration:
            with torch.no_grad():
                u.copy_(new_u)
                v.copy_(new_v)
        rows = weight.movedim(self.dim, 0)
        return result.t().reshape(rows.shape).movedim(0, self.dim)


#: See :mod:`flowops.compat._twins`.
TWINS: dict[str, type[TwinBase]] = {
    "torch.nn.utils.parametrizations._SpectralNorm": _SpectralNorm,
    "torch.nn.utils.spectral_norm.SpectralNorm": _Hook,
}
