"""Training steps of a small Glow, as PyTorch implementations write it, and of normflows'.

The networks of ours and of normflows have actnorm, as Glow's own code does; the plain ones have
not. All have a standard normal density at the top.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.case import Model, ModelCase, Sweep
from benchmarks.cases import affine_coupling, gaussian_log_prob
from benchmarks.cases.invertible_conv1x1 import LUStep
from flowops.models import build

LEVELS = 2


class ZeroConv(nn.Module):
    """3x3 convolution that begins at zero, sees ones beyond the border, and learns its scale."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3)
        self.scale = nn.Parameter(torch.zeros(n_out))
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(functional.pad(x, (1, 1, 1, 1), value=1.0))
        return y * torch.exp(3 * self.scale).view(1, -1, 1, 1)


class Step(nn.Module):
    """Actnorm, 1x1 convolution by its LU factors, affine coupling."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lu = LUStep(channels)
        self.lu.draw()
        self.vectors = nn.ParameterList(torch.zeros(channels) for _ in range(3))
        self.factors = nn.ParameterList(
            torch.randn(channels, channels) / channels for _ in range(2)
        )
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1), nn.ReLU(), ZeroConv(hidden, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bias, log_scale, log_s = self.vectors
        y, first = self.lu.eager(x, bias, log_scale, *self.factors, log_s)
        z, second = affine_coupling.eager(y, self.network(y.chunk(2, 1)[0]))
        return z, first + second

    def inverse(self, z: Tensor) -> Tensor:
        bias, log_scale, log_s = (vector.view(1, -1, 1, 1) for vector in self.vectors)
        (y,) = affine_coupling.eager_inverse(z, self.network(z.chunk(2, 1)[0]))
        inverse = self.lu.weight(*self.factors, log_s.flatten()).inverse()
        return functional.conv2d(y, inverse[:, :, None, None]) * torch.exp(-log_scale) - bias


class EagerGlow(nn.Module):
    """Squeezes, steps, and halves that leave under a learned Gaussian."""

    def __init__(self, channels: int, steps: int, hidden: int) -> None:
        super().__init__()
        self.levels, self.priors = nn.ModuleList(), nn.ModuleList()
        for level in range(LEVELS):
            channels *= 4
            self.levels.append(nn.ModuleList(Step(channels, hidden) for _ in range(steps)))
            if level < LEVELS - 1:
                channels //= 2
                self.priors.append(ZeroConv(channels, 2 * channels))

    def log_prob(self, x: Tensor) -> Tensor:
        x = x - 0.5
        total = torch.zeros(len(x), device=x.device)
        for level, steps in enumerate(self.levels):
            x = functional.pixel_unshuffle(x, 2)
            for step in steps:
                x, logdet = step(x)
                total = total + logdet
            if level < len(self.priors):
                x, left = x.chunk(2, 1)
                total = total + gaussian_log_prob.eager(left, self.priors[level](x))[0]
        return total + gaussian_log_prob.eager_standard(x)[0]

    def sample(self, like: Tensor) -> Tensor:
        """As many images as ``like`` holds, of its shape."""
        batch, channels, height, width = like.shape
        scale = 2**LEVELS
        x = like.new_empty(batch, channels * scale * 2, height // scale, width // scale).normal_()
        for level, steps in reversed(list(enumerate(self.levels))):
            if level < len(self.priors):
                mean, log_scale = self.priors[level](x).chunk(2, 1)
                x = torch.cat([x, mean + log_scale.exp() * torch.randn_like(mean)], 1)
            for step in reversed(steps):
                x = step.inverse(x)
            x = functional.pixel_shuffle(x, 2)
        return x + 0.5


def eager(x: Tensor, steps: int, hidden: int) -> Model:
    glow = EagerGlow(x.size(1), steps, hidden)
    return Model(glow, lambda x: -glow.log_prob(x).mean(), lambda: glow.sample(x))


def ours(x: Tensor, steps: int, hidden: int) -> Model:
    glow = build(
        "glow", x.shape[1:], levels=LEVELS, steps=steps, hidden=hidden, preprocess="center",
        learn_top=False,
    )  # fmt: skip
    glow.to(x.device).initialize(x)
    return Model(glow, lambda x: -glow.log_prob(x).mean(), lambda: glow.sample((len(x),)))


def normflows(x: Tensor, steps: int, hidden: int) -> Model:
    """Its levels run from the noise to the data."""
    from normflows import MultiscaleFlow, distributions, flows

    _, channels, height, width = x.shape
    bases, levels, merges = [], [], []
    for level in reversed(range(LEVELS)):
        inside = channels * 2 ** (level + 2)
        blocks = [flows.GlowBlock(inside, hidden, net_actnorm=True) for _ in range(steps)]
        levels.append([*blocks, flows.Squeeze()])
        top = level == LEVELS - 1
        left = inside if top else inside // 2
        shape = (left, height // 2 ** (level + 1), width // 2 ** (level + 1))
        bases.append(distributions.DiagGaussian(shape, trainable=False))
        if not top:
            merges.append(flows.Merge())
    glow = MultiscaleFlow(bases, levels, merges, class_cond=False)
    return Model(glow, lambda x: glow.forward_kld(x - 0.5), lambda: glow.sample(len(x))[0])


def case(batch: int = 32, steps: int = 4, hidden: int = 64) -> ModelCase:
    builders = {"eager": eager, "ours": ours, "normflows": normflows}
    return ModelCase(
        "glow",
        f"batch {batch}, 3x16x16, {LEVELS} levels of {steps} steps, hidden {hidden}",
        lambda: (torch.rand(batch, 3, 16, 16),),
        {
            name: (lambda x, build=build: build(x, steps, hidden))
            for name, build in builders.items()
        },
    )


PLAIN = case()
# Compiling takes longer than all else, and is timed in float32.
CASES = [PLAIN, replace(PLAIN, name=f"{PLAIN.name}, bfloat16", autocast=True, compiled=())]

SWEEPS = [
    Sweep("glow", "depth", (2, 4, 8, 16), lambda steps: case(steps=steps)),
    Sweep("glow", "hidden width", (32, 64, 128, 256), lambda hidden: case(hidden=hidden)),
]
