"""FrEIA's actnorm and fixed 1x1 convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowops import ops
from flowops.compat.freia.base import Dims, InvertibleModule, Result


class ActNorm(InvertibleModule):
    r"""Scale and shift of channels, :math:`e^s x + b`.

    The first batch sets them, to mean 0 and deviation 1. Parameters have the names of FrEIA 0.2,
    ``scale`` (s) and ``bias``; checkpoints of what came after it, with ``log_scale`` and ``loc``,
    load too. A state dict ends the initialisation.

    Args:
        dims_in: Shape of a sample, (C, \*S), in a list.
        dims_c: Not used.
        init_data: A batch to begin from, instead of the first one that comes.

    Raises:
        ValueError: If a batch has other channels, or a channel of the first one does not vary.

    Source:
        Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039, section 3.1.
    """

    scale: Tensor
    bias: Tensor
    # Of objects of FrEIA after 0.2.
    log_scale: Tensor
    loc: Tensor
    is_initialized: Tensor

    def __init__(
        self, dims_in: Dims, dims_c: Dims | None = None, init_data: Tensor | None = None
    ) -> None:
        super().__init__(dims_in, dims_c)
        channels, *pixels = self.dims_in[0]
        for name in ("scale", "bias"):
            zeros = torch.zeros(1, channels, *[1] * len(pixels))
            self.register_parameter(name, nn.Parameter(zeros))
        self.init_on_next_batch = True
        if init_data is not None:
            self._initialize(init_data)

    def forward(self, x: Sequence[Tensor], rev: bool = False, jac: bool = True) -> Result:
        """See :mod:`flowops.compat.freia`."""
        data = x[0]
        if not self._is_initialized():
            self._initialize(data)
        if hasattr(self, "log_scale"):  # after 0.2: (x - loc) / e^log_scale
            op = ops.actnorm_inverse if rev else ops.actnorm
            moved, logdet = op(data, -self.loc.flatten(), -self.log_scale.flatten())
            logdet = logdet[:1]  # one for all samples, as there
        else:
            op = ops.actnorm if rev else ops.actnorm_inverse
            moved, logdet = op(data, -self.bias.flatten(), -self.scale.flatten())
        return (moved,), logdet

    def _is_initialized(self) -> bool:
        after: Any = getattr(self, "is_initialized", None)
        return not self.init_on_next_batch if after is None else bool(after)

    @torch.no_grad()
    def _initialize(self, batch: Tensor) -> None:
        over = [0, *range(2, batch.dim())]
        std, mean = torch.std_mean(batch, over)
        if not bool((std > 0).all()):
            raise ValueError("ActNorm: the first batch must vary in every channel, got a constant")
        if hasattr(self, "log_scale"):
            self.log_scale.copy_(std.log().view_as(self.log_scale))
            self.loc.copy_(mean.view_as(self.loc))
            self.is_initialized.fill_(True)
        else:
            self.scale.copy_(-std.log().view_as(self.scale))
            self.bias.copy_(-(mean / std).view_as(self.bias))
            self.init_on_next_batch = False

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Take the names of either FrEIA."""
        keys = [prefix + name for name in ("log_scale", "loc")]
        if not hasattr(self, "log_scale"):
            self.init_on_next_batch = False
            if keys[0] in state_dict:
                log_scale, loc = (state_dict.pop(key) for key in keys)
                state_dict.pop(prefix + "is_initialized", None)
                state_dict[prefix + "scale"] = -log_scale
                state_dict[prefix + "bias"] = -loc * torch.exp(-log_scale)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Fixed1x1Conv(InvertibleModule):
    """Product of the channels of each pixel with a matrix that is not learned.

    The log-Jacobian has dimension 0.

    Args:
        dims_in: Shape of a sample, (C, H, W), in a list.
        dims_c: Not used.
        M: Invertible, (C, C); a pixel, as a row, is multiplied by it.

    Raises:
        ValueError: If ``M`` is missing or not square.
    """

    M: Tensor
    M_inv: Tensor

    def __init__(self, dims_in: Dims, dims_c: Dims | None = None, M: Tensor | None = None) -> None:
        super().__init__(dims_in, dims_c)
        channels = self.dims_in[0][0]
        if M is None or M.shape != (channels, channels):
            got = None if M is None else list(M.shape)
            raise ValueError(f"Fixed1x1Conv: M must have shape [{channels}, {channels}], got {got}")
        columns = M.t()
        for name, matrix in (("M", columns), ("M_inv", columns.inverse())):
            whole = matrix.reshape(channels, channels, 1, 1)
            self.register_parameter(name, nn.Parameter(whole, requires_grad=False))
        self.logDetM = nn.Parameter(torch.linalg.slogdet(M)[1], requires_grad=False)

    def forward(self, x: Sequence[Tensor], rev: bool = False, jac: bool = True) -> Result:
        """See :mod:`flowops.compat.freia`."""
        weight = (self.M_inv if rev else self.M).flatten(1)
        logdet = self.logDetM * math.prod(x[0].shape[2:])
        return (ops.invertible_conv1x1(x[0], weight),), -logdet if rev else logdet
