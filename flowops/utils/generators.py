"""Generators that several threads or processes consume together."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager, BaseProxy
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import IterableDataset

T = TypeVar("T")


class _Locked(Iterator[T]):
    """An iterator for several threads, whose failure all of them see."""

    def __init__(self, iterable: Iterable[T]) -> None:
        self._iterator = iter(iterable)
        self._lock = threading.Lock()
        self._failure: Exception | None = None

    def __next__(self) -> T:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                return next(self._iterator)
            except StopIteration:
                raise
            except Exception as failure:
                self._failure = failure
                raise


class SharedIterator(IterableDataset[T]):
    """An iterator that several consumers read together, each item reaching one of them.

    It hands out the items of a generator one after the other, in its order. An exception of the
    generator ends it for all: each consumer gets that exception, none takes what it had for a
    complete series. :func:`share` makes one for threads, :func:`serve` one for processes.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[T]:
        """Return itself: consumers share one position."""
        return self

    def __next__(self) -> T:
        """Return the next item that nobody has.

        Raises:
            StopIteration: at the end.
            Exception: what the generator raised, for this consumer or another.
        """
        return next(self._source)


def share(iterable: Iterable[T]) -> SharedIterator[T]:
    """Let the threads of this process consume a generator, or any iterable, together.

    A plain generator raises when a second thread asks for an item while it makes one.
    """
    return SharedIterator(_Locked(iterable))


def _run(make: Callable[..., Iterable[T]], arguments: tuple[Any, ...], seed: int) -> _Locked[T]:
    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    return _Locked(make(*arguments))


class _Proxy(BaseProxy):
    """Asks the process that runs the generator for the next item."""

    _exposed_ = ("__next__",)

    def __next__(self) -> Any:
        return self._callmethod("__next__")


class _Manager(BaseManager):
    """The process that runs the generator."""


_Manager.register("run", _run, _Proxy)


@contextmanager
def serve(
    make: Callable[..., Iterable[T]], *arguments: Any, seed: int = 0
) -> Generator[SharedIterator[T]]:
    """Run a generator in a process of its own, for any number of processes and threads.

    A ``DataLoader`` gives each worker a copy of an iterable data set, so that each item arrives
    once for each worker; of this one it arrives once. Give it to processes when they are started,
    as an argument or as the data set of a ``DataLoader``; see :class:`SharedIterator` for order and
    exceptions. Items are made when they are asked for (workers of a loader ask ahead) and are
    pickled on their way.

    At its end it is exhausted for good: another epoch is another ``serve``. The process starts by
    ``spawn``, which imports the main module anew: a script keeps this call under
    ``if __name__ == "__main__":``. It ends with the ``with``, also in the middle of an item;
    consumers that are left get an ``EOFError`` or an ``OSError``, as they do when it dies.

    Args:
        make: returns the generator. Like ``arguments`` it is pickled: a function at the top of a
            module.
        *arguments: of ``make``.
        seed: of ``random`` and ``torch`` in that process, which computes on one thread.

    Yields:
        The shared iterator.

    Example:
        >>> with serve(read_images, "photos") as images:
        ...     for batch in DataLoader(images, batch_size=64, num_workers=4):
        ...         train(batch)
    """
    with _Manager(ctx=multiprocessing.get_context("spawn")) as manager:
        yield SharedIterator(cast("Any", manager).run(make, arguments, seed))
