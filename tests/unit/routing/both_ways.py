"""Runs the same messages through both variants of code that is written twice for speed, and compares the results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio.connection.platform import Platform
from router_trio.states import RouteState
from router_trio.testing.frames import raw
from tests.performance.instructions import Bench
from tests.support.world import LongestDelays

MAX_PAYLOAD = 300

BLOCKS = st.lists(
    st.sampled_from(
        [
            b"A: b",
            b"Nats-Msg-Id: mine",
            b"Nats-Expected-Stream: X",
            b"nats-ttl: 5",
            b"traceparent: x",
            b"Long: " + b"x" * 60,
        ]
    ),
    max_size=3,
).map(lambda lines: b"\r\n".join([b"NATS/1.0", *lines, b"", b""]) if lines else b"")
SUBJECTS = st.sampled_from([b"in.a", b"in.b-c", b"in.c-d-e", b"in.--x", b"in.\xff", b"in." + b"x" * 600])
REPLIES = st.sampled_from([b"", b"", b"_INBOX.r.1"])
BODIES = st.binary(max_size=6) | st.integers(MAX_PAYLOAD - 200, MAX_PAYLOAD + 60).map(lambda size: b"x" * size)
CORE = st.lists(st.builds(raw, SUBJECTS, REPLIES, BLOCKS, BODIES), max_size=6)


def to(subject: str, **more: Any) -> dict[str, Any]:
    return {"connection": "main", "subject": subject, **more}


# Destinations.
ONE = [to("out.{{split(1,-)}}")]
KEPT = [to("out.{{split(1,-)}}", headers={"keep": ["Nats-TTL"]})]
TWO = [*ONE, to("more.{{wildcard(1)}}")]


def bench(*destinations: list[dict[str, Any]], source: dict[str, Any] | None = None, **more: Any) -> Bench:
    """Return a bench with a route to each of `destinations`; ids of messages are the same in each bench.

    `more` are further keys of each route.
    """
    where: dict[str, Any] = {"connection": "main", **(source or {"subject": "in.*"})}
    routes = [{"name": f"r{number}", "from": where, "to": to, **more} for number, to in enumerate(destinations)]
    made = Bench(0, routes=routes)
    made.connection._message_ids, made.connection.inbox = b"id", b"_INBOX.bench"
    made.connection.max_payload = MAX_PAYLOAD
    made.connection.platform = Platform(random=LongestDelays())
    return made


def seen(made: Bench) -> dict[str, Any]:
    """Return everything that can be observed once all is written and fenced."""
    wire = b"".join(made.written())
    made.written()
    made.outbox.fenced(made.outbox.fences.sent)
    return {
        "wire": wire,
        "acks": made.answers,
        "naks": made.naks,
        "events": made.events,
        "accepted": made.outbox.ledger.accepted,
        "settled": made.outbox.ledger.settled,
        "succeeded": made.outbox.counters.succeeded,
        "failed": +made.outbox.counters.failed,
        "in flight": made.outbox.in_flight,
        "routes": [of_route(routing.state) for routing in made.routings],
    }


def of_route(state: RouteState) -> list[Any]:
    counts = [state.received, state.in_hand, state.duplicates, state.handling]
    by_name = [state.settled, state.routed, +state.failed, +state.filtered]
    return [*counts, *by_name, state.durations.counts, state.durations.total]


def both(
    make: Callable[[], Bench], fast: Callable[[Bench], Awaitable[None]], slow: Callable[[Bench], Awaitable[None]]
) -> None:
    """Run both variants on a clock that stands still, and compare the results."""

    async def run(way: Callable[[Bench], Awaitable[None]]) -> dict[str, Any]:
        made = make()
        await way(made)
        return seen(made)

    fast_seen, slow_seen = (trio.run(run, way, clock=MockClock()) for way in (fast, slow))
    assert fast_seen == slow_seen
