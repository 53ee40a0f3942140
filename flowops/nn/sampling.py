"""Reparameterised sampling as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.ops._dispatch import index_of
from flowops.ops.gaussian_rsample import FORMS


class GaussianRsample(nn.Module):
    r"""Draw from the diagonal Gaussians that an encoder gave, with their KL divergence.

    See :func:`flowops.ops.gaussian_rsample_kl`. The layer takes what a network gives: dimension 1
    holds the means, then the raw scales, and is read in place. It draws in evaluation mode too; a
    deterministic code is the mean itself, ``params.chunk(2, 1)[0]``.

    Args:
        form: how the raw scale gives the standard deviation: "logvar", "log_std", "std" or
            "softplus".
        residual: NVAE's form, posteriors relative to the prior, which ``forward`` then needs.

    Raises:
        ValueError: if ``form`` is none of these, or an input does not fit.

    Example:
        >>> layer = GaussianRsample()
        >>> z, kl = layer(torch.zeros(8, 6))
        >>> z.shape, kl
        (torch.Size([8, 3]), tensor([0., 0., 0., 0., 0., 0., 0., 0.]))
    """

    def __init__(self, *, form: str = "logvar", residual: bool = False) -> None:
        super().__init__()
        index_of("GaussianRsample", "form", form, FORMS)
        self.form = form
        self.residual = residual

    def forward(
        self,
        params: Tensor,
        prior: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sample and the KL divergence from the prior.

        Args:
            params: means and raw scales, ``(B, 2 C, *S)``.
            prior: those of the prior, like ``params``; None for N(0, I).
            generator: where the noise is drawn from.

        Returns:
            ``(B, C, *S)`` and nats ``(B,)``, float32 or wider.
        """
        _check("params", params)
        given = None
        if prior is not None:
            _check("prior", prior)
            prior_mean, prior_scale = prior.chunk(2, 1)
            given = prior_mean, prior_scale
        return ops.gaussian_rsample_kl(
            params=params, form=self.form, prior=given, residual=self.residual, generator=generator
        )

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"form={self.form!r}, residual={self.residual}"


def _check(name: str, params: Tensor) -> None:
    if params.dim() < 2 or params.size(1) % 2:
        raise ValueError(
            f"GaussianRsample: {name} must have shape (batch, 2 channels, ...), "
            f"got {list(params.shape)}"
        )
