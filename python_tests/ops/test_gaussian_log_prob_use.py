"""gaussian_log_prob in PyTorch programs: compile, transforms, autocast, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributions import Normal

from flowops import ops
from flowops.testing import assert_close


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(x: Tensor, params: Tensor) -> Tensor:
        halves = ops.gaussian_log_prob(x, *params.chunk(2, 1))
        return (halves + ops.gaussian_log_prob(x) * ops.gaussian_log_prob(x, params=params)).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x = torch.randn(batch, 6, 4, device=device, requires_grad=True)
        params = torch.randn(batch, 12, 4, device=device, requires_grad=True)
        got = torch.autograd.grad(compiled(x, params), (x, params))
        want = torch.autograd.grad(step(x, params), (x, params))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x, mean, log_scale = torch.randn(3, 4, 6, device=device, dtype=torch.float64)
    slope = (mean - x) * (-2 * log_scale).exp()
    grad = torch.func.grad(lambda t: ops.gaussian_log_prob(t, mean, log_scale).sum())(x)
    assert_close(grad, slope, dtype=torch.float64)
    tangent = torch.func.jvp(
        lambda t: ops.gaussian_log_prob(t, mean, log_scale), (x,), (torch.ones_like(x),)
    )[1]
    assert_close(tangent, slope.sum(1), dtype=torch.float64, factor=10)
    batched = torch.func.vmap(ops.gaussian_log_prob)(x[None], mean[None], log_scale[None])
    expected = Normal(mean, log_scale.exp()).log_prob(x).sum(1)
    assert_close(batched[0], expected, dtype=torch.float64)
    params = torch.cat((mean, log_scale), 1)
    grad = torch.func.grad(lambda t: ops.gaussian_log_prob(t, params=params).sum())(x)
    assert_close(grad, slope, dtype=torch.float64)


def test_autocast_keeps_float32(device: torch.device) -> None:
    x, mean = torch.randn(2, 4, 6, device=device).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        # A net's output is 16 bits wide there, the data are not.
        total = ops.gaussian_log_prob(x.float(), mean)
    assert total.dtype == torch.float32
    expected = Normal(mean.double(), 1.0).log_prob(x.double()).sum(1)
    assert_close(total, expected, dtype=torch.float32)
    params = torch.randn(4, 12, device=device).bfloat16().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        total = ops.gaussian_log_prob(x.float(), params=params)
    mean, log_scale = params.double().chunk(2, 1)
    expected = Normal(mean, log_scale.exp()).log_prob(x.double()).sum(1)
    assert_close(total, expected, dtype=torch.float32)
    assert torch.autograd.grad(total.sum(), params)[0].dtype == torch.bfloat16


X = torch.randn(2, 4, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": torch.randn(3)}, r"x must have shape \(batch, channels, \.\.\.\), got \[3\]"),
    "dtype": ({"x": X.long()}, "x must be float64, float32, float16 or bfloat16, got Long"),
    "mean": (
        {"mean": X[:, :3]},
        r"mean must expand to shape \[2, 4, 3\] \(like x\), got \[2, 3, 3\]",
    ),
    "mean_dtype": ({"mean": X.double()}, r"mean must be Float \(like x\), got Double"),
    "log_scale": (
        {"log_scale": torch.zeros(1, 2, 4, 3)},
        r"log_scale must expand to shape \[2, 4, 3\] \(like x\), got \[1, 2, 4, 3\]",
    ),
    "log_scale_dtype": ({"log_scale": X.half()}, r"log_scale must be Float .*got Half"),
    "params": (
        {"params": X},
        r"params must have shape \[2, 8, 3\] \(means and log-scales of x\), got \[2, 4, 3\]",
    ),
    "params_batch": ({"params": torch.zeros(1, 8, 3)}, r"params must have .*got \[1, 8, 3\]"),
    "params_pixels": ({"params": torch.zeros(2, 8)}, r"params must have .*got \[2, 8\]"),
    "params_dtype": (
        {"params": torch.zeros(2, 8, 3).double()},
        r"params must be Float \(like x\), got Double",
    ),
    "params_and_mean": (
        {"params": torch.zeros(2, 8, 3), "mean": X},
        "params must be None where mean or log_scale is given, got a tensor",
    ),
    "params_and_log_scale": (
        {"params": torch.zeros(2, 8, 3), "log_scale": X},
        "params must be None where mean or log_scale is given, got a tensor",
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {name: t.to(device) for name, t in ({"x": X} | changed).items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="gaussian_log_prob: " + message),
    ):
        ops.gaussian_log_prob(**arguments)


@pytest.mark.parametrize("case", [case for case in BAD if case.startswith("params")])
def test_bad_params_are_an_error_where_no_kernel_runs(case: str, device: torch.device) -> None:
    changed, message = BAD[case]
    message = message.replace("Float", "torch.float32").replace("Double", "torch.float64")
    arguments = {name: t.to(device) for name, t in ({"x": X} | changed).items()}
    x = arguments.pop("x")
    with pytest.raises(ValueError, match="gaussian_log_prob: " + message):
        torch.func.grad(lambda t: ops.gaussian_log_prob(t, **arguments).sum())(x)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message):
        ops.gaussian_log_prob(x, **arguments)


def test_params_of_another_device_are_an_error(device: torch.device) -> None:
    with pytest.raises(ValueError, match=f"params must be on {device}.* \\(like x\\), got meta"):
        ops.gaussian_log_prob(X.to(device), params=torch.zeros(2, 8, 3, device="meta"))


def test_the_op_itself_checks_shapes(device: torch.device) -> None:
    x = X.to(device)
    with pytest.raises(ValueError, match=r"mean must have shape \[2, 4, 3\] \(like x\), got"):
        torch.ops.flowops.gaussian_log_prob(x, x[:1], None, None)
    backward = torch.ops.flowops.gaussian_log_prob_backward
    with pytest.raises(ValueError, match=r"grad must have shape \[2\] \(one value a sample\)"):
        backward(x, x, None, None, None, True, False, False, False)
    with pytest.raises(ValueError, match="grad must be Float, got Double"):
        backward(x[:, 0, 0].double(), x, None, None, None, True, False, False, False)
