"""Training steps of a neural spline flow, beside nflows' and zuko's, where they are installed.

nflows' networks gate the context into every block, ours and zuko's see it at the input; zuko's have
one hidden layer less than a residual block of the others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.case import Model, ModelCase
from flowops.models import build

BATCH, TRANSFORMS, BINS, BLOCKS, BOUND = 512, 5, 8, 2, 4.0


def ours(hidden: int, x: Tensor, c: Tensor | None) -> Model:
    flow = build(
        "nsf", x.shape[1:], preprocess="none", transforms=TRANSFORMS, bins=BINS, blocks=BLOCKS,
        hidden=hidden, bound=BOUND, context_features=0 if c is None else c.size(1),
    )  # fmt: skip
    flow.to(x.device).initialize(x, c)
    return Model(flow, lambda x, c: -flow.log_prob(x, c).mean(), lambda: flow.sample((len(x),), c))


def nflows(hidden: int, x: Tensor, c: Tensor | None) -> Model:
    """Coupling splines between LU maps, as the users of nflows and sbi write them."""
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    features, context = x.size(1), None if c is None else c.size(1)

    def network(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(
            n_in, n_out, hidden_features=hidden, context_features=context, num_blocks=BLOCKS
        )

    layers = []
    for i in range(TRANSFORMS):
        mask = torch.arange(features) % 2 == i % 2
        layers += [
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask, network, num_bins=BINS, tails="linear", tail_bound=BOUND
            ),
            transforms.LULinear(features),
        ]
    base = distributions.StandardNormal([features])
    flow = flows.Flow(transforms.CompositeTransform(layers), base)

    def sample() -> Tensor:
        return flow.sample(len(x)) if c is None else flow.sample(1, c)

    return Model(flow, lambda x, c: -flow.log_prob(x, c).mean(), sample)


def zuko(hidden: int, x: Tensor, c: Tensor | None) -> Model:
    from zuko.flows import NSF

    flow = NSF(
        x.size(1),
        0 if c is None else c.size(1),
        transforms=TRANSFORMS,
        bins=BINS,
        hidden_features=(hidden, hidden),
        passes=2,
    )

    def sample() -> Tensor:
        return flow(c).sample((len(x),) if c is None else ())

    return Model(flow, lambda x, c: -flow(c).log_prob(x).mean(), sample)


def case(features: int, context: int, hidden: int) -> ModelCase:
    def data() -> tuple[Tensor, Tensor | None]:
        return torch.randn(BATCH, features), torch.randn(BATCH, context) if context else None

    builders = {"ours": ours, "nflows": nflows, "zuko": zuko}
    return ModelCase(
        "nsf",
        f"batch {BATCH}, {features} features, {context} context, hidden {hidden}",
        data,
        {name: (lambda x, c, build=build: build(hidden, x, c)) for name, build in builders.items()},
        compiled=("ours", "zuko"),
    )


CASES = [case(32, 0, 64), replace(case(10, 20, 128), compiled=("ours",))]
