"""torch.compile with inductor: one graph for every batch size, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from flowops.nn import ActNorm, InvertibleConv1x1
from flowops.nn.base import Bijector
from flowops.testing import randomize_

LAYERS = {
    "actnorm": lambda: ActNorm(4, log_scale_factor=3.0),
    "conv1x1-lu": lambda: InvertibleConv1x1(4),
    "conv1x1-full": lambda: InvertibleConv1x1(4, parameterization="full"),
}


class Loss(nn.Module):
    """The layer between operations that inductor writes itself, so that strides meet."""

    def __init__(self, layer: Bijector, *, inverse: bool) -> None:
        super().__init__()
        self.layer = layer
        self.inverse = inverse

    def forward(self, x: Tensor) -> Tensor:
        z, logdet = (self.layer.inverse if self.inverse else self.layer)(x.tanh())
        return (z.square().flatten(1).sum(1) + logdet).sin()


def _loss_and_gradients(module: nn.Module, net: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    torch._dynamo.mark_dynamic(leaf, 0)
    loss = module(leaf)
    return [loss, *torch.autograd.grad(loss.sum(), [leaf, *net.parameters()])]


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_graph_for_every_batch_size(
    name: str, inverse: bool, memory_format: torch.memory_format
) -> None:
    torch._dynamo.reset()
    net = Loss(randomize_(LAYERS[name]()), inverse=inverse).double()
    backend = CompileCounterWithBackend("inductor")
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for batch in (3, 5, 8):
        x = torch.randn(batch, 4, 6, 6, dtype=torch.float64).contiguous(memory_format=memory_format)
        expected = _loss_and_gradients(net, net, x)
        torch.testing.assert_close(_loss_and_gradients(compiled, net, x), expected)
    assert backend.frame_count == 1
