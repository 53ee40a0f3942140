"""flowops.compat.nflows in use: taken over from nflows, compiled, copied, in its flows."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import nflows as ours
from flowops.compat._twins import Joined, find_twin, swap, unswap

from .nflows_cases import CASES, MASKS, Net, assert_same, make_data, randomized, run

SOME = [
    "Affine-first-1d",
    "Affine-scattered-3d-own",
    "Additive-last-1d",
    "RQS-first-1d-linear",
    "RQS-last-3d-linear-own",
    "CDF-linear",
    "LU",
    "Naive",
    "Conv",
    "QR",
    "SVD",
    "Householder-4",
    "Multiscale",
    "Composite",
    "ActNorm-3d",
    "BatchNorm",
    "RandomPermutation-1",
    "MaskedAffine-2",
    "MaskedRQS-0",
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("nflows")
    from nflows import transforms

    return transforms


def take_over(layer: nn.Module) -> nn.Module:
    """Swap every layer within `layer` that has a twin."""
    for module in layer.modules():
        twin = find_twin(module)
        if twin is not None and twin.refusal(module) is None:
            swap(module, twin)
    return layer


@pytest.mark.parametrize("name", SOME)
def test_objects_of_nflows_are_taken_over(name: str, theirs: Any) -> None:
    case = CASES[name]
    peer = randomized(case.make(theirs))
    kind = type(peer)
    x, context = make_data(case)
    expected = run(peer, x, context, inverse=False)
    # The peer's cached inverse fails in float64, and its NaiveLinear's in all versions of PyTorch.
    inverse = not hasattr(peer, "cache")
    z, _ = make_data(case, inverse=True)
    expected_inverse = run(peer, z, context, inverse=True) if inverse else {}
    kept = copy.deepcopy(peer)
    take_over(peer)
    assert isinstance(peer, kind)
    assert isinstance(peer, getattr(ours, kind.__name__))
    assert find_twin(kept) is getattr(ours, kind.__name__)
    for taken in (peer, copy.deepcopy(peer), pickle.loads(pickle.dumps(peer))):
        assert type(taken) is type(peer)
        assert_same(run(taken, x, context, inverse=False), expected)
        if inverse:
            assert_same(run(taken, z, context, inverse=True), expected_inverse)
        else:
            back = taken.inverse(taken(x)[0])[0]
            torch.testing.assert_close(back, x)
    peer.load_state_dict(kept.state_dict())
    kept.load_state_dict(peer.state_dict())
    for module in list(peer.modules()):
        if isinstance(module, Joined):
            unswap(module)
    assert type(peer) is kind
    assert_same(run(peer, x, context, inverse=False), expected)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", SOME)
def test_compiles_whole(name: str, inverse: bool) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    layer = randomized(case.make(ours))
    x, context = make_data(case, inverse=inverse)
    expected = run(layer, x, context, inverse=inverse)

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            return (self.layer.inverse if inverse else self.layer)(x, context)

    compiled = torch.compile(Compiled(), fullgraph=True, backend="aot_eager")
    for parameter in layer.parameters():
        parameter.grad = None
    actual = run(compiled, x, context, inverse=False)
    named = {key.replace("_orig_mod.layer.", ""): value for key, value in actual.items()}
    assert_same(named, expected)


def test_compiles_before_the_first_call() -> None:
    torch._dynamo.reset()
    layer = randomized(CASES["Affine-last-1d"].make(ours))
    x, context = make_data(CASES["Affine-last-1d"])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs = compiled(x, context)[0]
    torch.testing.assert_close(outputs, layer(x, context)[0])


def test_flow_of_nflows_with_these_layers(theirs: Any) -> None:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow

    def make(lib: Any) -> nn.Module:
        torch.manual_seed(3)
        names = ["ActNorm", "LULinear", "RandomPermutation"]
        layers = [getattr(lib, name)(5) for name in names]
        layers += [
            CASES[name].make(lib) for name in ("Affine-alternating-1d", "RQS-first-1d-linear")
        ]
        layers.append(theirs.InverseTransform(CASES["MaskedAffine-2"].make(lib)))
        return Flow(theirs.CompositeTransform(layers), StandardNormal([5]))

    peer, flow = make(theirs), make(ours)
    x, context = torch.randn(9, 5), torch.randn(9, 3)
    for model in (peer, flow):
        model.train()
        model.log_prob(x, context)  # initializes the actnorm
    torch.testing.assert_close(flow.state_dict(), peer.state_dict())
    peer, flow = randomized(peer), flow.double().eval()
    flow.load_state_dict(peer.state_dict())
    x, context = x.double(), context.double()
    expected = peer.log_prob(x, context)
    torch.testing.assert_close(flow.log_prob(x, context), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(take_over(peer).log_prob(x, context), expected, rtol=1e-9, atol=1e-9)
    flow = flow.float()
    samples, density = flow.sample_and_log_prob(4, context[:2].float())
    assert samples.shape == (2, 4, 5)
    again = flow.log_prob(samples.flatten(0, 1), context[:2].float().repeat_interleave(4, 0))
    torch.testing.assert_close(density.flatten(), again, rtol=1e-3, atol=1e-3)


def test_does_without_nflows() -> None:
    code = (
        "import sys; sys.modules['nflows'] = None; from flowops.compat import nflows;"
        "from flowops.compat._twins import tables; tables();"
        "nflows.AffineCouplingTransform([0, 1], lambda a, b: nflows.LULinear(2))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestScaleActivations:
    """The repository's nflows has `scale_activation`; 0.14 has the default alone."""

    @staticmethod
    def square(raw: Tensor) -> Tensor:
        return raw.square() + 0.1

    @pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
    @pytest.mark.parametrize("kind", ["default", "general", "other"])
    def test_equals_definition(self, kind: str, inverse: bool) -> None:
        lib = ours.AffineCouplingTransform
        activation = {
            "default": lib.DEFAULT_SCALE_ACTIVATION,
            "general": lib.GENERAL_SCALE_ACTIVATION,
            "other": self.square,
        }[kind]
        layer = lib(
            MASKS["scattered"], lambda a, b: Net(a, b, False, None), scale_activation=activation
        )
        layer = randomized(layer)
        with torch.no_grad():
            layer.transform_net.last.bias.add_(1.5)  # some scales at the limit of "general"
        x, context = make_data(CASES["Affine-scattered-1d"])
        actual = run(layer, x, context, inverse=inverse)

        class Definition(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.transform_net = layer.transform_net

            def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
                kept, moved = [0, 3], [1, 2, 4]
                shift, raw = self.transform_net(x[:, kept], context).chunk(2, 1)
                u = raw + 2
                scale = {
                    "default": lambda: 1 / (1 + torch.exp(-u)) + 1e-3,
                    "general": lambda: (torch.log1p(raw.exp()) + 1e-3).clamp(max=3),
                    "other": lambda: raw * raw + 0.1,
                }[kind]()
                part = x[:, moved]
                out = (part - shift) / scale if inverse else part * scale + shift
                sign = -1 if inverse else 1
                return x.index_copy(1, torch.tensor(moved), out), sign * scale.log().sum(1)

        assert_same(actual, run(Definition(), x, context, inverse=False))

    def test_constants_of_the_class_taken_over_are_known(self) -> None:
        class HeadOfNflows(ours.AffineCouplingTransform):
            DEFAULT_SCALE_ACTIVATION = staticmethod(lambda x: torch.sigmoid(x + 2) + 1e-3)
            GENERAL_SCALE_ACTIVATION = staticmethod(
                lambda x: (nn.functional.softplus(x) + 1e-3).clamp(0, 3)
            )

        layer = HeadOfNflows([0, 1], lambda a, b: nn.Linear(a, b))
        kinds = []
        for activation in (
            HeadOfNflows.DEFAULT_SCALE_ACTIVATION,
            HeadOfNflows.GENERAL_SCALE_ACTIVATION,
            ours.AffineCouplingTransform.GENERAL_SCALE_ACTIVATION,
            torch.exp,
        ):
            layer.scale_activation = activation
            scale = layer._scale_map()
            kinds.append(scale and scale.kind)
        assert kinds == ["sigmoid", "softplus", "softplus", None]


def test_actnorm_initializes_as_nflows(theirs: Any) -> None:
    for shape in ((40, 6), (8, 6, 3, 2)):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 5
        layers = [lib.ActNorm(6).double() for lib in (ours, theirs)]
        for layer in layers:
            layer.eval()(x)
            assert not layer.initialized
            layer.train()(x)
            layer(2 * x)  # does not set them again
        for name, value in layers[1].state_dict().items():
            torch.testing.assert_close(layers[0].state_dict()[name], value)
        z = layers[0](x)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(z.mean(1), torch.zeros(6, dtype=torch.float64))
        torch.testing.assert_close(z.var(1), torch.ones(6, dtype=torch.float64))


def test_batch_norm_trains_as_nflows(theirs: Any) -> None:
    peer = randomized(theirs.BatchNorm(6, momentum=0.3)).train()
    layer = ours.BatchNorm(6, momentum=0.3).double()
    layer.load_state_dict(peer.state_dict())
    x = 3 * torch.randn(40, 6, dtype=torch.float64) + 7
    for _ in range(2):
        assert_same(run(layer, x, None, inverse=False), run(peer, x, None, inverse=False))
        torch.testing.assert_close(layer.state_dict(), peer.state_dict())
    with pytest.raises(ours.InverseNotAvailable, match="in evaluation mode, got training"):
        layer.inverse(x)
    with pytest.raises(ValueError, match=r"at least 2 samples in training, got shape \(1, 6\)"):
        layer(x[:1])


@pytest.mark.parametrize("name", ["LU", "Naive", "Conv", "QR", "SVD"])
def test_linear_methods_and_cache_as_nflows(name: str, theirs: Any) -> None:
    case = CASES[f"{name}-cached"]
    peer = randomized(case.make(theirs), torch.float32)
    layer = case.make(ours)
    layer.load_state_dict(peer.state_dict())
    x, _ = make_data(case)
    x = x.float()
    matrix = peer.weight()
    for actual, expected in [
        (layer.weight(), matrix),
        (layer.weight_inverse(), torch.linalg.inv(matrix)),
        (layer.logabsdet(), peer.logabsdet()),
        (layer.weight_and_logabsdet()[1], peer.logabsdet()),
        (layer.weight_inverse_and_logabsdet()[1], peer.logabsdet()),
    ]:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    layers = [layer, peer, take_over(randomized(case.make(theirs), torch.float32))]
    layers[2].load_state_dict(peer.state_dict())
    with torch.no_grad():
        for each in layers:
            before = each.eval()(x)[1]
            if name != "Naive" or each is not peer:
                torch.testing.assert_close(each.inverse(each(x)[0])[0], x, rtol=1e-4, atol=1e-4)
            for parameter in each.parameters():
                parameter.mul_(1.5)
            torch.testing.assert_close(each(x)[1], before)  # it is stale
            each.train()
            assert (each(x)[1] - before).abs().max() > 0.01
            assert each.cache.weight is None
            each.use_cache(False)
            each.eval()(x)
            assert each.cache.weight is None
    for each in (layer, layers[2]):
        torch.testing.assert_close(each(x), peer(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="mode must be a bool, got 1"):
        layer.use_cache(1)
