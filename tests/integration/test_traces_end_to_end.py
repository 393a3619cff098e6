"""Traces of a real router between two real servers: producer, router and consumer are one trace at the collector.

The producer and the consumer are separate programs here: they share only the header with the router.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from router_trio import Message
from tests.integration.traces import CORE_TO_CORE, OK, SAMPLED, SPAN, TRACE, Two, routing, traceparents, two_servers
from tests.support.raw_jetstream import JetStream
from tests.support.watch import until_settled, until_stored

UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    async with two_servers(tmp_path, monkeypatch) as servers:
        yield servers


# --- one trace ---


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
async def test_producer_router_and_consumer_are_one_trace(two: Two, name: str) -> None:
    inbox = await two.consumer.subscribe("eu.*")
    async with routing(two.traced(CORE_TO_CORE)):
        await two.producer.publish("orders.7", b"hello", headers={name: SAMPLED, "Other": "kept"})
        message = await inbox.next()
    process, send = two.collector.named("process eu"), two.collector.named("send eu.{{wildcard(1)}}")
    assert (process.kind, process.trace_id, process.parent_id, process.status) == ("CONSUMER", TRACE, SPAN, OK)
    assert (send.kind, send.trace_id, send.parent_id, send.status) == ("PRODUCER", TRACE, process.span_id, OK)
    assert traceparents(message) == [f"00-{TRACE}-{send.span_id}-01"]
    assert ("Other", "kept") in message.headers
    assert (message.payload, process.resource["service.name"]) == (b"hello", "orders-router")
    assert (send.attributes["router.connection"], send.attributes["router.fate"]) == ("core", "fenced")
    assert process.attributes["messaging.destination.name"] == "orders.*"


async def test_a_chain_of_routes_over_both_servers_is_one_trace(two: Two) -> None:
    back = {
        "name": "back",
        "from": {"connection": "core", "subject": "eu.*"},
        "to": [{"connection": "edge", "subject": "done.{{wildcard(1)}}"}],
    }
    inbox = await two.producer.subscribe("done.*")
    async with routing(two.traced(CORE_TO_CORE, back)):
        await two.producer.publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        message = await inbox.next()
    parents = [SPAN]
    for name in ("process eu", "send eu.{{wildcard(1)}}", "process back", "send done.{{wildcard(1)}}"):
        span = two.collector.named(name)
        assert (span.trace_id, span.parent_id) == (TRACE, parents[-1]), name
        parents.append(span.span_id)
    assert traceparents(message) == [f"00-{TRACE}-{parents[-1]}-01"]


async def test_from_a_stream_to_a_stream_and_to_a_subject(two: Two) -> None:
    source, sink = JetStream(two.producer), JetStream(two.consumer)
    await source.create_stream("ORDERS", ["orders.>"])
    await sink.create_stream("EU", ["eu.>"])
    route = {
        "name": "eu",
        "from": {"connection": "edge", "stream": "ORDERS", "durable": "router", "filter": "orders.*"},
        "to": [
            {"connection": "core", "subject": "eu.{{wildcard(1)}}", "jetstream": True},
            {"connection": "core", "subject": "copy.{{wildcard(1)}}", "jetstream": False},
        ],
    }
    copies = await two.consumer.subscribe("copy.*")
    async with routing(two.traced(route)) as watch:
        await source.publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        copy = await copies.next()
        await until_settled(watch.router)
    process = two.collector.named("process eu")
    stored, core = two.collector.named("send eu.{{wildcard(1)}}"), two.collector.named("send copy.{{wildcard(1)}}")
    assert (process.trace_id, process.parent_id, process.status) == (TRACE, SPAN, OK)
    assert process.attributes["messaging.nats.stream"] == "ORDERS"
    assert process.attributes["messaging.nats.sequence"] == 1
    assert process.attributes["messaging.nats.delivery_count"] == 1
    assert (stored.parent_id, core.parent_id) == (process.span_id, process.span_id)
    assert stored.attributes["router.fate"] == "acked"
    assert stored.attributes["messaging.nats.stream"] == "EU"
    [message] = await sink.stream_messages("EU")
    assert message.header("traceparent") == f"00-{TRACE}-{stored.span_id}-01"
    assert traceparents(copy) == [f"00-{TRACE}-{core.span_id}-01"]


async def test_through_a_handler(two: Two) -> None:
    def loud(message: Message) -> Message:
        return message.replace(payload=message.payload.upper())

    inbox = await two.consumer.subscribe("loud.*")
    destination = {"subject": "loud.{{wildcard(1)}}", "connection": "core"}
    route = {"subject": "orders.*", "connection": "edge", "to": destination}
    async with routing(two.traced(), (loud, route)):
        await two.producer.publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        message = await inbox.next()
    process, send = two.collector.named("process loud"), two.collector.named("send loud.{{wildcard(1)}}")
    assert (process.parent_id, send.parent_id) == (SPAN, process.span_id)
    assert (message.payload, traceparents(message)) == (b"HELLO", [f"00-{TRACE}-{send.span_id}-01"])


# --- unrecorded traces ---


async def test_an_unsampled_context_passes_unchanged(two: Two) -> None:
    block = f"NATS/1.0\r\nOther: x\r\ntraceparent: {UNSAMPLED}\r\ntracestate: a=1\r\n\r\n".encode()
    inbox = await two.consumer.subscribe("eu.*")
    async with routing(two.traced(CORE_TO_CORE, ratio=1.0)):
        await two.producer.publish("orders.7", b"hello", headers=block)
        message = await inbox.next()
        # A message without a context begins a trace here, so that the ratio is known to count.
        await two.producer.publish("orders.8", b"hello")
        begun = await inbox.next()
    assert message.header_block == block
    process, send = two.collector.named("process eu"), two.collector.named("send eu.{{wildcard(1)}}")
    assert process.parent_id == ""
    assert process.trace_id != TRACE
    assert traceparents(begun) == [f"00-{process.trace_id}-{send.span_id}-{traceparents(begun)[0][-2:]}"]


async def test_messages_keep_their_order_when_some_are_recorded(two: Two) -> None:
    inbox = await two.consumer.subscribe("eu.*")
    numbers = [b"%d" % number for number in range(300)]
    async with routing(two.traced({**CORE_TO_CORE, "hop_limit": 0})):  # counted messages have a header as well
        for number in numbers:
            recorded = {"traceparent": SAMPLED} if int(number) % 7 == 0 else None
            await two.producer.publish("orders.7", number, headers=recorded)
        got = [await inbox.next() for _ in numbers]
    assert [message.payload for message in got] == numbers
    assert len(two.spans("process eu")) == len(two.spans("send eu.{{wildcard(1)}}")) == 43
    assert [bool(message.headers) for message in got] == [int(number) % 7 == 0 for number in numbers]


async def test_messages_through_a_handler_keep_their_order_when_some_are_recorded(two: Two) -> None:
    """There are two destinations; some answers are filtered out, and some handlers block."""

    async def loud(message: Message) -> Message | None:
        number = int(message.payload)
        if number % 11 == 0:
            await trio.lowlevel.checkpoint()
        return None if number % 13 == 0 else message.replace(payload=b"%d!" % number)

    there, here = await two.consumer.subscribe("loud.*"), await two.producer.subscribe("copy.*")
    route = {
        "subject": "orders.*",
        "connection": "edge",
        "hop_limit": 0,
        "to": [
            {"subject": "loud.{{wildcard(1)}}", "connection": "core"},
            {"subject": "copy.{{wildcard(1)}}", "connection": "edge"},
        ],
    }
    kept = [number for number in range(300) if number % 13]
    async with routing(two.traced(), (loud, route)) as watch:
        for number in range(300):
            recorded = {"traceparent": SAMPLED} if number % 7 == 0 else None
            await two.producer.publish("orders.7", b"%d" % number, headers=recorded)
        for inbox in (there, here):
            got = [await inbox.next() for _ in kept]
            assert [message.payload for message in got] == [b"%d!" % number for number in kept]
            assert [bool(message.headers) for message in got] == [number % 7 == 0 for number in kept]
        await until_settled(watch.router)
    recorded_and_kept = sum(number % 7 == 0 for number in kept)
    assert len(two.spans("process loud")) == 43
    for template in ("loud.{{wildcard(1)}}", "copy.{{wildcard(1)}}"):
        sends = two.spans(f"send {template}")
        assert [span.attributes["router.fate"] for span in sends] == ["fenced"] * recorded_and_kept


async def test_messages_of_a_stream_keep_their_order_when_some_are_recorded(two: Two) -> None:
    source, sink = JetStream(two.producer), JetStream(two.consumer)
    await source.create_stream("ORDERS", ["orders.>"])
    await sink.create_stream("EU", ["eu.>"])
    route = {
        "name": "eu",
        "from": {"connection": "edge", "stream": "ORDERS", "durable": "router", "filter": "orders.*"},
        "to": [{"connection": "core", "subject": "eu.{{wildcard(1)}}", "jetstream": True}],
    }
    numbers = [b"%d" % number for number in range(300)]
    recorded = [int(number) % 7 == 0 for number in numbers]
    await source.publish_many(
        ("orders.7", number, {"traceparent": SAMPLED} if yes else None)
        for number, yes in zip(numbers, recorded, strict=True)
    )
    async with routing(two.traced(route)) as watch:
        await until_stored(sink, "EU", len(numbers))
        await until_settled(watch.router)
    stored = await sink.stream_messages("EU")
    assert [message.payload for message in stored] == numbers
    assert [message.header("traceparent") is not None for message in stored] == recorded
    processes = two.spans("process eu")
    assert len(processes) == len(two.spans("send eu.{{wildcard(1)}}")) == 43
    assert [span.attributes["messaging.nats.sequence"] for span in processes] == list(range(1, 301, 7))


# --- an outage ---


async def test_an_outage_is_a_trace_with_its_attempts_and_its_drain(two: Two) -> None:
    async with routing(two.traced(CORE_TO_CORE)) as watch:
        await two.core.kill()
        await watch.until("NATS_CONNECTION_LOST")
        await two.producer.publish("orders.7", b"kept", headers={"traceparent": SAMPLED})
        await watch.until("NATS_PUBLISH_QUEUED")
        await watch.until("NATS_CONNECTION_FAILED", 2)
        await two.core.restart()
        await watch.until("NATS_CONNECTION_RESTORED")
        await watch.until("NATS_RETRY_COMPLETE")
    outage, drain = two.collector.named("nats outage"), two.collector.named("drain")
    attempts = len(watch.of("NATS_RECONNECT_ATTEMPT"))
    assert attempts >= 3
    assert outage.events.count("reconnect attempt") == attempts
    assert outage.events.count("attempt failed") == len(watch.of("NATS_CONNECTION_FAILED")) == attempts - 1
    assert (outage.parent_id, outage.status, outage.attributes["router.connection"]) == ("", OK, "core")
    assert outage.attributes["router.reconnect_attempts"] == attempts
    assert (drain.trace_id, drain.parent_id, drain.status) == (outage.trace_id, outage.span_id, OK)
    assert (drain.attributes["router.success_count"], drain.attributes["router.failed_count"]) == (1, 0)
    # The message that waited is in its own trace, and ended well.
    send = two.collector.named("send eu.{{wildcard(1)}}")
    assert (send.trace_id, send.status, send.attributes["router.fate"]) == (TRACE, OK, "fenced")
    assert outage.trace_id != TRACE


# --- the end ---


async def test_a_collector_that_is_down_costs_at_most_three_seconds(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # only so that the SDK's thread ends with the test
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    await listener.aclose()
    inbox = await two.consumer.subscribe("eu.*")
    async with routing(two.traced(CORE_TO_CORE, endpoint=endpoint, ratio=1.0)):
        await two.producer.publish("orders.7", b"hello")
        message = await inbox.next()
        leaving_at = time.perf_counter()
    assert time.perf_counter() - leaving_at < 3
    assert json.dumps(traceparents(message)) != "[]"
