"""Training steps of a RealNVP of vectors, beside those of the packages that have its couplings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.case import Model, ModelCase, Sweep
from benchmarks.cases import affine_coupling
from benchmarks.peers import MLP, EagerFlow
from flowops.distributions import Flow, StandardNormal
from flowops.nn import MLP as OurMLP
from flowops.nn import AffineCoupling, Sequential

FEATURES, HALF, HIDDEN = 32, 16, 64


class Coupling(nn.Module):
    """A coupling, and the reversal that lets the next one move the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(HALF, HIDDEN, HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = affine_coupling.eager(x, self.network(x[:, :HALF]))
        return z.flip(1), logdet

    def inverse(self, z: Tensor) -> Tensor:
        z = z.flip(1)
        return affine_coupling.eager_inverse(z, self.network(z[:, :HALF]))[0]


def eager(x: Tensor, couplings: int) -> Model:
    flow = EagerFlow([Coupling() for _ in range(couplings)])
    return Model(flow, lambda x: -flow.log_prob(x).mean(), lambda: flow.sample(x))


def ours(x: Tensor, couplings: int) -> Model:
    layers = [
        AffineCoupling(
            FEATURES,
            OurMLP(HALF, FEATURES, hidden=(HIDDEN, HIDDEN)),
            keep=("first", "second")[i % 2],
            scale="sigmoid",
            order="shift_then_scale",
        )
        for i in range(couplings)
    ]
    flow = Flow(Sequential(*layers), StandardNormal(FEATURES), event_shape=(FEATURES,)).to(x.device)
    return Model(flow, lambda x: -flow.log_prob(x).mean(), lambda: flow.sample((len(x),)))


def nflows(x: Tensor, couplings: int) -> Model:
    from nflows import distributions, flows, transforms

    layers = []
    for i in range(couplings):
        mask = (torch.arange(FEATURES) >= HALF) ^ bool(i % 2)
        network = lambda n_in, n_out: MLP(n_in, HIDDEN, HIDDEN, n_out)
        layers.append(transforms.AffineCouplingTransform(mask, network))
    base = distributions.StandardNormal([FEATURES])
    flow = flows.Flow(transforms.CompositeTransform(layers), base)
    return Model(flow, lambda x: -flow.log_prob(x).mean(), lambda: flow.sample(len(x)))


def normflows(x: Tensor, couplings: int) -> Model:
    from normflows import NormalizingFlow, distributions, flows

    layers = []
    for _ in range(couplings):
        network = MLP(HALF, HIDDEN, HIDDEN, FEATURES)
        layers += [flows.AffineCouplingBlock(network, scale_map="sigmoid")]
        layers += [flows.Permute(FEATURES, mode="swap")]
    flow = NormalizingFlow(distributions.DiagGaussian(FEATURES, trainable=False), layers)
    return Model(flow, flow.forward_kld, lambda: flow.sample(len(x))[0])


def freia(x: Tensor, couplings: int) -> Model:
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import AffineCouplingOneSided, PermuteRandom

    flow = SequenceINN(FEATURES)
    network = lambda n_in, n_out: MLP(n_in, HIDDEN, HIDDEN, n_out)
    for i in range(couplings):
        flow.append(AffineCouplingOneSided, subnet_constructor=network)
        flow.append(PermuteRandom, seed=i)

    def loss(x: Tensor) -> Tensor:
        z, logdet = flow(x)
        return (0.5 * z.square().sum(1) - logdet).mean()

    return Model(flow, loss, lambda: flow(torch.randn_like(x), rev=True)[0])


def case(batch: int = 512, couplings: int = 8) -> ModelCase:
    builders = {
        "eager": eager, "ours": ours, "nflows": nflows, "normflows": normflows, "FrEIA": freia,
    }  # fmt: skip
    return ModelCase(
        "realnvp",
        f"batch {batch}, {FEATURES} features, {couplings} couplings, hidden {HIDDEN}",
        lambda: (torch.randn(batch, FEATURES) * 2,),
        {name: (lambda x, build=build: build(x, couplings)) for name, build in builders.items()},
    )


CASES = [case()]

SWEEPS = [
    Sweep("realnvp", "depth", (4, 8, 16, 32), lambda depth: case(couplings=depth)),
    Sweep("realnvp", "batch", (1024, 2048, 4096, 8192), lambda batch: case(batch)),
]
