"""nn.utils.spectral_norm against both of torch's forms, and spectral_norm_model against it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hook_spectral_norm

from flowops.nn.utils import SpectralNorm, spectral_norm, spectral_norm_model
from flowops.testing import assert_close

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "conv2d": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "embedding": lambda: nn.Embedding(9, 4),
}


def pair(kind: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """The same layer under our parametrization and torch's, from the same random numbers."""
    torch.manual_seed(1)
    ours = spectral_norm(LAYERS[kind](), **options)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(1)
    return ours, parametrizations.spectral_norm(LAYERS[kind](), **options)  # pyright: ignore


def expect_equal_states(a: nn.Module, b: nn.Module) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert_close(x, y, dtype=torch.float32, factor=10)  # 15 iterations and more before


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 3, "dim": 1}])
def test_is_a_drop_in_for_torchs_parametrization(kind: str, options: dict[str, int]) -> None:
    ours, theirs = pair(kind, **options)
    expect_equal_states(ours, theirs)
    for _ in range(3):
        grads = []
        for module in (ours, theirs):
            loss = module.weight.pow(3).sum()
            grads.append(torch.autograd.grad(loss, module.parametrizations.weight.original)[0])
        assert_close(*grads, dtype=torch.float32, factor=10)
        expect_equal_states(ours, theirs)
    assert_close(ours.eval().weight, theirs.eval().weight, dtype=torch.float32, factor=10)


def test_a_vector_is_divided_by_its_length() -> None:
    ours, theirs = (f(nn.LayerNorm(6)) for f in (spectral_norm, parametrizations.spectral_norm))
    assert torch.equal(ours.weight, theirs.weight)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    bounded = spectral_norm(nn.LayerNorm(4), coefficient=0.5)
    assert_close(bounded.weight, torch.full((4,), 0.25), dtype=torch.float32)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed"])
def test_loads_both_state_dicts_of_torch(kind: str) -> None:
    old = hook_spectral_norm(LAYERS[kind]())
    new = parametrizations.spectral_norm(LAYERS[kind]())
    for theirs in (old, new):
        ours = nn.Sequential(spectral_norm(LAYERS[kind]()))
        ours.load_state_dict(nn.Sequential(theirs).state_dict())
        assert_close(ours.eval()[0].weight, weight_of(theirs.eval()), dtype=torch.float32)
    back = parametrizations.spectral_norm(LAYERS[kind]())
    ours = spectral_norm(LAYERS[kind]())
    back.load_state_dict(ours.state_dict())
    assert_close(back.eval().weight, ours.eval().weight, dtype=torch.float32)


def weight_of(module: nn.Module) -> Tensor:
    """The hook form computes its weight in the forward pass."""
    if hasattr(module, "weight_orig"):
        size = 7 if isinstance(module, nn.Linear) else module.in_channels
        module(torch.zeros(1, size, *[5] * (module.weight.dim() - 2)))
    return module.weight


def test_missing_and_unknown_keys_are_reported() -> None:
    layer = spectral_norm(nn.Linear(3, 2))
    state = hook_spectral_norm(nn.Linear(3, 2)).state_dict()
    state["weight_w"] = state.pop("weight_u")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*0\._u.*Unexpected.*weight_w"):
        layer.load_state_dict(state)


def make_model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ELU(),
        nn.Sequential(nn.ConvTranspose2d(8, 4, 3), nn.BatchNorm2d(4)),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Flatten(),
        nn.Linear(256, 5),
    )


@pytest.mark.parametrize("coefficient", [None, 0.7])
def test_a_model_in_one_call_is_its_layers_one_by_one(coefficient: float | None) -> None:
    together = spectral_norm_model(make_model(), coefficient=coefficient)
    alone = make_model()
    torch.manual_seed(3)
    for module in alone.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            spectral_norm(module, coefficient=coefficient)
    alone.load_state_dict(together.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for training in (True, True, False, True):
        outputs = [model.train(training)(x) for model in (together, alone)]
        assert_close(*outputs, dtype=torch.float32, factor=10)  # the same kernel, batched or not
        for a, b in zip(together.buffers(), alone.buffers(), strict=True):
            assert torch.equal(a, b)
    losses = [model(x).square().sum() for model in (together, alone)]
    grads = [
        torch.autograd.grad(loss, list(m.parameters()))
        for loss, m in zip(losses, (together, alone), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, dtype=torch.float32, factor=10)


def test_a_model_makes_one_call_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowops import ops

    calls: list[int] = []
    original = ops.spectral_norm

    def counting(weight: list[Tensor], *rest: object, **options: object) -> object:
        calls.append(len(weight))
        return original(weight, *rest, **options)

    model = spectral_norm_model(make_model())
    monkeypatch.setattr(ops, "spectral_norm", counting)
    model(torch.randn(1, 3, 8, 8))
    assert calls == [4]
    model[0](torch.randn(1, 3, 8, 8))
    assert calls == [4, 1]


def test_an_error_in_the_forward_pass_leaves_nothing_prepared() -> None:
    model = spectral_norm_model(make_model())
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 2, 8, 8))
    assert all(m._prepared is None for m in model.modules() if isinstance(m, SpectralNorm))


@pytest.mark.parametrize("batched", [False, True])
def test_evaluation_never_moves_the_vectors(batched: bool) -> None:
    model = spectral_norm_model(make_model()) if batched else spectral_norm(nn.Conv2d(3, 8, 3))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    first = model(x)
    assert torch.equal(first, model(x))
    with torch.no_grad():
        model(x)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_module_in_evaluation_stays_in_it() -> None:
    layer = spectral_norm(nn.Linear(4, 3).eval())
    u = layer.parametrizations.weight[0]._u.clone()
    assert layer.weight.shape == (3, 4)
    assert torch.equal(layer.parametrizations.weight[0]._u, u)


@pytest.mark.parametrize("batched", [False, True])
def test_two_forwards_before_one_backward(batched: bool) -> None:
    model = make_model()
    if batched:
        spectral_norm_model(model)
    else:
        spectral_norm(model[0])
    twin = copy.deepcopy(model)
    real, fake = torch.randn(2, 2, 3, 8, 8).unbind()
    (model(real).square().sum() - model(fake).sum()).backward()
    # The same two passes, each with its own backward.
    twin(real).square().sum().backward()
    (-twin(fake).sum()).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, dtype=torch.float32, factor=50)  # sums in another order
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_gradient_penalty_reaches_the_weights() -> None:
    model = spectral_norm_model(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    model.eval()

    def penalty(*_: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return grad.square().sum()

    parameters = [p for p in model.parameters() if p.dim() == 2]
    assert torch.autograd.gradcheck(penalty, parameters)


def test_moves_between_dtypes_and_copies() -> None:
    model = spectral_norm_model(make_model())
    twin = copy.deepcopy(model).to(torch.bfloat16)
    assert twin(torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model.to(memory_format=torch.channels_last)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(1, 3, 8, 8)).dtype == torch.bfloat16
    parametrize.remove_parametrizations(model[0], "weight")
    assert isinstance(model[0].weight, nn.Parameter)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize("batched", [False, True])
def test_compiles_whole(batched: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    if batched:
        spectral_norm_model(model)
    else:
        spectral_norm(model[0])
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4)
    for _ in range(3):
        compiled(x).sum().backward()
        twin(x).sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, dtype=torch.float32, factor=10)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert_close(a, b, dtype=torch.float32)


def test_bad_arguments_are_one_clear_error() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"^spectral_norm: module must have a parameter 'gain'"):
        spectral_norm(layer, "gain")
    with pytest.raises(IndexError, match=r"^SpectralNorm: dim must be from -2 to 1, got 2"):
        spectral_norm(layer, dim=2)
    with pytest.raises(ValueError, match="n_power_iterations must be at least 1, got 0"):
        spectral_norm(layer, n_power_iterations=0)
    with pytest.raises(ValueError, match=r"coefficient must be positive, got -1\.0"):
        spectral_norm(layer, coefficient=-1.0)


def test_shows_its_settings() -> None:
    shown = repr(spectral_norm(nn.Linear(3, 2), coefficient=0.9))
    assert "SpectralNorm(n_power_iterations=1, dim=0, eps=1e-12, coefficient=0.9)" in shown
