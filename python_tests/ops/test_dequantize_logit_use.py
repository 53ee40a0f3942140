"""dequantize_logit in use: generators, checkpoints, compile, transforms, autocast, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.cases import saved_bytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import flowops
from flowops import ops
from flowops.testing import assert_close


def test_generators_and_keys(device: torch.device) -> None:
    values = torch.zeros(4, 6, dtype=torch.uint8, device=device)

    def draw(**options: Any) -> Tensor:
        return ops.dequantize_logit(values, 256, alpha=0.05, **options)[0]

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    seeded = [draw(generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="dequantize_logit: generator must be None where a key"):
        draw(key=ops.random_key(device=device), generator=torch.Generator())


def test_backward_keeps_the_key_and_not_the_noise(device: torch.device) -> None:
    x = torch.zeros(4, 600, device=device, requires_grad=True)
    assert saved_bytes(lambda: ops.dequantize_logit(x, 256, alpha=0.05), x) == 16


def test_checkpoint_draws_the_same_again(device: torch.device) -> None:
    x = torch.rand(4, 6, device=device, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        z, logdet = ops.dequantize_logit(x.sin(), 4, alpha=0.05)
        return z.square().sum() + logdet.sum()

    torch.manual_seed(5)
    (plain,) = torch.autograd.grad(step(x), x)
    torch.manual_seed(5)
    loss = checkpoint(step, x, use_reentrant=False)
    flowops.rand(10, device=device)
    assert torch.equal(torch.autograd.grad(loss, x)[0], plain)


def test_compiles_whole_with_a_dynamic_batch(device: torch.device) -> None:
    def step(values: Tensor, x: Tensor) -> Tensor:
        z, logdet = ops.dequantize_logit(values, 256, alpha=0.05)
        z, logdet = ops.logit(torch.sigmoid(z + x), alpha=0.05, logdet=logdet)
        return z.sum() + logdet.sum() + flowops.rand(z.size(0), device=z.device).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        values = torch.randint(0, 256, (batch, 6), dtype=torch.uint8, device=device)
        x = torch.randn(batch, 6, device=device, requires_grad=True)
        torch.manual_seed(batch)
        got = torch.autograd.grad(compiled(values, x), x)
        torch.manual_seed(batch)
        want = torch.autograd.grad(step(values, x), x)
        assert torch.equal(got[0], want[0])


def test_opcheck(device: torch.device) -> None:
    key = ops.random_key(device=device)
    x = torch.rand(2, 3, 4, device=device, requires_grad=True)
    last = torch.rand(2, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
    logdet = torch.randn(2, device=device, requires_grad=True)
    op, backward = torch.ops.flowops.dequantize_logit, torch.ops.flowops.dequantize_logit_backward
    for given, noise, inverse in ((x, None, False), (x, key, False), (x, None, True)):
        torch.library.opcheck(op, (given, noise, logdet, 17, 0.05, inverse))
        grads = torch.randn(2, 3, 4, device=device), torch.randn(2, device=device)
        torch.library.opcheck(backward, (*grads, given.detach(), noise, 17, 0.05, inverse))
    torch.library.opcheck(op, (last[:, :4], key, None, 17, 0.05, False))
    torch.library.opcheck(op, (last.mul(255).byte()[:, :4], key, None, 256, 0.05, False))
    torch.library.opcheck(torch.ops.flowops.uniform_noise, (key, [3, 5], torch.float64))


def test_transforms_take_the_reference(device: torch.device) -> None:
    x = torch.rand(3, 4, dtype=torch.float64, device=device)
    key = ops.random_key(device=device)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = ops.dequantize_logit(x, 2, alpha=0.05, key=key)
        back, total = ops.logit_inverse(z, alpha=0.05, levels=2, logdet=logdet)
        return back, total

    assert_close(run(x)[1], torch.zeros(3), dtype=torch.float64, factor=10)
    grad = torch.func.grad(lambda t: run(t)[0].sum())(x)
    assert_close(grad, torch.ones_like(x), dtype=torch.float64, factor=10)
    value, tangent = torch.func.jvp(lambda t: run(t)[0], (x,), (torch.ones_like(x),))
    assert_close(tangent, torch.ones_like(x), dtype=torch.float64, factor=10)
    assert_close(value, run(x)[0], dtype=torch.float64, factor=10)
    pixels = torch.zeros(3, 2, 4, dtype=torch.uint8, device=device)
    batched = torch.func.vmap(
        lambda v: ops.dequantize_logit(v, 256, alpha=0.05)[0], randomness="different"
    )(pixels)
    assert not torch.equal(batched[0], batched[1])


def test_autocast_keeps_float32(device: torch.device) -> None:
    x = torch.rand(2, 3, device=device).bfloat16()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, logdet = ops.logit(x, alpha=0.05)
    assert z.dtype == logdet.dtype == torch.float32


X, BYTES = torch.rand(2, 4, 3), torch.zeros(2, 4, 3, dtype=torch.uint8)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"values": torch.rand(3)},
        r"x must have shape \(batch, channels, \.\.\.\), got \[3\]",
    ),
    "shape_of_bytes": ({"values": BYTES[0, 0]}, r"x must have shape \(batch, .*got \[3\]"),
    "levels": ({"levels": 0}, "levels must be 1 to 65536, got 0"),
    "many_levels": ({"levels": 65537}, "levels must be 1 to 65536, got 65537"),
    "alpha": ({"alpha": 0.5}, r"alpha must be in \(0, 0.5\), got 0.5"),
    "no_alpha": ({"alpha": 0.0}, r"alpha must be in \(0, 0.5\), got 0"),
    "logdet": ({"logdet": torch.zeros(3)}, r"logdet must have shape \[2\] .*got \[3\]"),
    "logdet_dtype": ({"logdet": torch.zeros(2).double()}, "logdet must be Float, got Double"),
    "key": ({"key": torch.tensor([1])}, r"key must be two int64 .*got Long of shape \[1\]"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {"values": X, "levels": 256, "alpha": 0.05, "key": torch.tensor([1, 2])} | changed
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="dequantize_logit: " + message),
    ):
        ops.dequantize_logit(**arguments)


def test_the_op_itself_checks_the_inverse(device: torch.device) -> None:
    op, backward = torch.ops.flowops.dequantize_logit, torch.ops.flowops.dequantize_logit_backward
    x, key = X.to(device), torch.tensor([1, 2], device=device)
    with pytest.raises(ValueError, match="key must be None for the inverse, got one"):
        op(x, key, None, 256, 0.05, True)
    with pytest.raises(ValueError, match="x must be floating for the inverse, got Byte"):
        op(BYTES.to(device), None, None, 256, 0.05, True)
    with pytest.raises(ValueError, match=r"grad_z must have shape \[2, 4, 3\]"):
        backward(x[0], x[:, 0, 0], x, None, 256, 0.05, False)
    with pytest.raises(ValueError, match=r"grad_logdet must have shape \[2\]"):
        backward(x, x, x, None, 256, 0.05, False)
    with pytest.raises(ValueError, match="rand: dtype must be float64 or float32, got Half"):
        flowops.rand(2, dtype=torch.float16, device=device)
