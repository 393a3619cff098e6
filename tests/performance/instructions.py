"""Bytecode instructions that the data plane takes per message: the same on every machine, however busy it is.

Routes are built of their real parts, between a wire that is fed bytes and an outbox whose frames are examined. Nothing
waits, so only the code itself is counted; the work of C code within one instruction is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any, cast

import trio

import router_trio
from router_trio import Settings, testing
from router_trio.client.publisher import Publisher
from router_trio.connection.session import Session
from router_trio.connection.shared_subscription import SharedSubscription
from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError
from router_trio.events import Event
from router_trio.nats.jetstream.pubacks import PubAcks
from router_trio.nats.wire import Wire
from router_trio.protocol import framing
from router_trio.routing.builder import outlets_of
from router_trio.routing.content.routing import ContentRouting
from router_trio.routing.core.batch_route import BatchRoute
from router_trio.routing.core.passthrough import Passthrough
from router_trio.routing.core.source import SubjectSource
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.kept_route import KeptRoute
from router_trio.routing.pipeline import Routing
from router_trio.routing.route_plans import compile_routes
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.source import StreamSource
from router_trio.routing.tracing import NoTracing, Tracing
from router_trio.states import RouteState
from tests.support.offers import next_order

OURS = str(Path(router_trio.__file__).parent)
FAKES = str(Path(testing.__file__).parent)
BODY = b"x" * 128


def instructions(run: Callable[[], object]) -> int:
    """Return the instructions that `run` executes inside of router_trio, without its fake server."""
    if sys.version_info >= (3, 12):
        return _monitored(run)
    return _traced(run)


def _counts(code: CodeType) -> bool:
    return code.co_filename.startswith(OURS) and not code.co_filename.startswith(FAKES)


if sys.version_info >= (3, 12):

    def _monitored(run: Callable[[], object]) -> int:
        """Count by PEP 669."""
        monitoring = sys.monitoring
        count = 0

        def executed(code: CodeType, offset: int) -> Any:
            nonlocal count
            if not _counts(code):
                return monitoring.DISABLE
            count += 1
            return None

        tool = next(number for number in range(6) if monitoring.get_tool(number) is None)
        monitoring.use_tool_id(tool, __name__)
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, executed)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            run()
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(tool)
            monitoring.restart_events()
        return count


def _traced(run: Callable[[], object]) -> int:
    count = 0

    def inside(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return inside

    def entered(frame: FrameType, event: str, argument: object) -> Any:
        if not _counts(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return inside

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


class Bench:
    """A connection that is up, its wire, and `count` routes from it to it. Needs an event loop for its clock."""

    def __init__(
        self,
        count: int,
        *,
        stream: bool = False,
        tracing: Tracing | None = None,
        routes: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Build the bench; `routes` replace the default ones."""
        settings = Settings(
            connections={"main": {"servers": ["nats://127.0.0.1:4222"]}},
            routes=routes or [stream_route() if stream else core_route(number) for number in range(count)],
        )
        self.connection = Connection("main", settings.connections["main"], cast(Any, None), lambda event: None)
        self.outbox = self.connection.outbox
        self._tracing = tracing or NoTracing()
        self.outbox.link_up()
        self.answers: list[bytes] = []
        self.naks: list[tuple[bytes, float]] = []
        self.events: list[Event] = []
        """The events of the routes."""
        link = SimpleNamespace(ack=self._acked, nak=lambda *nak: self.naks.append(nak))
        self.connection.listener.session = cast(Session, SimpleNamespace(link=link, work=trio.Event()))
        self.routings = [self._routing(plan) for plan in compile_routes(settings)]
        self.wire = Wire(
            cast(Any, None), on_info=_nothing, denied=_nothing, read_done=self.connection.listener.read_done
        )

    def _routing(self, plan: Any) -> Routing:
        templates, own_ids = [one.template for one in plan.destinations], plan.settings.source.own_ids
        state = RouteState(plan.name, "main", templates, own_ids=own_ids)
        state.to += [one.state(state) for one in plan.destinations]
        outlets, flow = outlets_of(plan, {"main": self.connection}, state, self.events.append)
        kind = ContentRouting if plan.looks else Routing
        return kind(plan, outlets, state, self.events.append, self._tracing, flow)

    def _acked(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        self.answers += replies
        return ()

    def written(self) -> list[bytes]:
        """Have the outbox write all that is pending. Return the frames of each operation."""
        frames = []
        while batch := self.outbox.sender.next_batch():
            frames += [operation.frame for operation in batch]
        return frames

    def core_routes(self) -> tuple[Passthrough, list[BatchRoute]]:
        """The routes from core subscriptions, and the fast path for messages that only pass through."""
        passthrough = Passthrough(self.connection, self._tracing)
        shared = SharedSubscription("in.>", None)
        return passthrough, [
            BatchRoute(routing, SubjectSource(routing, self.connection, _nothing, shared), passthrough)
            for routing in self.routings
        ]

    def stream_source(self) -> StreamSource:
        """The source of the first route, from a stream, with a consumer."""
        source = StreamSource(self.routings[0], self.connection, _nothing)
        KeptRoute(self.routings[0], source)
        source.keeper.hand.cursor = StreamCursor("x")
        return source

    def core(self, messages: int) -> Callable[[], None]:
        """Return a run in which messages for the routes in turn are received, forwarded, written and fenced."""
        _, routes = self.core_routes()
        sids = [self.wire.subscriptions.add(b"in", route.source.deliver) for route in routes]
        data = b"".join(
            b"MSG in.%04d.%d %b 128\r\n%b\r\n" % (number % len(sids), number % 7, sids[number % len(sids)], BODY)
            for number in range(messages)
        )

        def run() -> None:
            self.wire._parser.feed(data)
            self.wire._deliver()
            assert sum(frames.count(b"PUB out.") for frames in self.written()) == messages
            self.written()
            self.outbox.fenced(self.outbox.fences.sent)
            assert not self.outbox.pending + self.outbox.in_flight

        return run

    def handled(self, messages: int, handler: Handler) -> Callable[[], None]:
        """Return a run in which messages in hand pass through a handler, are written and fenced."""
        _, (route, *_) = self.core_routes()
        raws = [raw(b"in.0000.%d" % (number % 7), b"") for number in range(messages)]

        def run() -> None:
            finish(route._handle(handler, trio.current_time(), raws))
            assert sum(frames.count(b"PUB out.") for frames in self.written()) == messages
            self.written()
            self.outbox.fenced(self.outbox.fences.sent)
            assert not self.outbox.pending + self.outbox.in_flight

        return run

    def published(self, messages: int) -> Callable[[], None]:
        """Return a run in which publishes of a program are written and fenced."""
        publisher = Publisher(self.connection)

        async def publish() -> None:
            for _ in range(messages):
                await publisher.publish("in.0000.1", BODY, None)

        def run() -> None:
            finish(publish())
            assert sum(frames.count(b"PUB in.") for frames in self.written()) == messages
            self.written()
            self.outbox.fenced(self.outbox.fences.sent)
            assert not self.outbox.pending + self.outbox.in_flight

        return run

    def stream(self, messages: int) -> Callable[[], None]:
        """Return a run in which deliveries of a stream are forwarded, written, acked by the destination, and acked to
        their source.
        """
        source = self.stream_source()
        keeper = source.keeper
        acks = PubAcks(self.connection.listener)
        first = 1

        def run() -> None:
            nonlocal first
            numbers = range(first, first + messages)
            first += messages
            order = next_order(self.outbox)
            source.received([delivered(number) for number in numbers])
            while keeper.hand.waiting:
                assert keeper.forward_some()
            assert sum(frames.count(b"HPUB out.") for frames in self.written()) == messages
            orders = range(order, order + messages)
            acks.read([puback(one) for one in orders])
            self.connection.listener.read_done()
            assert len(self.answers) == messages
            self.answers.clear()
            assert not self.outbox.pending + self.outbox.in_flight

        return run


def core_route(number: int) -> dict[str, Any]:
    """Return the settings of one of several routes from core subscriptions."""
    source = {"connection": "main", "subject": f"in.{number:04d}.*"}
    to = {"connection": "main", "subject": f"out.{number:04d}.{{{{wildcard(1)}}}}"}
    return {"name": f"r{number}", "from": source, "to": [to]}


def stream_route() -> dict[str, Any]:
    """Return the settings of a route from a stream."""
    source: dict[str, Any] = {"connection": "main", "stream": "IN", "durable": "router", "filter": "in.*.*"}
    source["max_in_flight"] = 4096
    to: dict[str, Any] = {"connection": "main", "subject": "out.{{wildcard(1)}}.{{wildcard(2)}}", "jetstream": True}
    return {"name": "r", "from": source, "to": [to]}


def raw(subject: bytes, reply: bytes, body: bytes = BODY) -> framing.RawMessage:
    """Return a message without headers."""
    return subject, reply, 0, len(body), b"%b%d\r\n%b\r\n" % (reply and reply + b" ", len(body), body)


def delivered(number: int, subjects: int = 7) -> framing.RawMessage:
    """Return a delivery of that number, of the message with that sequence, under one of `subjects` subjects."""
    ack = b"$JS.ACK.IN.router.1.%d.%d.1700000000000000000.9"
    return raw(b"in.0000.%d" % (number % subjects), ack % (number, number))


def puback(order: int) -> framing.RawMessage:
    """Return a stream's answer to the publish with that number."""
    return raw(b"_INBOX.x.%d" % order, b"", b'{"stream":"OUT", "seq":%d}' % order)


def finish(routing: Any) -> None:
    """Run a coroutine that must not block."""
    try:
        routing.send(None)
    except StopIteration:
        return
    raise AssertionError("routing blocked, though there is room")


def _nothing(*arguments: object) -> None:
    """Ignore a call of the wire."""
