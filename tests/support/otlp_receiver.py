"""A collector for tests: receives OTLP over HTTP (protobuf, plain or gzip) and keeps the decoded spans."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.proxy import background

MAX_READ = 64 * 1024


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as received; ids in hexadecimal, no parent as an empty string."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, object]
    resource: dict[str, object]
    events: list[str]
    status: int
    error: str


@dataclass
class OtlpReceiver:
    """The spans received so far. `encodings` are those of the requests, in order; `status` is the next response's
    status.
    """

    endpoint: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    status: int = 200

    def named(self, name: str) -> ReceivedSpan:
        """Return the only span of that name."""
        [span] = [span for span in self.spans if span.name == name]
        return span

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            connection = h11.Connection(h11.SERVER)
            while await self._one_request(connection, stream):
                connection.start_next_cycle()

    async def _one_request(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        request = await _next(connection, stream)
        if not isinstance(request, h11.Request):
            return False
        body = bytearray()
        while isinstance(data := await _next(connection, stream), h11.Data):
            body += data.data
        if not isinstance(data, h11.EndOfMessage):
            return False
        self._take(request, bytes(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        headers = [("content-type", "application/x-protobuf"), ("content-length", str(len(answer)))]
        await stream.send_all(
            (connection.send(h11.Response(status_code=self.status, headers=headers)) or b"")
            + (connection.send(h11.Data(data=answer)) or b"")
            + (connection.send(h11.EndOfMessage()) or b"")
        )
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    def _take(self, request: h11.Request, body: bytes) -> None:
        headers = dict(request.headers)
        encoding = headers.get(b"content-encoding", b"").decode()
        self.encodings.append(encoding)
        self.paths.append(request.target.decode())
        if self.status != 200:
            return
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
        for resource_spans in message.resource_spans:
            resource = {pair.key: _value(pair.value) for pair in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(_decoded(span, resource) for span in scope_spans.spans)


@asynccontextmanager
async def otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    """Receive on a free port of the loopback while the context is open."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    receiver = OtlpReceiver(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    async with background() as nursery:
        nursery.start_soon(trio.serve_listeners, receiver._serve, [listener])
        yield receiver


async def _next(connection: h11.Connection, stream: trio.SocketStream) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        if connection.they_are_waiting_for_100_continue:
            await stream.send_all(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            connection.receive_data(await stream.receive_some(MAX_READ))
        except trio.BrokenResourceError:
            return None
    return event


def _decoded(span: Span, resource: dict[str, object]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(list(span.attributes)),
        resource=resource,
        events=[event.name for event in span.events],
        status=int(span.status.code),
        error=span.status.message,
    )


def _attributes(pairs: list[KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind is not None else None
