"""Twins: classes of this package that can take over objects of another library's class.

A twin has the name, arguments, attributes and state-dict keys of the peer's class, so that an
object of the peer's class becomes one of the twin's by its ``__class__`` alone: parameters,
buffers, hooks and whoever holds the object stay. Its class is then made of both, so that
``isinstance`` goes on holding.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from torch import nn

#: Libraries whose modules ``flowops.compat.<name>`` have a table ``TWINS``: the peer's class, by
#: its full name, to ours.
LIBRARIES = (
    "nflows",
    "normflows",
    "residual_flows",
    "zuko",
    "freia",
    "glow",
    "torch_nn",
    "fast_transformers",
    "fla",
)


class TwinBase:
    """What is asked of every class in the tables."""

    #: Whether the modules inside are but parameters of it.
    whole: ClassVar[bool] = False

    @classmethod
    def refusal(cls, peer: Any) -> str | None:
        """Return why an object of the peer's class cannot be taken over, or None."""
        return None


class Twin(TwinBase, nn.Module):
    """Base of the twins of modules."""


@cache
def tables() -> dict[str, dict[str, type[TwinBase]]]:
    """Return the tables by library; none of these need be installed."""
    return {name: import_module(f"flowops.compat.{name}").TWINS for name in LIBRARIES}


@cache
def foreign(library: str) -> frozenset[str]:
    """Return the names of the packages whose classes a library's table is about, torch aside."""
    return frozenset(name.partition(".")[0] for name in tables()[library]) - {"torch"}


def full_name(kind: type) -> str:
    """Return how the tables call a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def twin_of(kind: type) -> type[TwinBase] | None:
    """Return the class that could take objects of ``kind`` over; subclasses of a peer have none."""
    name = full_name(kind)
    return next((table[name] for table in tables().values() if name in table), None)


def find_twin(peer: object) -> type[TwinBase] | None:
    """Return the class that could take ``peer`` over, or that has."""
    return twin_of(type(peer).peer if isinstance(peer, Joined) else type(peer))


class Joined:
    """Mark of the classes that :func:`swap` makes."""

    peer: type

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Copy and pickle by the peer's class: the joined one has no name to import."""
        return _rebuild, (type(self).peer,), self.__dict__


@cache
def _joined(twin: type, peer: type) -> type[Joined]:
    members = {"__module__": twin.__module__, "__doc__": twin.__doc__, "peer": peer}
    return type(peer.__name__, (Joined, twin, peer), members)


def _rebuild(peer: type) -> Joined:
    twin = twin_of(peer)
    if twin is None:
        raise TypeError(f"flowops.compat has no twin of {full_name(peer)} any more")
    make: Any = peer.__new__
    return swap(make(peer), twin)


def swap(peer: object, twin: type) -> Joined:
    """Make ``peer`` an object of ``twin``, in place, and return it."""
    swapped: Any = peer
    swapped.__class__ = _joined(twin, type(peer))
    return swapped


def unswap(swapped: Joined) -> object:
    """Undo :func:`swap`."""
    peer: Any = swapped
    peer.__class__ = type(swapped).peer
    return peer
