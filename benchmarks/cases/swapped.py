"""Training steps of models written with other packages, before and after ``flowops.accelerate``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.case import Model, ModelCase
from flowops import accelerate

FEATURES, CONTEXT, HIDDEN = 10, 5, 64


def network(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_out))


def zuko(x: Tensor, c: Tensor) -> Model:
    from zuko.flows import NSF

    flow = NSF(FEATURES, CONTEXT, hidden_features=(HIDDEN, HIDDEN))
    return Model(flow, lambda x, c: -flow(c).log_prob(x).mean(), lambda: flow(c).sample())


def nflows(x: Tensor, c: Tensor) -> Model:
    """What sbi builds for a neural spline flow: couplings with residual networks, LU maps."""
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    def net(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(n_in, n_out, HIDDEN, context_features=CONTEXT)

    layers = []
    for i in range(5):
        mask = torch.arange(FEATURES) % 2 == i % 2
        layers += [
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask, net, tails="linear", tail_bound=3.0
            ),
            transforms.LULinear(FEATURES),
        ]
    base = distributions.StandardNormal([FEATURES])
    flow = flows.Flow(transforms.CompositeTransform(layers), base)
    return Model(flow, lambda x, c: -flow.log_prob(x, c).mean(), lambda: flow.sample(1, c))


def nflows_autoregressive(x: Tensor, c: Tensor) -> Model:
    from nflows import distributions, flows, transforms

    layers = []
    for _ in range(5):
        layers += [
            transforms.MaskedAffineAutoregressiveTransform(
                FEATURES, HIDDEN, context_features=CONTEXT
            ),
            transforms.RandomPermutation(FEATURES),
        ]
    base = distributions.StandardNormal([FEATURES])
    flow = flows.Flow(transforms.CompositeTransform(layers), base)
    return Model(flow, lambda x, c: -flow.log_prob(x, c).mean(), lambda: flow.sample(1, c))


def sbi(name: str) -> Callable[[Tensor, Tensor], Model]:
    """Return what makes sbi's density estimator of that name, with its own defaults."""

    def build(x: Tensor, c: Tensor) -> Model:
        from sbi.neural_nets import posterior_nn

        net = posterior_nn(name)(x, c)
        return Model(
            net,
            lambda x, c: net.loss(x, condition=c).mean(),
            lambda: net.sample((1,), condition=c),
        )

    return build


def normflows(x: Tensor) -> Model:
    """A level of Glow."""
    import normflows as nf

    flows = [*(nf.flows.GlowBlock(12, HIDDEN) for _ in range(4)), nf.flows.Squeeze()]
    base = nf.distributions.DiagGaussian((12, 8, 8))
    flow = nf.NormalizingFlow(base, flows)
    flow.log_prob(x)  # initialises
    return Model(flow, flow.forward_kld, lambda: flow.sample(len(x))[0])


def freia(x: Tensor, c: Tensor) -> Model:
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AllInOneBlock

    flow = SequenceINN(FEATURES)
    for _ in range(8):
        flow.append(AllInOneBlock, cond=0, cond_shape=(CONTEXT,), subnet_constructor=network)

    def loss(x: Tensor, c: Tensor) -> Tensor:
        z, logdet = flow(x, [c])
        return (z.square().sum(1) / 2 - logdet).mean()

    return Model(flow, loss, lambda: flow(torch.randn_like(x), [c], rev=True)[0])


def critic(x: Tensor) -> Model:
    """The critic of a SNGAN for 16x16 pixels."""
    sizes = [(3, 64, 3, 1), (64, 64, 4, 2), (64, 128, 3, 1), (128, 128, 4, 2), (128, 256, 3, 1)]
    layers: list[nn.Module] = []
    for n_in, n_out, kernel, stride in sizes:
        layers += [spectral_norm(nn.Conv2d(n_in, n_out, kernel, stride, 1)), nn.LeakyReLU(0.1)]
    net = nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(256 * 16, 1)))
    half = len(x) // 2
    return Model(net, lambda x: net(x[:half]).mean() - net(x[half:]).mean())


def fast_transformers(x: Tensor) -> Model:
    from fast_transformers.builders import TransformerEncoderBuilder
    from fast_transformers.masking import TriangularCausalMask

    model = TransformerEncoderBuilder.from_kwargs(
        n_layers=2, n_heads=4, query_dimensions=32, value_dimensions=32,
        feed_forward_dimensions=256, attention_type="causal-linear", dropout=0.0,
    ).get()  # fmt: skip
    mask = TriangularCausalMask(x.size(1), device=x.device)
    return Model(model, lambda x: (model(x, attn_mask=mask)[:, :-1] - x[:, 1:]).square().mean())


def accelerated(build: Callable[..., Model]) -> Callable[..., Model]:
    """The same model with flowops in the place of the layers that it knows."""

    def made(*data: Any) -> Model:
        model = build(*data)
        accelerate(model.module)
        return model

    return made


def vectors(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, FEATURES), torch.randn(batch, CONTEXT)


def case(
    package: str, name: str, data: Callable[[], Any], build: Callable[..., Model]
) -> ModelCase:
    models = {package: build, "ours": accelerated(build)}
    return ModelCase("swapped", name, data, models, compiled=())


_CASES = [
    case("zuko", "zuko NSF, batch 256, 10 features, 5 context", lambda: vectors(256), zuko),
    case("nflows", "nflows NSF, batch 256, 10 features, 5 context", lambda: vectors(256), nflows),
    case(
        "nflows",
        "nflows MAF, batch 256, 10 features, 5 context",
        lambda: vectors(256),
        nflows_autoregressive,
    ),
    *(
        case(
            "sbi", f"sbi {name}, batch 256, 10 features, 5 context", lambda: vectors(256), sbi(name)
        )
        for name in ("zuko_nsf", "zuko_maf", "nsf", "maf")
    ),
    case(
        "normflows",
        "normflows Glow, batch 32, 3x16x16, 4 steps",
        lambda: (torch.rand(32, 3, 16, 16),),
        normflows,
    ),
    case("FrEIA", "FrEIA cINN, batch 256, 10 features, 5 context", lambda: vectors(256), freia),
    case(
        "torch",
        "torch spectral_norm, critic of 6 layers, batch 16",
        lambda: (torch.randn(16, 3, 16, 16),),
        critic,
    ),
    case(
        "fast_transformers",
        "fast-transformers, batch 2, 1024 steps, 2 layers",
        lambda: (torch.randn(2, 1024, 128),),
        fast_transformers,
    ),
]
#: Those whose package is there: it is what flowops is put into.
CASES = [c for c in _CASES if all(find_spec(name) for name in c.models if name != "ours")]
