"""Checkpoints of y0ast's and chaiyujin's Glow: the density by their formulas is ours after loading.

The state dicts are made here, of random numbers, by the names that their code gives.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from flowops.compat.glow import load_chaiyujin, load_y0ast, to_chaiyujin, to_y0ast
from flowops.models import Glow
from flowops.models.glow import GlowConfig
from flowops.testing import randomize_

State = dict[str, Tensor]
SHAPE = (1, 8, 8)
LEVELS, STEPS, HIDDEN = 2, 2, 4

#: Their name of the networks, what their convolutions' keys begin with, LU factors, top.
NAMES = {
    "y0ast": ("block", "conv.", "lower", "upper", "learn_top_fn"),
    "chaiyujin": ("f", "", "l", "u", "learn_top"),
}
LOAD: dict[str, Any] = {"y0ast": load_y0ast, "chaiyujin": load_chaiyujin}
SAVE: dict[str, Any] = {"y0ast": to_y0ast, "chaiyujin": to_chaiyujin}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(14)


def randn(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, dtype=torch.float64)


def zero_conv(state: State, prefix: str, conv: str, inputs: int, outputs: int) -> None:
    state[f"{prefix}.{conv}weight"] = randn(outputs, inputs, 3, 3)
    state[f"{prefix}.{conv}bias"] = randn(outputs)
    state[f"{prefix}.logs"] = randn(outputs, 1, 1)


def actnorm(state: State, prefix: str, channels: int) -> None:
    state[f"{prefix}.bias"] = randn(1, channels, 1, 1)
    state[f"{prefix}.logs"] = randn(1, channels, 1, 1)


def mixing(state: State, prefix: str, channels: int, names: tuple[str, ...], lu: bool) -> None:
    if not lu:
        state[f"{prefix}.weight"] = torch.eye(channels).double() + randn(channels, channels)
        return
    state[f"{prefix}.p"] = torch.eye(channels, dtype=torch.float64)[torch.randperm(channels)]
    state[f"{prefix}.sign_s"] = randn(channels).sign()
    state[f"{prefix}.log_s"] = randn(channels)
    # What their masks leave out is there too.
    state[f"{prefix}.{names[2]}"] = randn(channels, channels)
    state[f"{prefix}.{names[3]}"] = randn(channels, channels)


def checkpoint(author: str, *, affine: bool, lu: bool, top: bool) -> State:
    network, conv, *_ = names = NAMES[author]
    state: State = {}
    channels, place = 1, 0
    for level in range(LEVELS):
        channels, place = 4 * channels, place + 1
        for _ in range(STEPS):
            prefix = f"flow.layers.{place}"
            actnorm(state, f"{prefix}.actnorm", channels)
            mixing(state, f"{prefix}.invconv", channels, names, lu)
            for i, inputs, size in ((0, channels // 2, 3), (2, HIDDEN, 1)):
                weight = randn(HIDDEN, inputs, size, size)
                state[f"{prefix}.{network}.{i}.{conv}weight"] = weight
                actnorm(state, f"{prefix}.{network}.{i}.actnorm", HIDDEN)
            outputs = channels if affine else channels // 2
            zero_conv(state, f"{prefix}.{network}.4", conv, HIDDEN, outputs)
            place += 1
        if level < LEVELS - 1:
            zero_conv(state, f"flow.layers.{place}.conv", conv, channels // 2, channels)
            channels, place = channels // 2, place + 1
    if top:
        zero_conv(state, names[4], conv, 2 * channels, 2 * channels)
    side = SHAPE[1] // 2**LEVELS
    state["prior_h"] = torch.zeros(1, 2 * channels, side, side, dtype=torch.float64)
    return state


def run_zero_conv(state: State, prefix: str, conv: str, x: Tensor) -> Tensor:
    weight, bias = (state[f"{prefix}.{conv}{name}"] for name in ("weight", "bias"))
    return conv2d(x, weight, bias, padding=1) * torch.exp(3 * state[f"{prefix}.logs"])


def run_actnorm(state: State, prefix: str, x: Tensor) -> Tensor:
    return (x + state[f"{prefix}.bias"]) * torch.exp(state[f"{prefix}.logs"])


def matrix(state: State, prefix: str, names: tuple[str, ...]) -> Tensor:
    if f"{prefix}.weight" in state:
        return state[f"{prefix}.weight"]
    lower = state[f"{prefix}.{names[2]}"].tril(-1)
    diagonal = torch.diag(state[f"{prefix}.sign_s"] * state[f"{prefix}.log_s"].exp())
    upper = state[f"{prefix}.{names[3]}"].triu(1) + diagonal
    return state[f"{prefix}.p"] @ (lower + torch.eye(len(lower))) @ upper


def log_normal(x: Tensor, mean: Tensor, logs: Tensor) -> Tensor:
    each = -0.5 * (math.log(2 * math.pi) + 2 * logs + ((x - mean) / logs.exp()) ** 2)
    return each.flatten(1).sum(1)


def density(author: str, state: State, x: Tensor, affine: bool) -> Tensor:
    """The log-density of what their flow is given, by their formulas."""
    network, conv, *_, top = names = NAMES[author]
    total = torch.zeros(len(x), dtype=torch.float64)
    place = 0
    for level in range(LEVELS):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(n, 4 * c, h // 2, w // 2)
        place += 1
        for _ in range(STEPS):
            prefix = f"flow.layers.{place}"
            weight, pixels = matrix(state, f"{prefix}.invconv", names), h * w // 4
            x = conv2d(run_actnorm(state, f"{prefix}.actnorm", x), weight[:, :, None, None])
            total = total + pixels * state[f"{prefix}.actnorm.logs"].sum()
            total = total + pixels * torch.linalg.slogdet(weight)[1]
            kept, moved = x.chunk(2, 1)
            given = kept
            for i, padding in ((0, 1), (2, 0)):
                name = f"{prefix}.{network}.{i}"
                given = conv2d(given, state[f"{name}.{conv}weight"], padding=padding)
                given = run_actnorm(state, f"{name}.actnorm", given).relu()
            given = run_zero_conv(state, f"{prefix}.{network}.4", conv, given)
            if affine:
                scale = torch.sigmoid(given[:, 1::2] + 2)
                moved = (moved + given[:, 0::2]) * scale
                total = total + scale.log().flatten(1).sum(1)
            else:
                moved = moved + given
            x, place = torch.cat([kept, moved], 1), place + 1
        if level < LEVELS - 1:
            x, latent = x.chunk(2, 1)
            given = run_zero_conv(state, f"flow.layers.{place}.conv", conv, x)
            total, place = total + log_normal(latent, given[:, 0::2], given[:, 1::2]), place + 1
    prior = state["prior_h"]
    if f"{top}.logs" in state:
        prior = run_zero_conv(state, top, conv, prior)
    return total + log_normal(x, *prior.chunk(2, 1))


def make(**options: Any) -> Glow:
    sizes = {"levels": LEVELS, "steps": STEPS, "hidden": HIDDEN}
    ours = {"preprocess": "center", "edge_bias": False}
    return Glow(GlowConfig(SHAPE, **{**sizes, **ours, **options})).double()


CASES = [
    (author, affine, lu, top)
    for author in NAMES
    for affine, lu, top in ((True, True, True), (True, False, False), (False, False, True))
    if author == "y0ast" or not lu
]


@pytest.mark.parametrize(("author", "affine", "lu", "top"), CASES)
def test_loaded_model_has_their_density_and_saves_their_state(
    author: str, affine: bool, lu: bool, top: bool
) -> None:
    state = checkpoint(author, affine=affine, lu=lu, top=top)
    model = make(
        coupling="affine" if affine else "additive", conv1x1="lu" if lu else "full", learn_top=top
    )
    LOAD[author]({f"module.{name}": value for name, value in state.items()}, model)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    theirs = x - 0.5 if author == "y0ast" else x
    expected = density(author, state, theirs, affine)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    model.initialize(x)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    saved = SAVE[author](model)
    assert saved.keys() == state.keys()
    for name, value in saved.items():
        if name.startswith(NAMES[author][4]) and name.endswith("weight"):
            assert not value.any()
            continue
        torch.testing.assert_close(value, state[name], msg=name)


@pytest.mark.parametrize("author", NAMES)
def test_saved_model_has_the_density_by_their_formulas(author: str) -> None:
    model = randomize_(make(), std=0.3)
    state = SAVE[author](model)
    # chaiyujin's code would not load the permutation of LU factors.
    expected = checkpoint(author, affine=True, lu=author == "y0ast", top=True)
    assert state.keys() == expected.keys()
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    theirs = x - 0.5 if author == "y0ast" else x
    torch.testing.assert_close(density(author, state, theirs, True), model.log_prob(x))


def test_prior_of_chaiyujin_has_the_size_of_its_batch() -> None:
    assert to_chaiyujin(make(), batch_size=12)["prior_h"].shape == (12, 16, 2, 2)


@pytest.mark.parametrize("options", [{"preprocess": "logit"}, {"edge_bias": True}, {"classes": 3}])
@pytest.mark.parametrize("author", NAMES)
def test_other_architectures_are_refused(author: str, options: dict[str, Any]) -> None:
    model = make(**options)
    with pytest.raises(ValueError, match=f"checkpoints of {author} the model must have"):
        LOAD[author]({}, model)
    with pytest.raises(ValueError, match=f"checkpoints of {author} the model must have"):
        SAVE[author](model)


def test_checkpoints_that_do_not_fit_are_refused_and_leave_the_model_alone() -> None:
    state = checkpoint("y0ast", affine=True, lu=True, top=True)
    longer, shorter = {**state, "flow.layers.9.actnorm.bias": state["prior_h"]}, dict(state)
    del shorter["flow.layers.1.actnorm.bias"]
    wrong = {**state, "flow.layers.1.actnorm.bias": torch.zeros(1, 5, 1, 1)}
    classes = {**state, "project_ycond.logs": torch.zeros(1)}
    lossy = checkpoint("chaiyujin", affine=True, lu=True, top=True)
    lossy = {k: v for k, v in lossy.items() if not k.endswith((".p", ".sign_s"))}
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for load, bad, message in (
        (load_y0ast, longer, "not expected: .'flow.layers.9.actnorm.bias'"),
        (load_y0ast, shorter, "missing: .'flow.layers.1.actnorm.bias'"),
        (load_y0ast, wrong, r"shape \[1, 4, 1, 1\], got \[1, 5, 1, 1\]"),
        (load_y0ast, classes, "without y_condition"),
        (load_chaiyujin, lossy, "lack the permutation p"),
    ):
        with pytest.raises(ValueError, match=message):
            load(bad, model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
