"""Outage spans: one trace per outage, made from the events of its connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from router_trio.events import (
    ConnectionEstablished,
    ConnectionFailed,
    ConnectionLost,
    ConnectionRestored,
    Event,
    PublishQueued,
    ReconnectAttempt,
    ReconnectExhausted,
    RetryComplete,
    RetryPending,
    RouterDraining,
)
from router_trio.telemetry.traces.outage import Outages
from router_trio.telemetry.traces.tracer import Traces

SERVER = "nats://bob:s3cret@h:4222"


class Recorded:
    """Outages, and their spans once `recording` is left."""

    def __init__(self, outages: Outages, exporter: InMemorySpanExporter) -> None:
        self.outages = outages
        self._exporter = exporter

    def feed(self, *events: Event) -> list[tuple[str, str] | None]:
        return [self.outages.observe(event) for event in events]

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@asynccontextmanager
async def recording() -> AsyncIterator[Recorded]:
    exporter = InMemorySpanExporter()
    # Outages are traced even with a ratio of 0.
    traces = Traces(service_name="r", sample_ratio=0.0, exporter=lambda _: exporter)
    async with traces.running():
        await traces.begin_export()
        assert traces._outages is not None
        yield Recorded(traces._outages, exporter)


def lost(connection: str = "main", pending: int = 3) -> Event:
    return ConnectionLost(
        at=1.0, connection=connection, server=SERVER, reason="closed", detail="EOF", pending_count=pending
    )


def attempt(number: int, connection: str = "main") -> Event:
    return ReconnectAttempt(
        at=2.0, connection=connection, server=SERVER, attempt=number, max_attempts=10, delay_ms=100 * number
    )


def failed(number: int) -> Event:
    return ConnectionFailed(
        at=2.0,
        connection="main",
        server=SERVER,
        reason="network",
        detail=f"refused by {SERVER}",
        attempt=number,
        max_attempts=10,
    )


def restored(connection: str = "main", kept: int = 3) -> Event:
    return ConnectionRestored(
        at=3.0,
        connection=connection,
        server=SERVER,
        outage_seconds=2.0,
        reconnect_attempts=2,
        pending_count=kept,
    )


def pending(connection: str = "main") -> Event:
    return RetryPending(at=3.0, connection=connection, pending_count=3)


def complete(failures: int = 0) -> Event:
    return RetryComplete(at=3.0, connection="main", success_count=3 - failures, failed_count=failures)


QUEUED = PublishQueued(at=1.5, connection="main", pending_count=4)


async def test_an_outage_is_a_trace_with_its_attempts_and_its_drain() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), attempt(1), failed(1), attempt(2), restored(), pending(), complete())
    [outage] = recorded.spans("nats outage")
    [drain] = recorded.spans("drain")
    assert outage.parent is None
    assert drain.parent is not None
    assert drain.parent.span_id == outage.context.span_id
    assert drain.context.trace_id == outage.context.trace_id
    assert outage.status.status_code is StatusCode.UNSET
    assert outage.attributes == {
        "messaging.system": "nats",
        "router.connection": "main",
        "server.address": "nats://h:4222",
        "router.outage.reason": "closed",
        "router.pending_count": 3,
        "router.outage.seconds": 2.0,
        "router.reconnect_attempts": 2,
    }
    names = ["reconnect attempt", "attempt failed", "reconnect attempt", "restored"]
    assert [event.name for event in outage.events] == names
    assert outage.events[0].attributes == {
        "server.address": "nats://h:4222",
        "attempt": 1,
        "max_attempts": 10,
        "delay_ms": 100,
    }
    assert outage.events[1].attributes == {
        "server.address": "nats://h:4222",
        "reason": "network",
        "attempt": 1,
        "max_attempts": 10,
        "detail": "refused by nats://h:4222",
    }
    assert drain.attributes == {
        "messaging.system": "nats",
        "router.connection": "main",
        "router.pending_count": 3,
        "router.success_count": 3,
        "router.failed_count": 0,
    }


async def test_the_span_of_an_outage_lasts_until_its_drain_ends() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), attempt(1), restored(), pending(), complete())
    [outage], [drain] = recorded.spans("nats outage"), recorded.spans("drain")
    times = outage.start_time, drain.start_time, drain.end_time, outage.end_time
    assert list(times) == sorted(one for one in times if one is not None)


async def test_an_outage_with_nothing_to_drain_ends_with_the_reconnect() -> None:
    async with recording() as recorded:
        recorded.feed(lost(pending=0), attempt(1), restored(kept=0))
    [outage] = recorded.spans("nats outage")
    assert outage.status.status_code is StatusCode.UNSET, "it was open when the router stopped"
    assert [event.name for event in outage.events] == ["reconnect attempt", "restored"]


async def test_a_drain_may_begin_before_the_outage_ends() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), pending(), restored(), complete())
    [outage], [drain] = recorded.spans("nats outage"), recorded.spans("drain")
    assert drain.parent is not None
    assert drain.parent.span_id == outage.context.span_id


async def test_log_lines_during_an_outage_have_the_ids_of_its_span() -> None:
    async with recording() as recorded:
        before, *during = recorded.feed(QUEUED, lost(), attempt(1), QUEUED, restored(kept=3))
        drained, more, done, after = recorded.feed(pending(), QUEUED, complete(), QUEUED)
    [outage], [drain] = recorded.spans("nats outage"), recorded.spans("drain")
    of_outage = f"{outage.context.trace_id:032x}", f"{outage.context.span_id:016x}"
    of_drain = f"{drain.context.trace_id:032x}", f"{drain.context.span_id:016x}"
    assert before is None
    assert during == [of_outage] * 4
    assert [drained, more, done] == [of_drain] * 3
    assert after is None


async def test_outages_of_two_connections_are_separate_traces() -> None:
    async with recording() as recorded:
        of_the_router = RouterDraining(at=1.0, pending_count=1, timeout_seconds=1.0)
        main, edge, queued, other, draining = recorded.feed(
            lost(), lost("edge"), QUEUED, attempt(1, "edge"), of_the_router
        )
        recorded.feed(restored(kept=0), restored("edge", kept=0))
    assert main == queued
    assert edge == other
    assert main != edge
    assert draining is None
    assert len(recorded.spans("nats outage")) == 2


async def test_a_second_loss_ends_the_drain_as_a_failure() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), restored(), pending(), lost(), restored(), pending(), complete())
    first, second = recorded.spans("nats outage")
    interrupted, done = recorded.spans("drain")
    assert first.context.trace_id != second.context.trace_id
    assert interrupted.status.status_code is StatusCode.ERROR
    assert interrupted.attributes is not None
    assert interrupted.attributes["error.type"] == "closed"
    assert interrupted.context.trace_id == first.context.trace_id
    assert done.status.status_code is StatusCode.UNSET
    assert done.context.trace_id == second.context.trace_id


async def test_giving_up_reconnecting_ends_the_outage_as_a_failure() -> None:
    async with recording() as recorded:
        ids = recorded.feed(
            lost(),
            ReconnectExhausted(at=2.0, connection="main", reconnect_attempts=10, action="keep_trying"),
            attempt(11),
            ReconnectExhausted(at=3.0, connection="main", reconnect_attempts=10, action="stop"),
        )
    assert len(set(ids)) == 1
    [outage] = recorded.spans("nats outage")
    assert [event.name for event in outage.events] == ["attempts exhausted", "reconnect attempt", "attempts exhausted"]
    assert outage.status.status_code is StatusCode.ERROR
    assert outage.attributes is not None
    assert outage.attributes["error.type"] == "reconnect_exhausted"


async def test_the_end_of_the_router_ends_open_outages() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), lost("edge"), restored("edge"), pending("edge"))
    outages = recorded.spans("nats outage")
    [drain] = recorded.spans("drain")
    assert [one.context.trace_id == drain.context.trace_id for one in outages] == [False, True]
    for span in (drain, *outages):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "router_stopped"


async def test_a_drain_with_failures_is_an_error() -> None:
    async with recording() as recorded:
        recorded.feed(lost(), restored(), pending(), complete(failures=2))
    [drain] = recorded.spans("drain")
    assert drain.status.status_code is StatusCode.ERROR
    assert drain.attributes is not None
    assert drain.attributes["router.failed_count"] == 2


async def test_failures_without_an_outage_make_no_span() -> None:
    async with recording() as recorded:
        established = ConnectionEstablished(at=1.0, connection="main", server=SERVER)
        assert recorded.feed(failed(1), attempt(1), established, restored(), complete()) == [None] * 5
    assert recorded.spans("nats outage") == []


async def test_a_drain_after_the_first_connect_is_a_trace_of_its_own() -> None:
    async with recording() as recorded:
        recorded.feed(pending(), complete())
    [drain] = recorded.spans("drain")
    assert drain.parent is None
