"""The lifespan of a router: when it is entered and left, who gets its value, and how it may fail."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from router_trio import Message, Router, Settings
from router_trio.errors import ConfigurationError, LifespanError
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.watch import Watch
from tests.support.world import core

HERE = "test_lifespan.py"
LOOPS = pytest.mark.parametrize("loop", ["trio", "asyncio"])


def settings(loop: str = "trio", *routes: dict[str, Any], **more: Any) -> Settings:
    return Settings(
        router={"loop": loop, "shutdown_timeout": "2s", **more},
        telemetry={"listen": ""},
        connections={"main": {"servers": ["nats://fake:4222"]}},
        routes=list(routes),
    )


def router(broker: FakeBroker, config: Settings, watch: Watch | None = None, **more: Any) -> Router:
    observers = [] if watch is None else [watch]
    return Router(config, observers=observers, connect=lambda name, _: broker.connect, log=False, **more)


async def sleep(loop: str, seconds: float) -> None:
    if loop == "trio":
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


class Steps:
    """The steps of a router, in order. `resources` is a lifespan."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self.seen: list[str] = []

    @asynccontextmanager
    async def resources(self) -> AsyncIterator[str]:
        await sleep(self.loop, 0.01)
        self.seen.append("entered")
        yield "a pool"
        await sleep(self.loop, 0.01)
        self.seen.append("left")


@pytest.fixture
def module() -> Iterator[Any]:
    """Yield a module that settings can name as `shop`."""
    found: Any = SimpleNamespace()
    sys.modules["shop"] = found
    yield found
    del sys.modules["shop"]


# --- when, and for whom ----------------------------------------------------------------------------------------------


@LOOPS
async def test_it_is_entered_before_the_first_message_and_left_after_the_last(loop: str) -> None:
    broker, steps = FakeBroker(), Steps(loop)
    one = router(broker, settings(loop), lifespan=steps.resources)

    @one.route("in.*", to="out.{{wildcard(1)}}")
    async def waits(message: Message, pool: str) -> Message:
        await sleep(loop, 0.1)
        steps.seen.append(f"handled with {pool}")
        return message

    @one.route("plain.*", to="out.{{wildcard(1)}}")
    def plain(message: Message, pool: str) -> Message:
        steps.seen.append(f"handled with {pool}")
        return message

    @one.route("thread.*", to="out.{{wildcard(1)}}", thread=True)
    def in_a_thread(message: Message, pool: str) -> Message:
        steps.seen.append(f"handled with {pool}")
        return message

    async with one.open() as live:
        assert steps.seen == ["entered"]
        for subject in ("in.x", "plain.x", "thread.x"):
            broker.publish(subject, b"")
        await eventually(lambda: all(route.received_in_all for route in live.routes))
    assert steps.seen == ["entered", *["handled with a pool"] * 3, "left"]


@LOOPS
async def test_a_configuration_names_it(loop: str, module: Any) -> None:
    broker, steps = FakeBroker(), Steps(loop)

    async def handler(message: Message, pool: str) -> Message:
        await sleep(loop, 0.01)
        return message.replace(payload=pool.encode())

    module.resources, module.handler = steps.resources, handler
    route = core("in.*", "out.{{wildcard(1)}}") | {"handler": "shop:handler"}
    async with router(broker, settings(loop, route, lifespan="shop:resources")).open():
        broker.publish("in.x", b"")
        await eventually(lambda: len(broker.published) == 1)
    assert broker.published[0].payload == b"a pool"
    assert steps.seen == ["entered", "left"]


async def test_handlers_with_one_parameter_get_the_message_alone() -> None:
    broker = FakeBroker()
    one = router(broker, settings(), lifespan=Steps("trio").resources)

    @one.route("in.*", to="out.{{wildcard(1)}}")
    def handler(message: Message, default: str = "its default") -> Message:
        return message.replace(payload=default.encode())

    async with one.open():
        broker.publish("in.x", b"")
        await eventually(lambda: len(broker.published) == 1)
    assert broker.published[0].payload == b"its default"


@LOOPS
async def test_a_handler_of_json_bodies_gets_the_value_too(loop: str) -> None:
    broker = FakeBroker()
    one = router(broker, settings(loop), lifespan=Steps(loop).resources)

    @one.route("in.*", to="out.{{wildcard(1)}}")
    async def handler(order: dict[str, str], pool: str) -> dict[str, str]:
        await sleep(loop, 0)
        return order | {"by": pool}

    async with one.open():
        broker.publish("in.x", b'{"id": "7"}')
        await eventually(lambda: len(broker.published) == 1)
    assert json.loads(broker.published[0].payload) == {"id": "7", "by": "a pool"}


async def test_asyncio_handlers_share_the_loop_of_the_lifespan() -> None:
    broker = FakeBroker()

    @asynccontextmanager
    async def resources() -> AsyncIterator[asyncio.AbstractEventLoop]:
        yield asyncio.get_running_loop()

    one = router(broker, settings("asyncio"), lifespan=resources)

    @one.route("in.*", to="out.{{wildcard(1)}}")
    async def handler(message: Message, loop: asyncio.AbstractEventLoop) -> Message:
        assert loop is asyncio.get_running_loop()
        return message

    async with one.open():
        broker.publish("in.x", b"")
        await eventually(lambda: len(broker.published) == 1)


@LOOPS
async def test_a_router_that_is_cancelled_leaves_it(loop: str) -> None:
    steps = Steps(loop)
    with trio.CancelScope() as scope:
        async with router(FakeBroker(), settings(loop), lifespan=steps.resources).open():
            scope.cancel()
            await trio.sleep_forever()
    assert steps.seen == ["entered", "left"]


async def test_an_error_of_the_body_is_raised_unchanged_and_it_is_left() -> None:
    steps = Steps("trio")
    with pytest.raises(ZeroDivisionError):
        async with router(FakeBroker(), settings(), lifespan=steps.resources).open():
            raise ZeroDivisionError
    assert steps.seen == ["entered", "left"]


@LOOPS
async def test_a_router_that_is_stopped_while_it_is_entered_ends_without_a_message(loop: str) -> None:
    broker, stop = FakeBroker(), trio.Event()
    seen: list[str] = []

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            await sleep(loop, 60)
        finally:
            seen.append("cancelled")
        yield

    one = router(broker, settings(loop), lifespan=slow)

    @one.route("in.*", to="out.{{wildcard(1)}}")
    def handler(message: Message) -> Message:
        raise AssertionError

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0.05)

            async def later() -> None:
                await trio.sleep(0.05)
                stop.set()

            nursery.start_soon(later)
            async with one.open(stop=stop) as live:
                assert stop.is_set()
    assert seen == ["cancelled"]
    assert live.routes[0].received_in_all == 0


# --- how it may fail -------------------------------------------------------------------------------------------------


@LOOPS
async def test_one_that_raises_ends_the_start_with_its_place(loop: str, module: Any) -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        await sleep(loop, 0)
        raise OSError("no such host, password=hush")
        yield

    module.resources = resources
    one = router(FakeBroker(), settings(loop, lifespan="shop:resources"))
    with pytest.raises(LifespanError) as caught:
        async with one.open():
            raise AssertionError
    text = str(caught.value)
    assert text.startswith("lifespan shop:resources raised OSError before the router has started: no such host")
    assert "hush" not in text
    assert text.endswith(" in resources)")
    assert HERE in text
    assert isinstance(caught.value.__cause__, OSError)


def with_a_nursery() -> Callable[[], Any]:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async def fails() -> None:
            await trio.sleep(0.05)
            raise ConnectionError("gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            yield

    return resources


def with_a_task_group() -> Callable[[], Any]:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async def fails() -> None:
            await asyncio.sleep(0.05)
            raise ConnectionError("gone")

        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            yield

    return resources


@pytest.mark.parametrize(("loop", "make"), [("trio", with_a_nursery), ("asyncio", with_a_task_group)])
async def test_one_that_is_lost_drains_and_ends_the_router_with_its_error(loop: str, make: Any) -> None:
    broker, watch = FakeBroker(), Watch()
    one = router(broker, settings(loop), watch, lifespan=make())

    @one.route("in.*", to="out.{{wildcard(1)}}")
    async def handler(message: Message) -> Message:
        await sleep(loop, 0.2)
        return message

    async def run() -> None:
        async with one.open() as live:
            broker.publish("in.x", b"")
            await eventually(lambda: live.routes[0].handling == 1)
            await trio.sleep_forever()

    with pytest.raises(LifespanError, match="raised ConnectionError while the router was running: gone"):
        await run()
    assert len(broker.published) == 1, "the message in hand is settled first"
    (lost,) = watch.of("ROUTER_LIFESPAN_LOST")
    assert lost.place.endswith(" in fails")
    assert watch.codes.index("ROUTER_LIFESPAN_LOST") < watch.codes.index("ROUTER_DRAINING")


async def test_one_that_ends_by_itself_ends_the_router() -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        with trio.move_on_after(0.05):
            yield

    with pytest.raises(LifespanError, match="ended while the router was running"):
        async with router(FakeBroker(), settings(), lifespan=resources).open():
            await trio.sleep_forever()


async def test_one_whose_task_another_one_cancels_ends_the_router() -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        yield

    with pytest.raises(LifespanError, match=r"raised CancelledError while the router was running \(at "):
        async with router(FakeBroker(), settings("asyncio"), lifespan=resources).open():
            await trio.sleep_forever()


@LOOPS
async def test_one_that_raises_at_the_end_is_raised_after_the_drain(loop: str) -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        yield
        await sleep(loop, 0)
        raise OSError("broken")

    watch = Watch()
    with pytest.raises(LifespanError, match="raised OSError when the router ended: broken"):
        async with router(FakeBroker(), settings(loop), watch, lifespan=resources).open():
            pass
    assert watch.of("ROUTER_STOPPED")


@LOOPS
async def test_one_that_does_not_end_is_cancelled_after_shutdown_timeout(loop: str) -> None:
    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        yield
        await sleep(loop, 60)

    with trio.fail_after(15), pytest.raises(LifespanError, match="did not end within shutdown_timeout"):
        async with router(FakeBroker(), settings(loop), lifespan=resources).open():
            pass


# --- what is refused -------------------------------------------------------------------------------------------------


def two(message: Message, pool: str) -> Message:
    return message


async def not_decorated() -> AsyncIterator[None]:
    yield


@contextmanager
def synchronous() -> Iterator[None]:
    yield


def without_yield() -> Any:
    async def resources() -> None: ...

    undecorated: Any = resources
    return asynccontextmanager(undecorated)


def plain_generator() -> Any:
    def resources() -> Iterator[None]:
        yield

    undecorated: Any = resources
    return asynccontextmanager(undecorated)


def needs_more(settings: Settings) -> Any: ...


def test_two_parameters_need_a_lifespan() -> None:
    three: Any = lambda message, two, three: None  # noqa: E731 - type checkers refuse it
    one = router(FakeBroker(), settings())
    with pytest.raises(
        ConfigurationError, match=r"takes \(message, pool\); the second parameter .* set \[router\] lifesp"
    ):
        one.route("in.*", to="out")(two)
    router(FakeBroker(), settings(), lifespan=Steps("trio").resources).route("in.*", to="out")(two)
    with pytest.raises(ConfigurationError, match="with the message alone"):
        one.route("in.*", to="out")(three)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (not_decorated, "asynccontextmanager on an async def with one yield"),
        (synchronous, "asynccontextmanager on an async def with one yield"),
        (without_yield(), "asynccontextmanager on an async def with one yield"),
        (plain_generator(), "asynccontextmanager on an async def with one yield"),
        (needs_more, "without arguments"),
        (None, "no function"),
    ],
)
async def test_a_function_that_can_not_be_a_lifespan_is_refused(function: Any, why: str, module: Any) -> None:
    module.resources = function
    with pytest.raises(ConfigurationError, match=f"router.lifespan: .*{why}"):
        async with router(FakeBroker(), settings(lifespan="shop:resources")).open():
            pass
    if function is not None:
        with pytest.raises(ConfigurationError, match=why):
            router(FakeBroker(), settings(), lifespan=function)


async def late() -> None: ...


@LOOPS
@pytest.mark.parametrize(
    ("value", "shown"),
    [(lambda: None, "None"), (lambda: 7, "a value of the type int"), (late, "a value of the type coroutine")],
)
async def test_one_that_returns_no_async_context_manager_ends_the_start_with_the_cure(
    value: Callable[[], Any], shown: str, loop: str, module: Any
) -> None:
    def resources() -> Any:
        return value()

    module.resources = resources
    one = router(FakeBroker(), settings(loop, lifespan="shop:resources"))
    with pytest.raises(LifespanError) as caught:
        async with one.open():
            raise AssertionError
    text = str(caught.value)
    assert text.startswith(
        f"lifespan shop:resources must return an async context manager, and returned {shown}: "
        "use contextlib.asynccontextmanager on an async def with one yield (at "
    )
    assert HERE in text


def life() -> Any: ...


async def test_a_misspelt_name_of_a_lifespan_gets_a_suggestion(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "__module__", "shop")
    module.life, module.lifes_of_others = life, Settings.load
    with pytest.raises(ConfigurationError, match=r"'shop' has no function 'lifes'; did you mean 'life'\?"):
        async with router(FakeBroker(), settings(lifespan="shop:lifes")).open():
            pass


async def test_another_lifespan_needs_a_restart(module: Any) -> None:
    watch, steps = Watch(), Steps("trio")
    module.resources, module.handler = steps.resources, two
    route = core("in.*", "out.{{wildcard(1)}}") | {"handler": "shop:handler"}
    async with router(FakeBroker(), settings("trio", route, lifespan="shop:resources"), watch).open() as live:
        changed = settings("trio", {**route, "concurrency": 2}, lifespan="shop:another")
        await live.reload(changed)
        (event,) = watch.of("ROUTER_RESTART_NEEDED")
        assert event.keys == ("router.lifespan",)
        await live.reload(settings("trio", route))
    assert steps.seen == ["entered", "left"]
    async with router(FakeBroker(), settings(), watch).open() as live:
        with pytest.raises(ConfigurationError, match="second parameter"):
            await live.reload(settings("trio", route, lifespan="shop:resources"))
