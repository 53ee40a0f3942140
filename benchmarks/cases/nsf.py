"""Training steps of a neural spline flow, beside nflows' and zuko's, where they are installed.

Both are optional, and need but torch and numpy here: ``pip install --no-deps nflows==0.14 zuko``.
nflows' networks gate the context into every block, ours and zuko's see it at the input; zuko's have
one hidden layer less than a residual block of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.case import StepCase
from flowops.models import build

BATCH, TRANSFORMS, BINS, BLOCKS, BOUND = 512, 5, 8, 2, 4.0
LogProb = Callable[[Tensor, Tensor | None], Tensor]


def nflows_log_prob(features: int, context: int, hidden: int) -> tuple[LogProb, nn.Module]:
    """Coupling splines between LU maps, as the users of nflows and sbi write them."""
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    def network(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(
            n_in, n_out, hidden_features=hidden, context_features=context or None, num_blocks=BLOCKS
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
    return flow.log_prob, flow


def zuko_log_prob(features: int, context: int, hidden: int) -> tuple[LogProb, nn.Module]:
    from zuko.flows import NSF

    flow = NSF(
        features,
        context,
        transforms=TRANSFORMS,
        bins=BINS,
        hidden_features=(hidden, hidden),
        passes=2,
    )
    return (lambda x, c: flow(c).log_prob(x)), flow


RIVALS = {"nflows": nflows_log_prob, "zuko": zuko_log_prob}


def training_step(
    log_prob: LogProb, flow: nn.Module, x: Tensor, c: Tensor | None, fused: bool
) -> Callable[[], Tensor]:
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=fused)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = -log_prob(x, c).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def case(features: int, context: int, hidden: int) -> StepCase:
    """Ours with the optimiser that our command line takes, the others with that one too."""

    def steps(rivals: Sequence[str], compile_ours: bool) -> dict[str, Callable[[], Tensor]]:
        x = torch.randn(BATCH, features)
        c = torch.randn(BATCH, context) if context else None

        def ours(compiled: bool) -> Callable[[], Tensor]:
            flow = build(
                "nsf", (features,), preprocess="none", transforms=TRANSFORMS, bins=BINS,
                blocks=BLOCKS, hidden=hidden, bound=BOUND, context_features=context,
            )  # fmt: skip
            flow.initialize(x, c)
            log_prob = torch.compile(flow.log_prob) if compiled else flow.log_prob
            return training_step(log_prob, flow, x, c, fused=True)

        made = {"ours": ours(False)}
        if compile_ours:
            made["ours compiled"] = ours(True)
        for name in rivals:
            for label, fused in ((name, False), (f"{name}, fused Adam", True)):
                log_prob, flow = RIVALS[name](features, context, hidden)
                made[label] = training_step(log_prob, flow, x, c, fused)
        return made

    name = f"batch {BATCH}, {features} features, {context} context, hidden {hidden}"
    return StepCase("nsf", name, tuple(RIVALS), steps)


CASES = [case(32, 0, 64), case(10, 20, 128)]
