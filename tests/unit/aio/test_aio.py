"""`aio.open`: what a program of asyncio can do with a running router, on every event loop."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import inspect
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import anyio.lowlevel
import pytest
import sniffio
import trio.testing

import router_trio
from router_trio import Fate, Message, PublishError, Router, RouterError, Settings, aio
from router_trio.aio.idle import Idle
from router_trio.embedded import HOST
from router_trio.errors import (
    AsyncioRequiredError,
    ConfigurationError,
    ConnectionExhaustedError,
    LifespanError,
    ListenError,
    TrioRequiredError,
)
from router_trio.events import Event, LoopBlocked
from router_trio.testing import FakeBroker
from tests.support.settings import core_route, settings
from tests.unit.aio.programs import LOOPS, eventually, router, run

each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_loop
def test_a_program_publishes_and_learns_the_fate(loop: str) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["stored.*"])

    async def main() -> None:
        async with aio.open(router(broker)) as live:
            receipt = await live.publish("out", b"1", {"Region": "eu"})
            assert receipt.status == "sent"
            assert await receipt.settled() == await receipt.settled() == receipt.fate == Fate("fenced")
            acked = await live.publish_with_ack("stored.1", b"2")
            assert (acked.status, acked.stream, acked.sequence, acked.duplicate) == ("acked", "S", 1, False)
            assert (await acked.settled()).name == "acked"
            assert repr(acked).startswith("Receipt(status='acked'")
            assert live.connections["main"].connected
            assert (live.name, live.routes, live.fatal, live.http_address) == ("router-trio", (), None, None)
            assert live.status()["connections"]["main"]["state"] == "connected"
        assert live.ledger()["main"]["settled"]["fenced"] == 1
        assert live.unsettled == 0

    run(main, loop)
    assert [one.payload for one in broker.published] == [b"1", b"2"]


@each_loop
def test_receipts_are_settled_for_many_tasks_that_wait(loop: str) -> None:
    async def main() -> None:
        async with aio.open(router(FakeBroker())) as live:
            receipts = [await live.publish("out", b"x") for _ in range(1000)]
            waiting = [asyncio.ensure_future(one.settled()) for one in (*receipts, *receipts)]
            given_up = asyncio.ensure_future(receipts[0].settled())
            await asyncio.sleep(0)
            given_up.cancel()
            assert {fate.name for fate in await asyncio.gather(*waiting)} == {"fenced"}
            with pytest.raises(asyncio.CancelledError):
                await given_up

    run(main, loop)


def test_it_offers_what_a_router_on_trio_offers() -> None:
    for ours, theirs in ((aio.Live, router_trio.Live), (aio.Receipt, router_trio.Receipt)):
        names = {name for name in vars(theirs) if not name.startswith("_")} - {"event", "settle", "when_settled"}
        assert names <= set(vars(ours))
        for name in names:
            expected = getattr(theirs, name)
            if inspect.isfunction(expected):
                parameters = inspect.signature(getattr(ours, name)).parameters
                assert parameters == inspect.signature(expected).parameters, name
    live = Router(settings("nats://fake:4222"))
    attributes: set[str] = set()

    async def main() -> None:
        async with live.open(connect=lambda name, _: FakeBroker().connect) as on_trio:
            attributes.update(name for name in vars(on_trio) if not name.startswith("_"))

    trio.run(main)
    assert attributes <= set(vars(aio.Live))


def test_errors_keep_type_cause_and_the_traceback_of_both_sides() -> None:
    async def main() -> None:
        async with aio.open(router(FakeBroker())) as live:
            with pytest.raises(PublishError) as invalid:
                await live.publish("a b", b"")
            with pytest.raises(PublishError) as unstored:
                await live.publish_with_ack("nowhere", b"")
            with pytest.raises(ConfigurationError) as refused:
                await live.reload(lambda: Settings.load("/nowhere/router.toml"))
            with pytest.raises(ValueError, match="timeout must be"):
                await live.publish_with_ack("nowhere", b"", timeout=-1)
            with pytest.raises(ConfigurationError, match="no connection 'other'"):
                await live.publish("out", b"", connection="other")
        assert invalid.value.reason == "invalid_subject"
        assert isinstance(invalid.value.__cause__, ValueError)
        assert unstored.value.reason == "no_responders"
        assert "/nowhere/router.toml" in str(refused.value)
        shown = "".join(traceback.format_exception(unstored.value))
        assert shown.index("in main") < shown.index("client/publisher.py")

    run(main)


@each_loop
def test_an_error_of_the_body_is_raised_unchanged_after_the_drain(loop: str) -> None:
    broker = FakeBroker()
    receipts: list[aio.Receipt] = []

    own = ExceptionGroup("of the body", [KeyError("a")])
    cause = LookupError("no such order")

    async def main() -> None:
        async with aio.open(router(broker)) as live:
            receipts.extend([await live.publish("out", b"x") for _ in range(10)])
            raise own from cause

    with pytest.raises(ExceptionGroup) as raised:
        run(main, loop)
    assert (raised.value, own.__cause__) == (own, cause)
    assert [one.fate for one in receipts] == [Fate("fenced")] * 10


def failing(broker: FakeBroker) -> AbstractAsyncContextManager[aio.Live]:
    """Open a router that ends when the broker is down."""
    return aio.open(router(broker, reconnect_attempts=2, on_reconnect_exhausted="stop"))


async def nothing_is_left_of_the_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


@each_loop
def test_a_router_that_fails_cancels_the_body_and_raises_its_error(loop: str) -> None:
    broker = FakeBroker()
    lives: list[aio.Live] = []

    async def body() -> None:
        async with failing(broker) as live:
            lives.append(live)
            broker.down()
            await asyncio.sleep(60)

    async def main() -> str:
        with pytest.raises(ConnectionExhaustedError) as failed:
            await body()
        await nothing_is_left_of_the_cancellation()
        with pytest.raises(PublishError, match="the router has ended") as refused:
            await lives[0].publish("out", b"x")
        assert refused.value.reason == "shutdown"
        return "".join(traceback.format_exception(failed.value))

    shown = run(main, loop)
    assert "aio/opened.py" in shown
    assert "connection/supervisor.py" in shown
    assert "CancelledError" not in shown


def test_a_body_that_suppresses_the_cancellation_gets_the_error_as_well() -> None:
    broker = FakeBroker()

    async def body() -> None:
        async with failing(broker):
            broker.down()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def main() -> None:
        with pytest.raises(ConnectionExhaustedError):
            await body()
        await nothing_is_left_of_the_cancellation()

    run(main)


def test_a_body_that_fails_because_it_is_cancelled_raises_its_own_error() -> None:
    broker = FakeBroker()

    async def body() -> None:
        async with failing(broker):
            broker.down()
            try:
                await asyncio.sleep(60)
            finally:
                raise LookupError("own")

    async def main() -> None:
        with pytest.raises(LookupError, match="own"):
            await body()
        await nothing_is_left_of_the_cancellation()

    run(main)


def test_a_router_that_can_not_start_raises_its_error() -> None:
    broker = FakeBroker()

    async def main() -> None:
        with pytest.raises(ConfigurationError, match=r"telemetry\.listen: must be HOST:PORT"):
            async with aio.open(router(broker), listen="nowhere"):
                pytest.fail("entered")
        with socket.create_server((HOST, 0)) as taken, pytest.raises(ListenError):
            async with aio.open(router(broker), listen=f"{HOST}:{taken.getsockname()[1]}"):
                pytest.fail("entered")

    run(main)


def test_network_and_http_may_be_replaced() -> None:
    broker = FakeBroker()
    everyday = Router(Settings(connections={"main": {"servers": ["nats://127.0.0.1:1"]}}), log=False)

    async def main() -> None:
        async with aio.open(everyday, connect=lambda name, _: broker.connect, listen="") as live:
            assert live.http_address is None
            await live.publish("out", b"x")

    run(main)
    assert [one.subject for one in broker.published] == ["out"]


@each_loop
def test_routers_run_one_after_another_and_at_the_same_time(loop: str) -> None:
    first, second = FakeBroker(), FakeBroker()

    async def one(broker: FakeBroker, number: int) -> None:
        async with aio.open(router(broker)) as live:
            await (await live.publish(f"out.{number}", b"x")).settled()

    async def main() -> None:
        for number in range(3):
            await one(first, number)
        async with aio.open(router(first)) as outer:
            async with aio.open(router(second)) as inner:
                assert (await (await inner.publish("inner", b"")).settled()).name == "fenced"
            assert (await (await outer.publish("outer", b"")).settled()).name == "fenced"
        # Each begins while others end.
        await asyncio.gather(*(one(second, number) for number in range(20)))
        task = asyncio.create_task(one(first, 7))
        await task
        await one(first, 8)

    run(main, loop)
    run(main, loop)
    assert len(second.published) == 42


def test_loops_in_several_threads_have_routers_of_their_own() -> None:
    broker = FakeBroker()
    failures: list[BaseException] = []

    async def main() -> None:
        for _ in range(5):
            async with aio.open(router(FakeBroker())) as live:
                await (await live.publish("out", b"")).settled()

    def work() -> None:
        try:
            run(main)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert broker.published == []


@each_loop
def test_a_reload_changes_the_routes(loop: str) -> None:
    broker = FakeBroker()

    async def main() -> None:
        async with aio.open(router(broker)) as live:
            await live.reload(settings("nats://fake:4222", routes=[core_route("in", "out")]))
            assert [route.name for route in live.routes] == ["route"]
            broker.publish("in", b"x")
            await eventually(lambda: [one.subject for one in broker.published] == ["out"])

    run(main, loop)


@each_loop
def test_each_side_finds_its_own_library_and_the_program_its_loop(loop: str) -> None:
    broker = FakeBroker()
    seen: list[str] = []
    routes = router(broker)

    @routes.route("in", to="out")
    async def handler(message: Message) -> Message:
        seen.append(sniffio.current_async_library())
        await anyio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        return message

    async def main() -> None:
        ours = asyncio.get_running_loop()
        found: set[object] = set()
        policy = type(asyncio.get_event_loop_policy())
        over = False

        def look() -> None:
            found.add(asyncio.get_running_loop())
            if not over:
                ours.call_soon(look)

        async with aio.open(routes) as live:
            look()
            for _ in range(20):
                broker.publish("in", b"x")
                await (await live.publish("other", b"")).settled()
                assert sniffio.current_async_library() == "asyncio"
                await anyio.lowlevel.checkpoint()
                assert asyncio.get_running_loop() is ours
            await eventually(lambda: len(seen) == 20)
            over = True
        assert found == {ours}
        assert type(asyncio.get_event_loop_policy()) is policy

    run(main, loop)
    assert set(seen) == {"trio"}


def test_a_handler_may_publish_by_the_same_object_as_the_program() -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["stored"])
    routes = router(broker)
    lives: list[aio.Live] = []
    fates: list[str] = []

    @routes.route("in", to="out")
    async def handler(message: Message) -> Message:
        receipt = await lives[0].publish("copy", message.payload)
        fates.append((await receipt.settled()).name)
        fates.append((await lives[0].publish_with_ack("stored", b"")).status)
        return message

    async def main() -> None:
        async with aio.open(routes) as live:
            lives.append(live)
            broker.publish("in", b"x")
            await eventually(lambda: "out" in [one.subject for one in broker.published])

    run(main)
    assert fates == ["fenced", "acked"]


@each_loop
def test_a_handler_on_asyncio_is_called_in_the_loop_of_the_program(loop: str) -> None:
    broker = FakeBroker()
    routes = router(broker)
    calls: list[tuple[object, int, str]] = []
    lives: list[aio.Live] = []
    of_the_program: list[asyncio.Task[None]] = []

    @routes.route("in", to="out", loop="asyncio")
    async def handler(message: Message) -> Message:
        await asyncio.sleep(0)
        receipt = await lives[0].publish("copy", message.payload)
        fate = await receipt.settled()
        calls.append((asyncio.get_running_loop(), threading.get_ident(), fate.name))
        return message

    async def main() -> None:
        of_the_program.append(asyncio.create_task(asyncio.sleep(0.2)))
        async with aio.open(routes) as live:
            lives.append(live)
            for _ in range(10):
                broker.publish("in", b"x")
            await eventually(lambda: [one.subject for one in broker.published].count("out") == 10)
        assert set(calls) == {(asyncio.get_running_loop(), threading.get_ident(), "fenced")}
        await of_the_program[0]  # only tasks of handlers are cancelled at the end

    run(main, loop)


@each_loop
def test_the_lifespan_runs_in_the_loop_of_the_program(loop: str) -> None:
    broker = FakeBroker()
    seen: list[object] = []

    @asynccontextmanager
    async def resources() -> AsyncIterator[asyncio.AbstractEventLoop]:
        seen.append("entered")
        yield asyncio.get_running_loop()
        await asyncio.sleep(0.01)
        seen.append("left")

    connection = {"main": {"servers": ["nats://fake:4222"]}}
    on_asyncio = Settings(router={"loop": "asyncio"}, telemetry={"listen": ""}, connections=connection)
    routes = Router(on_asyncio, log=False, connect=lambda name, _: broker.connect, lifespan=resources)

    @routes.route("in", to="out")
    async def handler(message: Message, of_resources: asyncio.AbstractEventLoop) -> Message:
        seen.append(of_resources is asyncio.get_running_loop())
        return message

    async def main() -> None:
        async with aio.open(routes):
            broker.publish("in", b"x")
            await eventually(lambda: broker.published)

    run(main, loop)
    assert seen == ["entered", True, "left"]


def test_a_lifespan_that_fails_in_a_program_of_asyncio_is_raised() -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0.05)).add_done_callback(lambda _: group.create_task(fails()))
            group.create_task(asyncio.sleep(60))
            yield

    async def fails() -> None:
        raise ConnectionError("gone")

    connection = {"main": {"servers": ["nats://fake:4222"]}}
    on_asyncio = Settings(router={"loop": "asyncio"}, telemetry={"listen": ""}, connections=connection)
    routes = Router(on_asyncio, log=False, connect=lambda name, _: FakeBroker().connect, lifespan=resources)

    async def main() -> None:
        async with aio.open(routes):
            await asyncio.sleep(30)

    with pytest.raises(LifespanError, match="raised ConnectionError while the router was running: gone"):
        run(main)


def test_context_variables_of_the_program_reach_handlers() -> None:
    broker = FakeBroker()
    tenant = contextvars.ContextVar("tenant", default="")
    routes = router(broker)
    seen: list[str] = []

    @routes.route("in", to="out")
    async def handler(message: Message) -> Message:
        seen.append(tenant.get())
        return message

    async def main() -> None:
        tenant.set("acme")
        async with aio.open(routes):
            broker.publish("in", b"x")
            await eventually(lambda: seen)

    run(main)
    assert seen == ["acme"]


def test_another_loop_or_thread_can_not_use_a_router() -> None:
    async def main() -> None:
        async with aio.open(router(FakeBroker())) as live:

            async def elsewhere(use: Callable[[], object]) -> object:
                result = use()
                return await result if inspect.isawaitable(result) else result

            for use in (lambda: live.publish("out", b""), lambda: live.reload(live.config.settings), live.status):
                with pytest.raises(RuntimeError, match="another event loop"):
                    await asyncio.to_thread(asyncio.run, elsewhere(use))
            assert live.ledger()["main"]["accepted"] == 0

    run(main)


def test_a_closed_router_answers_nothing_but_its_counts() -> None:
    async def main() -> None:
        async with aio.open(router(FakeBroker())) as live:
            pass
        for call in (live.publish("out", b""), live.publish_with_ack("out", b"")):
            with pytest.raises(PublishError, match="the router has ended"):
                await call
        with pytest.raises(RouterError, match="the router has ended"):
            await live.reload(live.config.settings)
        with pytest.raises(RouterError, match="the router has ended"):
            live.status()
        assert live.ledger()["main"]["accepted"] == 0

    run(main)


def test_where_there_is_no_loop_or_trio_runs_already_the_error_explains_it() -> None:
    async def entered() -> None:
        async with aio.open(router(FakeBroker())):
            pytest.fail("entered")

    with pytest.raises(AsyncioRequiredError, match=r"this is a task of Trio; use router\.open\(\)"):
        trio.run(entered)
    with pytest.raises(AsyncioRequiredError, match="no event loop of asyncio runs"):
        entered().send(None)

    async def without_aio() -> None:
        async with router(FakeBroker()).open():
            pytest.fail("entered")

    with pytest.raises(TrioRequiredError, match=r"this is asyncio; .*router_trio\.aio\.open\(router\)"):
        asyncio.run(without_aio())


def test_a_guest_of_the_program_itself_is_named_in_the_error() -> None:
    async def main() -> None:
        over = asyncio.Event()
        stop = trio.Event()
        trio.lowlevel.start_guest_run(
            stop.wait,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=lambda _: over.set(),
            host_uses_signal_set_wakeup_fd=True,
        )
        try:
            with pytest.raises(AsyncioRequiredError, match="Trio runs in the thread of this asyncio loop already"):
                async with aio.open(router(FakeBroker())):
                    pytest.fail("entered")
        finally:
            stop.set()
            await over.wait()
        async with aio.open(router(FakeBroker())):
            pass

    run(main)


@each_loop
def test_an_idle_router_has_no_thread_that_waits_for_it(loop: str) -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        async with aio.open(router(FakeBroker())) as live:
            await asyncio.sleep(0.1)
            new = {one.name for one in set(threading.enumerate()) - before}
            assert new == {"router_trio watchdog"}
            assert (await (await live.publish("out", b"")).settled()).name == "fenced"

    run(main, loop)


@pytest.mark.parametrize("watched", [True, False])
@each_loop
def test_a_guest_waits_in_a_thread_where_the_loop_can_not_watch_it(
    monkeypatch: pytest.MonkeyPatch, loop: str, watched: bool
) -> None:
    broker = FakeBroker()
    routes = router(broker)

    @routes.route("in", to="out")
    async def handler(message: Message) -> Message:
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.01)
        return message

    async def main() -> None:
        async with aio.open(routes) as live:
            assert (await (await live.publish("out", b"")).settled()).name == "fenced"
            broker.publish("in", b"x")
            await eventually(lambda: len(broker.published) == 2)

    if not watched:
        monkeypatch.setattr(Idle, "watch", lambda self, turn: None)
    run(main, loop)


def test_a_guest_that_can_not_start_leaves_the_loop_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    async def opened() -> None:
        async with aio.open(router(FakeBroker())) as live:
            await live.publish("out", b"")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "start_guest_run", start)
            with pytest.raises(OSError, match="too many open files"):
                await opened()
        await opened()

    run(main)


@pytest.mark.slow
def test_a_program_that_blocks_its_loop_is_found() -> None:
    events: list[Event] = []
    broker = FakeBroker()
    routes = Router(
        settings("nats://fake:4222"), log=False, observers=[events.append], connect=lambda name, _: broker.connect
    )

    async def main() -> None:
        async with aio.open(routes):
            time.sleep(3)  # noqa: ASYNC251 - it blocks

    run(main)
    (blocked,) = [event for event in events if isinstance(event, LoopBlocked)]
    assert blocked.place is not None
    assert "test_aio.py" in blocked.place
    assert blocked.place.endswith("in main")
