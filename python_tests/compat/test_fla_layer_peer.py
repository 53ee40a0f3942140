"""flowops.compat.fla.LinearAttention against fla's own layer, of fla 0.6.0.

Arguments, keys, errors and layers taken over on any machine; results where Triton runs, as in
``test_fla_peer``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowops import accelerate
from flowops.compat import fla as ours
from flowops.compat._twins import Joined

from .triton_on_cpu import DEVICE, interpret, needs_triton

theirs = pytest.importorskip("fla.layers.linear_attn")
TOLERANCE = 2e-5 if DEVICE == "cpu" else 5e-3
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "elu": {"feature_map": "elu", "do_feature_map_norm": True, "output_norm": "identity"},
    "hedgehog": {"feature_map": "hedgehog", "do_feature_map_norm": True, "norm_q": True},
    "t2r": {"feature_map": "t2r", "tie_feature_map_qk": True, "norm_k": True},
    "dpfp": {"feature_map": "dpfp", "elementwise_affine": False, "do_feature_map_norm": True},
    "groups": {"num_kv_heads": 2, "expand_k": 0.5, "expand_v": 2.0, "feature_map": "relu"},
    "identity": {"feature_map": "identity", "mode": "fused_recurrent", "norm_eps": 0.1},
    "fused": {"feature_map": "elu", "mode": "fused_chunk", "num_kv_heads": 1, "expand_k": 1.5},
}


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        yield


def pair(case: str, **options: Any) -> tuple[Any, Any]:
    """Return our layer and fla's, of the same random parameters."""
    sizes = {"hidden_size": 24, "num_heads": 4}
    mine, peer = (
        m.LinearAttention(**sizes, **OPTIONS[case], **options).to(DEVICE) for m in (ours, theirs)
    )
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(torch.randn_like(p) / 3)
    mine.load_state_dict(peer.state_dict(), strict=True)
    return mine, peer


def close(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        size = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE * size)


def evaluate(layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Return the output, and the gradients of input and parameters."""
    x = x.detach().clone().requires_grad_()
    out = layer(x, *args, **kwargs)[0]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    leaves = [x, *(p for _, p in sorted(layer.named_parameters()))]
    return [out, *torch.autograd.grad(out, leaves, weights)]


@pytest.mark.parametrize("case", OPTIONS)
def test_keys_shapes_and_attributes_are_flas(case: str) -> None:
    mine, peer = pair(case)
    peer.load_state_dict(mine.state_dict(), strict=True)
    for a, b in zip(*(sorted(m.named_parameters()) for m in (mine, peer)), strict=True):
        assert (a[0], a[1].shape, a[1].dtype) == (b[0], b[1].shape, b[1].dtype)
    plain = {k: v for k, v in vars(peer).items() if isinstance(v, int | str) or v is None}
    assert plain == {k: vars(mine)[k] for k in plain}


def test_a_layer_of_fla_has_these_arguments() -> None:
    for name in ("__init__", "forward"):
        mine, peer = (
            signature(getattr(m.LinearAttention, name)).parameters for m in (ours, theirs)
        )
        assert [(p.name, p.default, p.kind) for p in mine.values()] == [
            (p.name, p.default, p.kind) for p in peer.values()
        ]


def test_the_norm_of_fla_stays_float32() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        for module in (ours, theirs):
            layer = module.LinearAttention(hidden_size=8, num_heads=2)
            assert {n for n, p in layer.named_parameters() if p.dtype == torch.float32} == {
                "norm.weight"
            }
        layer = ours.LinearAttention(hidden_size=8, num_heads=2)
        assert layer(torch.randn(1, 3, 8))[0].dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("factor", [0.29, 0.57])
def test_sizes_are_rounded_as_in_fla(factor: float) -> None:
    for module in (ours, theirs):
        layer = module.LinearAttention(hidden_size=100, num_heads=1, expand_k=factor)
        assert layer.key_dim == round(100 * factor)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "slow"},
        {"feature_map": "cos"},
        {"output_norm": "batch"},
        {"num_heads": 3},
        {"num_kv_heads": 3},
        {"expand_k": 0.3},
        {"expand_v": 0.3},
    ],
)
def test_what_fla_refuses(options: dict[str, Any]) -> None:
    sizes = {"hidden_size": 16, "num_heads": 4}
    with pytest.raises((AssertionError, NotImplementedError)):
        theirs.LinearAttention(**sizes | options)
    with pytest.raises(ValueError, match="LinearAttention: "):
        ours.LinearAttention(**sizes | options)


@pytest.mark.parametrize("case", OPTIONS)
def test_layers_of_fla_taken_over_need_no_triton(case: str) -> None:
    mine, peer = pair(case)
    mine, model, x = mine.double(), nn.Sequential(peer.double()), torch.randn(2, 9, 24).double()
    x = x.to(DEVICE)
    kind, held = type(peer), dict(peer.state_dict())
    report = accelerate(model)
    assert [layer.kind for layer in report.swapped] == ["fla.layers.linear_attn.LinearAttention"]
    assert isinstance(model[0], Joined)
    assert isinstance(model[0], theirs.LinearAttention)
    for taken in (model[0], copy.deepcopy(model[0])):
        torch.testing.assert_close(evaluate(taken, x), evaluate(mine, x))
    report.restore()
    assert type(peer) is kind
    assert held.keys() == peer.state_dict().keys()


@needs_triton
@pytest.mark.parametrize("length", [1, 7, 70])
@pytest.mark.parametrize("case", OPTIONS)
def test_results_and_gradients_are_flas(case: str, length: int) -> None:
    mine, peer = pair(case)
    x = torch.randn(2, length, 24, device=DEVICE)
    if length > 1:  # The norm takes the size of a single step away: gradients are but rounding.
        close(evaluate(mine, x), evaluate(peer, x))
    with torch.no_grad():
        close(mine(x)[:1], peer(x)[:1])


MASKS = {
    "right": [[1] * 7, [1] * 4 + [0] * 3],
    "left": [[0] * 3 + [1] * 4, [1] * 7],
    "holes": [[1, 0, 1, 1, 0, 0, 1], [0] * 7],
    "longer": [[0] * 2 + [1] * 7, [1] * 6 + [0, 1, 0]],
}


@needs_triton
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", ["default", "elu", "hedgehog", "groups"])
def test_masked_steps_are_left_out_as_in_fla(case: str, mask: str) -> None:
    mine, peer = pair(case)
    x, kept = torch.randn(2, 7, 24, device=DEVICE), torch.tensor(MASKS[mask], device=DEVICE)
    close(evaluate(mine, x, kept), evaluate(peer, x, kept))


@needs_triton
@pytest.mark.parametrize("case", ["default", "elu"])
def test_packed_sequences_are_those_of_fla(case: str) -> None:
    mine, peer = pair(case)
    x, bounds = torch.randn(1, 9, 24, device=DEVICE), torch.tensor([0, 2, 3, 9], device=DEVICE)
    mask = torch.zeros(1, 9, device=DEVICE)
    close(evaluate(mine, x, mask, cu_seqlens=bounds), evaluate(peer, x, mask, cu_seqlens=bounds))


@needs_triton
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", ["default", "elu"])
def test_a_cache_of_fla_holds_the_same(case: str, masked: bool) -> None:
    from fla.models.utils import Cache

    x = torch.randn(2, 9, 24, device=DEVICE)
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9], device=DEVICE) if masked else None
    found = []
    with torch.no_grad():
        for layer in pair(case, layer_idx=0):
            cache, outs = Cache(), []
            for start, end in ((0, 5), (5, 6), (6, 9)):
                seen = None if mask is None else mask[:, :end]
                out, _, cache = layer(x[:, start:end], seen, cache, use_cache=True)
                outs.append(out)
            state = cache[0]["recurrent_state"]
            found.append([*outs, *(state if isinstance(state, tuple) else [state])])
            assert cache.get_seq_length() == 9
            cache.reset()
            close([layer(x[:, :5], None if mask is None else mask[:, :5], cache)[0]], outs[:1])
    close(*found)


@needs_triton
def test_a_model_with_layers_of_fla_is_taken_over_and_given_back() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(pair(case)[1] for case in ("default", "elu", "dpfp"))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x)[0]
            return x

    model, x = Model(), torch.randn(2, 9, 24, device=DEVICE)
    before = model(x)
    report = accelerate(model, (x,), verify=True, tolerance=10 * TOLERANCE)
    assert len(report.swapped) == 3
    assert report.errors
    close([model(x)], [before])
    report.restore()
    assert not any(isinstance(m, Joined) for m in model.modules())
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
