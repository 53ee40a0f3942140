"""Intermediate outputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def capture(
    model: nn.Module, names: str | Sequence[str], *, detach: bool = False
) -> Generator[dict[str, list[Any]]]:
    """Collect what submodules return inside of a ``with``.

    Each name has the list of its module's outputs, one for each call, in their order: a module
    that runs several times, shared between layers or in a loop, loses none. Hooks are gone at the
    end of the ``with``, after an exception too; the outputs stay.

    Only calls of a module count, not calls of its other methods (``inverse`` of a bijector), nor
    what a fused op does in the place of modules (the layers of :class:`flowops.nn.MLP`, an
    ``ActNorm`` before a 1x1 convolution): their lists stay empty, as do those of a model that was
    compiled before. Outputs are not copied: a module after it that works in place changes what was
    captured.

    Args:
        model: has the submodules.
        names: dotted names of ``model.named_modules()``, or patterns of :mod:`fnmatch`, where ``*``
            matches dots too.
        detach: whether tensors, also those in tuples, lists and dicts, are cut off from the graph,
            which would otherwise live as long as they do.

    Yields:
        The outputs by the modules' names.

    Raises:
        ValueError: if nothing is called by one of the names.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> with capture(model, "0") as outputs:
        ...     y = model(torch.zeros(4, 2))
        >>> outputs["0"][0].shape
        torch.Size([4, 3])
    """
    modules = _matching(model, [names] if isinstance(names, str) else names)
    outputs: dict[str, list[Any]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if detach:
                output = pytree.tree_map_only(Tensor, Tensor.detach, output)
            outputs[name].append(output)

        return keep

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(hook(name)))
        yield outputs


def _matching(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    known = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ValueError(
                f"capture: names must be those of submodules of {type(model).__name__} "
                f"({', '.join(known) or 'it has none'}), got {pattern!r}"
            )
    return {
        name: module
        for name, module in known.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
