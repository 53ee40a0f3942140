"""StackedAE: its phases, what each trains, how they join."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from flowops.models import StackedAE, StackedAEConfig

SHAPE = (1, 8, 8)
STEPS = 5


def digits() -> Tensor:
    return torch.from_numpy(load_digits().data / 16).view(-1, *SHAPE)


def stacked(output: str = "sigmoid", depth: int = 2, **options: object) -> StackedAE:
    config = StackedAEConfig(
        SHAPE, latent=4, hidden=16, depth=depth, layer_steps=STEPS, output=output, **options
    )
    model = StackedAE(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pairs(model: StackedAE) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    """Encoding and decoding layer of each phase."""
    ups = [m for m in model.encoder if isinstance(m, torch.nn.Linear)]
    downs = [m for m in model.decoder if isinstance(m, torch.nn.Linear)]
    return list(zip(ups, downs[::-1], strict=True))


def test_sizes() -> None:
    sizes = [up.out_features for up, _ in pairs(StackedAE(StackedAEConfig((1, 28, 28))))]
    assert sizes == [1000, 500, 250, 30]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_phase_follows_the_step(depth: int) -> None:
    model = stacked(depth=depth)
    layers = depth + 1
    wanted = [n for n in range(layers) for _ in range(STEPS)] + [layers] * 7
    assert [model.phase(step) for step in range(len(wanted))] == wanted


@pytest.mark.parametrize("output", ["sigmoid", "linear", "bernoulli"])
def test_loss_of_each_phase(output: str) -> None:
    """Layer by layer, by hand."""
    model, x = stacked(output), digits()[:9]
    h = x.flatten(1)
    for layer, (up, down) in enumerate(pairs(model)):
        code = up(h) if layer == 2 else up(h).sigmoid()
        raw = down(code)
        y = raw if output == "linear" and layer == 0 else raw.sigmoid()
        if output == "bernoulli":
            wanted = -(h * y.log() + (1 - h) * (1 - y).log()).sum() / 9
        else:
            wanted = (y - h).square().sum() / 9
        loss = model.loss(x, step=layer * STEPS)
        torch.testing.assert_close(loss.total, wanted)
        torch.testing.assert_close(loss.parts["mse"], (y - h).square().mean().detach())
        h = code.detach()


@pytest.mark.parametrize("depth", [0, 2])
def test_unrolled_loss_is_that_of_the_composition(depth: int) -> None:
    model, x = stacked(depth=depth), digits()[:9]
    h, layers = x.flatten(1), pairs(model)
    for up, _ in layers[:-1]:
        h = up(h).sigmoid()
    h = layers[-1][0](h)
    for _, down in layers[::-1]:
        h = down(h).sigmoid()
    wanted = (h - x.flatten(1)).square().sum() / 9
    torch.testing.assert_close(model.loss(x, step=(depth + 1) * STEPS).total, wanted)
    torch.testing.assert_close(model.eval().loss(x, step=0).total, wanted)


def test_a_phase_moves_its_layer_alone() -> None:
    model, x = stacked(), digits()[:50]
    for layer in range(4):
        model.zero_grad(set_to_none=True)
        model.loss(x, step=layer * STEPS).total.backward()
        have = [[p.grad is not None for m in pair for p in m.parameters()] for pair in pairs(model)]
        assert have == [[layer in (n, 3)] * 4 for n in range(3)]


def test_codes_are_remembered_once_there_are_any() -> None:
    model, x = stacked(), digits()[:50]
    for layer, batches in ((0, 0), (1, 0), (2, 1), (3, 2)):
        model.loss(x, step=layer * STEPS)
        assert model.moments.batches == batches
    torch.testing.assert_close(model.moments.mean, model.encode(x).mean(0).detach())


def test_fine_tuning_lowers_the_loss() -> None:
    torch.manual_seed(1)
    steps = 150
    config = StackedAEConfig(SHAPE, latent=4, hidden=32, depth=2, layer_steps=steps)
    model, x = StackedAE(config).double(), digits()

    def whole() -> float:
        model.eval()
        value = model.loss(x).total.item()
        model.train()
        return value

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = [whole()]
    for step in range(4 * steps):
        optimizer.zero_grad()
        model.loss(x[step % 9 :: 9], step=step).total.backward()
        optimizer.step()
        if step % steps == steps - 1:
            losses.append(whole())
    greedy, tuned = losses[-2:]
    variance = float((x - x.mean(0)).square().sum()) / len(x)
    assert greedy < variance  # the greedy layers fit together
    assert tuned < 0.95 * greedy
