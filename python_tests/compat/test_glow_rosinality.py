"""rosinality's Glow: against its formulas, composed of plain tensors and its state dict."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from flowops.compat import glow
from flowops.testing import jacobian_logdet, randomize_

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(13)


def part(state: State, name: str) -> State:
    return {k.removeprefix(name + "."): v for k, v in state.items() if k.startswith(name + ".")}


def matrix(state: State) -> Tensor:
    if "weight" in state:
        return state["weight"][:, :, 0, 0]
    lower = state["w_l"].tril(-1) + torch.eye(len(state["w_s"])).to(state["w_l"])
    upper = state["w_u"].triu(1) + torch.diag(state["s_sign"] * state["w_s"].exp())
    return state["w_p"] @ lower @ upper


def zero_conv(state: State, x: Tensor) -> Tensor:
    framed = pad(x, [1, 1, 1, 1], value=1.0)
    return conv2d(framed, state["conv.weight"], state["conv.bias"]) * torch.exp(3 * state["scale"])


def network(state: State, x: Tensor) -> Tensor:
    h = conv2d(x, state["0.weight"], state["0.bias"], padding=1).relu()
    return zero_conv(part(state, "4"), conv2d(h, state["2.weight"], state["2.bias"]).relu())


def step(state: State, x: Tensor, affine: bool) -> tuple[Tensor, Tensor]:
    pixels = x.size(2) * x.size(3)
    scale, mixing = state["actnorm.scale"], matrix(part(state, "invconv"))
    x = scale * (x + state["actnorm.loc"])
    x = torch.einsum("ij,njhw->nihw", mixing, x)
    logdet = pixels * (scale.abs().log().sum() + torch.linalg.slogdet(mixing)[1])
    kept, moved = x.chunk(2, 1)
    given = network(part(state, "coupling.net"), kept)
    if not affine:
        return torch.cat([kept, moved + given], 1), logdet
    raw, shift = given.chunk(2, 1)
    factor = torch.sigmoid(raw + 2)
    out = torch.cat([kept, (moved + shift) * factor], 1)
    return out, logdet + factor.log().flatten(1).sum(1)


def squeeze(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return blocks.reshape(n, 4 * c, h // 2, w // 2)


def log_normal(x: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    each = -0.5 * math.log(2 * math.pi) - log_sd - 0.5 * ((x - mean) / log_sd.exp()) ** 2
    return each.flatten(1).sum(1)


def whole(state: State, x: Tensor, sizes: tuple[int, int], affine: bool) -> list[Any]:
    """What rosinality's Glow returns, by its formulas."""
    n_flow, n_block = sizes
    log_p: Any = 0
    logdet: Any = 0
    latents = []
    for b in range(n_block):
        x = squeeze(x)
        for k in range(n_flow):
            x, more = step(part(state, f"blocks.{b}.flows.{k}"), x, affine)
            logdet = logdet + more
        last = b == n_block - 1
        x, z = (torch.zeros_like(x), x) if last else x.chunk(2, 1)
        mean, log_sd = zero_conv(part(state, f"blocks.{b}.prior"), x).chunk(2, 1)
        log_p = log_p + log_normal(z, mean, log_sd)
        latents.append(z)
    return [log_p, logdet, latents]


def make(affine: bool = True, conv_lu: bool = True, n_flow: int = 2, n_block: int = 2) -> glow.Glow:
    model = glow.Glow(1, n_flow, n_block, affine=affine, conv_lu=conv_lu)
    randomize_(model, std=0.05)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, glow.ActNorm):
                module.initialized.fill_(1)
                module.scale[0, 0] *= -1
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 4, dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("conv_lu", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 2)])
def test_forward_is_that_of_the_formulas(
    affine: bool, conv_lu: bool, sizes: tuple[int, int]
) -> None:
    model, x = make(affine, conv_lu, *sizes).double(), images()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().clone().requires_grad_()
    results = []
    for inputs, function in (
        (x.clone().requires_grad_(), lambda x: model(x)),
        (x.clone().requires_grad_(), lambda x: whole(state, x, sizes, affine)),
    ):
        log_p, logdet, latents = function(inputs)
        loss = (log_p * torch.tensor([1.0, 2, 3])).sum() + (logdet * 1.5).sum()
        (loss + sum((z**2).sum() for z in latents)).backward()
        results.append([log_p, logdet, *latents, inputs.grad])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for name, parameter in model.named_parameters():
        expected = state[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("conv_lu", [True, False])
def test_reverse_undoes_forward(affine: bool, conv_lu: bool) -> None:
    model, x = make(affine, conv_lu).double(), images()
    latents = model(x)[2]
    torch.testing.assert_close(model.reverse(latents, reconstruct=True), x)


def test_reverse_of_noise_has_the_latents_that_the_priors_say() -> None:
    model = make().double()
    noise = [torch.randn_like(z) for z in model(images())[2]]
    x = model.reverse(noise)
    log_p, _, latents = model(x)
    expected = sum(log_normal(e, torch.zeros(()), torch.zeros(())) for e in noise)
    state = model.state_dict()
    for b, (z, e) in enumerate(zip(latents, noise, strict=True)):
        x = squeeze(x)
        for k in range(2):
            x = step(part(state, f"blocks.{b}.flows.{k}"), x, True)[0]
        x = torch.zeros_like(x) if b == 1 else x.chunk(2, 1)[0]
        mean, log_sd = zero_conv(part(state, f"blocks.{b}.prior"), x).chunk(2, 1)
        torch.testing.assert_close(z, mean + log_sd.exp() * e)
        expected = expected - log_sd.flatten(1).sum(1)
    torch.testing.assert_close(log_p, expected)


@pytest.mark.parametrize("conv_lu", [True, False])
def test_single_layers_give_what_a_step_does_at_once(conv_lu: bool) -> None:
    flow = make(conv_lu=conv_lu).blocks[0].flows[0].double()
    x = torch.randn(3, 4, 4, 2, dtype=torch.float64)
    out, logdet = flow(x)
    y, first = flow.actnorm(x)
    y, second = flow.invconv(y)
    y, third = flow.coupling(y)
    assert (first.dim(), second.dim(), third.dim()) == (0, 0, 1)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(logdet, first + second + third)
    for layer in (flow.actnorm, flow.invconv, flow.coupling, flow):
        torch.testing.assert_close(layer.reverse(layer(x)[0]), x)
    torch.testing.assert_close(logdet, jacobian_logdet(lambda x: flow(x)[0], x))
    if conv_lu:
        mixed = conv2d(x, flow.invconv.calc_weight())
        torch.testing.assert_close(flow.invconv(x)[0], mixed)


def test_actnorm_without_logdet_returns_the_batch_alone() -> None:
    layer, x = glow.ActNorm(2, logdet=False), torch.randn(3, 2, 2, 2)
    assert isinstance(layer(x), Tensor)


def test_additive_coupling_has_no_logdet() -> None:
    assert glow.AffineCoupling(4, 8, affine=False)(torch.randn(2, 4, 2, 2))[1] is None
    assert make(affine=False).double()(images())[1].dim() == 0


def test_actnorms_are_set_by_the_first_batch_in_order() -> None:
    model = glow.Glow(1, 2, 2).double()
    x = 3 * images(32) + 1
    results = [model(x), model(x)]
    for module in model.modules():
        if isinstance(module, glow.ActNorm):
            assert module.initialized == 1
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    y, one = squeeze(x), torch.ones(4, dtype=torch.float64)
    for flow in model.blocks[0].flows:
        scaled = flow.actnorm(y)[0]
        assert scaled.mean((0, 2, 3)).abs().max() < 1e-12
        torch.testing.assert_close(scaled.std((0, 2, 3)), one, rtol=1e-5, atol=0)
        y = flow(y)[0]


def test_checkpoint_of_a_data_parallel_model_loads() -> None:
    model, other = make(), make()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    other.load_state_dict(state)
    x = images().float()
    torch.testing.assert_close(other(x)[0], model(x)[0])
    assert all(name.startswith("module.") for name in state)
    wrapped = torch.nn.DataParallel(make())
    wrapped.load_state_dict(state)
    torch.testing.assert_close(wrapped.module(x)[0], model(x)[0])


def test_keys_are_those_of_rosinality() -> None:
    names = set(glow.Glow(3, 1, 2, conv_lu=False).state_dict())
    conv = {"w_l", "w_u", "w_s", "w_p", "s_sign", "u_mask", "l_mask", "l_eye"}
    expected = set()
    for b, mixing in ((0, {"weight"}), (1, conv)):
        step_names = {"actnorm.loc", "actnorm.scale", "actnorm.initialized"}
        step_names |= {f"invconv.{name}" for name in mixing}
        step_names |= {f"coupling.net.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
        zero = {"conv.weight", "conv.bias", "scale"}
        step_names |= {f"coupling.net.4.{name}" for name in zero}
        expected |= {f"blocks.{b}.flows.0.{name}" for name in step_names}
        expected |= {f"blocks.{b}.prior.{name}" for name in zero}
    assert names == expected


def test_empty_batch_and_float32() -> None:
    model = make()
    log_p, logdet, latents = model(images(0).float())
    assert (log_p.shape, logdet.shape) == ((0,), (0,))
    assert model.reverse(latents, reconstruct=True).shape == (0, 1, 8, 4)
    x = images().float()
    exact = copy.deepcopy(model).double()(x.double())
    for actual, expected in zip(model(x)[:2], exact, strict=False):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: glow.Glow(1, 1, 0), "n_block must be at least 1"),
        (lambda: glow.AffineCoupling(3), "in_channel must be even"),
        (lambda: glow.Glow(1, 1, 1)(torch.ones(1, 1, 3, 4)), "multiples of 2"),
        (lambda: glow.Glow(1, 1, 2).reverse([torch.ones(1)]), "2 entries"),
        (lambda: glow.Block(1, 1).reverse(torch.ones(1, 2, 2, 2)), "eps must be given"),
        (lambda: glow.ActNorm(2)(torch.ones(1, 2, 1, 1)), "at least two values"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
