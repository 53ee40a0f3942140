"""gaussian_rsample in PyTorch programs: generators, checkpoints, compile, transforms, errors."""

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


def leaves_of(device: torch.device, shape: tuple[int, ...] = (4, 6)) -> list[Tensor]:
    return [t.requires_grad_() for t in torch.randn(2, *shape, device=device)]


def test_manual_seed_reproduces_and_calls_differ(device: torch.device) -> None:
    mean, scale = leaves_of(device)
    torch.manual_seed(3)
    first, second = ops.gaussian_rsample(mean, scale), ops.gaussian_rsample(mean, scale)
    torch.manual_seed(3)
    assert torch.equal(first, ops.gaussian_rsample(mean, scale))
    assert torch.equal(second, ops.gaussian_rsample(mean, scale))
    assert not torch.equal(first, second)


def test_generator_is_drawn_from_and_the_default_is_not(device: torch.device) -> None:
    mean, scale = leaves_of(device)
    state = torch.get_rng_state()
    # A CPU generator serves every device, and gives the same noise on all.
    draws = []
    for seed in (7, 7, 8):
        generator = torch.Generator().manual_seed(seed)
        draws.append(ops.gaussian_rsample(mean, scale, generator=generator))
        draws.append(ops.gaussian_rsample_kl(mean, scale, generator=generator)[0])
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[4])
    assert torch.equal(state, torch.get_rng_state())
    host = [t.detach().cpu() for t in (mean, scale)]
    on_cpu = ops.gaussian_rsample(*host, generator=torch.Generator().manual_seed(7))
    assert_close(on_cpu, draws[0].cpu(), dtype=torch.float32)


def test_key_fixes_the_noise(device: torch.device) -> None:
    mean, scale = leaves_of(device)
    key = ops.random_key(device=device)
    z = ops.gaussian_rsample(mean, scale, key=key)
    assert torch.equal(z, ops.gaussian_rsample_kl(mean, scale, key=key)[0])
    expected = mean + (0.5 * scale).exp() * flowops.randn(4, 6, key=key)
    assert_close(z, expected, dtype=torch.float32)
    with pytest.raises(ValueError, match="gaussian_rsample: generator must be None where a key"):
        ops.gaussian_rsample(mean, scale, key=key, generator=torch.Generator())


def test_backward_keeps_the_key_and_not_the_noise(device: torch.device) -> None:
    mean, scale = leaves_of(device, (4, 600))
    assert saved_bytes(lambda: ops.gaussian_rsample_kl(mean, scale), mean, scale) == 16


def test_backward_twice_and_after_other_draws(device: torch.device) -> None:
    mean, scale = leaves_of(device)
    z, kl = ops.gaussian_rsample_kl(mean, scale)
    noise = ((z - mean) / (0.5 * scale).exp()).detach()
    first = torch.autograd.grad(z.sum() + kl.sum(), (mean, scale), retain_graph=True)
    flowops.randn(100, device=device)
    torch.manual_seed(99)
    second = torch.autograd.grad(z.sum() + kl.sum(), (mean, scale))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    expected = 0.5 * (0.5 * scale).exp() * noise + 0.5 * (scale.exp() - 1)
    assert_close(first[1], expected, dtype=torch.float32, factor=4)  # z - mean rounds


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_draws_the_same_again(reentrant: bool, device: torch.device) -> None:
    mean, scale = leaves_of(device)

    def step(mean: Tensor, scale: Tensor) -> Tensor:
        z, kl = ops.gaussian_rsample_kl(mean * 2, scale.sin())
        return z.square().sum() + kl.sum()

    torch.manual_seed(5)
    plain = torch.autograd.grad(step(mean, scale), (mean, scale))
    torch.manual_seed(5)
    loss = checkpoint(step, mean, scale, use_reentrant=reentrant)
    flowops.randn(10, device=device)
    loss.backward()
    assert torch.equal(plain[0], mean.grad)
    assert torch.equal(plain[1], scale.grad)


@pytest.mark.parametrize("residual", [False, True])
def test_compiles_whole_with_a_dynamic_batch(residual: bool, device: torch.device) -> None:
    def step(*inputs: Tensor) -> Tensor:
        z, kl = ops.gaussian_rsample_kl(*inputs[:2], prior=inputs[2:], residual=residual)
        return z.square().sum() + kl.sum() + flowops.randn(z.size(0), device=z.device).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        leaves = [t.requires_grad_() for t in torch.randn(4, batch, 6, device=device)]
        torch.manual_seed(batch)
        got = torch.autograd.grad(compiled(*leaves), leaves)
        torch.manual_seed(batch)
        want = torch.autograd.grad(step(*leaves), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_compiled_calls_differ(device: torch.device) -> None:
    compiled = torch.compile(
        lambda m, s: ops.gaussian_rsample(m, s), fullgraph=True, backend="aot_eager"
    )
    mean, scale = leaves_of(device)
    assert not torch.equal(compiled(mean, scale), compiled(mean, scale))


def test_cuda_graph_draws_anew_at_each_replay(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    mean, scale = (t.detach() for t in leaves_of(device))
    ops.gaussian_rsample(mean, scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = ops.gaussian_rsample(mean, scale)
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(z.clone())
    assert not torch.equal(*draws)


@pytest.mark.parametrize("prior", [None, "given", "residual"])
def test_opcheck(prior: str | None, device: torch.device) -> None:
    key = ops.random_key(device=device)
    inputs = [t.requires_grad_() for t in torch.randn(4, 2, 3, 4, device=device)]
    given = inputs[2:] if prior else [None, None]
    residual = prior == "residual"
    op, backward = torch.ops.flowops.gaussian_rsample, torch.ops.flowops.gaussian_rsample_backward
    for with_kl in (False, True):
        torch.library.opcheck(op, (*inputs[:2], key, *given, None, 0, residual, with_kl))
        fixed = [None if t is None else t.detach() for t in (*inputs[:2], key, *given)]
        grads = torch.randn(2, 3, 4, device=device), torch.randn(2, device=device)
        torch.library.opcheck(backward, (*grads, *fixed, None, 0, residual, with_kl))
    last = torch.randn(2, 8, 3, 3, device=device).to(memory_format=torch.channels_last)
    torch.library.opcheck(op, (*last.chunk(2, 1), key, None, None, None, 0, False, True))


def test_opcheck_of_the_stream(device: torch.device) -> None:
    key = ops.random_key(device=device)
    torch.library.opcheck(torch.ops.flowops.gaussian_noise, (key, [3, 5], torch.float32))
    torch.library.opcheck(torch.ops.flowops.random_key, (torch.zeros(2, device=device),))


def test_transforms_take_the_reference(device: torch.device) -> None:
    mean, scale = (t.detach().double() for t in leaves_of(device))
    key = ops.random_key(device=device)

    def sample(scale: Tensor) -> Tensor:
        return ops.gaussian_rsample(mean, scale, key=key)

    slope = 0.5 * (0.5 * scale).exp() * flowops.randn(4, 6, key=key, dtype=torch.float64)
    assert_close(torch.func.grad(lambda s: sample(s).sum())(scale), slope, dtype=torch.float64)
    tangent = torch.func.jvp(sample, (scale,), (torch.ones_like(scale),))[1]
    assert_close(tangent, slope, dtype=torch.float64)


def test_vmap_follows_its_randomness(device: torch.device) -> None:
    mean, scale = torch.zeros(2, 3, 5, 4, device=device)

    def sample(mean: Tensor, scale: Tensor) -> Tensor:
        return ops.gaussian_rsample(mean, scale)

    different = torch.func.vmap(sample, randomness="different")(mean, scale)
    same = torch.func.vmap(sample, randomness="same")(mean, scale)
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(sample)(mean, scale)


def test_autocast_keeps_float32(device: torch.device) -> None:
    mean, scale = (t.detach().bfloat16() for t in leaves_of(device))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        z, kl = ops.gaussian_rsample_kl(mean, scale)
    assert z.dtype == kl.dtype == torch.float32


X, KEY = torch.randn(2, 4, 3), torch.tensor([1, 2])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"mean": torch.randn(3)},
        r"mean must have shape \(batch, channels, \.\.\.\), got \[3\]",
    ),
    "dtype": ({"mean": X.long()}, "mean must be float64, float32, float16 or bfloat16, got Long"),
    "scale": (
        {"scale": X[:, :3]},
        r"scale must have shape \[2, 4, 3\] \(like mean\), got \[2, 3, 3\]",
    ),
    "scale_dtype": ({"scale": X.double()}, r"scale must be Float \(like mean\), got Double"),
    "prior_mean": ({"prior": (X[:1], X)}, r"prior mean must have shape .*got \[1, 4, 3\]"),
    "prior_scale": ({"prior": (X, X.half())}, r"prior scale must be Float .*got Half"),
    "residual": ({"residual": True}, "prior must be given for the residual form, got none"),
    "key_shape": ({"key": torch.tensor([1])}, r"key must be two int64 .*got Long of shape \[1\]"),
    "key_dtype": ({"key": torch.zeros(2)}, r"key must be two int64 .*got Float of shape \[2\]"),
    "form": ({"form": "var"}, "form must be one of 'logvar', .*got 'var'"),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str, inference: bool, device: torch.device) -> None:
    changed, message = BAD[case]
    arguments = {"mean": X, "scale": X, "key": KEY} | changed

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        return value.to(device) if isinstance(value, Tensor) else value

    arguments = {name: move(value) for name, value in arguments.items()}
    with (
        torch.inference_mode(inference),
        pytest.raises(ValueError, match="gaussian_rsample: " + message),
    ):
        ops.gaussian_rsample_kl(**arguments)


def test_bad_stream_is_one_clear_error(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"randn: dtype must be float64, .*got Long"):
        flowops.randn(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="randn: key must be two int64"):
        flowops.randn(2, key=torch.zeros(3, device=device))
    with pytest.raises(ValueError, match="randn: generator must be None where a key is given"):
        flowops.randn(2, key=KEY.to(device), generator=torch.Generator())
