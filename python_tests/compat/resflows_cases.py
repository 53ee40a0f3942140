"""What the comparisons with resflows share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

DTYPES = [torch.float64, torch.float32]


def peers() -> Any:
    homes = [pytest.importorskip(f"resflows.layers{place}") for place in ("", ".base")]
    return SimpleNamespace(**vars(homes[0]) | vars(homes[1]))


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002


def evaluate(layer: nn.Module, x: Tensor, *start: Tensor, inverse: bool = False) -> dict[str, Any]:
    """Outputs and gradients; the log-determinants alike weighed, as resflows has to have them."""
    seed(9)
    leaves = [t.clone().requires_grad_() for t in (x, *start)]
    layer.zero_grad()
    # The block asks its input for a gradient, in place.
    out = (layer.inverse if inverse else layer)(*[t * 1 for t in leaves])  # type: ignore[operator]
    y, *total = out if isinstance(out, tuple) else (out,)
    loss = (y * torch.linspace(-1, 2, y.numel()).to(y).view_as(y)).sum()
    for value in total:
        loss = loss + 0.7 * value.sum()
    loss.backward()
    found: dict[str, Any] = {f"out {i}": t.detach() for i, t in enumerate((y, *total))}
    found |= {f"in {i}": t.grad for i, t in enumerate(leaves)}
    return found | {name: _or_zero(p) for name, p in layer.named_parameters()}


def _or_zero(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def assert_same(mine: Any, theirs: Any, dtype: torch.dtype, tolerance: float = 1e-11) -> None:
    limit = tolerance if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(mine, theirs, rtol=limit, atol=limit)


def conditioner(channels: int, params: int, *, image: bool) -> nn.Module:
    if image:
        return nn.Sequential(
            nn.Conv2d(channels, 5, 3, padding=1), nn.ELU(), nn.Conv2d(5, params, 1)
        )
    return nn.Sequential(nn.Linear(channels, 5), nn.ELU(), nn.Linear(5, params))


COUPLINGS: dict[str, tuple[str, int, tuple[int, ...], dict[str, Any]]] = {
    "vectors": ("CouplingBlock", 6, (), {}),
    "swapped": ("CouplingBlock", 2, (), {"swap": True}),
    "images": ("CouplingBlock", 4, (3, 5), {}),
    "channel0": ("ChannelCouplingBlock", 4, (2, 3), {"mask_type": "channel0"}),
    "channel1": ("ChannelCouplingBlock", 6, (3, 1), {"mask_type": "channel1"}),
    "checkerboard0": ("MaskedCouplingBlock", 3, (4, 5), {"mask_type": "checkerboard0"}),
    "checkerboard1": ("MaskedCouplingBlock", 1, (3, 3), {"mask_type": "checkerboard1"}),
    "masked_channel0": ("MaskedCouplingBlock", 4, (2, 3), {"mask_type": "channel0"}),
    "masked_channel1": ("MaskedCouplingBlock", 2, (1, 3), {"mask_type": "channel1"}),
    "unmasked": ("MaskedCouplingBlock", 2, (3, 3), {"mask_type": None}),
}


def make_coupling(home: Any, case: str) -> Any:
    kind, dim, size, options = COUPLINGS[case]
    seed(2)
    masked = kind == "MaskedCouplingBlock"
    net = conditioner(dim if masked else dim // 2, 2 * dim if masked else dim, image=bool(size))
    return getattr(home, kind)(dim, net, **options)
