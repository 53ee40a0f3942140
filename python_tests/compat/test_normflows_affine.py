"""normflows' affine layers: against normflows, the Jacobian, and their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops.compat import normflows as ours
from flowops.compat._twins import swap
from flowops.testing import jacobian_logdet, randomize_

from .against_peer import check_against_peer, evaluate, pickled, swap_all


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


def peers() -> Any:
    return pytest.importorskip("normflows").flows


def both(name: str, *args: Any, nets: tuple[nn.Module, ...] = (), **options: Any) -> list[Any]:
    """The layer of ours and normflows', the latter with random parameters."""
    pair = [getattr(home, name)(*nets, *args, **options) for home in (ours, peers())]
    randomize_(pair[1], std=0.3)
    return pair


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


CONSTANTS = {
    "vector": ((5,), (7, 5)),
    "channels": ((3, 1, 1), (4, 3, 4, 2)),
    "whole": ((3, 4, 2), (4, 3, 4, 2)),
    "one": ((1, 1, 1), (4, 3, 4, 2)),
    "columns": ((3, 1, 2), (4, 3, 4, 2)),
    "one_pixel_axis": ((1, 4, 1), (4, 3, 4, 2)),
    "empty": ((3, 1, 1), (0, 3, 4, 2)),
}


@pytest.mark.parametrize("case", CONSTANTS)
@pytest.mark.parametrize("learned", [(True, True), (False, True), (True, False)])
def test_affine_const_equals_normflows(case: str, learned: tuple[bool, bool]) -> None:
    shape, batch = CONSTANTS[case]
    mine, peer = both("AffineConstFlow", shape, *learned)
    check_against_peer(mine, peer, randn(*batch))


@pytest.mark.parametrize("case", [name for name in CONSTANTS if name != "empty"])
@pytest.mark.parametrize("inverse", [False, True])
def test_actnorm_initialises_as_normflows(case: str, inverse: bool) -> None:
    shape, batch = CONSTANTS[case]
    mine, peer = (home.ActNorm(shape).double() for home in (ours, peers()))
    z = 3 * randn(*batch) + 2
    for layer in (mine, peer):
        evaluate(layer, z, None, inverse=inverse)
    assert mine.data_dep_init_done == 1
    for name in ("s", "t"):
        torch.testing.assert_close(getattr(mine, name), getattr(peer, name), rtol=1e-12, atol=1e-12)
    check_against_peer(mine, peer, 2 * randn(*batch))


def test_actnorm_makes_its_first_batch_standard() -> None:
    z = 3 * randn(64, 3, 4, 4) + 2
    out, _ = ours.ActNorm((3, 1, 1)).double()(z)
    assert out.mean((0, 2, 3)).abs().max() < 1e-12
    assert (out.std((0, 2, 3)) - 1).abs().max() < 1e-5


def test_actnorm_does_not_initialise_on_one_value() -> None:
    layer = ours.ActNorm((3,))
    with pytest.raises(ValueError, match="at least two values for each of the 3 constants"):
        layer(torch.ones(1, 3))
    assert layer.data_dep_init_done == 0


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv", None])
@pytest.mark.parametrize("size", [0, 5])
def test_affine_coupling_equals_normflows(scale_map: str | None, size: int) -> None:
    pixels = (4, 2)
    options: dict[str, Any] = {"scale": scale_map is not None, "scale_map": scale_map or "exp"}
    for net, shapes in (
        (nn.Linear(3, 8 if options["scale"] else 4), ((size, 3), (size, 4))),
        (conv(3, 8 if options["scale"] else 4), ((size, 3, *pixels), (size, 4, *pixels))),
    ):
        mine, peer = both("AffineCoupling", nets=(net,), **options)
        check_against_peer(mine, peer, [randn(*shape) for shape in shapes])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("channels", [2, 5, 6])
@pytest.mark.parametrize("mode", ["channel", "channel_inv", "checkerboard", "checkerboard_inv"])
def test_affine_coupling_block_equals_normflows(mode: str, channels: int, scale: bool) -> None:
    half, rest = (channels + 1) // 2, channels // 2
    seen, moved = {"channel": (half, rest), "channel_inv": (rest, half)}.get(
        mode, (channels, channels)
    )
    net = conv(seen, moved * (1 + scale))
    mine, peer = both("AffineCouplingBlock", nets=(net,), scale=scale, split_mode=mode)
    check_against_peer(mine, peer, randn(3, channels, 3, 4))


@pytest.mark.parametrize("mode", ["checkerboard", "checkerboard_inv", "channel_inv"])
def test_affine_coupling_block_of_vectors_equals_normflows(mode: str) -> None:
    net = nn.Linear(3, 6)
    mine, peer = both("AffineCouplingBlock", nets=(net,), split_mode=mode, scale_map="sigmoid")
    check_against_peer(mine, peer, randn(5, 6))


def test_affine_coupling_block_runs_hooks_and_foreign_layers() -> None:
    block = ours.AffineCouplingBlock(conv(2, 4)).double()
    z, seen = randn(3, 4, 2, 2), []
    expected = block(z)
    handle = block.flows[1].register_forward_hook(lambda *_: seen.append(1))
    for actual, value in zip(block(z), expected, strict=True):
        torch.testing.assert_close(actual, value)
    assert seen == [1]
    handle.remove()

    class Doubled(ours.AffineCoupling):
        def forward(self, z: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            (z1, z2), logdet = super().forward(z)
            return [z1, 2 * z2], logdet

    block.flows[1].__class__ = Doubled
    torch.testing.assert_close(block(z)[0][:, 2:], 2 * expected[0][:, 2:])


@pytest.mark.parametrize("nets", ["s", "t", "st", ""])
@pytest.mark.parametrize("shape", [(6,), (2, 3, 2)])
def test_masked_affine_flow_equals_normflows(nets: str, shape: tuple[int, ...]) -> None:
    mask = (torch.rand(shape) < 0.5).float()
    made = {name: nn.Linear(6, 6) if len(shape) == 1 else conv(2, 2) for name in nets}
    mine, peer = both("MaskedAffineFlow", mask, **made)
    check_against_peer(mine, peer, randn(5, *shape))


def test_masked_affine_flow_shows_what_is_not_finite() -> None:
    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.tensor([0.0, torch.inf, -torch.inf, 1.0]).to(z).expand_as(z)

    peer = peers().MaskedAffineFlow(torch.tensor([1.0, 0.0, 0.0, 0.0]), None, Broken()).double()
    mine = ours.MaskedAffineFlow(torch.tensor([1.0, 0.0, 0.0, 0.0]), None, Broken()).double()
    z = randn(3, 4)
    for direction in ("forward", "inverse"):
        for actual, expected in zip(
            getattr(mine, direction)(z), getattr(peer, direction)(z), strict=True
        ):
            torch.testing.assert_close(actual, expected, equal_nan=True)
            assert expected.isnan().any()


@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_conv1x1_equals_normflows(channels: int, use_lu: bool) -> None:
    mine, peer = both("Invertible1x1Conv", channels, use_lu=use_lu)
    check_against_peer(mine, peer, randn(3, channels, 4, 2), factor=10)


@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize("batch", [(5,), (), (0,), (2, 3)])
def test_invertible_affine_equals_normflows(batch: tuple[int, ...], use_lu: bool) -> None:
    mine, peer = both("InvertibleAffine", 4, use_lu=use_lu)
    check_against_peer(mine, peer, randn(*batch, 4), factor=10)


@pytest.mark.parametrize("identity_init", [True, False])
@pytest.mark.parametrize("features", [1, 2, 6])
@pytest.mark.parametrize("size", [0, 5])
def test_lu_linear_permute_equals_normflows(features: int, identity_init: bool, size: int) -> None:
    mine, peer = both("LULinearPermute", features, identity_init=identity_init)
    check_against_peer(mine, peer, randn(size, features), factor=10)


def glow_blocks(**options: Any) -> list[Any]:
    mine, peer = both("GlowBlock", 4, 8, **options)
    with torch.no_grad():
        peer(torch.randn(16, 4, 4, 4))
    return [mine, randomize_(peer, std=0.2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False},
        {"scale_map": "exp", "use_lu": False},
        {"split_mode": "channel_inv", "scale_map": "sigmoid_inv"},
        {"split_mode": "checkerboard", "leaky": 0.1},
        {"net_actnorm": True, "init_zeros": False},
    ],
    ids=str,
)
def test_glow_block_equals_normflows(options: dict[str, Any]) -> None:
    # Of the many ReLUs one may have its kink within rounding of float32.
    check_against_peer(*glow_blocks(**options), randn(3, 4, 4, 2), factor=20)


def test_glow_block_of_one_channel_equals_normflows() -> None:
    mine, peer = both("GlowBlock", 1, 8, split_mode="checkerboard")
    with torch.no_grad():
        peer(torch.randn(16, 1, 4, 4))
    check_against_peer(mine, peer, randn(3, 1, 4, 2), factor=20)


@pytest.mark.parametrize("inverse", [False, True])
def test_glow_block_initialises_as_normflows(inverse: bool) -> None:
    mine, peer = both("GlowBlock", 4, 8)
    mine.load_state_dict(peer.state_dict())
    z = 2 * randn(16, 4, 4, 4) + 1
    for layer in (mine, peer):
        evaluate(layer.double(), z, None, inverse=inverse)
    for (name, actual), expected in zip(
        mine.state_dict().items(), peer.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(actual, expected.to(actual), rtol=1e-9, atol=1e-9, msg=name)


def test_glow_block_runs_the_hooks_of_its_layers() -> None:
    block = randomize_(ours.GlowBlock(4, 8).double())
    block(randn(16, 4, 4, 4))
    z, seen = randn(3, 4, 2, 2), []
    expected = block(z)
    for layer in block.flows:
        layer.register_forward_hook(lambda *_: seen.append(1))
    for actual, value in zip(block(z), expected, strict=True):
        torch.testing.assert_close(actual, value)
    assert len(seen) == 3


def test_model_of_normflows_swapped_whole_gives_the_same() -> None:
    nf = pytest.importorskip("normflows")
    layers = [nf.flows.GlowBlock(4, 8, split_mode=m) for m in ("channel", "checkerboard")]
    layers += [nf.flows.Squeeze(), nf.flows.GlowBlock(1, 8, split_mode="checkerboard")]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((4, 4, 4)), layers)
    x = torch.randn(6, 1, 8, 8)
    model.log_prob(x)
    randomize_(model)
    model.double()
    x = x.double()
    expected = model.log_prob(x)
    assert swap_all(model) == 3 + 1 + 2 * 6 + 5
    for taken in (model, pickled(model)):
        torch.testing.assert_close(taken.log_prob(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["channel", "channel_inv", "checkerboard", "checkerboard_inv"])
@pytest.mark.parametrize("shape", [(3, 6), (3, 5, 4), (2, 3, 4, 6)])
def test_split_and_merge_equal_normflows(mode: str, shape: tuple[int, ...]) -> None:
    z = randn(*shape)
    expected, _ = peers().Split(mode)(z)
    parts, logdet = ours.Split(mode)(z)
    assert logdet == 0
    assert all(torch.equal(part, value) for part, value in zip(parts, expected, strict=True))
    for whole in (ours.Merge(mode)(parts), ours.Split(mode).inverse(parts)):
        assert torch.equal(whole[0], z)
    again, _ = ours.Merge(mode).inverse(z)
    assert all(torch.equal(part, value) for part, value in zip(again, expected, strict=True))


def test_squeeze_equals_normflows() -> None:
    z = randn(3, 8, 2, 6)
    mine, peer = ours.Squeeze(), peers().Squeeze()
    for layer in (mine, swap(peers().Squeeze(), ours.Squeeze)):
        out, logdet = layer(z)
        assert logdet == 0
        assert torch.equal(out, peer(z)[0])
        back, logdet = layer.inverse(out)
        assert logdet == 0
        assert torch.equal(back, z)
        assert layer(z[:0])[0].shape == (0, 2, 4, 12)


LAYERS = {
    "const": (lambda: ours.AffineConstFlow((3,)), (3,)),
    "conv": (lambda: ours.Invertible1x1Conv(3, use_lu=True), (3, 2, 2)),
    "affine": (lambda: ours.InvertibleAffine(3), (3,)),
    "lu": (lambda: ours.LULinearPermute(3), (3,)),
    "block": (lambda: ours.AffineCouplingBlock(conv(2, 4), split_mode="checkerboard"), (2, 2, 2)),
    "masked": (lambda: ours.MaskedAffineFlow(torch.tensor([1.0, 0, 1]), s=nn.Linear(3, 3)), (3,)),
    "glow": (lambda: ours.GlowBlock(4, 8), (4, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_logdet_is_that_of_the_jacobian_and_inverse_inverts(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().double()
    z = randn(4, *shape)
    layer(z)
    randomize_(layer, std=0.3)
    out, logdet = layer(z)
    torch.testing.assert_close(logdet.expand(4), jacobian_logdet(lambda x: layer(x)[0], z))
    back, opposite = layer.inverse(out)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(opposite, -logdet)


# Whether the block's actnorm has seen data is read from a tensor.
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "glow"])
def test_compiles_whole(name: str) -> None:
    make, shape = LAYERS[name]
    layer, z = make(), torch.randn(4, *shape)
    expected = layer(z)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for actual, value in zip(compiled(z), expected, strict=True):
        torch.testing.assert_close(actual, value)


@pytest.mark.parametrize("name", ["const", "conv", "block", "glow"])
def test_half_precision_keeps_a_wide_logdet(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().bfloat16()
    z = torch.randn(4, *shape, dtype=torch.bfloat16)
    out, logdet = layer(z)
    assert out.dtype == torch.bfloat16
    assert logdet.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.AffineCoupling(nn.Identity(), scale_map="tanh"), "scale_map must be one of"),
        (
            lambda: ours.AffineCoupling(nn.Identity())([torch.ones(2, 2)] * 2),
            "must give 4 channels",
        ),
        (lambda: ours.Split("rows"), "mode must be one of"),
        (lambda: ours.GlowBlock(4, 4, split_mode="rows"), "mode must be one of"),
        (lambda: ours.Split()(torch.ones(2, 1)), "at least 2 channels"),
        (lambda: ours.Split("checkerboard")(torch.ones(2, 3)), "even last dimension"),
        (lambda: ours.Squeeze()(torch.ones(2, 3, 2, 2)), "C a multiple of 4"),
        (lambda: ours.AffineConstFlow((3,))(torch.ones(2, 4)), r"samples of shape \[3\]"),
        (lambda: ours.AffineConstFlow((3,))(torch.ones(2, 3, 1)), r"samples of shape \[3\]"),
        (lambda: ours.MaskedAffineFlow(torch.tensor([0.5])), "0 or 1"),
        (lambda: ours.MaskedAffineFlow(torch.ones(3))(torch.ones(2, 4)), r"shape \[3\]"),
        (lambda: ours.Invertible1x1Conv(3)(torch.ones(2, 3)), r"\[N, 3, H, W\]"),
        (lambda: ours.Invertible1x1Conv(0), "at least 1"),
        (lambda: ours.InvertibleAffine(3)(torch.ones(2, 4)), "last dimension of 3"),
        (lambda: ours.LULinearPermute(3)(torch.ones(2, 4)), r"\[N, 3\]"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_forms_of_normflows_are_left_alone() -> None:
    flows = peers()
    coupling = flows.AffineCoupling(nn.Identity(), scale_map="tanh")
    assert "scale_map" in (ours.AffineCoupling.refusal(coupling) or "")
    masked = flows.MaskedAffineFlow(torch.tensor([0.5]))
    assert "0 or 1" in (ours.MaskedAffineFlow.refusal(masked) or "")
    assert "mode" in (ours.Merge.refusal(flows.Merge("rows")) or "")
