"""What a router counts, as plain integers by name: how a worker tells its counts, and how they are added. Pure.

The numbers that a ledger is made of come in a fixed order, so that they are copied in one go; `rest_of_...` are the
others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from router_trio.outbox.ledger import Counters, Ledger
from router_trio.states import ConnectionState, Histogram, RouteState

Key = tuple[str, str]
"""Kind and name: of a connection, a route or the process."""

Counts = dict[Key, dict[str, int]]
"""Numbers by what they belong to and by their names. What is missing is 0."""

MOST_REMOVED = 2000
"""Connections and routes that were removed and of which the counts are kept."""

CONNECTION = "connection"
ROUTE = "route"
PROCESS: Key = ("process", "")

LEDGER = ("accepted", *(f"settled.{fate}" for fate in Ledger().settled))
_LIFE = ("established", "lost", "restored", "failures", "reconnect_attempts", "reconnect_failures", "exhausted")
_RETRIES = ("retried", "retry_succeeded", "retry_failed")
_BY_REASON = ("failed", "filtered", "given_up", "mirror_failed", "unanswered")
_FIXED = ("from_stream", "received", "duplicates", "elapsed_ns", "forwarded_ns")


# --- from what a router has counted ---


def ledger_numbers(ledger: Ledger) -> tuple[int, ...]:
    """Return the numbers that `LEDGER` names: accepted before settled, so that a copy cut short has none too many."""
    return (ledger.accepted, *ledger.settled.values())


def route_fields(state: RouteState) -> tuple[str, ...]:
    """Return the names of `route_numbers`."""
    return (
        *_FIXED,
        *(f"fates.{fate}" for fate in state.fates),
        *(f"delivered.{template}" for template in state.delivered),
        *(f"elapsed.{index}" for index in range(len(state.elapsed.counts))),
        *(f"forwarded.{index}" for index in range(len(state.forwarded.counts))),
    )


def route_numbers(state: RouteState) -> tuple[int, ...]:
    """Return the numbers of a route's ledger and durations: received before settled."""
    elapsed, forwarded = state.elapsed, state.forwarded
    return (
        "stream" in state.source,
        state.received,
        state.duplicates,
        elapsed.nanoseconds,
        forwarded.nanoseconds,
        *state.fates.values(),
        *state.delivered.values(),
        *elapsed.counts,
        *forwarded.counts,
    )


def rest_of_connection(state: ConnectionState, counters: Counters) -> dict[str, int]:
    """Return what else a connection counts."""
    return {
        **{name: getattr(state, name) for name in _LIFE},
        **{name: getattr(counters, name) for name in _RETRIES},
        **{f"succeeded.{operation}": count for operation, count in counters.succeeded.items()},
        **{f"failed.{operation}.{reason}": count for (operation, reason), count in counters.failed.items()},
        **{f"dropped.{reason}": count for reason, count in counters.dropped.items()},
    }


def rest_of_route(state: RouteState) -> dict[str, int]:
    """Return what else a route counts."""
    found = {f"{name}.{reason}": count for name in _BY_REASON for reason, count in getattr(state, name).items()}
    found |= {f"openings.{connection}.{template}": count for (connection, template), count in state.openings.items()}
    return found | {"limited": state.limited}


def histogram_numbers(name: str, histogram: Histogram) -> dict[str, int]:
    """Return a histogram as numbers."""
    counts = {f"{name}.{index}": count for index, count in enumerate(histogram.counts)}
    return counts | {f"{name}_ns": histogram.nanoseconds}


# --- adding ---


def add(counts: Counts, more: Mapping[Key, Mapping[str, int]]) -> None:
    """Add what others have counted."""
    for key, numbers in more.items():
        here = counts.setdefault(key, {})
        for name, number in numbers.items():
            here[name] = here.get(name, 0) + number


def with_removed(before: Counts, now: Counts) -> Counts:
    """Return what a worker counts, with the last counts of what it no longer has: a reload may bring that back.

    Of these, the counts of the last `MOST_REMOVED` are kept.
    """
    removed = [key for key in before if key not in now][-MOST_REMOVED:]
    return {**{key: before[key] for key in removed}, **now}


def forget_removed(counts: Counts, present: Collection[Key]) -> None:
    """Of connections and routes that are not among the `present`, keep the counts of the last `MOST_REMOVED`."""
    for key in [key for key in counts if key not in present][:-MOST_REMOVED]:
        del counts[key]


@dataclass(frozen=True, slots=True)
class Left:
    """What a worker has left unsettled: publishes, messages of streams, messages of core subscriptions."""

    dropped: int
    returned: int
    lost: int


def settle(counts: Counts) -> Left:
    """Settle what a worker that is gone has accepted and not settled. Return how much that is."""
    dropped = returned = lost = 0
    for (kind, _), numbers in counts.items():
        if kind == CONNECTION:
            left = numbers.get("accepted", 0) - _sum(numbers, "settled.")
            _count(numbers, left, "settled.dropped", "dropped.worker_lost")
            dropped += left
        elif kind == ROUTE:
            left = numbers.get("received", 0) - _sum(numbers, "fates.") - _sum(numbers, "forwarded.")
            if numbers.get("from_stream"):
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


# --- to what a page reads ---


def add_to_ledger(ledger: Ledger, counters: Counters, state: ConnectionState, numbers: Mapping[str, int]) -> None:
    """Count in these what the numbers of a connection say."""
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


def add_to_route(state: RouteState, numbers: Mapping[str, int]) -> None:
    """Count in this what the numbers of a route say. What is in hand is another's to say."""
    for name, number in numbers.items():
        what, _, label = name.partition(".")
        if what in ("received", "duplicates", "limited"):
            setattr(state, what, getattr(state, what) + number)
        elif what == "fates":
            state.fates[label] += number
        elif what == "delivered":
            state.delivered[label] = state.delivered.get(label, 0) + number
        elif what in ("elapsed", "forwarded"):
            getattr(state, what).counts[int(label)] += number
        elif what in _BY_REASON:
            by_reason: Counter[str] = getattr(state, what)
            by_reason[label] += number
        elif what == "openings":
            connection, _, template = label.partition(".")  # the name of a connection has no dot
            state.openings[connection, template] += number
    state.elapsed.nanoseconds += numbers.get("elapsed_ns", 0)
    state.forwarded.nanoseconds += numbers.get("forwarded_ns", 0)


def add_to_histogram(histogram: Histogram, name: str, numbers: Mapping[str, int]) -> None:
    """Count in this what the numbers say that `histogram_numbers` gave."""
    for index in range(len(histogram.counts)):
        histogram.counts[index] += numbers.get(f"{name}.{index}", 0)
    histogram.nanoseconds += numbers.get(f"{name}_ns", 0)


def nonzero(names: Iterable[str], numbers: Iterable[int]) -> dict[str, int]:
    """Return numbers by name, but those that are 0."""
    return {name: number for name, number in zip(names, numbers, strict=True) if number}
