"""ReversibleSequential: the gradients of Sequential, from outputs alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowops.nn import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveSpline,
    BatchNorm,
    DiagonalScale,
    Flatten,
    GatedResNet,
    Inverse,
    InvertibleConv1x1,
    LearnedPrior,
    Logit,
    MultiScale,
    Permutation,
    RationalQuadraticSpline,
    ResidualMLP,
    ReversibleSequential,
    Sequential,
    Shift,
    Split,
    Squeeze,
    checkerboard_mask,
    reverse_permutation,
    spline_parameters,
)
from flowops.nn.base import Bijector
from flowops.nn.utils import spectral_norm, spectral_norm_model
from flowops.testing import randomize_

FEATURES, CONTEXT = 6, 3


class Net(nn.Module):
    """A smooth conditioner with any module in its middle."""

    def __init__(self, inside: nn.Module | None = None, outputs: int = FEATURES) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES // 2, 8)
        self.inside = inside or nn.Identity()
        self.last = nn.Linear(8, outputs)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.last(self.inside(self.first(x).tanh()))


def steps(depth: int, inside: Callable[[], nn.Module] = nn.Identity) -> list[Bijector]:
    layers: list[Bijector] = []
    for i in range(depth):
        coupling = AffineCoupling(
            FEATURES, Net(inside()), keep=("first", "second")[i % 2], scale="sigmoid"
        )
        layers += [ActNorm(FEATURES), InvertibleConv1x1(FEATURES), coupling]
    return layers


def make_pair(
    layers: list[Bijector], dtype: torch.dtype = torch.float64
) -> tuple[Sequential, ReversibleSequential]:
    plain = randomize_(Sequential(*layers), std=0.1).to(dtype)
    reversible = ReversibleSequential(*copy.deepcopy(layers)).to(dtype)
    reversible.load_state_dict(plain.state_dict())
    return plain, reversible


def loss_of(z: Tensor, logdet: Tensor) -> Tensor:
    weights = torch.linspace(1, 2, len(logdet), dtype=logdet.dtype)
    return z.sin().flatten(1).sum(1) @ weights + (logdet * weights).square().sum() / 100


def gradients(
    chain: nn.Module, x: Tensor, context: Tensor | None = None, *, seed: int = 0
) -> dict[str, Tensor]:
    """Outputs, and gradients of the loss with respect to all that has one."""
    torch.manual_seed(seed)
    inputs = {"x": x.clone().requires_grad_(), "logdet": torch.ones(len(x), dtype=x.dtype)}
    if context is not None:
        inputs["context"] = context.clone().requires_grad_()
    inputs["logdet"].requires_grad_()
    z, logdet = chain(inputs["x"], inputs.get("context"), logdet=inputs["logdet"])
    wanted = inputs | dict(chain.named_parameters())
    grads = torch.autograd.grad(loss_of(z, logdet), list(wanted.values()))
    return {"z": z.detach(), "total": logdet.detach()} | dict(zip(wanted, grads, strict=True))


def assert_equal(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm().clamp_min(1e-20)
        assert error <= tolerance, f"{name}: relative error {error}"


def _spline() -> RationalQuadraticSpline:
    net = ResidualMLP(3, 3 * spline_parameters(4), hidden=8, context_features=CONTEXT)
    return RationalQuadraticSpline(FEATURES, net, bins=4)


CHAINS: dict[str, tuple[Callable[[], list[Bijector]], tuple[int, ...]]] = {
    "steps": (lambda: steps(3), (FEATURES,)),
    "full and additive": (
        lambda: [
            InvertibleConv1x1(FEATURES, parameterization="full"),
            AdditiveCoupling(FEATURES, Net(outputs=3), keep="second"),
            ActNorm(FEATURES, log_scale_factor=3.0),
            DiagonalScale(FEATURES),
        ],
        (FEATURES,),
    ),
    "context": (
        lambda: [_spline(), LearnedPrior(FEATURES, context_features=CONTEXT), _spline()],
        (FEATURES,),
    ),
    "images": (
        lambda: [
            Logit(0.05),
            AffineCoupling(
                1,
                GatedResNet(1, 2, hidden=4, blocks=1, mask=checkerboard_mask(4, 4)),
                mask=checkerboard_mask(4, 4),
                scale="tanh_exp",
            ),
            Shift(0.5),
            Squeeze(),
            ActNorm(4),
            InvertibleConv1x1(4),
            Permutation(reverse_permutation(4)),
            Flatten((4, 2, 2)),
        ],
        (1, 4, 4),
    ),
    "layers that do not rebuild": (
        lambda: [
            *steps(2),
            BatchNorm(FEATURES),
            *steps(1),
            AutoregressiveSpline(FEATURES, hidden=8, context_features=CONTEXT),
            *steps(1),
        ],
        (FEATURES,),
    ),
    "nested": (
        lambda: [
            Sequential(*steps(2)),
            Inverse(AffineCoupling(FEATURES, Net())),
            ReversibleSequential(*steps(2)),
            Inverse(Sequential(_spline())),
        ],
        (FEATURES,),
    ),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str
)
@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_those_of_sequential(name: str, dtype: torch.dtype, tolerance: float) -> None:
    make, shape = CHAINS[name]
    plain, reversible = make_pair(make(), dtype)
    x, context = torch.rand(5, *shape, dtype=dtype), torch.randn(5, CONTEXT, dtype=dtype)
    used = context if any("spline" in type(m).__name__.lower() for m in plain.modules()) else None
    assert_equal(gradients(reversible, x, used), gradients(plain, x, used), tolerance)


def test_inverse_and_calls_without_gradients_are_plain() -> None:
    plain, reversible = make_pair(steps(2))
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(reversible.inverse(x), plain.inverse(x), rtol=0, atol=0)
    with torch.no_grad():
        assert not reversible(x)[0].requires_grad
        torch.testing.assert_close(reversible(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_function_transforms_take_the_plain_path(transform: Callable[..., Callable]) -> None:
    plain, reversible = make_pair(steps(2))
    x = torch.randn(2, FEATURES, dtype=torch.float64)
    expected = transform(lambda v: plain(v)[0])(x)
    torch.testing.assert_close(transform(lambda v: reversible(v)[0])(x), expected)


def _calls_of(layer: Bijector, network: nn.Module) -> int:
    """How often ``network`` runs in a training step of ``layer`` between two steps."""
    calls: list[object] = []
    network.register_forward_hook(lambda *_: calls.append(_))
    chain = ReversibleSequential(*steps(1), layer, *steps(1)).double()
    loss_of(*chain(torch.randn(4, FEATURES, dtype=torch.float64))).backward()
    return len(calls)


def test_a_conditioner_runs_once_more_and_an_autoregressive_one_does_not() -> None:
    coupling = AffineCoupling(FEATURES, Net())
    assert _calls_of(coupling, coupling.conditioner) == 2
    mask = torch.arange(FEATURES) < 3
    masked = AffineCoupling(FEATURES, ResidualMLP(FEATURES, 2 * FEATURES, hidden=4), mask=mask)
    assert _calls_of(masked, masked.conditioner) == 2
    slow = AutoregressiveSpline(FEATURES, hidden=8)
    for layer in (slow, Sequential(slow), Inverse(Sequential(slow))):
        slow.conditioner._forward_hooks.clear()
        forward_passes = FEATURES if isinstance(layer, Inverse) else 1
        assert _calls_of(layer, slow.conditioner) == forward_passes


def test_layers_whose_inverse_is_not_that_of_training_do_not_rebuild() -> None:
    assert not Logit().reversible
    assert not BatchNorm(4).reversible
    levels = [Sequential(Squeeze()), Sequential(Squeeze(), BatchNorm(8))]
    assert not MultiScale(levels, [Split(4)], [(2, 2, 2), (8, 1, 1)]).reversible


def test_generators_are_not_read_where_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Tensor:
        raise AssertionError("get_rng_state must not be called")

    chain = ReversibleSequential(*steps(2), preserve_rng_state=False).double()
    monkeypatch.setattr(torch, "get_rng_state", refuse)
    loss_of(*chain(torch.randn(4, FEATURES, dtype=torch.float64))).backward()


def test_dropout_draws_the_same_mask_again() -> None:
    plain, reversible = make_pair(steps(4, lambda: nn.Dropout(0.4)))
    x = torch.randn(16, FEATURES, dtype=torch.float64)
    expected = gradients(plain, x)
    state = torch.get_rng_state()
    assert_equal(gradients(reversible, x), expected)
    assert torch.equal(torch.get_rng_state(), state)  # the backward pass has drawn nothing


@pytest.mark.parametrize(
    "inside",
    [
        lambda: nn.BatchNorm1d(8),
        lambda: nn.BatchNorm1d(8).eval(),
        lambda: spectral_norm(nn.Linear(8, 8)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    ],
    ids=["batch norm", "batch norm in evaluation", "spectral norm", "torch's spectral norm"],
)
def test_buffers_are_found_as_they_were_and_left_as_they_are(
    inside: Callable[[], nn.Module],
) -> None:
    plain, reversible = make_pair(steps(3, inside))
    x = torch.randn(16, FEATURES, dtype=torch.float64)
    losses = []
    for chain in (plain, reversible):
        z, logdet = chain(x)
        with torch.no_grad():
            chain(2 * x)  # moves the buffers on before the backward pass
        losses.append(loss_of(z, logdet))
    state = copy.deepcopy(reversible.state_dict())
    for loss, chain in zip(losses, (plain, reversible), strict=True):
        loss.backward()
        torch.testing.assert_close(dict(chain.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(dict(reversible.state_dict()), dict(state), rtol=0, atol=0)
    grads = [{n: p.grad for n, p in c.named_parameters()} for c in (reversible, plain)]
    assert_equal(*grads)


def test_gradients_accumulate_over_calls_and_backward_passes() -> None:
    pair = make_pair(steps(3))
    x = torch.randn(2, 8, FEATURES, dtype=torch.float64)
    for chain in pair:
        first, second = loss_of(*chain(x[0])), loss_of(*chain(x[1]))
        (first + second).backward(retain_graph=True)
        second.backward()
    plain, reversible = ({n: p.grad for n, p in c.named_parameters()} for c in pair)
    assert_equal(reversible, plain)


def test_hooks_of_parameters_see_their_gradient_once() -> None:
    pair = make_pair(steps(2))
    x = torch.randn(8, FEATURES, dtype=torch.float64)
    for chain in pair:
        for parameter in chain.parameters():
            parameter.register_hook(lambda grad: 3 * grad)
    assert_equal(gradients(pair[1], x), gradients(pair[0], x))


def test_weights_that_a_model_hands_to_its_layers() -> None:
    pair = make_pair(steps(3))
    for chain in pair:
        torch.manual_seed(0)  # of the first vectors
        spectral_norm_model(chain, types=(nn.Linear,))
    x = torch.randn(8, FEATURES, dtype=torch.float64)
    for _ in range(2):
        assert_equal(gradients(pair[1], x), gradients(pair[0], x))
    state = pair[1].state_dict()
    torch.testing.assert_close(dict(state), dict(pair[0].state_dict()))
    copy.deepcopy(pair[1])  # nothing of a graph is left behind


def test_shared_and_frozen_parameters() -> None:
    layers = steps(3)
    layers[5].conditioner = layers[2].conditioner
    pair = make_pair(layers)
    x = torch.randn(8, FEATURES, dtype=torch.float64)
    grads = []
    for chain in pair:
        chain[8].requires_grad_(False)
        chain[0].requires_grad_(False)
        assert len(chain[2].conditioner.first.weight) == 8
        loss_of(*chain(x)).backward()
        grads.append({n: p.grad for n, p in chain.named_parameters() if p.grad is not None})
    assert_equal(grads[1], grads[0])


def test_a_parameter_changed_before_the_backward_pass_is_an_error() -> None:
    _, chain = make_pair(steps(2))
    loss = loss_of(*chain(torch.randn(4, FEATURES, dtype=torch.float64)))
    with torch.no_grad():
        chain[2].conditioner.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_gradients_are_refused() -> None:
    _, chain = make_pair(steps(2))
    x = torch.randn(4, FEATURES, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="ReversibleSequential: gradients must be taken without"):
        torch.autograd.grad(loss_of(*chain(x)), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_state_of_16_bits_is_refused(dtype: torch.dtype) -> None:
    _, chain = make_pair(steps(2), dtype)
    with pytest.raises(ValueError, match=f"x must be float32 or float64.* got {dtype}"):
        chain(torch.randn(4, FEATURES, dtype=dtype))
    with torch.no_grad():  # there is nothing to rebuild
        assert chain(torch.randn(4, FEATURES, dtype=dtype))[0].dtype == dtype


def test_compiled_models_break_their_graph() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, reversible = make_pair(steps(2))
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    compiled = torch.compile(lambda v: loss_of(*reversible(v.tanh())), backend="aot_eager")
    loss_of(*plain(x.tanh())).backward()
    compiled(x).backward()
    pair = [{n: p.grad for n, p in c.named_parameters()} for c in (reversible, plain)]
    assert_equal(*pair)
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert any("torch.compiler.disable" in reason for reason in breaks)


def test_copies_behave_alike() -> None:
    _, chain = make_pair(steps(2))
    x = torch.randn(4, FEATURES, dtype=torch.float64)
    expected = gradients(chain, x)
    assert_equal(gradients(copy.deepcopy(chain), x), expected, 0.0)
