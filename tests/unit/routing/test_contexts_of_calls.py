"""Each call of a handler has a context of its own: no call sees a context variable that another one has set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
import sniffio
import trio
from trio.testing import MockClock

from router_trio import Router, Settings, aio
from router_trio.connection.platform import REAL_PLATFORM
from router_trio.events import Event
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.handlers import calls
from router_trio.routing.handlers.asyncio_calls import AsyncioCalls
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop, InAsyncio
from router_trio.routing.handlers.asyncio_thread import open_in_thread
from router_trio.routing.handlers.calls import Handler
from router_trio.routing.handlers.runtime import HandlerRuntime
from router_trio.settings.sections import RouterSettings
from router_trio.testing import FakeBroker
from tests.performance.instructions import Bench, raw
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.world import all_acked, core, fill, handled, one_broker, to, world
from tests.unit.aio import programs

NOBODY = "nobody"
TENANT = ContextVar("tenant", default=NOBODY)
OF_PROGRAM: ContextVar[str] = ContextVar("of_program", default="not set")
OF_LIFESPAN: ContextVar[str] = ContextVar("of_lifespan", default="not set")

MANY = 100_000
FEW = 2_000


class Customers:
    """Handlers of several kinds, which let each call work for the customer of its message."""

    def __init__(self) -> None:
        self.calls = 0
        self.wrong: list[tuple[str, str]] = []
        """The customer that a call saw, and the one that it should have seen."""

    def begin(self, message: Message) -> None:
        self.calls += 1
        self.expect(NOBODY)
        TENANT.set(self.of(message))

    def of(self, message: Message) -> str:
        return f"{message.subject} {message.payload!r}"

    def expect(self, tenant: str) -> None:
        if TENANT.get() != tenant:
            self.wrong.append((TENANT.get(), tenant))

    def plain(self, message: Message) -> Message:
        self.begin(message)
        return message.replace(payload=b"!")

    def filters(self, message: Message) -> None:
        self.begin(message)

    def fails(self, message: Message) -> None:
        self.begin(message)
        raise ValueError

    def several(self, message: Message) -> Iterator[Message]:
        self.expect(NOBODY)
        yield message
        self.begin(message)
        yield message
        self.expect(self.of(message))

    async def asynchronous(self, message: Message) -> Message:
        self.begin(message)
        return message

    def with_await(self, message: Message) -> Awaitable[Message]:
        customers = self

        class Awaited:
            def __await__(self) -> Generator[object, object, Message]:
                customers.begin(message)
                yield from customers.nothing().__await__()
                customers.expect(customers.of(message))
                return message

        return Awaited()

    async def nothing(self) -> None:
        await trio.lowlevel.checkpoint()

    async def waits(self, message: Message) -> Message:
        self.begin(message)
        await trio.lowlevel.checkpoint()
        self.expect(self.of(message))
        await trio.lowlevel.checkpoint()
        self.expect(self.of(message))
        return message

    async def waits_and_returns_several(self, message: Message) -> Any:
        self.begin(message)
        await trio.lowlevel.checkpoint()

        def answers() -> Iterator[Message]:
            self.expect(self.of(message))
            TENANT.set("of the generator")
            yield message

        return answers()

    async def waits_in_asyncio(self, message: Message) -> Message:
        self.begin(message)
        await asyncio.sleep(0)
        self.expect(self.of(message))
        return message


AT_ONCE = ["plain", "filters", "several", "asynchronous", "fails"]
IN_THEIR_TASK = [*AT_ONCE, "with_await", "waits", "waits_and_returns_several"]


@pytest.fixture
def customers() -> Customers:
    return Customers()


def chunks(count: int) -> list[int]:
    return [1000] * (count // 1000)


# --- of one route ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [(kind, MANY if kind != "fails" else MANY // 10) for kind in AT_ONCE])
async def test_a_call_of_a_batch_sees_nothing_of_another_one(customers: Customers, kind: str, count: int) -> None:
    _, (route,) = Bench(1).core_routes()
    handler: Handler = getattr(customers, kind)
    raws: list[RawMessage] = [raw(b"in.0000.%d" % (number % 7), b"", b"%d" % number) for number in range(1000)]
    for _ in chunks(count):
        await route._handle(handler, trio.current_time(), raws)
        route.routing.outlets[0].outbox.take_pending()
    assert (customers.calls, customers.wrong) == (count, [])
    assert TENANT.get() == NOBODY


def cases(*kinds: tuple[str, dict[str, Any]]) -> list[Any]:
    few = [pytest.param(kind, route, FEW, id=f"{kind}-{FEW}") for kind, route in kinds]
    nightly = [pytest.mark.nightly, pytest.mark.timeout(900)]
    many = [pytest.param(kind, route, MANY, id=f"{kind}-{MANY}", marks=nightly) for kind, route in kinds]
    return [*few, *many]


WAITING: list[tuple[str, dict[str, Any]]] = [
    ("waits", {}),
    ("waits", {"concurrency": 8}),
    ("with_await", {}),
    ("waits_and_returns_several", {}),
    ("plain", {"thread": True, "concurrency": 4}),
    ("several", {"thread": True}),
    ("waits_in_asyncio", {"loop": "asyncio", "concurrency": 64}),
]


@pytest.mark.parametrize(("kind", "route", "count"), cases(*WAITING))
async def test_a_call_that_waits_sees_nothing_of_another_one(
    customers: Customers, kind: str, route: dict[str, Any], count: int
) -> None:
    handler = handled(getattr(customers, kind), subject="in.*", to=to("out.{{wildcard(1)}}"), **route)
    async with world(handlers=[handler]) as w:
        for chunk in chunks(count):
            for number in range(chunk):
                w.broker.publish(f"in.{number % 7}", b"%d" % number)
            calls = customers.calls + chunk
            await eventually(lambda calls=calls: sum(w.route.settled.values()) >= calls, 60)  # type: ignore[misc]
            w.broker.published.clear()
    assert (customers.calls, customers.wrong, dict(w.route.failed)) == (count, [], {})


@pytest.mark.parametrize("kind", IN_THEIR_TASK)
async def test_messages_of_a_stream_and_of_one_key_see_nothing_of_each_other(
    autojump_clock: MockClock, customers: Customers, kind: str
) -> None:
    once = getattr(customers, kind) if kind != "fails" else customers.plain
    handler = handled(once, to=to("out.x", jetstream=True), stream="IN", durable="router", key="subject", concurrency=4)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 300, subjects="abc")
        await all_acked(w, 900)
    assert (customers.calls, customers.wrong) == (900, [])


@pytest.mark.parametrize("kind", IN_THEIR_TASK)
@pytest.mark.parametrize("from_stream", [False, True])
async def test_an_attempt_sees_nothing_of_the_one_before(
    autojump_clock: MockClock, customers: Customers, kind: str, from_stream: bool
) -> None:
    once: Handler = getattr(customers, kind)
    source: dict[str, Any] = {"stream": "IN", "durable": "router"} if from_stream else {"subject": "in.*"}

    def fails_afterwards(message: Message) -> Any:
        answer = once(message)
        if not hasattr(answer, "__await__"):
            list(answer or ())
            raise ValueError
        return wait_and_fail(answer)

    async def wait_and_fail(answer: Awaitable[Any]) -> None:
        list(await answer or ())
        raise ValueError

    retry = {"initial": "10ms", "max": "10ms", "attempts": 4}
    handler = handled(fails_afterwards, to=to("out.x"), retry=retry, **source)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 10)
        await eventually(lambda: customers.calls == 40)
    assert (customers.calls, customers.wrong) == (40, [])


async def test_events_are_emitted_outside_of_the_context_of_a_call(
    autojump_clock: MockClock, customers: Customers
) -> None:
    seen: list[tuple[str, str]] = []

    def observe(event: Event) -> None:
        seen.append((type(event).__name__, TENANT.get()))

    broker = FakeBroker()
    router = Router(settings("nats://fake:4222"), observers=[observe], log=False, connect=lambda *_: broker.connect)
    router.route("in.fails", to="out.x", name="fails")(customers.fails)
    router.route("in.waits", to="out.x", name="waits")(fails_later)
    async with router.open() as live:
        broker.publish("in.fails", b"")
        broker.publish("in.waits", b"")
        await eventually(lambda: all(route.failed for route in live.routes))
    assert [kind for kind, _ in seen].count("MessageFailed") == 2
    assert {tenant for _, tenant in seen} == {NOBODY}


async def test_a_call_sees_nothing_that_an_observer_has_set(autojump_clock: MockClock, customers: Customers) -> None:
    def observe(event: Event) -> None:
        TENANT.set(type(event).__name__)

    broker = FakeBroker()
    router = Router(settings("nats://fake:4222"), observers=[observe], log=False, connect=lambda *_: broker.connect)
    router.route("in.*", to="out.x", name="batch")(customers.fails)
    router.route("in.*", to="out.x", name="kept", retry={"attempts": 2, "initial": "10ms"})(customers.fails)
    async with router.open():
        for number in range(10):
            broker.publish(f"in.{number}", b"")
        await eventually(lambda: customers.calls == 30)
    assert customers.wrong == []


async def fails_later(message: Message) -> None:
    TENANT.set(message.subject)
    await trio.lowlevel.checkpoint()
    raise ValueError


# --- within a call ---------------------------------------------------------------------------------------------------


async def seen_in(handler: Callable[[Message], Any], **route: Any) -> None:
    """Call a handler with two messages in a route; both must succeed."""
    async with world(handlers=[handled(handler, subject="in.*", to=to("out.x"), **route)]) as w:
        w.broker.publish("in.1", b"")
        w.broker.publish("in.2", b"")
        await eventually(lambda: sum(w.route.settled.values()) == 2)
        assert dict(w.route.failed) == {}, w.watch.of("ROUTE_MESSAGE_FAILED")


async def test_tasks_threads_and_scopes_of_a_call_are_in_its_context() -> None:
    async def handler(message: Message) -> Message:
        assert TENANT.get() == NOBODY
        TENANT.set(message.subject)
        await trio.lowlevel.checkpoint()
        seen: list[str] = []

        async def child() -> None:
            seen.append(TENANT.get())
            TENANT.set("child")
            await trio.lowlevel.checkpoint()
            assert sniffio.current_async_library() == "trio"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)
        seen.append(await trio.to_thread.run_sync(TENANT.get))
        with trio.move_on_after(0.001) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.001):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
        seen.append(TENANT.get())
        assert seen == [message.subject] * 4
        return message

    await seen_in(handler)


async def test_a_thread_of_a_call_calls_trio_in_its_own_context() -> None:
    """As in any other task of Trio: what is called from a thread sees the variables of the thread."""

    async def in_trio(expected: str) -> str:
        found = TENANT.get()
        TENANT.set("of the call from the thread")
        await trio.lowlevel.checkpoint()
        assert TENANT.get() == "of the call from the thread"
        with trio.move_on_after(0.001):
            await trio.sleep_forever()
        return found

    def thread() -> tuple[str, str, str]:
        TENANT.set("of the thread")
        return trio.from_thread.run(in_trio, "of the thread"), trio.from_thread.run_sync(TENANT.get), TENANT.get()

    async def handler(message: Message) -> Message:
        TENANT.set(message.subject)
        assert await trio.to_thread.run_sync(thread) == ("of the thread",) * 3
        assert TENANT.get() == message.subject
        await trio.lowlevel.checkpoint()
        assert TENANT.get() == message.subject
        return message

    await seen_in(handler)


async def test_a_call_that_is_cancelled_cleans_up_in_its_context(autojump_clock: MockClock) -> None:
    ends: list[tuple[str, str]] = []

    async def handler(message: Message) -> None:
        assert TENANT.get() == NOBODY
        TENANT.set(message.subject)
        try:
            await trio.sleep_forever()
        finally:
            ends.append((message.subject, TENANT.get()))

    route = handled(handler, subject="in.*", to=to("out.x"), key="subject", concurrency=4)
    async with world(handlers=[route], shutdown_timeout=1.0) as w:
        for number in range(4):
            w.broker.publish(f"in.{number}", b"")
        await eventually(lambda: w.route.received == 4)
    assert len(ends) == 4
    assert all(subject == tenant for subject, tenant in ends)


async def test_a_call_that_is_given_up_cleans_up_in_its_context(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MOST_CANCELLATIONS", 3)
    ends: list[str] = []

    async def handler(message: Message) -> None:
        TENANT.set(message.subject)
        try:
            while True:
                with suppress(trio.Cancelled):
                    await trio.sleep_forever()
        finally:
            ends.append(TENANT.get())

    async with world(handlers=[handled(handler, subject="in.*", to=to("out.x"))], shutdown_timeout=1.0) as w:
        w.broker.publish("in.1", b"")
        await eventually(lambda: w.route.received == 1)
    assert ends == ["in.1"]


async def test_a_call_that_takes_too_long_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    async def handler(message: Message) -> None:
        seen.append(TENANT.get())
        TENANT.set(message.subject)
        with trio.fail_after(1):
            await trio.sleep_forever()

    async with world(handlers=[handled(handler, subject="in.*", to=to("out.x"))]) as w:
        for number in range(5):
            w.broker.publish(f"in.{number}", b"")
        await eventually(lambda: w.route.failed["handler_error"] == 5)
    assert seen == [NOBODY] * 5


# --- what the program and its lifespan have set ----------------------------------------------------------------------


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    if sniffio.current_async_library() == "trio":
        await trio.lowlevel.checkpoint()
    OF_LIFESPAN.set("by the lifespan")
    yield


HANDLERS: list[tuple[str, dict[str, Any]]] = [
    ("sync_", {}),
    ("sync_", {"thread": True}),
    ("async_", {"loop": "trio"}),
    ("async_", {"loop": "asyncio"}),
]
SET = ("by the program", "by the lifespan")


class Shows:
    """Handlers that show which variables they see."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def sync_(self, message: Message) -> None:
        self.seen.append((OF_PROGRAM.get(), OF_LIFESPAN.get()))
        OF_PROGRAM.set("by a call")
        OF_LIFESPAN.set("by a call")

    async def async_(self, message: Message) -> None:
        self.sync_(message)


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
@pytest.mark.parametrize(("kind", "route"), HANDLERS)
async def test_a_call_sees_what_the_program_and_the_lifespan_have_set(
    loop: str, kind: str, route: dict[str, Any]
) -> None:
    shows, broker = Shows(), FakeBroker()
    servers = {"main": {"servers": ["nats://fake:4222"]}}
    config = Settings(router={"loop": loop}, telemetry={"listen": ""}, connections=servers)
    opened = Router(config, log=False, lifespan=lifespan, connect=lambda *_: broker.connect)
    opened.route("in.*", to="out.x", **route)(getattr(shows, kind))
    OF_PROGRAM.set("by the program")
    async with opened.open():
        assert OF_LIFESPAN.get() == "not set"
        OF_PROGRAM.set("after that")
        broker.publish("in.1", b"")
        broker.publish("in.2", b"")
        await eventually(lambda: len(shows.seen) == 2)
    assert shows.seen == [SET, SET]


async def test_a_route_that_a_reload_brings_sees_it_too() -> None:
    OF_PROGRAM.set("by the program")
    SEEN.clear()
    async with world([core("in.*", "out.x")]) as w:
        OF_PROGRAM.set("after that")
        await w.live.reload(w.configuration(core("in.*", "out.x") | {"handler": f"{__name__}:seen_by_reload"}))
        w.broker.publish("in.1", b"")
        await eventually(lambda: SEEN)
    assert SEEN == ["by the program"]


SEEN: list[str] = []


def seen_by_reload(message: Message) -> None:
    SEEN.append(OF_PROGRAM.get())


@pytest.mark.parametrize("loop", programs.LOOPS)
def test_a_call_in_a_program_of_asyncio_sees_what_that_has_set(loop: str) -> None:
    shows, broker = Shows(), FakeBroker()
    router = programs.router(broker)
    for kind, route in HANDLERS:
        router.route("in.*", to="out.x", name=f"{kind}{len(router.settings.routes)}", **route)(getattr(shows, kind))

    async def main() -> None:
        OF_PROGRAM.set("by the program")
        async with aio.open(router):
            broker.publish("in.1", b"")
            broker.publish("in.2", b"")
            await programs.eventually(lambda: len(shows.seen) == 2 * len(HANDLERS))

    programs.run(main, loop)
    assert {program for program, _ in shows.seen} == {"by the program"}


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
async def test_a_command_that_calls_handlers_sees_what_the_lifespan_has_set(loop: Any) -> None:
    runtime = HandlerRuntime(RouterSettings(loop=loop), REAL_PLATFORM, lifespan)
    async with runtime.opened(RouterSettings(loop=loop)):
        assert OF_LIFESPAN.get() == "by the lifespan"


async def test_the_asyncio_loop_is_not_opened_in_the_context_of_the_first_call() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def watching(loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
        seen.append(TENANT.get())
        yield

    async def handler(message: Message) -> None:
        pass

    runs = AsyncioLoop(None)
    async with runs.lasting(lambda places: None, watching):
        TENANT.set("first")
        await InAsyncio(handler, runs).call(Message("in.x", b""))
        TENANT.set(NOBODY)
    assert seen == [NOBODY]


async def test_calls_that_cross_together_do_not_begin_in_the_context_of_one_of_them() -> None:
    seen: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **context: Any) -> asyncio.Task[Any]:
        seen.append(TENANT.get())
        return asyncio.Task(coroutine, loop=loop, **context)

    async def show() -> str:
        return TENANT.get()

    async with open_in_thread() as loop:
        loop.set_task_factory(factory)
        calls = AsyncioCalls(loop)
        TENANT.set("first")
        assert await calls.call(show) == "first"
        TENANT.set(NOBODY)
        loop.set_task_factory(None)
    assert seen == [NOBODY]
