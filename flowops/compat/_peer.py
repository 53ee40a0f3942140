"""The names of another library that need no kernel: they are that library's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def own_names_of(library: str, here: str, *modules: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that finds missing names in the library itself.

    Containers, distributions and reshaping layers do no work that a kernel could do; a program that
    imports them beside the layers has one line to change all the same. The name of one of the
    ``modules`` gives this module again, so that ``nf.flows.Name`` is ours where there is one.

    Args:
        library: What to call it in errors; the package to install.
        here: ``__name__`` of the module whose names are missing.
        modules: Where the library's public names are, searched in this order.
    """
    spaces = {module.partition(".")[2] for module in modules} - {""}

    def find(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {here!r} has no attribute {name!r}")
        if name in spaces:
            return sys.modules[here]
        for module in modules:
            try:
                found = getattr(import_module(module), name, None)
            except ImportError as error:
                raise AttributeError(
                    f"{here} has no {name} of its own; it may be one of {library}'s, "
                    "which is not installed"
                ) from error
            if found is not None and not isinstance(found, ModuleType):
                return found
        raise AttributeError(f"neither {here} nor {library} has a name {name}")

    return find
