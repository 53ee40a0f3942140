"""torch.compile with inductor: one graph for every batch size, no copies of a model's weights."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_fw_bw_and_get_code

from flowops.nn import ActNorm, InvertibleConv1x1
from flowops.nn.base import Bijector
from flowops.nn.utils import spectral_norm_model
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


@pytest.mark.slow
def test_spectral_norm_takes_and_gives_the_layout_of_compiled_convolutions() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).double()
    spectral_norm_model(model)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True)
    with torch._inductor.config.patch(force_disable_caches=True):
        _, codes = run_fw_bw_and_get_code(lambda: compiled(x).square())
    twin(x).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    # Weights of the strides of eager mode would be copied before and after each call.
    for op, code in zip(("spectral_norm", "spectral_norm_backward"), codes, strict=True):
        call = rf"'torch.ops.flowops.{op}.default'"
        given = re.findall(rf"\(\d+, \d+, 3, 3\), \((\d+), (\d+), \d+, \d+\), {call}", code)
        assert [channel_stride for _, channel_stride in given] == ["1", "1"]
