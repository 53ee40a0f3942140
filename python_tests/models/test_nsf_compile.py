"""Neural spline flows and their layers under torch.compile: one graph for every batch size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from flowops.models import build
from flowops.nn import AutoregressiveSpline, GlowConvNet, RationalQuadraticSpline, ResidualMLP
from flowops.testing import randomize_

LAYERS = {
    "halves": (lambda: RationalQuadraticSpline(4, ResidualMLP(2, 2 * 23, hidden=8)), (4,)),
    "images": (lambda: RationalQuadraticSpline(4, GlowConvNet(2, 2 * 23, hidden=8)), (4, 3, 5)),
    "mask": (
        lambda: RationalQuadraticSpline(
            4, ResidualMLP(4, 4 * 23, hidden=8), mask=torch.tensor([True, False, True, False])
        ),
        (4,),
    ),
    "autoregressive": (lambda: AutoregressiveSpline(4, hidden=8, passes=3), (4,)),
}


class Loss(nn.Module):
    """A layer or flow between operations that the compiler writes itself."""

    def __init__(self, net: nn.Module, method: str) -> None:
        super().__init__()
        self.net = net
        self.method = method

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        out = getattr(self.net, self.method)(x.tanh(), context)
        z, logdet = out if isinstance(out, tuple) else (x.new_zeros(1, 1), out)
        return (z.square().flatten(1).sum(1) + logdet).sin()


def check_one_graph(module: Loss, backend: str, shape: tuple[int, ...], context: int = 0) -> None:
    """Compiled and eager agree, gradients too, for three batch sizes from one graph."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for batch in (3, 5, 8):
        x = torch.randn(batch, *shape, dtype=torch.float64).requires_grad_()
        given = [torch.randn(batch, context, dtype=torch.float64)] if context else []
        for tensor in (x, *given):
            torch._dynamo.mark_dynamic(tensor, 0)
        leaves = [x, *module.parameters()]
        results = []
        for call in (compiled, module):
            loss = call(x, *given)
            results.append([loss, *torch.autograd.grad(loss.sum(), leaves)])
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1


def flow(kind: str, **options: object) -> Loss:
    model = build("nsf", (5,), preprocess="none", transforms=2, hidden=8, kind=kind, **options)
    return Loss(randomize_(model.double()), "log_prob")


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_flows_trace_whole(kind: str) -> None:
    check_one_graph(flow(kind, context_features=3), "aot_eager", (5,), context=3)


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["lu", "permutation"])
@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_flows_compile_with_inductor(kind: str, mixing: str) -> None:
    check_one_graph(flow(kind, mixing=mixing), "inductor", (5,))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_with_inductor(name: str, method: str) -> None:
    make, shape = LAYERS[name]
    check_one_graph(Loss(randomize_(make()).double(), method), "inductor", shape)
