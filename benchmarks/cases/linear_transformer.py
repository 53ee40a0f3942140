"""A causal transformer with linear attention: training steps, and decoding by its state."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, elu

from benchmarks.case import Model, ModelCase, Sweep
from benchmarks.cases.linear_attention import causal_chunked
from flowops.nn import LinearAttention

SYMBOLS, WIDTH, HEADS, BLOCKS, DECODED = 64, 256, 4, 2, 16


class EagerAttention(nn.Module):
    """Linear attention in chunks; one step of it from its state."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def _heads(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(2, (HEADS, -1)) for part in self.project(x).chunk(3, 2)]

    def forward(self, x: Tensor) -> Tensor:
        (y,) = causal_chunked(*self._heads(x))
        return self.out(y.flatten(2))

    def step(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (part[:, 0] for part in self._heads(x))
        q, k = elu(q) + 1, elu(k) + 1
        products, sums = k.unsqueeze(3) * v.unsqueeze(2), k
        if state is not None:
            products, sums = state[0] + products, state[1] + sums
        weights = (q * sums).sum(2, keepdim=True) + 1e-6
        y = torch.einsum("nhd,nhdm->nhm", q, products) / weights
        return self.out(y.flatten(1).unsqueeze(1)), (products, sums)


class OurAttention(LinearAttention):
    """flowops' layer, called with one argument."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x)[0]


class Transformer(nn.Module):
    """Blocks of attention and a network, each after a layer norm and beside a shortcut."""

    def __init__(self, attention: type[EagerAttention] | type[OurAttention]) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.attentions = nn.ModuleList(attention() for _ in range(BLOCKS))
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(BLOCKS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS))
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embed(symbols)
        for i, (attention, network) in enumerate(zip(self.attentions, self.networks, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + network(self.norms[2 * i + 1](x))
        return self.head(x)

    def decode(self, symbol: Tensor, count: int) -> Tensor:
        """The likeliest symbols after ``symbol``, one at a time."""
        states = [None] * BLOCKS
        chosen = []
        for _ in range(count):
            x = self.embed(symbol)
            for i, network in enumerate(self.networks):
                y, states[i] = self.attentions[i].step(self.norms[2 * i](x), states[i])
                x = x + y
                x = x + network(self.norms[2 * i + 1](x))
            symbol = self.head(x).argmax(2)
            chosen.append(symbol)
        return torch.cat(chosen, 1)


def model(attention: type[EagerAttention] | type[OurAttention], symbols: Tensor) -> Model:
    network = Transformer(attention)

    def loss(symbols: Tensor) -> Tensor:
        logits = network(symbols)
        return cross_entropy(logits[:, :-1].flatten(0, 1), symbols[:, 1:].flatten())

    return Model(network, loss, lambda: network.decode(symbols[:, :1], DECODED))


def case(batch: int, time: int) -> ModelCase:
    return ModelCase(
        "linear_transformer",
        f"batch {batch}, {time} symbols, width {WIDTH}, {HEADS} heads, {BLOCKS} blocks",
        lambda: (torch.randint(0, SYMBOLS, (batch, time)),),
        {
            "eager": lambda symbols: model(EagerAttention, symbols),
            "ours": lambda symbols: model(OurAttention, symbols),
        },
    )


PLAIN = case(2, 1024)
# Compiling takes longer than all else, and is timed in float32.
CASES = [PLAIN, replace(PLAIN, name=f"{PLAIN.name}, bfloat16", autocast=True, compiled=())]

SWEEPS = [
    Sweep("linear_transformer", "sequence length", (512, 1024, 2048, 4096), lambda n: case(1, n))
]
