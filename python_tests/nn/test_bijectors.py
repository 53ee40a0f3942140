"""Every bijector keeps the contract, at random parameters; see flowops.testing.check_bijector."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from flowops.nn import (
    MLP,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveSpline,
    BatchNorm,
    Bijector,
    DiagonalScale,
    Exact,
    Flatten,
    GatedResNet,
    GlowConvNet,
    Inverse,
    InvertibleConv1x1,
    InvertibleResidual,
    LearnedPrior,
    LipschitzConvNet,
    LipschitzMLP,
    Logit,
    MultiScale,
    Permutation,
    RationalQuadraticSpline,
    ResidualMLP,
    Sequential,
    Shift,
    Split,
    Squeeze,
    ZeroConv2d,
    checkerboard_mask,
    even_odd_permutation,
    random_permutation,
    reverse_permutation,
)
from flowops.testing import check_bijector, randomize_

FEATURES = 3
IMAGE = (4, 2, 4)


def _image_coupling(keep: str, **options: object) -> AffineCoupling:
    network = GlowConvNet(2, 4, hidden=5, context_features=FEATURES)
    return AffineCoupling(4, network, keep=keep, **options)  # type: ignore[arg-type]


def _uneven_coupling(kept: int, keep: str) -> AffineCoupling:
    network = MLP(kept, 2 * (5 - kept), hidden=(7,))
    return AffineCoupling(5, network, keep=keep, kept_channels=kept)


def _masked_coupling(scale: str, parity: int) -> AffineCoupling:
    mask = checkerboard_mask(2, 4, parity=parity)
    network = GatedResNet(4, 8, hidden=5, blocks=1, mask=mask, context_features=FEATURES)
    return AffineCoupling(4, network, mask=mask, scale=scale)


def _vector_mask_coupling() -> AffineCoupling:
    mask = torch.tensor([True, False, False, True, False])
    return AffineCoupling(5, MLP(5, 10, hidden=(7,)), mask=mask)


def _image_spline(keep: str, **options: object) -> RationalQuadraticSpline:
    network = GlowConvNet(2, 2 * 11, hidden=5, context_features=FEATURES)
    return RationalQuadraticSpline(4, network, keep=keep, bins=4, **options)  # type: ignore[arg-type]


def _masked_spline() -> RationalQuadraticSpline:
    mask = checkerboard_mask(2, 4)
    network = GatedResNet(4, 4 * 8, hidden=5, blocks=1, mask=mask, context_features=FEATURES)
    return RationalQuadraticSpline(4, network, mask=mask, bins=3)


def _vector_spline() -> RationalQuadraticSpline:
    network = ResidualMLP(2, 3 * 9, hidden=7, blocks=1, context_features=FEATURES)
    options = {"bins": 3, "bound": 1.5, "tails": "circular"}
    return RationalQuadraticSpline(5, network, kept_channels=2, **options)  # type: ignore[arg-type]


def _autoregressive(**options: object) -> AutoregressiveSpline:
    return AutoregressiveSpline(5, hidden=9, blocks=1, bins=3, **options)  # type: ignore[arg-type]


def _step(channels: int, parameterization: str = "lu", actnorm: bool = True) -> list[Bijector]:
    kept = channels // 2
    return [
        *([ActNorm(channels, log_scale_factor=3.0)] if actnorm else []),
        InvertibleConv1x1(channels, parameterization=parameterization),
        AffineCoupling(channels, GlowConvNet(kept, 2 * (channels - kept), hidden=4)),
    ]


def _residual(network: nn.Module) -> InvertibleResidual:
    return InvertibleResidual(network, lipschitz=0.9, logdet=Exact())


def _multi_scale() -> MultiScale:
    levels = [
        Sequential(Squeeze(), *_step(4), *_step(4, "full")),
        Sequential(*_step(2), LearnedPrior(2, context_features=FEATURES)),
    ]
    return MultiScale(levels, [Split(4, ZeroConv2d(2, 4))], [(2, 1, 2), (2, 1, 2)])


CASES: dict[str, tuple[Callable[[], Bijector], tuple[int, ...], int]] = {
    "actnorm_image": (lambda: ActNorm(4, log_scale_factor=3.0), IMAGE, 0),
    "actnorm_vector": (lambda: ActNorm(5), (5,), 0),
    "actnorm_sequence": (lambda: ActNorm(3), (3, 4), 0),
    "diagonal_scale": (lambda: DiagonalScale(5), (5,), 0),
    "batch_norm": (lambda: BatchNorm(4), IMAGE, 0),
    "conv1x1_lu": (lambda: InvertibleConv1x1(4), IMAGE, 0),
    "conv1x1_full": (lambda: InvertibleConv1x1(4, parameterization="full"), IMAGE, 0),
    "conv1x1_vector": (lambda: InvertibleConv1x1(7), (7,), 0),
    "conv1x1_volume": (lambda: InvertibleConv1x1(3), (3, 2, 1, 2), 0),
    "coupling_exp": (lambda: _image_coupling("first"), IMAGE, FEATURES),
    "coupling_second": (lambda: _image_coupling("second"), IMAGE, FEATURES),
    "coupling_sigmoid": (
        lambda: _image_coupling(
            "first", scale="sigmoid", order="shift_then_scale", layout="shift_scale_interleaved"
        ),
        IMAGE,
        FEATURES,
    ),
    "coupling_tanh": (lambda: _image_coupling("second", scale="tanh_exp"), IMAGE, FEATURES),
    "coupling_tanh_channels": (
        lambda: _image_coupling("first", scale="tanh_exp", amplitude_per_channel=True),
        IMAGE,
        FEATURES,
    ),
    "coupling_uneven_first": (lambda: _uneven_coupling(1, "first"), (5,), 0),
    "coupling_uneven_second": (lambda: _uneven_coupling(4, "second"), (5,), 0),
    "coupling_additive": (
        lambda: AdditiveCoupling(5, MLP(2, 3, hidden=(7,), context_features=FEATURES)),
        (5,),
        FEATURES,
    ),
    "coupling_checkerboard_exp": (lambda: _masked_coupling("exp", 0), IMAGE, FEATURES),
    "coupling_checkerboard_tanh": (lambda: _masked_coupling("tanh_exp", 1), IMAGE, FEATURES),
    "coupling_vector_mask": (_vector_mask_coupling, (5,), 0),
    "spline_first": (lambda: _image_spline("first"), IMAGE, FEATURES),
    "spline_second": (lambda: _image_spline("second", bound=1.0), IMAGE, FEATURES),
    "spline_masked": (_masked_spline, IMAGE, FEATURES),
    "spline_vector_circular": (_vector_spline, (5,), FEATURES),
    "spline_autoregressive": (_autoregressive, (5,), 0),
    "spline_autoregressive_context": (
        lambda: _autoregressive(
            order=torch.tensor([3, 0, 4, 1, 2]), context_features=FEATURES, tails="none"
        ),
        (5,),
        FEATURES,
    ),
    "spline_autoregressive_two_passes": (lambda: _autoregressive(passes=2), (5,), 0),
    "squeeze": (Squeeze, (2, 4, 2), 0),
    "squeeze_by_3": (lambda: Squeeze(3), (1, 3, 6), 0),
    "flatten": (lambda: Flatten((2, 2, 2)), (2, 2, 2), 0),
    "permutation_reverse": (lambda: Permutation(reverse_permutation(4)), IMAGE, 0),
    "permutation_random": (lambda: Permutation(random_permutation(7)), (7,), 0),
    "permutation_even_odd": (lambda: Permutation(even_odd_permutation(5)), (5,), 0),
    "learned_prior": (lambda: LearnedPrior(4), IMAGE, 0),
    "learned_prior_context": (lambda: LearnedPrior(4, context_features=FEATURES), IMAGE, FEATURES),
    "shift": (lambda: Shift(-0.5), IMAGE, 0),
    "residual_vector": (lambda: _residual(LipschitzMLP(5, 5, hidden=(7,))), (5,), 0),
    "residual_image": (lambda: _residual(LipschitzConvNet(2, (3, 2), hidden=4)), (2, 3, 2), 0),
    "residual_plain": (lambda: _residual(nn.Sequential(nn.Linear(5, 5), nn.Tanh())), (5,), 0),
    "inverse": (lambda: Inverse(_image_coupling("first")), IMAGE, FEATURES),
    "sequential_empty": (Sequential, (5,), 0),
    "sequential_steps": (
        lambda: Sequential(*_step(4), *_step(4, "full"), *_step(4, actnorm=False), ActNorm(4)),
        IMAGE,
        0,
    ),
    "sequential_nested": (lambda: Sequential(Sequential(*_step(4)), ActNorm(4)), IMAGE, 0),
    "multi_scale": (_multi_scale, (1, 2, 4), FEATURES),
}


def _build(name: str) -> tuple[Bijector, torch.Tensor, torch.Tensor | None]:
    factory, shape, features = CASES[name]
    bijector = randomize_(factory().double()).eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    return bijector, x, torch.randn(3, features, dtype=torch.float64) if features else None


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    check_bijector(*_build(name))


def test_logit_contract() -> None:
    for alpha in (0.05, 1e-3):
        check_bijector(Logit(alpha), torch.rand(3, *IMAGE, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_round_trip_in_float32(name: str) -> None:
    bijector, x, context = _build(name)
    bijector, x = bijector.float(), x.float()
    context = None if context is None else context.float()
    z, logdet = bijector(x, context)
    back, logdet_back = bijector.inverse(z, context)
    assert logdet.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(logdet_back, -logdet, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_state_copies_and_pickles(name: str) -> None:
    bijector, x, context = _build(name)
    z, logdet = bijector(x, context)
    fresh = CASES[name][0]().double().eval()
    fresh.load_state_dict(bijector.state_dict())
    twins = [fresh, copy.deepcopy(bijector)]
    if not any(
        is_parametrized(module) for module in bijector.modules()
    ):  # torch cannot pickle those
        twins.append(pickle.loads(pickle.dumps(bijector)))
    for twin in twins:
        if name != "permutation_random" or twin is not fresh:
            assert torch.equal(twin(x, context)[0], z)
            assert torch.equal(twin(x, context)[1], logdet)
    assert repr(bijector)


@pytest.mark.parametrize("name", CASES)
def test_state_loads_across_dtypes(name: str) -> None:
    bijector, x, context = _build(name)
    fresh = CASES[name][0]().float().eval()
    fresh.load_state_dict(bijector.state_dict())
    single = None if context is None else context.float()
    z = fresh(x.float(), single)[0]
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), bijector(x, context)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if len(case[1]) == 3])
def test_channels_last_gives_the_same(name: str) -> None:
    bijector, x, context = _build(name)
    z, logdet = bijector(x, context)
    z_last, logdet_last = bijector(x.contiguous(memory_format=torch.channels_last), context)
    torch.testing.assert_close(z_last, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(logdet_last, logdet, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_both_directions(name: str) -> None:
    bijector, x, context = _build(name)
    names = [n for n, _ in bijector.named_parameters()]
    values = [p.detach().requires_grad_() for p in bijector.parameters()]
    x = x[:1].requires_grad_()
    context = None if context is None else context[:1].requires_grad_()

    for direction in ("forward", "inverse"):

        def call(x: torch.Tensor, *parameters: torch.Tensor, way: str = direction) -> object:
            state = dict(zip(names, parameters, strict=True))
            module = bijector if way == "forward" else Inverse(bijector)
            state = state if way == "forward" else {f"bijector.{n}": p for n, p in state.items()}
            return torch.func.functional_call(module, state, (x, context))

        start = x if direction == "forward" else bijector(x, context)[0].detach().requires_grad_()
        assert torch.autograd.gradcheck(call, (start, *values), fast_mode=True)


def test_base_class_names_what_is_missing() -> None:
    bijector = Bijector()
    with pytest.raises(NotImplementedError, match="Bijector: forward must be defined"):
        bijector(torch.zeros(1, 2))
    with pytest.raises(NotImplementedError, match="Bijector: inverse must be defined"):
        bijector.inverse(torch.zeros(1, 2))
