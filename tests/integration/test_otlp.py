"""Spans over OTLP/HTTP: decoded at a collector; an absent collector costs spans and at most two seconds."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest
import trio

from router_trio.events import ConnectionLost, ConnectionRestored, Event, ReconnectAttempt, RetryComplete, RetryPending
from router_trio.message import FENCED, Fate
from router_trio.protocol.framing import FrameParser, RawMessage, publish
from router_trio.protocol.headers import Headers, encode
from router_trio.settings import Settings
from router_trio.telemetry import Telemetry
from tests.support.buffers import MessageBuffer
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.telemetry_views import make_view

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "COMPRESSION", "TIMEOUT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with otlp_receiver() as running:
        yield running


def telemetry(endpoint: str, *, logs: bool = False) -> Telemetry:
    return Telemetry(
        Settings(
            router={"name": "orders-router"},
            telemetry={"listen": "", "otlp_endpoint": endpoint, "trace_sample_ratio": 1.0},
            connections={"main": {"servers": ["nats://127.0.0.1:4222"]}},
        ),
        logs=logs,
    )


def received(traceparent: str) -> RawMessage:
    parser = FrameParser()
    parser.buffers[b"1"] = buffer = MessageBuffer()
    frame = publish(b"orders.7", b"hello", headers=encode(Headers({"traceparent": traceparent})))
    parser.feed(b"HMSG orders.7 1 " + frame.removeprefix(b"HPUB orders.7 "))
    return buffer[0]


def route_one(telemetry: Telemetry) -> str:
    """Take a message through a route's spans. Return the outgoing traceparent."""
    trace = telemetry.tracing.begin("eu", "orders.*", received(f"00-{TRACE}-{SPAN}-01"))
    assert trace is not None
    outgoing = trace.send("eu.{{wildcard(1)}}", "edge", 5)
    trace.sent("eu.{{wildcard(1)}}", FENCED)
    trace.send("archive", "edge", 5)
    trace.sent("archive", Fate("failed", "permission_denied"))
    trace.end(0.25)
    assert outgoing is not None
    return outgoing.decode()


def outage() -> list[Event]:
    server = "nats://127.0.0.1:4222"
    return [
        ConnectionLost(at=1.0, connection="main", server=server, reason="closed", detail="EOF", pending_count=1),
        ReconnectAttempt(at=1.1, connection="main", server=server, attempt=1, max_attempts=10, delay_ms=50),
        ConnectionRestored(at=1.2, connection="main", server=server, outage_seconds=0.2, reconnect_attempts=1),
        RetryPending(at=1.2, connection="main", pending_count=1),
        RetryComplete(at=1.3, connection="main", success_count=1, failed_count=0),
    ]


async def test_spans_arrive(receiver: OtlpReceiver) -> None:
    telemetry_ = telemetry(receiver.endpoint)
    async with telemetry_.serve(make_view()):
        outgoing = route_one(telemetry_)
        for event in outage():
            telemetry_.emit(event)
    process, send = receiver.named("process eu"), receiver.named("send eu.{{wildcard(1)}}")
    assert (process.kind, process.trace_id, process.parent_id) == ("CONSUMER", TRACE, SPAN)
    assert (send.kind, send.trace_id, send.parent_id) == ("PRODUCER", TRACE, process.span_id)
    assert outgoing == f"00-{TRACE}-{send.span_id}-01"
    assert process.attributes["messaging.system"] == "nats"
    assert process.attributes["messaging.destination.name"] == "orders.*"
    assert process.resource["service.name"] == "orders-router"
    archive = receiver.named("send archive")
    assert (archive.status, archive.attributes["error.type"]) == (2, "permission_denied")
    lost, drain = receiver.named("nats outage"), receiver.named("drain")
    assert (lost.parent_id, lost.events) == ("", ["reconnect attempt", "restored"])
    assert (drain.parent_id, drain.trace_id) == (lost.span_id, lost.trace_id)
    assert len(receiver.spans) == 5
    assert set(receiver.paths) == {"/v1/traces"}


async def test_lines_of_an_outage_carry_its_ids(receiver: OtlpReceiver, capfd: pytest.CaptureFixture[str]) -> None:
    telemetry_ = telemetry(receiver.endpoint, logs=True)
    async with telemetry_.serve(make_view()):
        assert telemetry_._traces is not None
        await telemetry_._traces.exports.wait()
        for event in outage():
            telemetry_.emit(event)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lost, drain = receiver.named("nats outage"), receiver.named("drain")
    assert [(line["error_code"], line["trace_id"], line["span_id"]) for line in lines] == [
        ("NATS_CONNECTION_LOST", lost.trace_id, lost.span_id),
        ("NATS_RECONNECT_ATTEMPT", lost.trace_id, lost.span_id),
        ("NATS_CONNECTION_RESTORED", lost.trace_id, lost.span_id),
        ("NATS_RETRY_PENDING", lost.trace_id, drain.span_id),
        ("NATS_RETRY_COMPLETE", lost.trace_id, drain.span_id),
    ]


async def test_spans_from_before_the_sdk_is_loaded_are_exported_too(receiver: OtlpReceiver) -> None:
    telemetry_, routed = telemetry(receiver.endpoint), trio.Event()
    async with telemetry_.serve(make_view(), first=routed.wait):
        assert telemetry_._traces is not None
        assert not telemetry_._traces.exports.is_set()
        outgoing = route_one(telemetry_)
        for event in outage():
            telemetry_.emit(event)
        routed.set()
        await telemetry_._traces.exports.wait()
    process, send = receiver.named("process eu"), receiver.named("send eu.{{wildcard(1)}}")
    assert (process.kind, process.trace_id, process.parent_id) == ("CONSUMER", TRACE, SPAN)
    assert outgoing == f"00-{TRACE}-{send.span_id}-01"
    assert receiver.named("drain").parent_id == receiver.named("nats outage").span_id
    assert len(receiver.spans) == 5


async def test_gzip(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    telemetry_ = telemetry(receiver.endpoint)
    async with telemetry_.serve(make_view()):
        route_one(telemetry_)
    assert receiver.encodings == ["gzip"]
    assert len(receiver.spans) == 3


@pytest.mark.parametrize(
    ("name", "suffix"), [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")]
)
async def test_the_endpoint_of_the_environment(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.setenv(name, receiver.endpoint + suffix)
    telemetry_ = telemetry("")
    async with telemetry_.serve(make_view()):
        route_one(telemetry_)
    assert receiver.paths == ["/v1/traces"]
    assert len(receiver.spans) == 3


async def test_an_endpoint_with_its_path(receiver: OtlpReceiver) -> None:
    telemetry_ = telemetry(receiver.endpoint + "/v1/traces")
    async with telemetry_.serve(make_view()):
        route_one(telemetry_)
    assert receiver.paths == ["/v1/traces"]


async def test_a_collector_that_refuses_costs_spans(receiver: OtlpReceiver) -> None:
    receiver.status = 400
    telemetry_ = telemetry(receiver.endpoint)
    async with telemetry_.serve(make_view()):
        route_one(telemetry_)
    assert receiver.paths == ["/v1/traces"]
    assert telemetry_.spans_dropped == 3


@pytest.mark.parametrize("kind", ["down", "silent"])
async def test_an_absent_collector_does_not_delay_the_router(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # only so that the SDK's thread ends with the test
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        if kind == "down":
            await listener.aclose()
        telemetry_ = telemetry(endpoint)
        async with telemetry_.serve(make_view()):
            route_one(telemetry_)
            leaving_at = time.perf_counter()
        assert time.perf_counter() - leaving_at < 3


async def test_the_collector_gets_its_time_even_when_cancelled(receiver: OtlpReceiver) -> None:
    with trio.CancelScope() as scope:
        telemetry_ = telemetry(receiver.endpoint)
        async with telemetry_.serve(make_view()):
            route_one(telemetry_)
            scope.cancel()
            await trio.sleep_forever()
    # The receiver's own tasks are not in the cancelled scope.
    assert len(receiver.spans) == 3
