"""residual-flows' closed-form norms and couplings, against definitions."""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import residual_flows as ours
from flowops.testing import jacobian_logdet

from .against_peer import pickled

PAIRS = [(1, 1), (1, 2), (1, math.inf), (2, math.inf), (math.inf, math.inf)]


def matrix_of(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """What a layer without bias does, (outputs, inputs)."""
    basis = torch.eye(math.prod(size), dtype=torch.float64).view(-1, *size)
    return layer(basis).flatten(1).t().detach()


def operator_norm(matrix: Tensor, domain: float, codomain: float) -> Tensor:
    """The largest norm of an image of a unit vector, at the unit ball's corners, or by duality."""
    if domain == 1:
        return torch.linalg.vector_norm(matrix, codomain, dim=0).max()
    if domain == math.inf:
        corners = torch.tensor(list(product((-1.0, 1.0), repeat=matrix.size(1)))).double()
        return (matrix @ corners.t()).abs().max()
    return (matrix @ torch.nn.functional.normalize(matrix, dim=1).t()).abs().max()


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(("domain", "codomain"), PAIRS)
def test_closed_forms_are_operator_norms(domain: float, codomain: float, local: bool) -> None:
    torch.manual_seed(1)
    options = {"bias": False, "coeff": 0.6, "domain": domain, "codomain": codomain}
    linear = ours.LopLinear(5, 4, local_constraint=local, **options).double()
    conv = ours.LopConv2d(1, 2, 3, 1, 1, local_constraint=local, **options).double()
    for layer, size in ((linear, (5,)), (conv, (1, 3, 4))):
        layer.weight.data = 3 * torch.randn_like(layer.weight)
        free = torch.linalg.vector_norm(
            layer.weight.detach(),
            layer.norm_type,
            [i for i in range(layer.weight.dim()) if i != layer.max_across_dim],
        )
        norm = operator_norm(matrix_of(layer, size), domain, codomain)
        torch.testing.assert_close(norm.item(), 0.6, rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.scale, free.max())
        before = layer.weight.detach().clone()
        layer.weight.data = before * (0.1 / free.max())
        torch.testing.assert_close(layer.compute_weight(), layer.weight, rtol=0, atol=0)


def test_local_bounds_leave_small_rows_alone() -> None:
    layer = ours.LopLinear(2, 2, coeff=1.0).double()
    layer.weight.data = torch.tensor([[2.0, 2.0], [0.1, -0.2]]).double()
    expected = torch.tensor([[0.5, 0.5], [0.1, -0.2]]).double()
    torch.testing.assert_close(layer.compute_weight(), expected)
    layer.local_constraint = False
    torch.testing.assert_close(layer.compute_weight(), layer.weight / 4)


@pytest.mark.parametrize(("domain", "codomain"), PAIRS)
def test_bounded_weights_have_the_gradient_of_the_quotient(domain: float, codomain: float) -> None:
    torch.manual_seed(2)
    layer = ours.LopConv2d(2, 3, 3, 2, 1, domain=domain, codomain=codomain).double()
    weight = torch.randn_like(layer.weight).requires_grad_()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)

    def run(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (weight,))


def test_other_pairs_of_norms_are_errors() -> None:
    with pytest.raises(ValueError, match=r"LopLinear: \(domain, codomain\) must be .*\(2, 2"):
        ours.LopLinear(3, 3, domain=2, codomain=2)
    with pytest.raises(ValueError, match=r"LopConv2d: .* got \(inf, 1\)"):
        ours.LopConv2d(3, 3, 3, 1, 1, codomain=1)


def net(channels: int, params: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, params, 3, padding=1), nn.Tanh()).double()


class Half(nn.Module):
    """The end of a network that computes in half precision by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


def couplings() -> dict[str, Any]:
    torch.manual_seed(3)
    vector = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    made: dict[str, Any] = {
        "vectors": ours.CouplingBlock(4, vector),
        "swapped": ours.CouplingBlock(4, vector, swap=True),
        "channel0": ours.ChannelCouplingBlock(2, net(1, 2)),
        "channel1": ours.ChannelCouplingBlock(2, net(1, 2), "channel1"),
    }
    for mask in ("channel0", "channel1", "checkerboard0", "checkerboard1", None):
        made[f"masked {mask}"] = ours.MaskedCouplingBlock(2, net(2, 4), mask)
    return made


def batch(case: str, rows: int) -> Tensor:
    size = (4,) if case in ("vectors", "swapped") else (2, 3, 3)
    return torch.randn(rows, *size, dtype=torch.float64)


# Without a mask the network sees zeros alone, and all is moved.
FIRST_KEPT = {"vectors": True, "swapped": False, "channel0": True, "channel1": False}
FIRST_KEPT |= {"masked channel0": True, "masked channel1": False, "masked None": False}
FIRST_KEPT |= {"masked checkerboard0": True, "masked checkerboard1": False}


@pytest.mark.parametrize("case", FIRST_KEPT)
def test_couplings_subtract_their_log_determinant_and_invert(case: str) -> None:
    layer, x, start = couplings()[case], batch(case, 3), torch.randn(3, 1).double()
    y, total = layer(x, start)
    assert total.shape == (3, 1)
    truth = jacobian_logdet(lambda v: layer(v), x)
    torch.testing.assert_close(total, start - truth[:, None])
    back, total = layer.inverse(y, total)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(total, start)
    torch.testing.assert_close(layer.inverse(y), x)
    kept = (y == x).flatten(1).all(0)
    assert kept[0] == FIRST_KEPT[case]
    assert kept[-1] == (case.endswith("1") or case == "swapped") ^ ("checkerboard" in case)


@pytest.mark.parametrize("case", FIRST_KEPT)
def test_couplings_take_empty_batches_and_half_precision_and_copy(case: str) -> None:
    layer = couplings()[case]
    y, total = layer(batch(case, 0), torch.zeros(0, 1))
    assert y.shape == batch(case, 0).shape
    assert total.shape == (0, 1)
    x = batch(case, 2)
    for other in (copy.deepcopy(layer), pickled(layer)):
        torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    single = copy.deepcopy(layer).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, total = single(x.float(), 0)
    assert y.dtype == total.dtype == torch.float32
    torch.testing.assert_close(y.double(), layer(x), rtol=0.03, atol=0.03)
    single.nnet.append(Half())
    y = single(x.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), layer(x), rtol=0.03, atol=0.03)


def test_what_couplings_cannot_be() -> None:
    with pytest.raises(ValueError, match="CouplingBlock: dim must be even, got 3"):
        ours.CouplingBlock(3, nn.Identity())
    with pytest.raises(ValueError, match="CouplingBlock: input must have 4 channels, got 5"):
        ours.CouplingBlock(4, nn.Identity())(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="ChannelCouplingBlock: mask_type must be one of channel0"):
        ours.ChannelCouplingBlock(4, nn.Identity(), "checkerboard0")
    with pytest.raises(ValueError, match="MaskedCouplingBlock: mask_type must be None or channel0"):
        ours.MaskedCouplingBlock(4, nn.Identity(), "stripes")
    assert repr(ours.ChannelCouplingBlock(4, nn.Identity())).startswith("ChannelCouplingBlock(\n")
