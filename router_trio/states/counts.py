"""The counts of a route: defined here, and used by pages, by sums over generations of a route, and by workers.

The data plane adds to plain integers, in place. `add` adds up two generations of a route, or two workers. `numbers` and
`rest` return the counts as integers by name, in a fixed order, for memory that processes share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from router_trio.states.histogram import DURATION_BOUNDS, Histogram

ROUTE_FATES = ("routed", "filtered", "dead_lettered", "given_up", "returned", "duplicate", "lost", "scheduled")
"""The fates of a received message; each one gets exactly one. See `RouteState.settled`."""

_SUMS = ("received", "duplicates")
"""Plain integers of the ledger."""

_MORE_SUMS = ("limited", "conflicts", "fired", "schedules_lost")
"""Plain integers that are not part of a ledger."""

_BY_LABEL = ("failed", "filtered", "given_up", "mirror_failed", "unanswered")
"""Integers by one label."""

_DURATIONS = ("elapsed", "forwarded")


class RouteCounts:
    """The counts of one route."""

    __slots__ = (
        "conflicts",
        "delivered",
        "duplicates",
        "elapsed",
        "failed",
        "fates",
        "filtered",
        "fired",
        "forwarded",
        "given_up",
        "limited",
        "mirror_failed",
        "openings",
        "received",
        "schedules_lost",
        "unanswered",
    )

    def __init__(self, destinations: Sequence[str]) -> None:
        self.received: int = 0
        """Messages received, except redeliveries of messages that were in hand or settled."""
        self.duplicates: int = 0
        """Redeliveries of messages that were in hand or settled."""
        self.limited: int = 0
        """Messages delayed by the rate limit."""
        self.conflicts: int = 0
        """Values of a KV bucket that lost against one of another writer."""
        self.fired: int = 0
        """Scheduled retries received when they were due."""
        self.schedules_lost: int = 0
        """Scheduled retries that left their stream and were not published, as found by this process."""
        self.fates: dict[str, int] = dict.fromkeys(ROUTE_FATES, 0)
        """Messages by fate, except those of `forwarded`: see `RouteState.settled`."""
        self.delivered: dict[str, int] = dict.fromkeys(destinations, 0)
        """Messages delivered to each destination, except those of `forwarded`."""
        self.elapsed: Histogram = Histogram(DURATION_BOUNDS)
        """Seconds from receiving a message to settling it, except those of `forwarded`."""
        self.forwarded: Histogram = Histogram(DURATION_BOUNDS)
        """Seconds to settle messages that the reader forwarded straight to the first destination.

        Each one counts as routed, delivered and settled: one number instead of three.
        """
        self.failed: Counter[str] = Counter()
        """Failed attempts, by reason."""
        self.filtered: Counter[str] = Counter()
        """Messages that were sent to no destination, by reason: see `FILTER_REASONS`."""
        self.given_up: Counter[str] = Counter()
        """Messages that are not retried any more, with or without a dead letter, by the reason of their last
        failure."""
        self.mirror_failed: Counter[str] = Counter()
        """Copies for mirrors that were not delivered, by reason. They do not fail the message."""
        self.unanswered: Counter[str] = Counter()
        """Messages of a route with `respond` that got no answer, by reason."""
        self.openings: Counter[tuple[str, str]] = Counter()
        """How often breakers opened, by connection and template, including those of earlier generations."""

    def add(self, other: RouteCounts) -> None:
        """Add the counts of another generation of the route, or of another worker.

        Its messages for a destination that is not in `delivered` are counted under that destination's name.
        """
        for name in (*_SUMS, *_MORE_SUMS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _BY_LABEL:
            getattr(self, name).update(getattr(other, name))
        for name in _DURATIONS:
            getattr(self, name).add(getattr(other, name))  # in place: the code that counts may hold a reference to it
        for fate, count in other.fates.items():
            self.fates[fate] += count
        for template, count in other.delivered.items():
            self.delivered[template] = self.delivered.get(template, 0) + count
        # By name, since the breakers of a state may be created after its earlier generations are added, or be others.
        self.openings.update(other.openings)

    # --- as integers by name ---

    def fields(self) -> tuple[str, ...]:
        """Return the names of `numbers`: those of the ledger and the durations."""
        return (
            *_SUMS,
            *(f"fates.{fate}" for fate in self.fates),
            *(f"delivered.{template}" for template in self.delivered),
            *(field for name in _DURATIONS for field in getattr(self, name).numbers(name)),
        )

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the ledger and the durations: received before settled, for an interrupted copy."""
        elapsed, forwarded = self.elapsed, self.forwarded
        return (
            self.received,
            self.duplicates,
            *self.fates.values(),
            *self.delivered.values(),
            *elapsed.counts,
            elapsed.nanoseconds,
            *forwarded.counts,
            forwarded.nanoseconds,
        )

    def rest(self) -> dict[str, int]:
        """Return all other numbers by name."""
        found = {f"{name}.{label}": count for name in _BY_LABEL for label, count in getattr(self, name).items()}
        found |= {f"openings.{connection}.{template}": count for (connection, template), count in self.openings.items()}
        return found | {name: getattr(self, name) for name in _MORE_SUMS}

    def add_numbers(self, numbers: Mapping[str, int]) -> None:
        """Add numbers with the names of `fields` and `rest`. Ignores others."""
        for name, number in numbers.items():
            what, _, label = name.partition(".")
            if what in _SUMS or what in _MORE_SUMS:
                setattr(self, what, getattr(self, what) + number)
            elif what == "fates":
                self.fates[label] += number
            elif what == "delivered":
                self.delivered[label] = self.delivered.get(label, 0) + number
            elif what in _BY_LABEL:
                getattr(self, what)[label] += number
            elif what == "openings":
                connection, _, template = label.partition(".")  # the name of a connection has no dot
                self.openings[connection, template] += number
        for name in _DURATIONS:
            getattr(self, name).add_numbers(name, numbers)
