"""Modules that know where they are without a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Placed(nn.Module):
    """Base of modules that draw noise: it says on what device and in what dtype."""

    _like: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Follows ``.to()``, also where there is no parameter.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which noise is drawn; it follows ``.to()``."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """The device on which noise is drawn; it follows ``.to()``."""
        return self._like.device
