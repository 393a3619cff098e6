"""The span of a message is OpenTelemetry's current one while its handler is called: the parent of spans begun there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, TraceFlags
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.delivery import Delivery
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop, InAsyncio
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.threads import in_thread
from router_trio.telemetry.tap.followed import RouteFollower
from router_trio.telemetry.traces.current import NoSpans, attach_if_imported
from tests.performance.instructions import Bench
from tests.support.command import environment
from tests.support.eventually import eventually
from tests.support.world import handled, to, world
from tests.unit.telemetry.traces import SPAN, TRACE, Recorded, carrying, received, recording

SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
REMOTE = SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=True)


class Shop:
    """A program that begins spans in its handlers."""

    def __init__(self) -> None:
        self.current: list[SpanContext] = []
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("shop")

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def look(self) -> None:
        span = trace.get_current_span()
        assert not span.is_recording()
        self.current.append(span.get_span_context())
        with self._tracer.start_as_current_span("child"):
            pass

    def plain(self, message: Message) -> Message:
        self.look()
        return message

    async def at_once(self, message: Message) -> Message:
        self.look()
        return message

    async def waits(self, message: Message) -> Message:
        with self._tracer.start_as_current_span("around"):
            await trio.lowlevel.checkpoint()
        self.look()
        return message

    async def in_asyncio(self, message: Message) -> Message:
        await asyncio.sleep(0)
        self.look()
        return message

    def several(self, message: Message) -> Iterator[Message]:
        yield message
        self.look()


@asynccontextmanager
async def handler_of(shop: Shop, kind: str) -> AsyncIterator[Handler]:
    """Provide a handler as `load_handlers` returns it."""
    if kind == "thread":
        yield in_thread(shop.plain, 1)
    elif kind == "in_asyncio":
        loop = AsyncioLoop(None)
        async with loop.lasting(lambda places: None):
            yield InAsyncio(shop.in_asyncio, loop).call
    else:
        yield getattr(shop, kind)


async def together(bench: Bench, handler: Handler, raws: list[RawMessage]) -> None:
    _, (route,) = bench.core_routes()
    await route._handle(handler, trio.current_time(), raws)
    bench.outbox.fenced(bench.outbox.fences.sent)


async def one_by_one(bench: Bench, handler: Handler, raws: list[RawMessage]) -> None:
    (routing,) = bench.routings
    for raw in raws:
        await routing.route(handler, Delivery(routing.state, raw, trio.current_time()))


KINDS = pytest.mark.parametrize("kind", ["plain", "at_once", "several", "waits", "thread", "in_asyncio"])
WAYS = pytest.mark.parametrize("way", [together, one_by_one])


def settle(bench: Bench) -> None:
    bench.written()
    bench.written()
    bench.outbox.fenced(bench.outbox.fences.sent)


def process_of(recorded: Recorded) -> ReadableSpan:
    return recorded.spans()["process r0"]


@KINDS
@WAYS
@pytest.mark.parametrize("message", [received(), carrying(SAMPLED)], ids=["begins", "follows"])
async def test_the_span_of_a_sampled_message_is_current(kind: str, way: Callable[..., Any], message: Any) -> None:
    shop = Shop()
    async with recording() as recorded, handler_of(shop, kind) as handler:
        bench = Bench(1, tracing=recorded.traces)
        await way(bench, handler, [message])
        settle(bench)
        assert trace.get_current_span().get_span_context() == INVALID_SPAN_CONTEXT
    process = process_of(recorded).context
    (current,) = shop.current
    assert (current.trace_id, current.span_id, current.trace_flags) == (process.trace_id, process.span_id, 1)
    assert not current.is_remote
    for span in shop.spans:
        assert span.parent == current
        assert span.context.trace_id == process.trace_id
    assert shop.spans


@KINDS
@WAYS
@pytest.mark.parametrize("spans", [False, True])
async def test_the_span_of_the_sender_of_a_message_that_is_not_sampled_is_current(
    kind: str, way: Callable[..., Any], spans: bool
) -> None:
    shop = Shop()
    plain, unsampled, invalid = received(), carrying(UNSAMPLED), carrying(f"00-{TRACE}-{'0' * 16}-01")
    async with recording(ratio=0.0) as recorded, handler_of(shop, kind) as handler:
        bench = Bench(1, tracing=recorded.traces if spans else NoSpans())
        await way(bench, handler, [plain, unsampled, plain, invalid, unsampled])
    nothing = INVALID_SPAN_CONTEXT
    assert shop.current == [nothing, REMOTE, nothing, nothing, REMOTE]


async def test_a_sampled_message_beyond_the_rate_has_the_span_of_its_sender() -> None:
    shop = Shop()
    async with recording(max_per_second=1.0) as recorded:
        await together(Bench(1, tracing=recorded.traces), shop.plain, [carrying(SAMPLED), carrying(SAMPLED)])
    flags = TraceFlags(TraceFlags.SAMPLED)
    assert shop.current[1] == SpanContext(REMOTE.trace_id, REMOTE.span_id, is_remote=True, trace_flags=flags)
    assert shop.current[0].span_id != REMOTE.span_id


async def test_each_attempt_in_a_router_that_makes_no_spans_has_the_span_of_the_sender(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()

    def fails(message: Message) -> None:
        shop.look()
        raise ValueError

    retry = {"initial": "10ms", "max": "10ms", "attempts": 3}
    async with world(handlers=[handled(fails, subject="in.*", to=to("out.x"), retry=retry)]) as w:
        w.broker.publish("in.x", b"", {"traceparent": SAMPLED})
        await eventually(lambda: len(shop.current) == 3)
    assert {(one.trace_id, one.span_id) for one in shop.current} == {(REMOTE.trace_id, REMOTE.span_id)}
    assert [span.parent for span in shop.spans] == shop.current


async def test_a_message_that_a_tap_follows_has_the_same_current_span() -> None:
    shop, seen = Shop(), [0]

    class Tap:
        has_room = True

        def take(self, message: Any) -> None:
            seen[0] += 1

    follower = RouteFollower(lambda count: count)
    follower.taps = [Tap()]
    async with recording(ratio=0.0) as recorded:
        bench = Bench(1, tracing=recorded.traces)
        bench.routings[0].tracing.follow_by(follower)
        await together(bench, shop.plain, [carrying(UNSAMPLED), carrying(SAMPLED), received()])
        settle(bench)
    assert seen == [3]
    assert shop.current[0] == REMOTE
    assert shop.current[1].span_id == process_of(recorded).context.span_id
    assert shop.current[2] == INVALID_SPAN_CONTEXT


# --- without OpenTelemetry -------------------------------------------------------------------------------------------


def test_nothing_is_current_until_the_program_has_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attach_if_imported() is not None
    imported = sys.modules.pop("opentelemetry.trace")
    try:
        assert attach_if_imported() is None
        half = ModuleType("opentelemetry.trace")
        half.__spec__ = ModuleSpec("opentelemetry.trace", None)
        half.__spec__._initializing = True  # type: ignore[attr-defined]
        sys.modules["opentelemetry.trace"] = half
        assert attach_if_imported() is None, "another thread is importing it"
    finally:
        sys.modules["opentelemetry.trace"] = imported


PROGRAM = """
import sys
import trio
from router_trio import Router, Settings
from router_trio.testing import FakeBroker

seen = []

async def main():
    broker = FakeBroker()
    settings = Settings(telemetry={"listen": ""}, connections={"main": {"servers": ["nats://fake:4222"]}})
    router = Router(settings, connect=lambda *_: broker.connect)
    router.route("in.*", to="out.x")(seen.append)
    async with router.open():
        broker.publish("in.x", b"", {"traceparent": sys.argv[1]})
        while not seen:
            await trio.sleep(0.01)

trio.run(main)
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_a_router_without_traces_does_not_import_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, SAMPLED], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
