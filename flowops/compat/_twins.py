"""Twins: classes of this package that can take over objects of another library's class.

A twin has the name, arguments, attributes and state-dict keys of the peer's class, so that an
object of the peer's class becomes one of the twin's by its ``__class__`` alone: parameters,
buffers, hooks and whoever holds the object stay. Its class is then made of both, so that
``isinstance`` goes on holding.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

#: Libraries whose modules ``flowops.compat.<name>`` have a table ``TWINS``: the peer's class, by
#: its full name, to ours.
LIBRARIES = ("nflows", "normflows")


class Twin(nn.Module):
    """Base of the classes in the tables."""

    @classmethod
    def refusal(cls, peer: nn.Module) -> str | None:
        """Return why an object of the peer's class cannot be taken over, or None."""
        return None


@cache
def twins_by_name() -> dict[str, type[Twin]]:
    """Return the tables of all libraries as one; none of them need be installed."""
    tables = [import_module(f"flowops.compat.{library}").TWINS for library in LIBRARIES]
    return {name: twin for table in tables for name, twin in table.items()}


def full_name(kind: type) -> str:
    """Return how the tables call a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def find_twin(peer: nn.Module) -> type[Twin] | None:
    """Return the class that could take ``peer`` over, which no subclass of the peer's has."""
    return twins_by_name().get(full_name(type(peer)))


class Joined(nn.Module):
    """Mark of the classes that :func:`swap` makes."""

    peer: type[nn.Module]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Copy and pickle by the peer's class: the joined one has no name to import."""
        return _rebuild, (type(self).peer,), self.__dict__


@cache
def _joined(twin: type[Twin], peer: type[nn.Module]) -> type[Joined]:
    members = {"__module__": twin.__module__, "__doc__": twin.__doc__, "peer": peer}
    return type(peer.__name__, (Joined, twin, peer), members)


def _rebuild(peer: type[nn.Module]) -> nn.Module:
    return swap(peer.__new__(peer), twins_by_name()[full_name(peer)])


def swap(peer: nn.Module, twin: type[Twin]) -> nn.Module:
    """Make ``peer`` an object of ``twin``, in place, and return it."""
    peer.__class__ = _joined(twin, type(peer))
    return peer


def unswap(swapped: Joined) -> nn.Module:
    """Undo :func:`swap`."""
    peer: Any = swapped
    peer.__class__ = type(swapped).peer
    return peer
