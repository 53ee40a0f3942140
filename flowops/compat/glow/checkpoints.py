"""Checkpoints of y0ast/Glow-PyTorch and chaiyujin/glow-pytorch, to and from our Glow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowops import ops
from flowops.models import Glow
from flowops.nn import ActNorm, InvertibleConv1x1, LearnedPrior, Squeeze
from flowops.nn.coupling import Coupling

__all__ = ["load_chaiyujin", "load_y0ast", "to_chaiyujin", "to_y0ast"]

State = Mapping[str, Tensor]


class _Dialect(NamedTuple):
    """What two repositories of one architecture call things."""

    author: str
    network: str
    conv: str
    lower: str
    upper: str
    top: str
    #: What the first actnorm's bias lacks for images about 0.
    shift: float


_Y0AST = _Dialect("y0ast", "block", "conv.", "lower", "upper", "learn_top_fn", 0.0)
# That flow begins with images in [0, 1], ours with x - 1/2.
_CHAIYUJIN = _Dialect("chaiyujin", "f", "", "l", "u", "learn_top", 0.5)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tensor of ours, their key for it, and the maps between both."""

    key: str
    ours: Tensor
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


def load_y0ast(state_dict: State, model: Glow) -> None:
    """Set the parameters of ``model`` from a checkpoint of y0ast/Glow-PyTorch.

    Both give an image the same density then. Theirs takes ``x - 1/2`` for x in [0, 1], which is
    what ``preprocess="center"`` does with x.

    Args:
        state_dict: Of their ``Glow``, with permutation "invconv" and without ``y_condition``.
        model: With ``preprocess="center"`` and ``edge_bias=False``, without classes or context, of
            their sizes: ``levels`` is their L, ``steps`` their K, ``conv1x1="lu"`` their
            ``LU_decomposed``.

    Raises:
        ValueError: If the model has another architecture than the checkpoint.
    """
    _load(state_dict, model, _Y0AST)


def load_chaiyujin(state_dict: State, model: Glow) -> None:
    """Set the parameters of ``model`` from a checkpoint of chaiyujin/glow-pytorch.

    As :func:`load_y0ast`; theirs takes x in [0, 1] as it is, and the first actnorm makes up for it.
    LU convolutions cannot be loaded: their code does not save the permutation and the signs.

    Args:
        state_dict: See :func:`load_y0ast`.
        model: See there.

    Raises:
        ValueError: See there.
    """
    _load(state_dict, model, _CHAIYUJIN)


def to_y0ast(model: Glow) -> dict[str, Tensor]:
    """Return the checkpoint that :func:`load_y0ast` would load ``model`` from.

    Call ``set_actnorm_init`` of their model after loading it, which their checkpoints do not tell.

    Args:
        model: See :func:`load_y0ast`.

    Raises:
        ValueError: If the model has another architecture than theirs.
    """
    return _save(model, _Y0AST, batch=1)


def to_chaiyujin(model: Glow, batch_size: int = 1) -> dict[str, Tensor]:
    """Return the checkpoint that :func:`load_chaiyujin` would load ``model`` from.

    Its convolutions are full matrices, whatever the model's are.

    Args:
        model: See :func:`load_y0ast`.
        batch_size: Of their model on one device, which is the first size of their ``prior_h``.

    Raises:
        ValueError: See :func:`to_y0ast`.
    """
    return _save(model, _CHAIYUJIN, batch=batch_size)


@torch.no_grad()
def _load(state_dict: State, model: Glow, dialect: _Dialect) -> None:
    _check_model(model, dialect)
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    entries = list(_entries(model, dialect))
    _check_keys(state, entries, dialect)
    for entry in entries:
        entry.ours.copy_(entry.read(state[entry.key]))
    for module in model.modules():
        if isinstance(module, ActNorm):
            module.initialized.fill_(True)


@torch.no_grad()
def _save(model: Glow, dialect: _Dialect, batch: int) -> dict[str, Tensor]:
    _check_model(model, dialect)
    state = {e.key: e.write(e.ours).clone() for e in _entries(model, dialect)}
    if dialect is _CHAIYUJIN:
        _make_full(state, model, dialect)
    transform: Any = model.transform
    channels, height, width = transform.shapes[-1]
    some = next(iter(state.values()))
    if f"{dialect.top}.logs" in state:
        shape = (2 * channels, 2 * channels, 3, 3)
        state[f"{dialect.top}.{dialect.conv}weight"] = some.new_zeros(shape)
    state["prior_h"] = some.new_zeros(batch, 2 * channels, height, width)
    return state


def _make_full(state: dict[str, Tensor], model: Glow, dialect: _Dialect) -> None:
    """Put matrices in the place of their LU factors, which cannot be saved in full."""
    convs = [module for module in model.modules() if isinstance(module, InvertibleConv1x1)]
    prefixes = [key.removesuffix("log_s") for key in state if key.endswith("invconv.log_s")]
    if not prefixes:
        return
    weights, _, _ = ops.invertible_conv1x1_lu(
        [conv.lower for conv in convs],
        [conv.upper for conv in convs],
        [conv.log_s for conv in convs],
        [conv.sign for conv in convs],
        [conv.permutation for conv in convs],
    )
    for prefix, weight in zip(prefixes, weights, strict=True):
        for name in (dialect.lower, dialect.upper, "log_s", "sign_s", "p"):
            del state[prefix + name]
        state[f"{prefix}weight"] = weight


def _check_model(model: Glow, dialect: _Dialect) -> None:
    config = model.config
    if config.preprocess != "center" or config.edge_bias or config.conditional:
        raise ValueError(
            f"Glow: for checkpoints of {dialect.author} the model must have preprocess='center', "
            f"edge_bias=False and no classes or context, got {config}"
        )


def _check_keys(state: State, entries: list[_Entry], dialect: _Dialect) -> None:
    author = dialect.author
    if any(key.startswith("project_") for key in state):
        raise ValueError(f"Glow: checkpoints of {author} must be without y_condition")
    known = {entry.key for entry in entries}
    missing = sorted(known - state.keys())
    if any(key.endswith("invconv.p") for key in missing) and dialect is _CHAIYUJIN:
        raise ValueError(
            "Glow: checkpoints of chaiyujin must be of full convolutions, for those of LU ones "
            "lack the permutation p and the signs sign_s"
        )
    ignored = {"prior_h"}
    if f"{dialect.top}.logs" in known:
        # It sees zeros alone.
        ignored.add(f"{dialect.top}.{dialect.conv}weight")
    unexpected = sorted(state.keys() - known - ignored)
    if missing or unexpected:
        raise ValueError(
            f"Glow: the checkpoint of {author} must have the sizes of the model, got keys that "
            f"are missing: {missing[:3]}, and not expected: {unexpected[:3]}"
        )
    for entry in entries:
        expected, got = entry.write(entry.ours).shape, state[entry.key].shape
        if got != expected:
            raise ValueError(f"Glow: {entry.key} must have shape {list(expected)}, got {list(got)}")


def _entries(model: Glow, dialect: _Dialect) -> Iterator[_Entry]:
    transform: Any = model.transform
    place = -1
    shift = dialect.shift
    for i, level in enumerate(transform.levels):
        for layer in level.layers:
            # Their list has an entry for a squeeze, one for a step, and one for a split.
            place += isinstance(layer, (Squeeze, ActNorm))
            prefix = f"flow.layers.{place}."
            if isinstance(layer, ActNorm):
                yield from _actnorm(f"{prefix}actnorm", layer, shift)
                shift = 0.0
            elif isinstance(layer, InvertibleConv1x1):
                yield from _conv(f"{prefix}invconv", layer, dialect)
            elif isinstance(layer, Coupling):
                yield from _network(prefix + dialect.network, layer.conditioner, dialect)
            elif isinstance(layer, LearnedPrior):
                yield from _top(dialect.top, layer, dialect)
        if i < len(transform.splits):
            place += 1
            conditioner = transform.splits[i].conditioner
            yield from _zero(f"flow.layers.{place}.conv", conditioner, dialect)


def _actnorm(prefix: str, layer: ActNorm, shift: float = 0.0) -> Iterator[_Entry]:
    def image(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)

    factor = layer.log_scale_factor
    yield _Entry(
        f"{prefix}.bias", layer.bias, lambda t: t.flatten() + shift, lambda t: image(t - shift)
    )
    yield _Entry(
        f"{prefix}.logs",
        layer.log_scale,
        lambda t: t.flatten() / factor,
        lambda t: image(t * factor),
    )


def _conv(prefix: str, layer: InvertibleConv1x1, dialect: _Dialect) -> Iterator[_Entry]:
    if layer.parameterization == "full":
        yield _same(f"{prefix}.weight", layer.weight)
        return
    yield _same(f"{prefix}.{dialect.lower}", layer.lower)
    yield _same(f"{prefix}.{dialect.upper}", layer.upper)
    yield _same(f"{prefix}.log_s", layer.log_s)
    yield _same(f"{prefix}.sign_s", layer.sign)
    rows = torch.eye(layer.channels, dtype=layer.lower.dtype, device=layer.lower.device)
    yield _Entry(f"{prefix}.p", layer.permutation, lambda t: t.argmax(1), lambda t: rows[t])


def _network(prefix: str, net: Any, dialect: _Dialect) -> Iterator[_Entry]:
    for place, layer in ((0, net.first), (2, net.second)):
        yield _same(f"{prefix}.{place}.{dialect.conv}weight", layer.weight)
        yield from _actnorm(f"{prefix}.{place}.actnorm", layer.actnorm)
    yield from _zero(f"{prefix}.4", net.last, dialect)


def _zero(prefix: str, layer: Any, dialect: _Dialect) -> Iterator[_Entry]:
    yield _same(f"{prefix}.{dialect.conv}weight", layer.weight)
    yield _same(f"{prefix}.{dialect.conv}bias", layer.bias)
    yield _Entry(f"{prefix}.logs", layer.gain, Tensor.flatten, lambda t: t.view(-1, 1, 1))


def _top(prefix: str, layer: LearnedPrior, dialect: _Dialect) -> Iterator[_Entry]:
    """Give the convolution of zeros, whose outputs are means, then logs; ours alternate."""

    def read(values: Tensor) -> Tensor:
        return values.view(2, -1).t().flatten()

    def write(values: Tensor) -> Tensor:
        return values.view(-1, 2).t().flatten()

    yield _Entry(f"{prefix}.{dialect.conv}bias", layer.bias, read, write)
    yield _Entry(f"{prefix}.logs", layer.gain, read, lambda t: write(t).view(-1, 1, 1))


def _same(key: str, ours: Tensor) -> _Entry:
    return _Entry(key, ours, lambda t: t, lambda t: t)
