"""measure() gives every variant the same chances."""

from __future__ import annotations

from functools import partial
from itertools import pairwise, permutations

from flowops.timing import measure


def test_each_variant_follows_each_other_one() -> None:
    calls: list[str] = []
    names = ("a", "b", "c")
    timings = measure({name: partial(calls.append, name) for name in names}, block=0.0)
    assert all(timing.samples >= 3 for timing in timings.values())
    measured = calls[3 * len(names) :]  # after the calls that size the samples
    assert {(x, y) for x, y in pairwise(measured) if x != y} == set(permutations(names, 2))
