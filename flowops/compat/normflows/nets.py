"""The residual networks of normflows' splines.

They are composed: :func:`flowops.ops.mlp` ends with a layer after a ReLU, which they have not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import glu

from flowops.compat.nflows._made import MaskedLinear

__all__ = ["MADE", "MaskedLinear", "PeriodicFeaturesElementwise", "ResidualNet"]


class PeriodicFeaturesElementwise(nn.Module):
    """Make some features f periodic, as ``w1 sin(scale f) + w2 cos(scale f)``; w1, w2 are learned.

    Args:
        ndim: Number of features.
        ind: Indices of the periodic ones.
        scale: Factor, or one for each of them.
    """

    ind: Tensor
    ind_: Tensor
    inv_perm: Tensor
    scale: float | Tensor

    def __init__(self, ndim: int, ind: Sequence[int], scale: float | Tensor = 1.0) -> None:
        super().__init__()
        others = [i for i in range(ndim) if i not in ind]
        self.register_buffer("ind", torch.tensor(ind, dtype=torch.int64))
        self.register_buffer("ind_", torch.tensor(others, dtype=torch.int64))
        self.register_buffer("inv_perm", torch.cat([self.ind, self.ind_]).argsort())
        self.weights = nn.Parameter(torch.ones(len(ind), 2))
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, ndim) to (N, ndim)."""
        angle = self.scale * inputs[..., self.ind]
        periodic = self.weights[:, 0] * torch.sin(angle) + self.weights[:, 1] * torch.cos(angle)
        return torch.cat([periodic, inputs[..., self.ind_]], -1)[..., self.inv_perm]


class _Block(nn.Module):
    """Residual block ``x + W a(V a(x))``; a context gates what is added."""

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        context_features: int | None,
        activation: nn.Module,
        dropout_probability: float,
    ) -> None:
        super().__init__()
        self.activation = activation
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, layers[0].in_features)
        self.linear_layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout_probability)
        for parameter in layers[-1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        first, second = self.linear_layers
        added = second(self.dropout(self.activation(first(self.activation(inputs)))))
        if context is not None:
            added = glu(torch.cat([added, self.context_layer(context)], 1), 1)
        return inputs + added


class ResidualNet(nn.Module):
    """Residual network on vectors, its blocks gated by the context where there is one.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        hidden_features: Width.
        context_features: Size of the context; None for none.
        num_blocks: Number of residual blocks.
        activation: Between the layers.
        dropout_probability: Within the blocks.
        preprocessing: What the input passes first; None for nothing.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        activation: nn.Module | None = None,
        dropout_probability: float = 0.0,
        preprocessing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.hidden_features = hidden_features
        self.context_features = context_features
        self.preprocessing = preprocessing
        self.initial_layer = nn.Linear(in_features + (context_features or 0), hidden_features)
        between = nn.ReLU() if activation is None else activation
        self.blocks = nn.ModuleList(
            _Block(
                [nn.Linear(hidden_features, hidden_features) for _ in range(2)],
                context_features,
                between,
                dropout_probability,
            )
            for _ in range(num_blocks)
        )
        self.final_layer = nn.Linear(hidden_features, out_features)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (N, in_features) to (N, out_features)."""
        h = inputs if self.preprocessing is None else self.preprocessing(inputs)
        h = self.initial_layer(h if context is None else torch.cat([h, context], 1))
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)


class MADE(nn.Module):
    """Residual network whose outputs for feature i see the features before it alone.

    Args:
        features: Number of features.
        hidden_features: Width.
        context_features: Size of the context; None for none.
        num_blocks: Number of residual blocks.
        output_multiplier: Outputs for each feature.
        permute_mask: Whether the order of the features is random.
        activation: Between the layers.
        dropout_probability: Within the blocks.
        preprocessing: What the input passes first; None for nothing.
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        context_features: int | None = None,
        num_blocks: int = 2,
        output_multiplier: int = 1,
        permute_mask: bool = False,
        activation: nn.Module | None = None,
        dropout_probability: float = 0.0,
        preprocessing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = nn.Identity() if preprocessing is None else preprocessing
        order = torch.randperm(features) if permute_mask else torch.arange(features)
        degrees = order + 1
        most = max(1, features - 1)
        hidden = torch.arange(hidden_features) % most + min(1, features - 1)
        self.initial_layer = MaskedLinear(degrees, hidden, strictly=False)
        if context_features is not None:
            self.context_layer = nn.Linear(context_features, hidden_features)
        between = nn.ReLU() if activation is None else activation
        self.blocks = nn.ModuleList(
            _Block(
                [MaskedLinear(hidden, hidden, strictly=False) for _ in range(2)],
                context_features,
                between,
                dropout_probability,
            )
            for _ in range(num_blocks)
        )
        outputs = degrees.repeat_interleave(output_multiplier)
        self.final_layer = MaskedLinear(hidden, outputs, strictly=True)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (N, features) to (N, features output_multiplier), feature by feature."""
        h = self.preprocessing(inputs)
        h = self.initial_layer(h)
        if context is not None:
            h = h + self.context_layer(context)
        for block in self.blocks:
            h = block(h, context)
        return self.final_layer(h)
