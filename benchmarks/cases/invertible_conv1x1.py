"""Glow's actnorm and 1x1 convolution, and determinant with inverse, as PyTorch code writes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.case import Case, Function, Rival, Sweep
from benchmarks.peers import bare
from flowops import ops


class LUStep:
    """Actnorm, then W = P L (U + diag(sign exp(log_s))): both ways to compute the step.

    What is fixed in a model lies here; what is learned comes as arguments.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def draw(self) -> None:
        """Fix what is not learned, on the device at hand."""
        channels = self.channels
        self.permutation = torch.randperm(channels)
        self.matrix = torch.eye(channels)[self.permutation]
        self.sign = torch.randint(0, 2, (channels,)).float() * 2 - 1
        self.lower_mask = torch.ones(channels, channels).tril(-1)
        self.upper_mask = torch.ones(channels, channels).triu(1)
        self.eye = torch.eye(channels)

    def eager(
        self,
        x: Tensor,
        bias: Tensor,
        log_scale: Tensor,
        lower: Tensor,
        upper: Tensor,
        log_s: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As PyTorch implementations of Glow write it."""
        pixels = x.size(2) * x.size(3)
        y = (x + bias.view(1, -1, 1, 1)) * torch.exp(log_scale).view(1, -1, 1, 1)
        z = functional.conv2d(y, self.weight(lower, upper, log_s)[:, :, None, None])
        return z, pixels * (torch.sum(log_scale) + torch.sum(log_s))

    def weight(self, lower: Tensor, upper: Tensor, log_s: Tensor) -> Tensor:
        dtype = lower.dtype
        unit = lower * self.lower_mask.to(dtype) + self.eye.to(dtype)
        diagonal = torch.diag(self.sign.to(dtype) * torch.exp(log_s))
        return self.matrix.to(dtype) @ unit @ (upper * self.upper_mask.to(dtype) + diagonal)

    def load_normflows(self) -> Function:
        from normflows.flows import ActNorm, Invertible1x1Conv

        norm = bare(ActNorm((self.channels, 1, 1)), "s", "t")
        norm.data_dep_init_done = torch.tensor(1.0)
        conv = bare(Invertible1x1Conv(self.channels, use_lu=True), "L", "U", "log_S")
        conv.P, conv.sign_S = self.matrix, self.sign

        def call(x: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
            norm.t, norm.s, conv.L, conv.U, conv.log_S = learned
            y, first = norm.inverse(x)
            z, second = conv.inverse(y)
            return z, first + second

        return call

    def ours(
        self,
        x: Tensor,
        bias: Tensor,
        log_scale: Tensor,
        lower: Tensor,
        upper: Tensor,
        log_s: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Through flowops, the actnorm folded into the weight."""
        pixels = x.size(2) * x.size(3)
        (weight,), (shift,), logdet = ops.invertible_conv1x1_lu(
            [lower], [upper], [log_s], [self.sign], [self.permutation],
            actnorm_bias=[bias], actnorm_log_scale=[log_scale],
        )  # fmt: skip
        return ops.invertible_conv1x1(x, weight, shift), pixels * logdet[0]


def other_signs(x: Tensor, bias: Tensor, log_scale: Tensor, *rest: Tensor) -> list[Tensor]:
    """As normflows has it, whose actnorm subtracts its shift and divides by its scale."""
    return [x, -bias.view(1, -1, 1, 1), -log_scale.view(1, -1, 1, 1), *rest]


def step_case(shape: tuple[int, ...]) -> Case:
    step, channels = LUStep(shape[1]), shape[1]

    def inputs() -> list[Tensor]:
        step.draw()
        vectors = [torch.randn(channels) / 10 for _ in range(3)]
        matrices = [torch.randn(channels, channels) / channels for _ in range(2)]
        return [torch.randn(shape), vectors[0], vectors[1], *matrices, vectors[2]]

    traffic = 2 * torch.Size(shape).numel() * 4
    name = f"{shape} float32, actnorm and LU"
    return Case(
        "invertible_conv1x1", name, inputs, step.eager, step.ours, traffic,
        flops=2 * torch.Size(shape).numel() * channels,
        rivals=(Rival("normflows", step.load_normflows, adapt=other_signs),),
    )  # fmt: skip


def eager_model(*weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.slogdet(w.double()).logabsdet.to(w.dtype) for w in weights)


def our_model(*weights: Tensor) -> tuple[Tensor, ...]:
    return ops.invertible_conv1x1_full(weights)[2].unbind()


def model_case(sizes: list[int], name: str) -> Case:
    def inputs() -> list[Tensor]:
        return [torch.linalg.qr(torch.randn(n, n)).Q + torch.randn(n, n) / 9 / n for n in sizes]

    traffic = sum(4 * n * n for n in sizes)
    return Case("invertible_conv1x1", name, inputs, eager_model, our_model, traffic, tolerance=1e-3)


def eager_inverse(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.double()
    return torch.linalg.inv(wide).to(weight.dtype), torch.linalg.slogdet(wide).logabsdet


def our_inverse(weight: Tensor) -> tuple[Tensor, Tensor]:
    (inverse,), _, logdet = ops.invertible_conv1x1_full([weight], inverse=True)
    return inverse, -logdet[0]


def inverse_case(n: int) -> Case:
    def inputs() -> list[Tensor]:
        return [torch.linalg.qr(torch.randn(n, n)).Q + torch.randn(n, n) / 9 / n]

    name = f"{n} channels, float64 log-det and inverse"
    return Case(
        "invertible_conv1x1", name, inputs, eager_inverse, our_inverse, 8 * n * n,
        backward=False, tolerance=1e-3,
    )  # fmt: skip


CASES = [
    step_case((64, 12, 16, 16)),
    step_case((64, 48, 8, 8)),
    step_case((64, 96, 8, 8)),
    step_case((256, 12, 32, 32)),
    *(inverse_case(n) for n in (12, 48, 96, 192)),
    model_case([12] * 32 + [24] * 32 + [48] * 32, "96 layers of a Glow, float64 log-det"),
]

SWEEPS = [
    Sweep("invertible_conv1x1", "channels", (12, 24, 48, 96), lambda c: step_case((64, c, 8, 8))),
]
