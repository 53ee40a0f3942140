"""Layers of nflows and of flowops.compat.nflows by one recipe, and what tests do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowops.testing import randomize_

MASKS = {
    "first": [0, 0, 0, 1, 1],
    "last": [1, 1, 0, 0, 0],
    "alternating": [1, 0, 1, 0, 1],
    "scattered": [-1, 2, 1, 0, 1],
}


class Net(nn.Module):
    """A network of vectors or images with a context; `width` names the attribute of its width."""

    def __init__(self, n_in: int, n_out: int, images: bool, width: str | None) -> None:
        super().__init__()
        linear = (lambda a, b: nn.Conv2d(a, b, 1)) if images else nn.Linear
        self.first, self.last = linear(n_in, 7), linear(7, n_out)
        self.context = nn.Linear(3, 7)
        if width is not None:
            setattr(self, width, 7)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        if context is not None:
            seen = self.context(context)
            hidden = hidden + seen.view(*seen.shape, *[1] * (x.dim() - 2))
        return self.last(torch.tanh(hidden))


class Case(NamedTuple):
    """`make` builds the layer of a library from its namespace of classes."""

    make: Callable[[Any], nn.Module]
    shape: tuple[int, ...]
    unit: bool = False  # data in [0, 1]
    context: bool = True
    inverse_works: bool = True  # of the peer
    noise: tuple[int, ...] | None = None  # shape of the outputs, where it is another


CASES: dict[str, Case] = {}


def _couplings() -> None:
    for mask, images in [(m, False) for m in MASKS] + [("first", True), ("scattered", True)]:
        shape = (5, 4, 2) if images else (5,)
        for kind in ("Affine", "Additive"):
            for own in (False, True):
                CASES[f"{kind}-{mask}-{len(shape)}d{'-own' * own}"] = Case(
                    lambda lib, mask=mask, images=images, kind=kind, own=own: getattr(
                        lib, f"{kind}CouplingTransform"
                    )(
                        MASKS[mask],
                        lambda a, b: Net(a, b, images, None),
                        (lambda features: lib.ActNorm(features)) if own else None,
                    ),
                    shape,
                )
    for mask, images, tails, own, width in [
        ("first", False, "linear", False, "hidden_features"),
        ("scattered", False, "linear", True, None),
        ("alternating", False, None, True, "hidden_channels"),
        ("last", True, "linear", True, "hidden_channels"),
        ("alternating", True, None, False, "hidden_features"),
    ]:
        shape = (5, 4, 2) if images else (5,)
        CASES[f"RQS-{mask}-{len(shape)}d-{tails}{'-own' * own}"] = Case(
            lambda lib, mask=mask, images=images, tails=tails, own=own, width=width: (
                lib.PiecewiseRationalQuadraticCouplingTransform(
                    MASKS[mask],
                    lambda a, b: Net(a, b, images, width),
                    num_bins=4,
                    tails=tails,
                    tail_bound=1.5,
                    apply_unconditional_transform=own,
                    img_shape=[4, 2] if images else None,
                    min_bin_width=2e-3,
                    min_bin_height=4e-3,
                    min_derivative=5e-3,
                )
            ),
            shape,
            unit=tails is None,
        )


def make_multiscale(lib: Any) -> nn.Module:
    """Three levels on images, the first two with an odd and an even number of channels."""
    whole = lib.MultiscaleCompositeTransform(3)
    shape = (5, 4, 2)
    for channels in (5, 2, 1):
        layers = [lib.ActNorm(channels)]
        if channels > 1:
            mask = torch.arange(channels) % 2
            layers.append(lib.AffineCouplingTransform(mask, lambda a, b: Net(a, b, True, None)))
        if channels == 1:
            layers.append(lib.SqueezeTransform(2))
            shape = (4, 2, 1)
        shape = whole.add_transform(lib.CompositeTransform(layers), shape)
    return whole


def make_batch_norm(lib: Any) -> nn.Module:
    """With a variance that random factors change."""
    layer = lib.BatchNorm(6, eps=1e-3)
    layer.running_var.add_(2)
    return layer


def _others() -> None:
    for tails in (None, "linear"):
        CASES[f"CDF-{tails}"] = Case(
            lambda lib, tails=tails: lib.PiecewiseRationalQuadraticCDF(
                (3, 2), 4, tails, 1.5, min_bin_width=2e-3, min_bin_height=4e-3, min_derivative=5e-3
            ),
            (3, 2),
            unit=tails is None,
            context=False,
        )
    linear = {
        "LU": lambda lib, **k: lib.LULinear(6, identity_init=False, eps=0.01, **k),
        "Naive": lambda lib, **k: lib.NaiveLinear(6, **k),
        "Conv": lambda lib, **k: lib.OneByOneConvolution(6, identity_init=False, **k),
        "QR": lambda lib, **k: lib.QRLinear(6, 3, **k),
        "SVD": lambda lib, **k: lib.SVDLinear(6, 4, identity_init=False, eps=0.01, **k),
    }
    for name, make in linear.items():
        shape = (6, 4, 2) if name == "Conv" else (6,)
        works = name != "Naive"  # it calls torch.solve, which PyTorch has no more
        CASES[name] = Case(make, shape, context=False, inverse_works=works)
        CASES[f"{name}-cached"] = Case(
            lambda lib, make=make: make(lib, using_cache=True),
            shape,
            context=False,
            inverse_works=works,
        )
    for count in (1, 4, 9):
        CASES[f"Householder-{count}"] = Case(
            lambda lib, count=count: lib.HouseholderSequence(6, count), (6,), context=False
        )
    CASES["Squeeze"] = Case(
        lambda lib: lib.SqueezeTransform(2), (3, 4, 6), context=False, noise=(12, 2, 3)
    )
    CASES["Composite"] = Case(
        lambda lib: lib.CompositeTransform(
            [
                CASES["Affine-first-1d"].make(lib),
                lib.InverseTransform(CASES["Affine-scattered-1d"].make(lib)),
            ]
        ),
        (5,),
    )
    CASES["Multiscale"] = Case(make_multiscale, (5, 4, 2), noise=(40,))
    for shape in ((6,), (6, 4, 2)):
        CASES[f"ActNorm-{len(shape)}d"] = Case(lambda lib: lib.ActNorm(6), shape, context=False)
    CASES["BatchNorm"] = Case(make_batch_norm, (6,), context=False)
    for dim in (1, 2):
        CASES[f"RandomPermutation-{dim}"] = Case(
            lambda lib, dim=dim: lib.RandomPermutation(6, dim), (6, 6), context=False
        )
        CASES[f"ReversePermutation-{dim}"] = Case(
            lambda lib, dim=dim: lib.ReversePermutation(6, dim), (6, 6), context=False
        )
    for i, options in enumerate(
        (
            {},
            {"use_residual_blocks": False, "random_mask": True, "num_blocks": 1},
            {"context_features": 3, "use_batch_norm": True},
            {"context_features": 3, "use_residual_blocks": False, "use_batch_norm": True},
            {"activation": torch.tanh, "num_blocks": 3},
        )
    ):
        with_context = "context_features" in options
        CASES[f"MaskedAffine-{i}"] = Case(
            lambda lib, options=options: lib.MaskedAffineAutoregressiveTransform(5, 8, **options),
            (5,),
            context=with_context,
        )
        tails = None if i % 2 else "linear"
        CASES[f"MaskedRQS-{i}"] = Case(
            lambda lib, options=options, tails=tails: (
                lib.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    5, 8, num_bins=4, tails=tails, tail_bound=1.5, **options
                )
            ),
            (5,),
            unit=tails is None,
            context=with_context,
        )


_couplings()
_others()


def randomized(layer: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Move parameters and statistics off their initial values, in evaluation mode."""
    return randomize_(layer.double(), std=0.4).to(dtype).eval()


def make_data(case: Case, batch: int = 7, *, inverse: bool = False) -> tuple[Tensor, Tensor | None]:
    """Inputs and a context, float64; with tails some of the inputs lie in them."""
    shape = (batch, *(case.noise if inverse and case.noise else case.shape))
    x = torch.rand(shape, dtype=torch.float64) if case.unit else torch.randn(shape).double()
    return x, torch.randn(batch, 3, dtype=torch.float64) if case.context else None


def run(layer: nn.Module, x: Tensor, context: Tensor | None, *, inverse: bool) -> dict[str, Tensor]:
    """Outputs, log-determinant, and the gradients of everything that has one."""
    dtype = next(layer.parameters(), x).dtype
    leaves = {"inputs": x.to(dtype).detach().requires_grad_()}
    if context is not None:
        leaves["context"] = context.to(dtype).detach().requires_grad_()
    call = layer.inverse if inverse else layer
    outputs, logabsdet = call(leaves["inputs"], leaves.get("context"))
    generator = torch.Generator().manual_seed(5)
    loss = 0
    for result in (outputs, logabsdet):
        weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        loss = loss + (result.double() * weights).sum()
    wanted = {**leaves, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    results = {"outputs": outputs, "logabsdet": logabsdet}
    for name, grad in zip(wanted, grads, strict=True):
        results[f"grad of {name}"] = torch.zeros_like(wanted[name]) if grad is None else grad
    return {name: value.detach() for name, value in results.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare two results of :func:`run` in float64."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )
