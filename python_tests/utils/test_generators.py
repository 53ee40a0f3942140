"""Shared generators: each item once, in order, failures and ends for all."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from flowops.utils import SharedIterator, serve, share


class Broken(RuntimeError):
    """Raised by a generator."""


def count(size: int, fails: bool = False) -> Iterator[int]:
    for i in range(size):
        time.sleep(1e-4)  # another thread gets its turn while an item is made
        yield i
    if fails:
        raise Broken("after all")


def draws(size: int) -> Iterator[torch.Tensor]:
    for _ in range(size):
        yield torch.cat([torch.rand(2), torch.tensor([random.random()])])


def stuck() -> Iterator[int]:
    threading.Event().wait()
    yield 0


def consume(source: SharedIterator[int]) -> tuple[list[int], str]:
    items = []
    try:
        for item in source:
            items.append(item)
    except Broken as failure:
        return items, str(failure)
    except (EOFError, OSError):
        return items, "server is gone"
    return items, ""


def report(source: SharedIterator[int], results: Any) -> None:
    results.put("started")
    results.put(consume(source))


def in_processes(source: SharedIterator[int], number: int) -> tuple[Any, list[Any]]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=report, args=(source, results)) for _ in range(number)]
    for worker in workers:
        worker.start()
    return results, workers


def outcomes(results: Any, workers: list[Any]) -> list[tuple[list[int], str]]:
    reports = [results.get(timeout=120) for _ in range(2 * len(workers))]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return [report for report in reports if report != "started"]


def check(consumed: list[tuple[list[int], str]], size: int, failure: str) -> None:
    assert sorted(item for items, _ in consumed for item in items) == list(range(size))
    for items, seen in consumed:
        assert items == sorted(items)
        assert seen == failure


@pytest.mark.parametrize("fails", [False, True])
def test_threads_get_each_item_once(fails: bool) -> None:
    source = share(count(2000, fails))
    with ThreadPoolExecutor(8) as pool:
        consumed = [pool.submit(consume, source) for _ in range(8)]
        check([job.result(60) for job in consumed], 2000, "after all" if fails else "")


def test_one_thread_has_the_order() -> None:
    assert list(share(count(100))) == list(range(100))
    assert list(share(range(3))) == [0, 1, 2]
    empty = share(())
    assert list(empty) == list(empty) == []


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_processes_get_each_item_once(fails: bool) -> None:
    with serve(count, 500, fails) as source:
        consumed = outcomes(*in_processes(source, 4))
    check(consumed, 500, "after all" if fails else "")


def test_one_process_has_the_order_and_the_seed() -> None:
    with serve(draws, 4, seed=3) as source:
        got = list(source)
        assert list(source) == []
    random.seed(3)
    torch.manual_seed(3)
    for item, wanted in zip(got, draws(4), strict=True):
        assert torch.equal(item, wanted)


@pytest.mark.slow
def test_loader_workers_share_one() -> None:
    with serve(count, 101) as source:
        loader = DataLoader(
            source, batch_size=7, num_workers=4, multiprocessing_context="spawn", timeout=120
        )
        seen = torch.cat(list(loader))
    assert seen.sort().values.tolist() == list(range(101))


@pytest.mark.slow
def test_ends_in_the_middle() -> None:
    with serve(stuck) as source:
        results, workers = in_processes(source, 2)
        for _ in workers:
            assert results.get(timeout=120) == "started"
    for _ in workers:
        assert results.get(timeout=120) == ([], "server is gone")
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
