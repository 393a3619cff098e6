"""The counts of a router as integers by name: as a worker reports them, and added up. Pure.

The numbers of a ledger have a fixed order, so that they are copied together. The counts of a route are defined in
`states/counts.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from router_trio.outbox.ledger import Counters, Ledger
from router_trio.states import LINK_COUNTS, ConnectionState, RouteState

Key = tuple[str, str]
"""Kind and name of a connection, a route or the process."""

Counts = dict[Key, dict[str, int]]
"""Numbers by key and name. Missing ones are 0."""

MOST_REMOVED = 2000
"""Removed connections and routes whose counts are kept."""

CONNECTION = "connection"
ROUTE = "route"
PROCESS: Key = ("process", "")

LEDGER = ("accepted", *(f"settled.{fate}" for fate in Ledger().settled))
_RETRIES = ("retried", "retry_succeeded", "retry_failed")


# --- from a router's objects ---


def ledger_numbers(ledger: Ledger) -> tuple[int, ...]:
    """Return the numbers named by `LEDGER`: accepted before settled, so that an interrupted copy has none too many."""
    return (ledger.accepted, *ledger.settled.values())


def route_fields(state: RouteState) -> tuple[str, ...]:
    """Return the names of `route_numbers`."""
    return ("redelivers", *state.fields())


def route_numbers(state: RouteState) -> tuple[int, ...]:
    """Return the numbers of a route's ledger and durations, and whether its source redelivers."""
    return (state.redelivers, *state.numbers())


def rest_of_connection(state: ConnectionState, counters: Counters) -> dict[str, int]:
    """Return the other counts of a connection."""
    return {
        **{name: getattr(state, name) for name in LINK_COUNTS},
        **{name: getattr(counters, name) for name in _RETRIES},
        **{f"succeeded.{operation}": count for operation, count in counters.succeeded.items()},
        **{f"failed.{operation}.{reason}": count for (operation, reason), count in counters.failed.items()},
        **{f"dropped.{reason}": count for reason, count in counters.dropped.items()},
    }


# --- adding ---


def add(counts: Counts, more: Mapping[Key, Mapping[str, int]]) -> None:
    """Add the counts `more`."""
    for key, numbers in more.items():
        here = counts.setdefault(key, {})
        for name, number in numbers.items():
            here[name] = here.get(name, 0) + number


def with_removed(before: Counts, now: Counts) -> Counts:
    """Return the counts of a worker, including the last ones of what it has removed: a reload may add that again.

    Of these, the last `MOST_REMOVED` are kept.
    """
    removed = [key for key in before if key not in now][-MOST_REMOVED:]
    return {**{key: before[key] for key in removed}, **now}


def forget_removed(counts: Counts, present: Collection[Key]) -> None:
    """Keep only the last `MOST_REMOVED` counts of connections and routes that are not among the `present`."""
    for key in [key for key in counts if key not in present][:-MOST_REMOVED]:
        del counts[key]


@dataclass(frozen=True, slots=True)
class Left:
    """Numbers of messages that a worker left unsettled: publishes, messages of streams, and of core subscriptions."""

    dropped: int
    returned: int
    lost: int


def settle(counts: Counts) -> Left:
    """Settle what an ended worker has accepted and not settled. Returns how much that is."""
    dropped = returned = lost = 0
    for (kind, _), numbers in counts.items():
        if kind == CONNECTION:
            left = numbers.get("accepted", 0) - _sum(numbers, "settled.")
            _count(numbers, left, "settled.dropped", "dropped.worker_lost")
            dropped += left
        elif kind == ROUTE:
            left = numbers.get("received", 0) - _sum(numbers, "fates.") - _sum(numbers, "forwarded.")
            if numbers.get("redelivers"):
                _count(numbers, left, "fates.returned")
                returned += left
            else:
                _count(numbers, left, "fates.lost", "failed.worker_lost")
                lost += left
    return Left(dropped, returned, lost)


def _count(numbers: dict[str, int], count: int, *names: str) -> None:
    for name in names:
        numbers[name] = numbers.get(name, 0) + count


def _sum(numbers: Mapping[str, int], start: str) -> int:
    return sum(number for name, number in numbers.items() if name.startswith(start))


# --- to objects that pages read ---


def add_to_ledger(ledger: Ledger, counters: Counters, state: ConnectionState, numbers: Mapping[str, int]) -> None:
    """Add the numbers of a connection to these objects."""
    for name, number in numbers.items():
        what, _, label = name.partition(".")
        if what == "accepted":
            ledger.accepted += number
        elif what == "settled":
            ledger.settled[label] += number
        elif what == "succeeded":
            counters.succeeded[label] += number
        elif what == "failed":
            operation, _, reason = label.partition(".")
            counters.failed[operation, reason] += number
        elif what == "dropped":
            counters.dropped[label] += number
        else:
            owner: object = counters if what in _RETRIES else state
            setattr(owner, what, getattr(owner, what) + number)


def nonzero(names: Iterable[str], numbers: Iterable[int]) -> dict[str, int]:
    """Return numbers by name, without those that are 0."""
    return {name: number for name, number in zip(names, numbers, strict=True) if number}
