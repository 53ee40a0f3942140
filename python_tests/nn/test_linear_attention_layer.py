"""nn.LinearAttention: its steps, its weights, its place in torch's transformer, its errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from flowops.nn import LinearAttention

Attention = tuple[LinearAttention, Tensor]


def make(**options: object) -> Attention:
    layer = LinearAttention(12, 3, dtype=torch.float64, **options)  # pyright: ignore
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer, torch.randn(2, 40, 12, dtype=torch.float64)


def by_hand(
    layer: LinearAttention, query: Tensor, memory: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Head by head, through the matrix of weights."""
    weights, biases = layer.in_proj_weight.view(3, 3, 4, 12), layer.in_proj_bias.view(3, 3, 4)
    heads = []
    for h in range(3):
        q, k, v = (
            x @ weights[i, h].T + biases[i, h] for i, x in enumerate((query, memory, memory))
        )
        scores = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(1, 2)
        if layer.causal:
            scores = scores.tril()
        if left_out is not None:
            scores = scores * ~left_out[:, None]
        heads.append(scores @ v / (scores.sum(2, keepdim=True) + 1e-6))
    return layer.out_proj(torch.cat(heads, 2))


@pytest.mark.parametrize("causal", [False, True])
def test_is_what_it_says(causal: bool) -> None:
    layer, x = make(causal=causal)
    torch.testing.assert_close(layer(x, x, x)[0], by_hand(layer, x, x))
    memory = x if causal else torch.randn(2, 7, 12, dtype=torch.float64)
    got, weights = layer(x, memory, memory.clone())
    assert weights is None
    torch.testing.assert_close(got, by_hand(layer, x, memory))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp", "cosine", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
def test_attention_matrix_times_values_is_the_output(
    causal: bool, feature_map: str, normalize: bool
) -> None:
    if causal and feature_map == "softmax":
        pytest.skip("softmax over time is not causal")
    layer, x = make(causal=causal, feature_map=feature_map, normalize=normalize)
    memory = x if causal else torch.randn(2, 7, 12, dtype=torch.float64)
    weights = layer.attention_matrix(x, memory)
    assert weights.shape == (2, 3, 40, memory.size(1))
    if causal:
        assert not weights.triu(1).any()
    if normalize and feature_map != "relu":  # whose features may all be zero
        torch.testing.assert_close(weights.sum(3), torch.ones(2, 3, 40).double(), atol=1e-5, rtol=0)
    values = memory @ layer.in_proj_weight[24:].T + layer.in_proj_bias[24:]
    heads = torch.einsum("bhij,bjhe->bihe", weights, values.view(2, -1, 3, 4))
    torch.testing.assert_close(layer.out_proj(heads.flatten(2)), layer(x, memory, memory)[0])


def test_attention_matrix_is_its_formula() -> None:
    layer, x = make()
    left_out = torch.rand(2, 40) < 0.3
    weights = layer.in_proj_weight.view(3, 3, 4, 12), layer.in_proj_bias.view(3, 3, 4)
    q, k = (
        torch.einsum("btm,hem->bhte", x, weights[0][i]) + weights[1][i, :, None] for i in (0, 1)
    )
    scores = (nn.functional.elu(q) + 1) @ (nn.functional.elu(k) + 1).transpose(2, 3)
    scores = scores * ~left_out[:, None, None]
    for is_causal in (False, True):
        allowed = scores.tril() if is_causal else scores
        torch.testing.assert_close(
            layer.attention_matrix(x, x, left_out, is_causal),
            allowed / (allowed.sum(3, keepdim=True) + 1e-6),
        )


def test_is_causal_for_one_call() -> None:
    layer, x = make()
    got, _ = layer(x, x, x, is_causal=True, attn_mask=torch.ones(40, 40).triu(1).bool())
    layer.causal = True
    torch.testing.assert_close(got, by_hand(layer, x, x))


@pytest.mark.parametrize("feature_map", ["elu", "relu", "exp", "cosine"])
@pytest.mark.parametrize("pieces", [(1,) * 40, (33, 1, 1, 5)])
def test_steps_are_the_forward_pass(pieces: tuple[int, ...], feature_map: str) -> None:
    layer, x = make(causal=True, feature_map=feature_map)
    state, parts = None, []
    for piece in x.split(pieces, 1):
        out, state = layer.step(piece, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), layer(x, x, x)[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_padding(dtype: torch.dtype) -> None:
    layer, x = make()
    left_out = torch.rand(2, 40) < 0.3
    mask = left_out
    if dtype != torch.bool:
        mask = torch.zeros(2, 40, dtype=dtype).masked_fill(left_out, -torch.inf)
    got = layer(x, x, x, key_padding_mask=mask)[0]
    torch.testing.assert_close(got, by_hand(layer, x, x, left_out))


@pytest.mark.parametrize("bias", [False, True])
def test_loads_the_state_dict_of_multihead_attention(bias: bool) -> None:
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    layer = LinearAttention(12, 3, bias=bias)
    for name, value in theirs.state_dict().items():
        drawn = layer.state_dict()[name]
        assert (drawn.std(unbiased=False) - value.std(unbiased=False)).abs() < 0.05
    layer.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("training", [False, True])
def test_in_a_transformer_layer(training: bool) -> None:
    # In evaluation torch has a path of its own, which would run softmax attention.
    block = nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True).double()
    block.self_attn, x = make()
    block.train(training)
    left_out = torch.rand(2, 40) < 0.3
    with torch.no_grad():
        got = block(x, src_key_padding_mask=left_out)
        attended = block.norm1(x + by_hand(block.self_attn, x, x, left_out))
        inner = block.linear2(torch.relu(block.linear1(attended)))
    torch.testing.assert_close(got, block.norm2(attended + inner))


def test_learns_through_every_parameter() -> None:
    layer, x = make(causal=True)
    layer(x, x, x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_compiles_whole() -> None:
    layer, x = make(causal=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x)[0], layer(x, x, x)[0])
    torch.compiler.reset()
    with torch.device("cpu"):
        torch.testing.assert_close(compiled(x, x, x)[0], layer(x, x, x)[0])


def test_copies_and_pickles() -> None:
    layer, x = make(causal=True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, x, x)[0], layer(x, x, x)[0])
    assert "12, 3, feature_map='elu', causal=True" in repr(layer)


def test_under_autocast() -> None:
    layer, x = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x.float(), x.float(), x.float())[0].dtype == torch.bfloat16


def test_errors() -> None:
    layer, x = make()
    cases = [
        (lambda: LinearAttention(12, 5), "embed_dim must be a multiple of num_heads, got 12 and 5"),
        (lambda: LinearAttention(12, 3, feature_map="gelu"), "feature_map must be one of"),
        (lambda: layer(x, x, x, need_weights=True), "need_weights must be False, got True"),
        (lambda: layer(x, x, x, attn_mask=x), "attn_mask must be None or causal"),
        (lambda: layer(x, x[0], x), r"key must have shape \(batch, time, 12\), got \[40, 12\]"),
        (lambda: layer.step(x), "step must be called on a causal layer"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=f"^LinearAttention: {message}"):
            call()
