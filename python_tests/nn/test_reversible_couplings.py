"""ReversibleSequential: every form of coupling, whose backward kernel runs on rebuilt halves."""

from __future__ import annotations

import pytest
import torch
from test_reversible import (
    CONTEXT,
    FEATURES,
    Net,
    assert_equal,
    gradients,
    loss_of,
    make_pair,
    steps,
)
from torch import Tensor, nn

from flowops.nn import AffineCoupling, RationalQuadraticSpline, ResidualMLP, spline_parameters
from flowops.nn.base import Bijector
from flowops.nn.coupling import Coupling

MASK = torch.tensor([True, False, False, True, True, False])


class Constant(nn.Module):
    """A conditioner that does not look at its input, frozen or not."""

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2 * 3), requires_grad=not frozen)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.value.expand(len(x), -1)


class Cubic(Coupling):
    """A coupling of one's own, z = e^a x + h^3, with a parameter of the layer's."""

    def __init__(self) -> None:
        super().__init__(FEATURES, Net(outputs=3))
        self.rate = nn.Parameter(torch.zeros(3))

    def _move(
        self, moved: Tensor, raw: Tensor, logdet: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        shift, total = raw**3, self.rate.sum().expand(len(raw))
        if inverse:
            return (moved - shift) * torch.exp(-self.rate), -total
        return moved * torch.exp(self.rate) + shift, total if logdet is None else logdet + total


def _masked_spline() -> RationalQuadraticSpline:
    net = ResidualMLP(FEATURES, FEATURES * spline_parameters(4), hidden=8, context_features=CONTEXT)
    return RationalQuadraticSpline(FEATURES, net, bins=4, mask=MASK)


def _masked(**options: str) -> AffineCoupling:
    outputs = FEATURES if options.get("scale") == "additive" else 2 * FEATURES
    net = ResidualMLP(FEATURES, outputs, hidden=8)
    return AffineCoupling(FEATURES, net, mask=MASK, amplitude_per_channel=True, **options)


def _couplings() -> list[Bijector]:
    return [
        _masked(scale="additive"),
        _masked(scale="tanh_exp", order="shift_then_scale"),
        _masked_spline(),
        AffineCoupling(FEATURES, Net(), layout="shift_scale_interleaved", order="shift_then_scale"),
        Cubic(),
        AffineCoupling(FEATURES, Constant(), keep="second"),
    ]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
def test_gradients_are_those_of_sequential(dtype: torch.dtype, tolerance: float) -> None:
    plain, reversible = make_pair(_couplings(), dtype)
    x, context = torch.rand(5, FEATURES, dtype=dtype), torch.randn(5, CONTEXT, dtype=dtype)
    assert_equal(gradients(reversible, x, context), gradients(plain, x, context), tolerance)


def test_a_conditioner_without_gradients_passes_those_of_the_rest() -> None:
    plain, reversible = make_pair([AffineCoupling(FEATURES, Constant(frozen=True)), *steps(1)])
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    found = []
    for chain in (plain, reversible):
        start = x.clone().requires_grad_()
        loss_of(*chain(start)).backward()
        found.append(start.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)
