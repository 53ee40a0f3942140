"""Models as PyTorch modules: initialisation, state, shapes, sampling, errors, training."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing

import pytest
import torch

from flowops import ops
from flowops.distributions import Flow
from flowops.losses import bits_per_dim
from flowops.models import FLOWS, GlowConfig, NICEConfig, NSFConfig, RealNVPConfig, build
from flowops.nn import ActNorm, InvertibleConv1x1
from flowops.testing import randomize_

SMALL = {
    "nice": {"hidden": 16, "depth": 1},
    "realnvp": {"hidden": 4, "blocks": 1},
    "glow": {"hidden": 8, "steps": 2},
    "nsf": {"hidden": 16, "transforms": 2, "bins": 4, "mixing": "permutation"},
}


def _small(name: str, event_shape: tuple[int, ...] = (1, 8, 8), **options: object) -> Flow:
    return build(name, event_shape, **{**SMALL[name], **options})


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("event_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_image_sizes(name: str, event_shape: tuple[int, ...]) -> None:
    model = _small(name, event_shape)
    x = torch.rand(2, *event_shape)
    model.initialize(x)
    z, logdet = model(x)
    assert z.shape == (2, x[0].numel())
    assert logdet.shape == (2,)
    torch.testing.assert_close(model.inverse(z)[0], x, rtol=0, atol=1e-4)
    sample = model.sample((3,))
    assert sample.shape == (3, *event_shape)
    assert sample.min() >= 0
    assert sample.max() <= 1


@pytest.mark.parametrize("name", FLOWS)
def test_steps_of_training_lower_the_loss(name: str) -> None:
    model = _small(name)
    x = (torch.rand(64, 1, 8, 8) * 0.2 + 0.5 * torch.rand(64, 1, 1, 1)).requires_grad_(False)
    model.initialize(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss = bits_per_dim(model.log_prob(x), model.event_shape, 256).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", FLOWS)
def test_reloaded_state_gives_the_same_likelihood(name: str) -> None:
    model = _small(name)
    x = torch.rand(8, 1, 8, 8)
    model.initialize(x)
    randomize_(model)
    expected = model.log_prob(x)
    fresh = _small(name)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    fresh.initialize(torch.rand(8, 1, 8, 8))
    for twin in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.log_prob(x), expected)


def test_initialize_normalises_each_layer_of_glow() -> None:
    model = _small("glow").double()
    x = torch.rand(64, 1, 8, 8, dtype=torch.float64)
    model.initialize(x)
    seen = 0
    for level, split in zip(model.transform.levels, [*model.transform.splits, None], strict=True):
        for layer in level.layers:
            x = layer(x)[0]
            if isinstance(layer, ActNorm):
                std, mean = torch.std_mean(x, (0, 2, 3), correction=0)
                assert mean.abs().max() < 1e-5
                assert (std - 1).abs().max() < 1e-4
                seen += 1
        x = x if split is None else split(x)[0]
    assert seen == 4


def test_glow_takes_its_weights_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    lu = ops.invertible_conv1x1_lu

    def counted(lower: list[torch.Tensor], *rest: object, **options: object) -> object:
        calls.append(len(lower))
        return lu(lower, *rest, **options)

    monkeypatch.setattr(ops, "invertible_conv1x1_lu", counted)
    model = _small("glow", steps=3)
    z = model(torch.rand(2, 1, 8, 8))[0]
    model.inverse(z)
    assert calls == [6, 6]


@pytest.mark.parametrize("name", FLOWS)
def test_batch_shapes(name: str) -> None:
    model = randomize_(_small(name))
    x = torch.rand(2, 3, 1, 8, 8)
    log_prob = model.log_prob(x)
    assert log_prob.shape == (2, 3)
    torch.testing.assert_close(log_prob[1], model.log_prob(x[1]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(log_prob[1, 2], model.log_prob(x[1, 2]), rtol=1e-5, atol=1e-3)
    assert model.log_prob(x[:0]).shape == (0, 3)
    assert model.log_prob(x[0, :0]).shape == (0,)
    assert model.sample((0,)).shape == (0, 1, 8, 8)
    assert model.sample((2, 3)).shape == (2, 3, 1, 8, 8)
    drawn, log_prob = model.rsample_and_log_prob((2, 3))
    assert drawn.shape == (2, 3, 1, 8, 8)
    assert log_prob.shape == (2, 3)


@pytest.mark.parametrize("name", FLOWS)
def test_sampling(name: str) -> None:
    model = randomize_(_small(name))
    draws = [model.sample((2,), generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    cold = model.sample((2,), temperature=0.0)
    assert torch.equal(cold[0], cold[1])
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        model.sample((1,), temperature=-1)
    x, log_prob = model.rsample_and_log_prob((2,))
    torch.testing.assert_close(model.log_prob(x), log_prob, rtol=1e-4, atol=1e-2)
    (x.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_classes() -> None:
    model = randomize_(_small("glow", classes=3))
    x, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    log_prob = model.log_prob(x, labels)
    assert not torch.isclose(log_prob, model.log_prob(x, (labels + 1) % 3)).any()
    torch.testing.assert_close(
        model.log_prob(x.view(2, 2, 1, 8, 8), labels.view(2, 2)).flatten(), log_prob
    )
    assert model.sample((4,), labels).shape == (4, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"context must be int64 labels of shape \(batch,\), got None"
    ):
        model.log_prob(x)
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(4,\)"):
        model.log_prob(x, labels.float())
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=rf"context must be labels from 0 to 2, got {wrong}"):
            model.log_prob(x, torch.full((4,), wrong))


@pytest.mark.parametrize("name", FLOWS)
def test_context(name: str) -> None:
    model = randomize_(_small(name, context_features=2))
    x, context = torch.rand(4, 1, 8, 8), torch.randn(4, 2)
    model.initialize(x, context)
    assert not torch.isclose(model.log_prob(x, context), model.log_prob(x, context + 1)).any()
    assert model.sample((4,), context).shape == x.shape
    with pytest.raises(ValueError, match=r"context must have shape \(batch, 2\), got None"):
        model.log_prob(x)
    with pytest.raises(ValueError, match=r"context must be None for an unconditional flow"):
        _small(name).log_prob(x, context)


def test_float64_and_conversion() -> None:
    model = FLOWS["glow"].model(GlowConfig((1, 4, 4), steps=1, hidden=4), dtype=torch.float64)
    assert model.sample((2,)).dtype == torch.float64
    assert model.log_prob(torch.rand(2, 1, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert model.float().sample((2,)).dtype == torch.float32


@pytest.mark.parametrize("name", FLOWS)
def test_config_fields_make_options(name: str) -> None:
    config = FLOWS[name].config
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name == "event_shape":
            continue
        assert hints[field.name] in (int, float, bool, str)
        assert isinstance(field.default, hints[field.name])
        assert field.metadata["help"]
    assert build(name, [1, 8, 8]).config == config(event_shape=(1, 8, 8))


def test_glow_has_an_initialised_rotation_per_step() -> None:
    model = _small("glow", conv1x1="full")
    weights = [m.weight for m in model.modules() if isinstance(m, InvertibleConv1x1)]
    assert len(weights) == 4
    for weight in weights:
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_glow_of_96_steps_inverts(dtype: torch.dtype, bound: float) -> None:
    model = build("glow", (3, 32, 32), levels=3, steps=32, hidden=16).to(dtype)
    x = torch.rand(4, 3, 32, 32, dtype=dtype)
    model.initialize(x)
    # Small, for each step's log-scale adds to those of the 95 others.
    randomize_(model, std=0.01)
    with torch.no_grad():
        z, logdet = model(x)
        back, logdet_back = model.inverse(z)
    assert (back - x).abs().max() < bound
    torch.testing.assert_close(logdet_back, -logdet, rtol=1e-4, atol=bound)


@pytest.mark.slow
def test_glow_compiles_without_graph_breaks() -> None:
    model = randomize_(_small("glow", (1, 4, 4), steps=1, hidden=4))
    compiled = torch.compile(model, fullgraph=True)
    x = torch.rand(3, 1, 4, 4)
    for got, expected in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("pixelcnn", (1, 8, 8)), "name must be one of nice, realnvp, glow, nsf"),
        (lambda: build("glow", (1, 7, 7)), "divisible by 4, for 2 squeezes, got 7 x 7"),
        (
            lambda: build("glow", (1, 28, 28), levels=3),
            "divisible by 8, for 3 squeezes, got 28 x 28",
        ),
        (lambda: build("realnvp", (1, 7, 8)), "divisible by 2, for 1 squeezes, got 7 x 8"),
        (
            lambda: build("glow", (8, 8)),
            "event_shape must be .channels, height, width., got .8, 8.",
        ),
        (lambda: build("glow", (1, 8, 8), steps=0), "Glow: steps must be at least 1, got 0"),
        (lambda: build("glow", (1, 8, 8), coupling="spline"), "coupling must be one of affine"),
        (
            lambda: GlowConfig((1, 8, 8), classes=2, context_features=2),
            "context_features must be 0 with classes",
        ),
        (lambda: GlowConfig((1, 8, 8), classes=2, learn_top=False), "learn_top must be True"),
        (lambda: RealNVPConfig((1, 8, 8), norm="layer"), "RealNVP: norm must be one of actnorm"),
        (lambda: NICEConfig((1,)), "NICE: event_shape must have at least 2 elements"),
        (lambda: NSFConfig((1,)), "NSF: event_shape must have at least 2 elements"),
        (lambda: NSFConfig((4,), passes=5), "NSF: passes must be at most 4, got 5"),
        (lambda: NSFConfig((4,), bound=0.0), "NSF: bound must be positive and finite, got 0"),
        (lambda: NSFConfig((4,), kind="cubic"), "NSF: kind must be one of coupling, autoreg"),
        (lambda: NICEConfig((4,), prior="cauchy"), "NICE: prior must be one of normal, logistic"),
        (
            lambda: _small("nice").log_prob(torch.rand(2, 64)),
            r"NICE: x must have shape \(\*batch, 1, 8, 8\), got \(2, 64\)",
        ),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
