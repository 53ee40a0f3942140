"""torch.export with a dynamic batch: the saved program answers as the module does."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from flowops.distributions import Flow
from flowops.models import build
from flowops.nn import AffineCoupling, GlowConvNet
from flowops.testing import randomize_

TRACED, SERVED = 3, 5


class LogProb(nn.Module):
    """What a server of likelihoods exports."""

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_prob(x)


def _exported(module: nn.Module, x: Tensor) -> nn.Module:
    """Export, write, read back: the file is what another process gets."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(module, (x[:TRACED],), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.parametrize("conv1x1", ["lu", "full"])
@pytest.mark.parametrize("wrap", [LogProb, lambda model: model], ids=["log_prob", "forward"])
def test_exported_glow_serves_another_batch_size(wrap: object, conv1x1: str) -> None:
    model = build("glow", (1, 8, 8), steps=2, hidden=8, conv1x1=conv1x1)
    x = torch.rand(SERVED, 1, 8, 8)
    model.initialize(x)
    module = wrap(randomize_(model))
    torch.testing.assert_close(_exported(module, x)(x), module(x))


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_exported_spline_flow_serves_another_batch_size(kind: str) -> None:
    model = build("nsf", (6,), preprocess="none", transforms=2, hidden=8, kind=kind)
    x = torch.randn(SERVED, 6)
    module = LogProb(randomize_(model))
    torch.testing.assert_close(_exported(module, x)(x), module(x))


def test_exported_coupling_serves_another_batch_size() -> None:
    layer = randomize_(AffineCoupling(4, GlowConvNet(2, 4, hidden=8)))
    x = torch.randn(SERVED, 4, 2, 2)
    torch.testing.assert_close(_exported(layer, x)(x), layer(x))
