"""flowops.compat.fla's functions against fla's own: fla 0.6.0, its kernels run by Triton.

On the CPU by Triton's interpreter: ``TRITON_INTERPRET=1 python -m pytest python_tests/compat -k
"fla_peer or fla_layer_peer"``, with fla-core, flash-linear-attention, triton, einops and
transformers installed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor

from flowops.compat import fla as ours

from .triton_on_cpu import DEVICE, interpret, needs_triton

theirs = pytest.importorskip("fla.ops.linear_attn")
pytestmark = needs_triton
NAMES = ("chunk_linear_attn", "fused_chunk_linear_attn", "fused_recurrent_linear_attn")
# fla sums in float32, and on a GPU multiplies in TF32.
TOLERANCE = 2e-5 if DEVICE == "cpu" else 5e-3


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        yield


def close(got: Any, want: Any) -> None:
    if not isinstance(want, Tensor):
        assert type(got) is type(want)
        for a, b in zip(got or (), want or (), strict=True):
            close(a, b)
        return
    assert got.dtype == want.dtype
    size = want.abs().max().item() if want.numel() else 1.0
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE * max(size, 1e-3))


def flat(values: Any) -> list[Tensor]:
    return [t for v in values for t in (v if isinstance(v, tuple) else [v]) if t is not None]


def draw(*shape: int) -> Tensor:
    # Away from 0, for a well-conditioned denominator.
    return torch.rand(*shape).add(0.1).to(DEVICE).requires_grad_()


def scene(rng: random.Random, name: str, normalize: bool, state: str) -> tuple[Any, Any, Any]:
    """Return the inputs, their options, and the tensors to differentiate by."""
    packed = rng.random() < 0.5
    bounds = [0, *sorted(rng.sample(range(1, 40), 2)), 40]
    batch, length = (1, 40) if packed else (rng.choice([1, 2]), rng.choice([1, 7, 33, 70]))
    heads, keys, values = rng.choice([1, 3]), rng.choice([4, 6, 16]), rng.choice([4, 5, 16])
    leaves = [draw(batch, length, heads, size) for size in (keys, keys, values)]
    inputs = list(leaves)
    options: dict[str, Any] = {"normalize": normalize, "scale": rng.choice([None, 0.3, 2.0])}
    if packed:
        options["cu_seqlens"] = torch.tensor(bounds, device=DEVICE)
    if name == "fused_recurrent_linear_attn":
        options["reverse"] = rng.random() < 0.5
    if state != "none":
        count = 3 if packed else batch
        kv, z = draw(count, heads, keys, values), draw(count, 1, heads, keys)
        pair = state == "pair"
        options["initial_state"] = (kv, z) if pair else kv
        leaves += [kv, z] if pair else [kv]
    return inputs, options, leaves


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("normalize", "state"),
    [(False, "none"), (False, "one"), (True, "none"), (True, "one"), (True, "pair")],
)
@pytest.mark.parametrize("name", NAMES)
def test_values_states_and_gradients_are_flas(
    name: str, normalize: bool, state: str, seed: int
) -> None:
    rng = random.Random(f"{name} {normalize} {state} {seed}")
    inputs, options, leaves = scene(rng, name, normalize, state)
    found = []
    for module in (ours, theirs):
        result = getattr(module, name)(*inputs, output_final_state=True, **options)
        outs = flat(result)
        torch.manual_seed(seed)
        weights = [torch.randn(t.shape).to(t) for t in outs]
        found.append((result, torch.autograd.grad(outs, leaves, weights)))
    close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_flas(name: str) -> None:
    ours_, theirs_ = (signature(getattr(m, name)).parameters for m in (ours, theirs))
    assert [(p.name, p.default) for p in ours_.values()] == [
        (p.name, p.default) for p in theirs_.values()
    ]
    inputs = [draw(1, 5, 2, size) for size in (4, 4, 5)]
    close(getattr(ours, name)(*inputs)[0], getattr(theirs, name)(*inputs)[0])


def test_fla_returns_half_a_state_that_was_not_asked_for() -> None:
    # docs/compat/fla.md says so; ours returns None, as fla's own documentation has it.
    inputs = [draw(1, 5, 2, size) for size in (4, 4, 5)]
    assert ours.chunk_linear_attn(*inputs)[1] is None
    assert theirs.chunk_linear_attn(*inputs)[1][0] is None


@pytest.mark.parametrize("reverse", [False, True])
def test_empty_sequences_keep_their_state_as_in_fla(reverse: bool) -> None:
    inputs = [draw(1, 5, 2, size) for size in (4, 4, 5)]
    options = {
        "cu_seqlens": torch.tensor([0, 0, 3, 3, 5, 5], device=DEVICE),
        "initial_state": (draw(5, 2, 4, 5), draw(5, 1, 2, 4)),
        "output_final_state": True,
        "normalize": True,
        "reverse": reverse,
    }
    name = "fused_recurrent_linear_attn"
    close(getattr(ours, name)(*inputs, **options), getattr(theirs, name)(*inputs, **options))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_as_near_as_fla(name: str) -> None:
    wide = [draw(2, 20, 2, size).detach() for size in (8, 8, 8)]
    low = [t.bfloat16() for t in wide]
    exact = getattr(ours, name)(*(t.double() for t in low), normalize=True)[0]
    mine, rival = (getattr(m, name)(*low, normalize=True)[0] for m in (ours, theirs))
    assert mine.dtype == rival.dtype == torch.bfloat16
    error, allowed = ((t.double() - exact).abs().max() for t in (mine, rival))
    assert error <= 2 * allowed + 1e-3
