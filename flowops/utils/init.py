"""Initial values that keep norms, beyond those of ``torch.nn.init``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def delta_orthogonal_(
    weight: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Fill the weight of a convolution so that it keeps norms: orthogonal at the middle tap.

    All taps are zero but the middle one, which is ``gain`` times a matrix :math:`Q` with
    :math:`Q^T Q = I`, uniform in Haar's measure. With stride 1 and ``padding="same"`` the output is
    :math:`gain \cdot Q x` at each position, and has ``gain`` times the norm of the input.

    Linear layers and convolutions that shall keep norms on average need no function of ours: see
    ``nn.init.orthogonal_`` (whose QR has the signs that Haar's measure asks for) and
    ``nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="linear")``, variance one over
    the outputs, or ``"relu"``, twice that.

    Args:
        weight: (C_out, C_in, *K), ``C_out >= C_in`` and each extent of K odd; of a convolution
            without groups.
        gain: of the norm.
        generator: of random numbers.

    Returns:
        ``weight``.

    Raises:
        ValueError: if the shape is another.

    Source: Xiao et al., "Dynamical isometry and a mean field theory of CNNs", 2018,
    arXiv:1806.05393, section 3 (algorithm 1).
    """
    shape = list(weight.shape)
    if len(shape) < 3 or shape[0] < shape[1] or any(size % 2 == 0 for size in shape[2:]):
        raise ValueError(
            "delta_orthogonal_: weight must have shape (C_out, C_in, *K), C_out >= C_in, K odd, "
            f"got {shape}"
        )
    middle = tuple(size // 2 for size in shape[2:])
    weight.zero_()
    nn.init.orthogonal_(weight[(..., *middle)], gain, generator)
    return weight
