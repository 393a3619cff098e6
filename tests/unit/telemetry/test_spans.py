"""The names, attributes and errors of a message's spans."""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from router_trio.message import FENCED, Fate
from tests.unit.telemetry.traces import SPAN, TRACE, begin, carrying, received, recording


async def test_a_message_to_two_destinations_has_three_spans() -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, carrying(f"00-{TRACE}-{SPAN}-01"))
        first = trace.send("eu.{{wildcard(1)}}", "edge", 5)
        second = trace.send("archive", "core", 6)
        trace.sent("archive", Fate("acked", stream="ARCHIVE", sequence=99, duplicate=True))
        trace.sent("eu.{{wildcard(1)}}", FENCED)
        trace.end(0.25)
    spans = recorded.spans()
    process, eu, archive = spans["process eu"], spans["send eu.{{wildcard(1)}}"], spans["send archive"]
    assert process.kind is SpanKind.CONSUMER
    assert process.attributes == {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "orders.*",
        "messaging.destination.template": "orders.*",
        "messaging.message.body.size": 5,
        "messaging.nats.stream": "ORDERS",
        "messaging.nats.sequence": 12,
        "messaging.nats.delivery_count": 2,
        "router.route": "eu",
    }
    assert eu.kind is SpanKind.PRODUCER
    assert eu.attributes == {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": "eu.{{wildcard(1)}}",
        "messaging.destination.template": "eu.{{wildcard(1)}}",
        "messaging.message.body.size": 5,
        "router.connection": "edge",
        "router.fate": "fenced",
    }
    assert archive.attributes is not None
    assert archive.attributes["messaging.nats.stream"] == "ARCHIVE"
    assert archive.attributes["messaging.nats.sequence"] == 99
    assert archive.attributes["messaging.nats.duplicate"] is True
    for span, traceparent in ((eu, first), (archive, second)):
        assert span.parent is not None
        assert span.parent.span_id == process.context.span_id
        assert traceparent == f"00-{TRACE}-{span.context.span_id:016x}-{int(span.context.trace_flags):02x}".encode()
        assert span.status.status_code is StatusCode.UNSET
    assert process.status.status_code is StatusCode.UNSET
    assert process.resource.attributes["service.name"] == "orders-router"
    assert process.end_time is not None
    assert archive.end_time is not None
    assert process.end_time >= archive.end_time


async def test_the_span_of_a_core_message_has_no_stream() -> None:
    async with recording() as recorded:
        trace = recorded.traces.begin("eu", "orders.*", received())
        assert trace is not None
        trace.end(0.25)
    attributes = recorded.spans()["process eu"].attributes
    assert attributes is not None
    assert not [name for name in attributes if name.startswith("messaging.nats")]


@pytest.mark.parametrize(
    ("fate", "error_type"),
    [
        (Fate("failed", "permission_denied"), "permission_denied"),
        (Fate("dropped", "queue_full"), "queue_full"),
        (Fate("failed_open"), "failed_open"),
    ],
)
async def test_the_span_of_an_undelivered_send_is_an_error(fate: Fate, error_type: str) -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, received())
        trace.send("out", "main", 1)
        trace.sent("out", fate)
        trace.end(0.25)
    for span in recorded.spans().values():
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == error_type


async def test_a_handler_that_raises_marks_the_process_span_as_an_error() -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, received())
        trace.failed("ValueError", "no such order")
        trace.end(0.25)
    span = recorded.spans()["process eu"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "no such order"
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"


async def test_ending_a_message_ends_its_open_sends_as_failed() -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, received())
        trace.send("out", "main", 1)
        trace.sent("never sent", FENCED)
        trace.end(0.25)
    span = recorded.spans()["send out"]
    assert span.end_time is not None
    assert span.attributes is not None
    assert span.attributes["error.type"] == "unsettled"


async def test_a_refusal_ends_the_newest_send() -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, received())
        trace.send("out", "main", 1)
        trace.send("out", "main", 2)
        trace.refused("out", "too_large", "2 bytes are too many")
        trace.refused("never sent", "too_large", "nothing")
        trace.sent("out", FENCED)
        trace.end(0.25)
    sends = [span.attributes for span in recorded._exporter.get_finished_spans() if span.name == "send out"]
    assert [(one["messaging.message.body.size"], one.get("error.type")) for one in sends if one is not None] == [
        (2, "too_large"),
        (1, None),
    ]
    process = recorded.spans()["process eu"]
    assert process.status.description == "2 bytes are too many"


async def test_sends_to_the_same_template_end_in_order() -> None:
    async with recording() as recorded:
        trace = begin(recorded.traces, received())
        context = {trace.send("out", "main", size): size for size in (1, 2)}
        assert len(context) == 2
        trace.sent("out", FENCED)
        trace.sent("out", Fate("failed", "timeout"))
        trace.end(0.25)
    ended = [span.attributes for span in recorded._exporter.get_finished_spans() if span.name == "send out"]
    assert [(one["messaging.message.body.size"], one["router.fate"]) for one in ended if one is not None] == [
        (1, "fenced"),
        (2, "failed"),
    ]
