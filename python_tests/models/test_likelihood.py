"""Every model's likelihood is right at random parameters: Jacobians, sampling, normalisation."""

from __future__ import annotations

import itertools

import pytest
import torch

from flowops.distributions import Flow
from flowops.losses import bits_per_dim, importance_weighted_bits_per_dim
from flowops.models import build
from flowops.nn import dequantize
from flowops.testing import check_bijector, randomize_

SMALL = {
    "nice": {"hidden": 8, "depth": 2},
    "realnvp": {"hidden": 4, "blocks": 1},
    "glow": {"hidden": 4, "steps": 2},
    "nsf": {"hidden": 8, "transforms": 2, "bins": 4},
}

#: name, event shape, options, kind of context ("vector", "label" or "")
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, object], str]] = {
    "nice": ("nice", (1, 2, 4), {}, ""),
    "nice_odd_logistic": ("nice", (7,), {"prior": "logistic", "couplings": 3}, ""),
    "nice_centred": ("nice", (1, 3, 3), {"preprocess": "center"}, ""),
    "nice_context": ("nice", (1, 2, 4), {"context_features": 3}, "vector"),
    "realnvp": ("realnvp", (1, 4, 4), {}, ""),
    "realnvp_colour_three_levels": ("realnvp", (2, 4, 4), {"levels": 3, "couplings": 1}, ""),
    "realnvp_odd_one_level": ("realnvp", (1, 3, 5), {"levels": 1, "norm": "none"}, ""),
    "realnvp_batch_norm": ("realnvp", (1, 4, 4), {"norm": "batch", "couplings": 2}, ""),
    "realnvp_context": ("realnvp", (1, 2, 2), {"context_features": 3}, "vector"),
    "nsf": ("nsf", (1, 2, 4), {}, ""),
    "nsf_odd_unbounded": ("nsf", (5,), {"preprocess": "none", "transforms": 3}, ""),
    "nsf_context": ("nsf", (1, 2, 3), {"context_features": 3, "mixing": "permutation"}, "vector"),
    "nsf_autoregressive": ("nsf", (1, 2, 3), {"kind": "autoregressive"}, ""),
    "nsf_autoregressive_context": (
        "nsf",
        (5,),
        {"kind": "autoregressive", "passes": 3, "context_features": 3},
        "vector",
    ),
    "glow": ("glow", (1, 4, 4), {}, ""),
    "glow_full": ("glow", (1, 4, 4), {"conv1x1": "full"}, ""),
    "glow_additive": (
        "glow",
        (1, 4, 4),
        {"coupling": "additive", "learn_top": False, "edge_bias": False, "preprocess": "center"},
        "",
    ),
    "glow_colour_logit": ("glow", (3, 4, 4), {"preprocess": "logit", "steps": 1}, ""),
    "glow_one_level": ("glow", (1, 2, 6), {"levels": 1}, ""),
    "glow_classes": ("glow", (1, 4, 4), {"classes": 3}, "label"),
    "glow_context_all": ("glow", (1, 4, 4), {"context_features": 3, "condition": "all"}, "vector"),
}


def _model(case: str) -> Flow:
    name, event_shape, options, _ = CASES[case]
    model = build(name, event_shape, **{**SMALL[name], **options})
    return randomize_(model.double()).eval()


def _context(case: str, count: int) -> torch.Tensor | None:
    kind = CASES[case][3]
    if kind == "label":
        return torch.arange(count) % 3
    return torch.randn(count, 3, dtype=torch.float64) if kind else None


@pytest.mark.parametrize("case", CASES)
def test_logdet_inverse_and_batch_independence(case: str) -> None:
    model = _model(case)
    x = torch.rand(2, *model.event_shape, dtype=torch.float64) * 0.9 + 0.05
    check_bijector(model, x, _context(case, 2))


@pytest.mark.parametrize("case", CASES)
def test_round_trip_in_float32(case: str) -> None:
    model = _model(case).float()
    x = torch.rand(4, *model.event_shape)
    context = _context(case, 4)
    context = context if context is None or CASES[case][3] == "label" else context.float()
    z, logdet = model(x, context)
    back, logdet_back = model.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(logdet_back, -logdet, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "case",
    ["nice", "realnvp", "realnvp_batch_norm", "glow", "glow_full", "nsf", "nsf_autoregressive"],
)
def test_gradients_of_log_prob(case: str) -> None:
    name, event_shape, options, _ = CASES[case]
    least = {"couplings": 1, "hidden": 2} if name == "realnvp" else {}
    least = {"steps": 1, "hidden": 2} if name == "glow" else least
    least = {"transforms": 1, "hidden": 2, "bins": 2, "blocks": 1} if name == "nsf" else least
    model = build(name, event_shape, **{**SMALL[name], **options, **least})
    randomize_(model.double()).eval()
    names = [n for n, _ in model.named_parameters()]
    values = [p.detach().requires_grad_() for p in model.parameters()]

    def log_prob(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        state = dict(zip(names, parameters, strict=True))
        z, logdet = torch.func.functional_call(model, state, (x,))
        return model.base.log_prob(z) + logdet

    x = torch.rand(2, *model.event_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_prob, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(log_prob, (x, *values), fast_mode=True)


@pytest.mark.parametrize(
    ("name", "event_shape", "options"),
    [
        ("nice", (4,), {"prior": "logistic"}),
        ("nice", (4,), {"preprocess": "center"}),
        ("realnvp", (1, 2, 2), {"couplings": 2}),
        ("nsf", (4,), {"preprocess": "none"}),
        ("nsf", (4,), {"kind": "autoregressive"}),
        ("glow", (1, 2, 2), {"levels": 1}),
        ("glow", (2, 2, 2), {"levels": 1, "preprocess": "logit"}),
    ],
)
def test_samples_follow_the_density(
    name: str, event_shape: tuple[int, ...], options: dict[str, object]
) -> None:
    """For x drawn by the inverse and p from the forward, h / p has mean 1 for any density h."""
    model = randomize_(build(name, event_shape, **{**SMALL[name], **options}).double()).eval()
    with torch.no_grad():
        x, log_prob = model.rsample_and_log_prob((40_000,))
        inside = (
            ((x > 0) & (x < 1)).flatten(1).all(1) if model.config.preprocess == "logit" else None
        )
        flat = x.flatten(1)
        # h: narrower than p, around a point of high density.
        middle = flat.median(0).values
        h = torch.distributions.MultivariateNormal(middle, flat.T.cov() * 0.3)
        forward = model.log_prob(x)
        torch.testing.assert_close(forward, log_prob, rtol=0, atol=1e-8)
        ratio = torch.exp(h.log_prob(flat) - forward)
        expected = torch.ones(())
        if inside is not None:
            # Outside [0, 1] the logit's support soon ends: count h's mass inside alone.
            ratio = ratio * inside
            draws = h.sample((200_000,))
            expected = ((draws > 0) & (draws < 1)).all(1).double().mean()
    error = ratio.std() / len(ratio) ** 0.5
    assert error < 0.06
    assert (ratio.mean() - expected).abs() < 4 * error + 0.005


def _train(model: Flow, values: torch.Tensor, levels: int, steps: int) -> None:
    model.initialize(dequantize(values, levels))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = -model.log_prob(dequantize(values, levels)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "event_shape", "options"),
    [
        ("nice", (1, 1, 2), {"alpha": 0.05}),
        ("realnvp", (1, 1, 2), {"levels": 1}),
        ("glow", (1, 2, 2), {"levels": 1}),
        ("nsf", (1, 1, 2), {"alpha": 0.05}),
        ("nsf", (1, 1, 2), {"kind": "autoregressive", "alpha": 0.05}),
    ],
)
def test_probabilities_of_all_images_sum_to_one(
    name: str, event_shape: tuple[int, ...], options: dict[str, object]
) -> None:
    """Bounds exp(-NLL) of all 4-level images of a trained model sum to most of 1, not to more.

    With many draws of the noise the bound is the probability itself.
    """
    levels = 4
    model = build(name, event_shape, **{**SMALL[name], **options})
    size = len(list(itertools.product(*[range(s) for s in event_shape])))
    weights = torch.tensor([0.1, 0.4, 0.3, 0.2])
    data = weights.multinomial(512 * size, replacement=True).view(512, *event_shape)
    _train(model, data, levels, 150)
    model.eval()
    images = torch.cartesian_prod(*[torch.arange(levels)] * size).view(-1, *event_shape)
    dims = torch.tensor(event_shape).prod().item()
    with torch.no_grad():
        draws = torch.stack([model.log_prob(dequantize(images, levels)) for _ in range(100)])
    bound = -bits_per_dim(draws, event_shape, levels).mean(0) * dims
    assert 0.5 <= bound.exp2().sum() <= 1 + 1e-3
    tight = -dims * importance_weighted_bits_per_dim(model, images, levels=levels, samples=200)
    assert bound.exp2().sum() < tight.exp2().sum()
    assert 0.8 <= tight.exp2().sum() <= 1.03
