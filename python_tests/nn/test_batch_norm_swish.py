"""Batch normalisation and swish in one step against the two layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import silu

from flowops.nn import BatchNormSwish


def pair(channels: int = 5, **options: object) -> tuple[BatchNormSwish, nn.Sequential]:
    torch.manual_seed(0)
    ours = BatchNormSwish(channels, **options).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    return ours, nn.Sequential(copy.deepcopy(ours.norm), nn.SiLU())


def images(*shape: int) -> Tensor:
    return (3 * torch.randn(shape, dtype=torch.float64) + 2).requires_grad_()


@pytest.mark.parametrize("shape", [(4, 5, 3, 7), (2, 5, 1, 1), (33, 5, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_results_gradients_and_statistics_are_those_of_the_layers(
    shape: tuple[int, ...], layout: torch.memory_format, momentum: float | None
) -> None:
    ours, theirs = pair(momentum=momentum)
    for _ in range(3):
        x = images(*shape).detach().to(memory_format=layout).requires_grad_()
        weight = torch.randn(shape, dtype=torch.float64)
        results = []
        for model in (ours, theirs):
            y = model(x)
            grads = torch.autograd.grad((y * weight).sum(), [x, *model.parameters()])
            results.append([y, *grads])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    for name, value in ours.norm.state_dict().items():
        torch.testing.assert_close(value, theirs[0].state_dict()[name])
    x = images(*shape)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_gradients_of_gradients() -> None:
    ours, _ = pair(2)
    x = images(3, 2, 2, 2)
    call = lambda x, weight, bias: torch.func.functional_call(  # noqa: E731
        ours, {"norm.weight": weight, "norm.bias": bias}, (x,)
    )
    inputs = (x, *(p.detach().clone().requires_grad_() for p in ours.parameters()))
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_only_the_input_is_kept() -> None:
    ours, theirs = pair()
    x = images(8, 5, 16, 16)
    kept = []
    for model in (ours, theirs):
        sizes: dict[int, int] = {}

        def pack(value: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[value.data_ptr()] = value.nbytes
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            model(x)
        kept.append(sum(sizes.values()))
    assert kept[0] < 1.05 * x.nbytes
    assert kept[1] > 1.95 * x.nbytes


def test_tiny_variances_lose_nothing() -> None:
    ours, theirs = pair()
    ours, theirs = ours.float(), theirs.float()
    x = (1 + 1e-4 * torch.randn(16, 5, 4, 4)).requires_grad_()
    weight = torch.randn_like(x)
    grads = [torch.autograd.grad((model(x) * weight).sum(), x)[0] for model in (ours, theirs)]
    bound = 1e-3 * grads[1].abs().max().item()
    torch.testing.assert_close(*grads, rtol=1e-3, atol=bound)


def test_autocast_and_compile() -> None:
    ours, theirs = pair()
    ours, theirs = ours.float(), theirs.float()
    x = images(4, 5, 3, 3).detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(x.bfloat16()), theirs(x.bfloat16()))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), silu(theirs[0](x)), rtol=1e-4, atol=1e-5)


def test_another_normalisation_in_its_place_is_called() -> None:
    ours, _ = pair()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ours))
    assert isinstance(model[0].norm, nn.SyncBatchNorm)
    x = images(4, 5, 3, 3)
    torch.testing.assert_close(model.eval()(x), ours.eval()(x))

    class Halved(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return input / 2

    ours.train().norm = Halved(5)
    torch.testing.assert_close(ours(x), silu(x / 2))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="4D"):
        pair()[0](torch.randn(3, 5, dtype=torch.float64))
