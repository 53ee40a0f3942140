"""What flowops.compat.nflows promises beyond equal results: precision, transforms, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import nflows as ours
from flowops.compat._twins import find_twin

from .nflows_cases import CASES, Net, make_data, randomized


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("nflows")
    from nflows import transforms

    return transforms


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_loading_another_mask_moves_other_features(compiled: bool) -> None:
    torch._dynamo.reset()
    x = torch.randn(6, 4, dtype=torch.float64)
    masks = ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1])
    layers = [
        randomized(ours.AffineCouplingTransform(mask, lambda a, b: Net(a, b, False, None)))
        for mask in masks
    ]
    expected = [layer(x) for layer in layers]
    layer = copy.deepcopy(layers[0])
    call = torch.compile(layer, backend="aot_eager") if compiled else layer
    for i in (0, 1, 2, 0):
        layer.load_state_dict(layers[i].state_dict())
        torch.testing.assert_close(call(x), expected[i])
    if not compiled:
        layer.identity_features.copy_(layers[1].identity_features)
        layer.transform_features.copy_(layers[1].transform_features)
        layer.transform_net = layers[1].transform_net
        torch.testing.assert_close(layer(x), expected[1])


def test_output_of_the_network_is_left_alone() -> None:
    class Kept(nn.Module):
        hidden_features = 9
        given: Tensor

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            self.given = torch.ones(x.size(0), 14, dtype=x.dtype)
            return self.given

    layer = ours.PiecewiseRationalQuadraticCouplingTransform(
        [0, 1, 1], lambda a, b: Kept(), num_bins=2
    )
    layer(torch.rand(3, 3))
    assert bool((layer.transform_net.given == 1).all())


def test_log_determinants_of_16_bits_are_float32() -> None:
    for name in ("Affine-scattered-1d", "RQS-first-1d-linear", "CDF-linear", "LU", "ActNorm-1d"):
        case = CASES[name]
        layer = randomized(case.make(ours))
        x, context = make_data(case, 50)
        truth = layer(x, context)[1]
        x, context = (None if t is None else t.bfloat16() for t in (x, context))
        outputs, logabsdet = layer.bfloat16()(x, context)
        assert outputs.dtype == torch.bfloat16
        assert logabsdet.dtype == torch.float32
        assert (logabsdet - truth).abs().max() < 0.3


def test_autocast_leaves_log_determinants_in_float32() -> None:
    for name in ("Affine-scattered-1d", "RQS-first-1d-linear", "LU", "Conv", "QR", "ActNorm-1d"):
        case = CASES[name]
        layer = randomized(case.make(ours), torch.float32)
        x, context = (None if t is None else t.float() for t in make_data(case, 50))
        truth = layer(x, context)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, logabsdet = layer(x, context)
            back, _ = layer.inverse(outputs, context)
        assert logabsdet.dtype == torch.float32
        assert (logabsdet - truth[1]).abs().max() < 0.1  # the networks ran in bfloat16
        torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


def test_composite_adds_log_determinants_of_16_bits_in_float32() -> None:
    layers = [ours.LULinear(4, identity_init=False) for _ in range(20)]
    flow = ours.CompositeTransform(layers).bfloat16()
    exact = sum(float(layer.logabsdet()) for layer in copy.deepcopy(flow).double()._transforms)  # type: ignore[operator]
    for call, sign in ((flow, 1), (flow.inverse, -1)):
        logabsdet = call(torch.zeros(1, 4, dtype=torch.bfloat16))[1]
        assert logabsdet.dtype == torch.float32
        assert float(logabsdet) == pytest.approx(sign * exact, rel=1e-5)


def test_ensembles_run_under_vmap_with_masks_of_their_own() -> None:
    masks = ([0, 0, 1, 1], [1, 0, 1, 0])
    members = [
        randomized(ours.AffineCouplingTransform(mask, lambda a, b: Net(a, b, False, None)))
        for mask in masks
    ]
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.stack([member(x)[0] for member in members])
    params, buffers = torch.func.stack_module_state(members)

    def call(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(members[0], (params, buffers), (x,))[0]

    torch.testing.assert_close(torch.vmap(call)(params, buffers), expected)


def test_per_sample_gradients() -> None:
    for name in ("Affine-scattered-1d", "RQS-first-1d-linear", "LU", "MaskedAffine-2"):
        case = CASES[name]
        layer = randomized(case.make(ours))
        x, context = make_data(case)
        params = dict(layer.named_parameters())

        def loss(params: dict[str, Tensor], row: Tensor, context: Tensor | None, net=layer) -> Any:
            given = (row[None], None if context is None else context[None])
            outputs, logabsdet = torch.func.functional_call(net, params, given)
            return outputs.sin().sum() + logabsdet.sum()

        dims = (None, 0, None if context is None else 0)
        grads = torch.func.vmap(torch.func.grad(loss), dims)(params, x, context)
        for i in range(len(x)):
            each = torch.func.grad(loss)(params, x[i], None if context is None else context[i])
            for key, value in each.items():
                torch.testing.assert_close(grads[key][i], value)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_masks_are_those_of_nflows(features: int, residual: bool, theirs: Any) -> None:
    made = [
        lib.MaskedAffineAutoregressiveTransform(
            features, 7, num_blocks=3, use_residual_blocks=residual
        )
        for lib in (ours, theirs)
    ]
    buffers = [dict(layer.named_buffers()) for layer in made]
    assert buffers[0]
    torch.testing.assert_close(buffers[0], buffers[1])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_initial_reflections_and_matrix_are_those_of_nflows(count: int, theirs: Any) -> None:
    layers = [lib.HouseholderSequence(6, count) for lib in (ours, theirs)]
    torch.testing.assert_close(layers[0].q_vectors, layers[1].q_vectors)
    vectors = torch.randn(count, 6)
    for layer in layers:
        layer.q_vectors.data.copy_(vectors)
    torch.testing.assert_close(layers[0].matrix(), layers[1].matrix())


def test_squeeze_of_any_factor() -> None:
    layer, x = ours.SqueezeTransform(3), torch.randn(2, 1, 6, 3)
    z, logabsdet = layer(x)
    assert z.shape == (2, *layer.get_output_shape(1, 6, 3)) == (2, 9, 2, 1)
    assert torch.equal(z[:, 5, 0, 0], x[:, 0, 1, 2])
    assert torch.equal(layer.inverse(z)[0], x)
    assert not logabsdet.any()


def test_errors_of_composites() -> None:
    whole = ours.MultiscaleCompositeTransform(2)
    with pytest.raises(RuntimeError, match=r"called 2 times, got 0"):
        whole(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"size 2 or more in dimension 1 of a batch, got \(1, 8"):
        whole.add_transform(ours.ActNorm(1), (1, 8))
    assert whole.add_transform(ours.ActNorm(5), (5,)) == (2,)
    assert whole.add_transform(ours.ActNorm(3), (3,)) is None
    with pytest.raises(RuntimeError, match="one of 2, got one more"):
        whole.add_transform(ours.ActNorm(5), (5,))
    with pytest.raises(ValueError, match=r"inputs must have shape \(N, 6\), got \(2, 5\)"):
        whole.inverse(torch.randn(2, 5))
    whole.eval()
    with pytest.raises(ValueError, match=r"transform 0 must have shape \(2, 3\).* got \(2, 4\)"):
        ours.MultiscaleCompositeTransform.forward(_announced_wrong(), torch.randn(2, 7))
    for wrong in (torch.randn(2, 4, 3, 2), torch.randn(4, 4)):
        with pytest.raises(ValueError, match="H and W multiples of 2"):
            ours.SqueezeTransform()(wrong)
    with pytest.raises(ValueError, match="C a multiple of 9"):
        ours.SqueezeTransform(3).inverse(torch.randn(2, 4, 2, 2))
    with pytest.raises(ValueError, match="factor must be an integer above 1, got 1"):
        ours.SqueezeTransform(1)
    with pytest.raises(ValueError, match="num_householder must be even, got 3"):
        ours.SVDLinear(4, 3)


def _announced_wrong() -> ours.MultiscaleCompositeTransform:
    whole = ours.MultiscaleCompositeTransform(2)
    whole.add_transform(ours.RandomPermutation(7), (5,))
    whole.add_transform(ours.RandomPermutation(3), (3,))
    return whole


def test_errors() -> None:
    def net(n_in: int, n_out: int) -> nn.Module:
        return Net(n_in, n_out, False, None)

    lib: Any = ours
    for make, message in [
        (
            lambda: lib.AffineCouplingTransform([[0, 1]], net),
            r"mask must be a vector.*\[\[0, 1\]\]",
        ),
        (lambda: lib.AffineCouplingTransform([0, 0], net), "mask must be a vector with an element"),
        (
            lambda: lib.PiecewiseRationalQuadraticCouplingTransform([0, 1], net, tails="circular"),
            "tails must be None or 'linear', got 'circular'",
        ),
        (lambda: lib.RandomPermutation(0), "features must be a positive integer, got 0"),
        (lambda: lib.Permutation(torch.arange(3), dim=0), "dim must be a positive integer, got 0"),
        (lambda: lib.Permutation(torch.zeros(2, 2)), r"permutation must be a vector, got shape"),
        (
            lambda: lib.MaskedAffineAutoregressiveTransform(3, 4, random_mask=True),
            "random_mask must be False with residual blocks",
        ),
        (lambda: lib.ActNorm(3)(torch.randn(1, 3)), "at least 2 values a channel"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for make in (lib.LULinear, lib.NaiveLinear, lib.OneByOneConvolution, lib.ActNorm):
        with pytest.raises(TypeError, match=r"features must be a positive integer, got 2.0"):
            make(2.0)
    layers = {
        "AffineCouplingTransform": lib.AffineCouplingTransform([0, 0, 1], net),
        "LULinear": lib.LULinear(3),
        "OneByOneConvolution": lib.OneByOneConvolution(3),
        "ActNorm": lib.ActNorm(3),
        "RandomPermutation": lib.RandomPermutation(3),
        "MaskedAffineAutoregressiveTransform": lib.MaskedAffineAutoregressiveTransform(3, 4),
    }
    for name, layer in layers.items():
        shapes = [(2, 4), (2, 4, 2, 2)] + [(2, 3, 2)] * (name != "RandomPermutation")
        for shape in shapes:
            wrong = torch.randn(shape)
            with pytest.raises(ValueError, match=f"{name}: inputs must have s"):
                layer.inverse(wrong)
            with pytest.raises(ValueError, match=f"{name}: inputs must have s"):
                layer(wrong)


def test_refuses_what_nflows_has_and_the_kernels_lack(theirs: Any) -> None:
    def net(n_in: int, n_out: int) -> nn.Module:
        return nn.Linear(n_in, n_out)

    peer = theirs.PiecewiseRationalQuadraticCouplingTransform([0, 1], net)
    twin = find_twin(peer)
    assert twin is not None
    assert twin.refusal(peer) is None
    peer.tails = "circular"
    assert "circular" in str(twin.refusal(peer))
    for options in ({"min_bin_width": 0.25}, {"min_bin_height": 0.25}, {"min_derivative": 1.0}):
        full = theirs.PiecewiseRationalQuadraticCDF(2, 4, **options)
        assert "least" in str(find_twin(full).refusal(full))  # type: ignore[union-attr]
    empty = theirs.AffineCouplingTransform([0, 0], net)
    assert "no feature" in str(find_twin(empty).refusal(empty))  # type: ignore[union-attr]
