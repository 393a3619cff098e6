"""Failures in the traces at a real collector: which spans end as errors, and their texts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Reject, Router, Settings
from router_trio.settings.sections import TelemetrySettings
from tests.integration.traces import CORE_TO_CORE, ERROR, OK, SAMPLED, Two, routing, traceparents, two_servers
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect, encode_publish
from tests.support.servers import nats_server
from tests.support.watch import Watch, until_settled, watched


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    async with two_servers(tmp_path, monkeypatch) as servers:
        yield servers


# --- failures ---


async def test_a_handler_that_raises_is_an_error_in_its_span(two: Two) -> None:
    def broken(message: Message) -> Message:
        raise LookupError("no such order")

    route = {"subject": "orders.*", "connection": "edge", "to": {"subject": "never", "connection": "core"}}
    async with routing(two.traced(), (broken, route)) as watch:
        await two.producer.publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        await watch.until("ROUTE_MESSAGE_FAILED")
    process = two.collector.named("process broken")
    assert (process.status, process.attributes["error.type"]) == (ERROR, "LookupError")
    assert two.spans("send never") == []


PAYLOAD = b"the-card-number-of-a-customer"


@pytest.mark.parametrize("handler_errors", ["type", "full"])
@pytest.mark.parametrize("kind", ["def", "async", "stream"])
async def test_text_that_a_handler_quotes_of_a_payload_is_shown_only_if_enabled(
    two: Two, handler_errors: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(message: Message) -> Message:
        raise LookupError(f"can't read {message.payload.decode()} {'x' * 5000}")

    async def broken_later(message: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return broken(message)

    source: dict[str, Any] = {"subject": "orders.*"}
    if kind == "stream":
        await JetStream(two.producer).create_stream("ORDERS", ["orders.>"])
        source = {"stream": "ORDERS", "durable": "router"}
    settings = two.traced()
    telemetry = settings.telemetry.model_copy(update={"handler_errors": handler_errors})
    settings = settings.model_copy(update={"telemetry": telemetry})
    watch = Watch()
    router = Router(settings, observers=[watch], log=True)
    router.route(**source, name="broken", connection="edge", to={"subject": "never", "connection": "core"})(
        broken if kind == "def" else broken_later
    )
    async with watched(router, watch):
        await watch.until("ROUTE_READY")
        await two.producer.publish("orders.7", PAYLOAD, headers={"traceparent": SAMPLED})
        await watch.until("ROUTE_MESSAGE_FAILED")
    process = two.spans("process broken")[0]
    [line, *_] = [line for line in capfd.readouterr().err.splitlines() if "ROUTE_MESSAGE_FAILED" in line]
    # The line has the traceback as well, none of whose lines is longer than another text.
    most = 1500 if handler_errors != "full" else 1500 + sum(map(len, json.loads(line)["traceback"]))
    for text, longest in ((line, most), (f"{process.error} {process.attributes} {process.events}", 1500)):
        assert "LookupError" in text
        assert (PAYLOAD.decode() in text) is (handler_errors == "full")
        assert len(text) < longest


async def test_the_text_of_a_reject_is_in_the_span_and_in_the_log(two: Two, capfd: pytest.CaptureFixture[str]) -> None:
    def strict(message: Message) -> Message:
        raise Reject("there is no such customer")

    watch = Watch()
    router = Router(two.traced(), observers=[watch], log=True)
    router.route("orders.*", connection="edge", to={"subject": "never", "connection": "core"})(strict)
    async with watched(router, watch):
        await watch.until("ROUTE_READY")
        await two.producer.publish("orders.7", PAYLOAD, headers={"traceparent": SAMPLED})
        await watch.until("ROUTE_MESSAGE_FAILED")
    process = two.collector.named("process strict")
    assert (process.status, process.attributes["error.type"]) == (ERROR, "Reject")
    assert process.error == "there is no such customer"
    [line] = [line for line in capfd.readouterr().err.splitlines() if "ROUTE_MESSAGE_FAILED" in line]
    assert json.loads(line)["detail"] == "there is no such customer"


@pytest.mark.parametrize("kind", ["core", "stream"])
async def test_a_body_that_does_not_fit_is_in_the_span_with_its_rule_and_not_quoted(
    two: Two, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    schema = tmp_path / "order.schema.json"
    schema.write_text('{"properties": {"card": {"maxLength": 4}}, "additionalProperties": false}', encoding="utf-8")
    source: dict[str, Any] = {"subject": "orders.*"}
    if kind == "stream":
        await JetStream(two.producer).create_stream("ORDERS", ["orders.>"])
        source = {"stream": "ORDERS", "durable": "router"}
    watch = Watch()
    router = Router(two.traced(), observers=[watch], log=True)
    router.route(
        **source, name="strict", connection="edge", to={"subject": "never", "connection": "core"}, schema=schema
    )(lambda message: message)
    async with watched(router, watch):
        await watch.until("ROUTE_READY")
        for body in ({"card": PAYLOAD.decode()}, {PAYLOAD.decode(): 1}):
            await two.producer.publish("orders.7", json.dumps(body).encode(), headers={"traceparent": SAMPLED})
        await watch.until("ROUTE_MESSAGE_FAILED", 2)
    spans = two.spans("process strict")
    assert [span.status for span in spans] == [ERROR, ERROR]
    shown = [*(f"{span.error} {span.attributes} {span.events}" for span in spans), capfd.readouterr().err]
    assert all("schema" in text for text in shown)
    assert not [text for text in shown if PAYLOAD.decode() in text]


async def test_an_error_that_cannot_be_printed_fails_only_its_message(two: Two) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even that")

    def broken(message: Message) -> Message:
        raise BrokenError

    route = {"subject": "orders.*", "connection": "edge", "to": {"subject": "never", "connection": "core"}}
    async with routing(two.traced(), (broken, route)) as watch:
        for _ in range(2):
            await two.producer.publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        await watch.until("ROUTE_MESSAGE_FAILED", 2)


async def test_senders_cannot_have_more_traced_than_the_limit_per_second(two: Two) -> None:
    most = TelemetrySettings().max_traces_per_second
    count = most * 10
    inbox = await two.consumer.subscribe("eu.*")
    started = time.monotonic()
    async with routing(two.traced(CORE_TO_CORE)) as watch:
        frames = encode_publish("orders.7", b"hello", headers={"traceparent": SAMPLED})
        await two.producer.send(frames * count)
        got = [await inbox.next() for _ in range(count)]
        seconds = time.monotonic() - started
        await until_settled(watch.router)
    followed = len(two.spans("process eu"))
    assert most <= followed <= most * (1 + seconds)
    passed_on = [message for message in got if traceparents(message) == [SAMPLED]]
    assert len(passed_on) == count - followed


async def test_a_refusal_of_a_stream_is_an_error_in_its_span(two: Two) -> None:
    sink = JetStream(two.consumer)
    await sink.create_stream("EU", ["eu.>"], max_msg_size=10)
    route = {
        "name": "eu",
        "from": {"connection": "edge", "subject": "orders.*"},
        "to": [{"connection": "core", "subject": "eu.{{wildcard(1)}}", "jetstream": True}],
    }
    async with routing(two.traced(route)) as watch:
        await two.producer.publish("orders.7", b"x" * 100, headers={"traceparent": SAMPLED})
        await watch.until("NATS_PUBLISH_WITH_ACK_ERROR")
    process, send = two.collector.named("process eu"), two.collector.named("send eu.{{wildcard(1)}}")
    [event] = watch.of("NATS_PUBLISH_WITH_ACK_ERROR")
    assert (send.status, send.attributes["error.type"]) == (ERROR, event.reason)
    assert (process.status, process.attributes["error.type"]) == (ERROR, event.reason)
    assert send.attributes["router.fate"] == "failed"


async def test_a_message_that_is_never_published_ends_its_spans_with_the_reason(two: Two, tmp_path: Path) -> None:
    """The reason is the same in the trace, in the counters and in the log."""
    async with nats_server(tmp_path, config="max_payload: 200\n", name="small") as small:
        settings = two.traced(CORE_TO_CORE)
        connection = settings.connections["core"].model_copy(update={"servers": _servers(small.url)})
        settings = settings.model_copy(update={"connections": {**settings.connections, "core": connection}})
        async with routing(settings) as watch:
            await two.producer.publish("orders.7", b"x" * 190, headers={"traceparent": SAMPLED})
            event = await watch.until("ROUTE_MESSAGE_FAILED")
    process, send = two.collector.named("process eu"), two.collector.named("send eu.{{wildcard(1)}}")
    assert event.reason == "too_large"
    assert (send.status, send.attributes["error.type"]) == (ERROR, "too_large")
    assert (process.status, process.attributes["error.type"]) == (ERROR, "too_large")


async def test_a_message_that_a_traceparent_would_make_too_large_is_sent_without_one(two: Two, tmp_path: Path) -> None:
    """A message does not fail because it is traced."""
    async with nats_server(tmp_path, config="max_payload: 200\n", name="small") as small:
        settings = two.traced(CORE_TO_CORE, ratio=1.0)
        connection = settings.connections["core"].model_copy(update={"servers": _servers(small.url)})
        settings = settings.model_copy(update={"connections": {**settings.connections, "core": connection}})
        async with connect(small.url) as consumer, routing(settings):
            inbox = await consumer.subscribe("eu.*")
            await two.producer.publish("orders.7", b"x" * 190)
            message = await inbox.next()
    assert traceparents(message) == []
    assert two.collector.named("send eu.{{wildcard(1)}}").status == OK


def _servers(url: str) -> Any:
    return Settings(connections={"x": {"servers": [url]}}).connections["x"].servers
