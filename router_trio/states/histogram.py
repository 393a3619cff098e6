"""Counts of durations, by bucket."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from router_trio.states.values import Exemplar

DURATION_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: from routing within one batch to waiting out an outage."""

NANO = 1_000_000_000


_NO_VALUES: Final[list[int]] = []
_NO_EXEMPLARS: Final[dict[int, Exemplar]] = {}
"""Shared by all histograms without values or exemplars, and never changed."""


class Histogram:
    """Counts by bucket, as in Prometheus: `counts[i]` is the number of values up to `bounds[i]`, the last one the rest.

    `buckets` are these counts too, and empty before the first value: of thousands of routes most are idle. `exemplars`
    has the newest exemplar of a bucket, by the index of the bucket.

    Values are in seconds. Their sum is an integer of nanoseconds: a sum of floats depends on the order of addition, and
    would decrease slightly if counts were added in another order than before.
    """

    __slots__ = ("bounds", "buckets", "exemplars", "nanoseconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: tuple[float, ...] = tuple(bounds)
        self.buckets: list[int] = _NO_VALUES
        self.nanoseconds: int = 0
        self.exemplars: Mapping[int, Exemplar] = _NO_EXEMPLARS

    @property
    def counts(self) -> Sequence[int]:
        """The number of values in each bucket."""
        return self.buckets or [0] * (len(self.bounds) + 1)

    @property
    def total(self) -> float:
        """The sum of all values, in seconds."""
        return self.nanoseconds / NANO

    def record(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        bucket = bisect_left(self.bounds, value)
        try:
            self.buckets[bucket] += count
        except IndexError:
            self.begin()[bucket] += count
        self.nanoseconds += int(value * NANO) * count

    def begin(self) -> list[int]:
        """Return the buckets to count in, created if there was no value yet."""
        if not self.buckets:
            self.buckets = [0] * (len(self.bounds) + 1)
        return self.buckets

    def keep(self, exemplar: Exemplar | None) -> None:
        """Keep an exemplar of a value, if there is one, unless its bucket has a newer one."""
        if exemplar is None:
            return
        bucket = bisect_left(self.bounds, exemplar.value)
        before = self.exemplars.get(bucket)
        if before is None or before.at <= exemplar.at:
            self.exemplars = {**self.exemplars, bucket: exemplar}

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram with the same bounds, and keep its exemplars."""
        for index, count in enumerate(other.buckets):
            self.begin()[index] += count
        self.nanoseconds += other.nanoseconds
        for exemplar in other.exemplars.values():
            self.keep(exemplar)

    def __add__(self, other: Histogram) -> Histogram:
        """Return the sum of two histograms with the same bounds."""
        both = Histogram(self.bounds)
        both.buckets = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        both.nanoseconds = self.nanoseconds + other.nanoseconds
        if self.exemplars or other.exemplars:
            for exemplar in (*self.exemplars.values(), *other.exemplars.values()):
                both.keep(exemplar)
        return both

    def numbers(self, name: str) -> dict[str, int]:
        """Return the counts, and the sum in nanoseconds, with names that begin with `name`."""
        counts = {f"{name}.{index}": count for index, count in enumerate(self.counts)}
        return counts | {f"{name}_ns": self.nanoseconds}

    def add_numbers(self, name: str, numbers: Mapping[str, int]) -> None:
        """Add numbers with the names of `numbers`. Missing ones are 0."""
        for index in range(len(self.bounds) + 1):
            if count := numbers.get(f"{name}.{index}", 0):
                self.begin()[index] += count
        self.nanoseconds += numbers.get(f"{name}_ns", 0)
