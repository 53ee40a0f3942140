"""The masked network of the autoregressive layers, with nflows' keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu


class MaskedLinear(nn.Linear):
    """Linear layer in which an output of degree d sees the inputs of degrees up to d.

    Args:
        in_degrees: Degree of each input, int64.
        out_degrees: Degree of each output.
        strictly: Whether outputs see degrees below d alone.
    """

    mask: Tensor
    degrees: Tensor

    def __init__(self, in_degrees: Tensor, out_degrees: Tensor, strictly: bool = False) -> None:
        super().__init__(in_degrees.numel(), out_degrees.numel())
        column = out_degrees[:, None]
        seen = column > in_degrees if strictly else column >= in_degrees
        self.register_buffer("mask", seen.to(self.weight.dtype))
        self.register_buffer("degrees", out_degrees.clone())

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        return linear(input, self.weight * self.mask, self.bias)


class _Block(nn.Module):
    """A hidden layer: batch norm or none, masked linear, activation, dropout."""

    def __init__(self, widths: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        size = widths[0].numel()
        self.batch_norm = nn.BatchNorm1d(size, eps=1e-3) if options["use_batch_norm"] else None
        self.linear = MaskedLinear(*widths)
        self.activation = options["activation"]
        self.dropout = nn.Dropout(options["dropout_probability"])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x if self.batch_norm is None else self.batch_norm(x)
        return self.dropout(self.activation(self.linear(x)))


class _ResidualBlock(nn.Module):
    """Two masked layers around their input; the context joins between them."""

    def __init__(self, widths: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
        super().__init__()
        size = widths[0].numel()
        if options["context_features"] is not None:
            self.context_layer = nn.Linear(options["context_features"], size)
        self.use_batch_norm = options["use_batch_norm"]
        if self.use_batch_norm:
            norms = [nn.BatchNorm1d(size, eps=1e-3) for _ in range(2)]
            self.batch_norm_layers = nn.ModuleList(norms)
        degrees = widths[1]
        self.linear_layers = nn.ModuleList([MaskedLinear(*widths), MaskedLinear(degrees, degrees)])
        for parameter in self.linear_layers[1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)
        self.activation = options["activation"]
        self.dropout = nn.Dropout(options["dropout_probability"])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        first, second = self.linear_layers
        hidden = first(self.activation(self._normed(x, 0)))
        if context is not None:
            hidden = hidden + self.context_layer(context)
        return x + second(self.dropout(self.activation(self._normed(hidden, 1))))

    def _normed(self, x: Tensor, index: int) -> Tensor:
        return self.batch_norm_layers[index](x) if self.use_batch_norm else x


class MADE(nn.Module):
    """Network of which the outputs for a feature depend on the features before it alone.

    Args:
        features: Size of the input vector, D.
        hidden_features: Width.
        context_features: Size of the context vector, which all outputs see; None for none.
        num_blocks: Number of blocks.
        output_multiplier: Outputs a feature.
        use_residual_blocks: Blocks of two layers around their input, rather than single layers.
        random_mask: Draw the degrees of hidden units; not with residual blocks.
        activation: Between the layers.
        dropout_probability: Within blocks.
        use_batch_norm: Within blocks.

    Raises:
        ValueError: If masks are random with residual blocks.

    Source:
        Germain, Gregor, Murray and Larochelle, MADE, 2015, arXiv:1502.03509.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        output_multiplier: int = 1,
        use_residual_blocks: bool = True,
        random_mask: bool = False,
        activation: Callable[[Tensor], Tensor] = relu,
        dropout_probability: float = 0.0,
        use_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if use_residual_blocks and random_mask:
            raise ValueError(
                f"{type(self).__name__}: random_mask must be False with residual blocks, got True"
            )
        options = {
            "context_features": context_features,
            "activation": activation,
            "dropout_probability": dropout_probability,
            "use_batch_norm": use_batch_norm,
        }

        def hidden_degrees(before: Tensor) -> Tensor:
            if random_mask:
                low = min(int(before.min()), features - 1)
                return torch.randint(low, features, (hidden_features,))
            units = torch.arange(hidden_features)
            return units % max(1, features - 1) + min(1, features - 1)

        inputs = torch.arange(1, features + 1)
        degrees = hidden_degrees(inputs)
        self.initial_layer = MaskedLinear(inputs, degrees)
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, hidden_features)
        self.use_residual_blocks = use_residual_blocks
        self.activation = activation
        block = _ResidualBlock if use_residual_blocks else _Block
        self.blocks = nn.ModuleList()
        for _ in range(num_blocks):
            before, degrees = degrees, hidden_degrees(degrees)
            self.blocks.append(block((before, degrees), options))
        outputs = inputs.repeat_interleave(output_multiplier)
        self.final_layer = MaskedLinear(degrees, outputs, strictly=True)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (N, D) to (N, D * output_multiplier), feature by feature."""
        hidden = self.initial_layer(inputs)
        if context is not None:
            hidden = hidden + self.activation(self.context_layer(context))
        if not self.use_residual_blocks:
            hidden = self.activation(hidden)
        for block in self.blocks:
            hidden = block(hidden, context)
        return self.final_layer(hidden)
