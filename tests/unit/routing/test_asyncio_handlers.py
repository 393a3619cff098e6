"""Handlers on asyncio: where they run, how they end, and what is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.errors import ConfigurationError, RouterError
from router_trio.message import Message
from router_trio.routing.handlers import asyncio_loop, asyncio_thread
from router_trio.routing.handlers.asyncio_calls import AsyncioCalls
from router_trio.routing.handlers.asyncio_loop import AsyncioLoop, InAsyncio
from router_trio.routing.handlers.asyncio_thread import THREAD, open_in_thread
from router_trio.routing.handlers.tracebacks import place_of
from router_trio.settings.checks.handlers import ASYNC_IN_A_THREAD
from tests.support.eventually import eventually
from tests.support.world import core, handled, to, world

MESSAGE = Message("in.x", b"payload")
HERE = "test_asyncio_handlers.py"


def route(handler: Any, **more: Any) -> Any:
    return handled(handler, **({"subject": "in.*", "to": to("out.{{wildcard(1)}}"), "loop": "asyncio"} | more))


async def upper(message: Message) -> Message:
    await asyncio.sleep(0.001)
    return message.replace(payload=message.payload.upper())


async def where(message: Message) -> Message:
    loop = asyncio.get_running_loop()
    name = threading.current_thread().name
    return message.replace(payload=f"{name} {id(loop)}".encode())


# --- where they run --------------------------------------------------------------------------------------------------


async def test_async_handlers_run_on_one_loop_that_lasts() -> None:
    async with world(handlers=[route(where, name="one"), route(where, name="other", to="more.x", concurrency=8)]) as w:
        for _ in range(10):
            w.broker.publish("in.x", b"")
        await eventually(lambda: len(w.broker.published) == 20)
        (seen,) = {message.payload for message in w.broker.published}
        assert seen.startswith(THREAD.encode())
    assert not [thread for thread in threading.enumerate() if thread.name == THREAD]


async def test_the_loop_of_the_router_is_that_of_its_routes_unless_they_name_another() -> None:
    async def on_trio(message: Message) -> Message:
        await trio.lowlevel.checkpoint()
        return message.replace(payload=b"trio")

    async def on_asyncio(message: Message) -> Message:
        await asyncio.sleep(0)
        return message.replace(payload=b"asyncio")

    def plain(message: Message) -> Message:
        trio.lowlevel.current_task()
        return message.replace(payload=b"plain")

    routes = [
        core("in.a", "out.a", name="a") | {"handler": "x:on_asyncio"},
        core("in.b", "out.b", name="b") | {"handler": "x:on_trio", "loop": "trio"},
        core("in.c", "out.c", name="c") | {"handler": "x:plain"},
    ]
    import sys
    from types import SimpleNamespace

    module: Any = SimpleNamespace(on_trio=on_trio, on_asyncio=on_asyncio, plain=plain)
    sys.modules["x"] = module
    try:
        async with world(routes, router={"loop": "asyncio"}) as w:
            for subject in "abc":
                w.broker.publish(f"in.{subject}", b"")
            await eventually(lambda: len(w.broker.published) == 3)
            assert {one.payload for one in w.broker.published} == {b"trio", b"asyncio", b"plain"}
    finally:
        del sys.modules["x"]


async def test_a_router_without_asyncio_handlers_opens_no_loop() -> None:
    async with world(
        handlers=[route(lambda message: message), route(upper, name="unused", subject="other", to="more")]
    ) as w:
        w.broker.publish("in.x", b"")
        await eventually(lambda: len(w.broker.published) == 1)
        assert not [thread for thread in threading.enumerate() if thread.name == THREAD]


async def test_a_reload_may_bring_the_first_asyncio_handler() -> None:
    async with world([core("in.*", "out.{{wildcard(1)}}")]) as w:
        changed = core("in.*", "out.{{wildcard(1)}}") | {"handler": f"{__name__}:upper", "loop": "asyncio"}
        await w.live.reload(w.configuration(changed))
        w.broker.publish("in.x", b"hello")
        await eventually(lambda: len(w.broker.published) == 1)
        assert w.broker.published[0].payload == b"HELLO"


async def test_another_loop_of_the_router_needs_a_restart() -> None:
    named = core("in.*", "out.{{wildcard(1)}}") | {"handler": f"{__name__}:upper"}
    async with world([named], router={"loop": "asyncio"}) as w:
        await w.live.reload(w.configuration({**named, "concurrency": 2}, router={"loop": "trio"}))
        assert [one.keys for one in w.watch.of("ROUTER_RESTART_NEEDED")] == [("router.loop",)]
        w.broker.publish("in.x", b"hello")
        await eventually(lambda: len(w.broker.published) == 1)
        assert w.broker.published[0].payload == b"HELLO"


async def test_an_async_handler_in_a_thread_is_refused_on_every_loop() -> None:
    with pytest.raises(ConfigurationError, match=ASYNC_IN_A_THREAD.split(":")[0]):
        async with world(handlers=[route(upper, thread=True)]):
            pass


async def test_a_loop_that_can_not_be_opened_fails_the_message_and_is_tried_again() -> None:
    opened = Counter[str]()

    def open_loop() -> Any:
        opened["tried"] += 1
        if opened["tried"] == 1:
            raise RuntimeError("can't start new thread")
        return open_in_thread()

    loop = AsyncioLoop(open_loop)
    handler = InAsyncio(upper, loop)
    async with loop.lasting(lambda places: None):
        with pytest.raises(RuntimeError, match="new thread"):
            await handler.call(MESSAGE)
        assert (await handler.call(MESSAGE)).payload == b"PAYLOAD"


# --- calls -----------------------------------------------------------------------------------------------------------


async def calling(function: Callable[..., Awaitable[Any]], *arguments: object) -> Any:
    async with open_in_thread() as loop:
        return await AsyncioCalls(loop).call(function, *arguments)


async def test_calls_that_begin_together_cross_together() -> None:
    crossings = Counter[str]()

    async def one(number: int) -> int:
        return number

    busy = threading.Event()

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        crossing = loop.call_soon_threadsafe
        crossing(busy.wait)

        def counted(*arguments: Any, **context: Any) -> Any:
            crossings["begin"] += 1
            return crossing(*arguments, **context)

        patched: Any = loop
        patched.call_soon_threadsafe = counted
        answers: list[int] = []

        async def call(number: int) -> None:
            answers.append(await calls.call(one, number))

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, number)
            await trio.testing.wait_all_tasks_blocked()
            busy.set()
        del patched.call_soon_threadsafe
    assert sorted(answers) == list(range(100))
    assert crossings["begin"] == 1


async def test_no_call_of_many_is_forgotten() -> None:
    async def one(number: int) -> int:
        if number % 3:
            await asyncio.sleep(0)
        return number

    async with open_in_thread() as loop:
        calls, count = AsyncioCalls(loop), 0

        async def many() -> None:
            nonlocal count
            for number in range(200):
                assert await calls.call(one, number) == number
                count += 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(many)
    assert count == 3200


async def test_a_call_has_a_copy_of_the_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")

    async def read() -> str:
        await asyncio.sleep(0)
        seen = await asyncio.create_task(read_in_a_task())
        variable.set("changed")
        return seen

    async def read_in_a_task() -> str:
        return variable.get()

    variable.set("set on Trio")
    assert await calling(read) == "set on Trio"
    assert variable.get() == "set on Trio"


async def test_a_cancelled_call_is_cancelled_in_asyncio_and_awaited() -> None:
    seen: list[str] = []

    async def sleeps() -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            seen.append("cleaned up")
            raise

    async with open_in_thread() as loop:
        left: set[object] = set()
        with trio.move_on_after(0.05) as scope:
            await AsyncioCalls(loop).call(sleeps, left_behind=left)
    assert scope.cancelled_caught
    assert seen == ["begun", "cleaned up"]
    assert not left


async def test_a_call_that_is_cancelled_before_it_begins_never_runs() -> None:
    async def runs() -> None:
        raise AssertionError

    async with open_in_thread() as loop:
        with trio.CancelScope() as scope:
            scope.cancel()
            await AsyncioCalls(loop).call(runs)
    assert scope.cancelled_caught


async def test_a_call_that_another_task_cancels_before_it_begins_fails() -> None:
    begun = threading.Event()
    answers: list[int] = []
    cancelled: list[int] = []

    async def cancels_all_others(number: int) -> int:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return number

    async def call(number: int) -> None:
        try:
            answers.append(await calls.call(cancels_all_others, number))
        except asyncio.CancelledError:
            cancelled.append(number)

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        loop.call_soon_threadsafe(begun.wait)  # so that the calls begin together
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(call, number)
                await trio.testing.wait_all_tasks_blocked()
                begun.set()
    assert (len(answers), len(cancelled)) == (1, 7)


async def test_a_task_factory_that_raises_fails_the_call() -> None:
    async def sets_a_factory() -> None:
        def factory(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
            return asyncio.Task(coroutine, loop=loop)  # as it was before Python 3.11, without a context

        asyncio.get_running_loop().set_task_factory(factory)

    async def answers() -> int:
        return 1

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        with trio.fail_after(10):
            await calls.call(sets_a_factory)
            with pytest.raises(TypeError, match="context"):
                await calls.call(answers)
            loop.call_soon_threadsafe(loop.set_task_factory, None)
            # A call may begin in the turn in which the last one has failed, before that.
            await eventually(lambda: loop.get_task_factory() is None)
            assert await calls.call(answers) == 1


async def test_each_call_on_a_closed_loop_fails() -> None:
    async def answers() -> int:
        return 1

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        assert await calls.call(answers) == 1
    for _ in range(3):
        with trio.fail_after(5), pytest.raises(RuntimeError, match="closed"):
            await calls.call(answers)


async def test_a_call_that_is_cancelled_after_its_loop_was_closed_ends_as_cancelled() -> None:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            async with open_in_thread() as loop:
                nursery.start_soon(AsyncioCalls(loop).call, beats)
                await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()


class Failing(asyncio.SelectorEventLoop):
    """A loop that fails when it is stopped for the first time."""

    def run_forever(self) -> None:
        super().run_forever()
        raise OSError("bad file descriptor")


async def test_a_loop_that_fails_ends_the_router_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio_thread, "new_loop", Failing)

    async def stops(message: Message) -> Message:
        asyncio.get_running_loop().stop()
        return message

    with trio.fail_after(20), pytest.RaisesGroup(RouterError, flatten_subgroups=True, allow_unwrapped=True) as raised:
        async with world(handlers=[route(stops)], shutdown_timeout=0.2) as w:
            w.broker.publish("in.x", b"")
            await trio.sleep_forever()
    assert "the asyncio loop of the handlers has failed: bad file descriptor" in repr(raised.value)


async def test_an_answer_of_a_cancelled_call_is_discarded() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "an answer"
        return ""

    async with open_in_thread() as loop:
        with trio.move_on_after(0.05) as scope:
            await AsyncioCalls(loop).call(stubborn)
    assert scope.cancelled_caught


async def test_a_call_that_swallows_its_cancellation_is_left_behind_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router_trio.routing.handlers.asyncio_calls.ENDS_WITHIN", 0.05)
    ends = asyncio.Event()

    async def stubborn() -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    async with open_in_thread() as loop:
        left: set[object] = set()
        with trio.move_on_after(0.05) as scope:
            await AsyncioCalls(loop).call(stubborn, left_behind=left)
        assert scope.cancelled_caught
        assert len(left) == 1
        loop.call_soon_threadsafe(ends.set)
        await eventually(lambda: not left)


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [ValueError("x"), Odd("x"), SystemExit(3), GeneratorExit("x"), asyncio.CancelledError("x")]
)
async def test_an_error_is_raised_with_its_traceback_and_ends_no_loop(error: BaseException) -> None:
    async def raises() -> None:
        await asyncio.sleep(0)
        raise error

    async def answers() -> int:
        return 1

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        with trio.fail_after(10), pytest.raises(type(error)) as caught:
            await calls.call(raises)
        assert caught.value is error
        assert caught.traceback[-1].name == "raises"
        assert await calls.call(answers) == 1


async def test_a_task_that_exits_and_a_handler_that_stops_the_loop_end_nothing() -> None:
    async def exits() -> None:
        raise SystemExit(3)

    async def stops() -> None:
        task = asyncio.create_task(exits())
        await asyncio.wait([task])
        task.exception()
        asyncio.get_running_loop().stop()

    async def answers() -> int:
        return 1

    async with open_in_thread() as loop:
        calls = AsyncioCalls(loop)
        await calls.call(stops)
        assert await calls.call(answers) == 1


# --- what is left behind ---------------------------------------------------------------------------------------------


async def beats() -> None:
    await asyncio.sleep(60)


async def test_tasks_that_handlers_leave_behind_are_cancelled_and_named() -> None:
    ended: list[str] = []

    async def noted() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("noted")

    kept: list[asyncio.Task[None]] = []

    async def handler(message: Message) -> Message:
        kept.append(asyncio.create_task(beats()))
        kept.append(asyncio.create_task(noted(), name="heartbeat"))
        await asyncio.sleep(0)
        return message

    async with world(handlers=[route(handler)]) as w:
        w.broker.publish("in.x", b"")
        await eventually(lambda: len(w.broker.published) == 1)
        assert not ended
    (event,) = w.watch.of("ROUTER_TASKS_LEFT_BEHIND")
    assert event.count == 2
    assert [place.rpartition("/")[2] for place in event.places] == [
        f"{HERE}:{beats.__code__.co_firstlineno + 1} in beats",
        f"{HERE}:{noted.__code__.co_firstlineno + 2} in noted",
    ]
    assert event.places[1].startswith("heartbeat at /")
    assert ended == ["noted"]
    assert all(task.done() for task in kept)


async def test_on_a_shared_loop_tasks_of_the_program_and_of_other_routers_are_left_alone() -> None:
    begun: list[asyncio.Task[None]] = []

    async def begins(message: Message) -> None:
        begun.append(asyncio.create_task(beats()))

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(beats())

    async with open_in_thread() as loop:
        of_another_router = await AsyncioCalls(loop).call(begin)
        shared = AsyncioLoop(lambda: nullcontext(loop), is_shared=True)
        async with shared.lasting(lambda places: None):
            await InAsyncio(begins, shared).call(MESSAGE)
        assert not of_another_router.done()
        # On Python before 3.12 it is not known whose a task is.
        assert begun[0].done() == hasattr(begun[0], "get_context")
        assert await AsyncioCalls(loop).call(upper, MESSAGE)

        async def cancel() -> None:
            for task in (of_another_router, begun[0]):
                task.cancel()
            await asyncio.wait([of_another_router, begun[0]])

        await AsyncioCalls(loop).call(cancel)


async def test_a_handler_that_does_not_end_is_left_behind_and_its_messages_are_accounted_for() -> None:
    async def stubborn(message: Message) -> Message:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    with trio.fail_after(20):
        async with world(handlers=[route(stubborn)], shutdown_timeout=0.2) as w:
            w.broker.publish("in.x", b"")
            await eventually(lambda: w.route.handling == 1)
    (event,) = w.watch.of("ROUTE_HANDLER_LEFT_BEHIND")
    assert event.count == 1
    assert not w.watch.of("ROUTER_TASKS_LEFT_BEHIND"), "it is named once"


async def test_a_handler_that_is_cancelled_at_the_end_is_not_reported() -> None:
    async def sleeps(message: Message) -> Message:
        await asyncio.sleep(60)
        return message

    async with world(handlers=[route(sleeps)], shutdown_timeout=0.2) as w:
        w.broker.publish("in.x", b"")
        await eventually(lambda: w.route.handling == 1)
    assert not w.watch.of("ROUTE_HANDLER_LEFT_BEHIND")


async def test_a_handler_that_blocks_the_loop_does_not_keep_the_router_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asyncio_loop, "TASKS_END_WITHIN", 0.1)
    monkeypatch.setattr("router_trio.routing.handlers.asyncio_thread.CLOSES_WITHIN", 0.1)
    goes_on = threading.Event()

    async def blocks(message: Message) -> Message:
        goes_on.wait(20)
        return message

    began = time.monotonic()
    async with world(handlers=[route(blocks)], shutdown_timeout=0.2) as w:
        w.broker.publish("in.x", b"")
        await eventually(lambda: w.route.handling == 1)
    assert time.monotonic() - began < 10
    assert w.watch.of("ROUTE_HANDLER_LEFT_BEHIND")
    goes_on.set()
    with trio.fail_after(10):
        while [thread for thread in threading.enumerate() if thread.name == THREAD]:
            await trio.sleep(0.01)


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_the_place_where_a_handler_raises_is_its_own_line() -> None:
    async def fails(message: Message) -> Message:
        await asyncio.sleep(0)
        raise ValueError("x")

    async with world(handlers=[route(fails)]) as w:
        w.broker.publish("in.x", b"")
        failed = await w.watch.until("ROUTE_MESSAGE_FAILED")
    assert failed.place.endswith(f"{HERE}:{fails.__code__.co_firstlineno + 2} in fails")
    assert failed.error_type == "ValueError"
    assert (place_of(InAsyncio(fails, AsyncioLoop(None)).call) or "").endswith("in fails")


async def sleeps_in_asyncio(message: Message) -> Message:
    await asyncio.sleep(0.01)
    return message


async def yields_to_asyncio(message: Message) -> Message:
    await asyncio.sleep(0)
    return message


async def in_a_nursery(message: Message) -> Message:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeps_in_asyncio, message)
    return message


def begins_a_task(message: Message) -> Message:
    coroutine = upper(message)
    try:
        asyncio.create_task(coroutine)  # noqa: RUF006 - it fails
    finally:
        coroutine.close()
    return message


async def sleeps_in_trio(message: Message) -> Message:
    await trio.sleep(0.01)
    return message


@pytest.mark.parametrize(
    ("handler", "loop", "cure"),
    [
        (sleeps_in_asyncio, "trio", 'loop = "asyncio"'),
        (yields_to_asyncio, "trio", 'loop = "asyncio"'),
        (in_a_nursery, "trio", 'loop = "asyncio"'),
        (begins_a_task, "asyncio", "make it an async def"),
        (sleeps_in_trio, "asyncio", 'loop = "trio"'),
    ],
)
async def test_a_handler_on_the_wrong_loop_fails_with_the_cure(handler: Any, loop: str, cure: str) -> None:
    async with world(handlers=[route(handler, loop=loop)]) as w:
        w.broker.publish("in.x", b"")
        failed = await w.watch.until("ROUTE_MESSAGE_FAILED")
    assert cure in failed.detail
    assert failed.error_type == "HandlerError"
    assert HERE in failed.place


def test_the_platform_of_a_program_opens_no_loop_by_itself() -> None:
    assert REAL_PLATFORM.open_asyncio_loop is None
    assert not Platform().shares_asyncio_loop
    assert partial(upper).func is upper
