"""A handler that returns within a cancel scope or a nursery fails its message, and its route continues."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.errors import Reject, ScopeLeftOpenError, ScopesLostError
from router_trio.message import Message
from router_trio.routing.handlers.scopes import close_left_open, left_open, scopes_of_task
from router_trio.states import RUNNING
from tests.support.eventually import eventually
from tests.support.watch import Watch
from tests.support.world import World, all_acked, core, fill, handled, one_broker, overhearing, stream, to, world

Leave = Callable[[Message], Any]

# --- scopes that a handler leaves open -------------------------------------------------------------------------------


def scope_of_a_plain_def(message: Message) -> Message:
    trio.CancelScope().__enter__()
    return message


async def scope(message: Message) -> Message:
    trio.CancelScope().__enter__()
    return message


async def scope_after_it_blocked(message: Message) -> Message:
    await trio.sleep(0.01)
    trio.CancelScope().__enter__()
    return message


async def scope_with_a_deadline(message: Message) -> Message:
    trio.CancelScope(deadline=trio.current_time() + 0.01, shield=True).__enter__()
    return message


async def cancelled_scope(message: Message) -> Message:
    left = trio.CancelScope()
    left.__enter__()
    left.cancel()
    return message


async def cancelled_in_its_scope(message: Message) -> Message:
    left = trio.CancelScope()
    left.__enter__()
    left.cancel()
    await trio.sleep(1)
    return message


async def several_scopes(message: Message) -> Message:
    for _ in range(3):
        trio.CancelScope().__enter__()
    return message


def scope_of_a_generator(message: Message) -> Iterator[Message]:
    trio.CancelScope().__enter__()
    yield message


async def nursery(message: Message) -> Message:
    await trio.open_nursery().__aenter__()
    return message


async def nursery_within_a_scope(message: Message) -> Message:
    trio.CancelScope().__enter__()
    await trio.open_nursery().__aenter__()
    trio.CancelScope().__enter__()
    return message


async def nursery_with_tasks(message: Message) -> Message:
    left = await trio.open_nursery().__aenter__()
    for _ in range(3):
        left.start_soon(trio.sleep_forever)
    await trio.sleep(0.01)
    return message


async def fails(after: float) -> None:
    try:
        await trio.sleep(after)
    finally:
        raise OSError("of a task")


async def nursery_with_a_task_that_fails(message: Message) -> Message:
    left = await trio.open_nursery().__aenter__()
    left.start_soon(fails, 1)
    await trio.sleep(0.01)
    return message


async def numbers_in_a_scope() -> AsyncIterator[int]:
    with trio.fail_after(0.01):
        for number in range(9):
            await trio.lowlevel.checkpoint()
            yield number


async def numbers_in_a_nursery() -> AsyncIterator[int]:
    async with trio.open_nursery() as inside:
        inside.start_soon(trio.sleep_forever)
        inside.start_soon(trio.sleep_forever)
        for number in range(9):
            await trio.lowlevel.checkpoint()
            yield number


async def numbers_in_an_empty_nursery() -> AsyncIterator[int]:
    async with trio.open_nursery():
        yield 1


async def generator_with_a_scope(message: Message) -> Message:
    async for _ in numbers_in_a_scope():
        break
    return message


async def generator_with_a_nursery(message: Message) -> Message:
    async for _ in numbers_in_a_nursery():
        break
    return message


async def generator_with_an_empty_nursery(message: Message) -> Message:
    async for _ in numbers_in_an_empty_nursery():
        break
    return message


def raises_in_a_scope(message: Message) -> Message:
    trio.CancelScope().__enter__()
    raise Reject("no")


async def raises_in_a_nursery(message: Message) -> Message:
    left = await trio.open_nursery().__aenter__()
    left.start_soon(trio.sleep_forever)
    await trio.sleep(0.01)
    raise KeyError("no")


WAYS: tuple[Leave, ...] = (
    scope_of_a_plain_def,
    scope,
    scope_after_it_blocked,
    scope_with_a_deadline,
    cancelled_scope,
    cancelled_in_its_scope,
    several_scopes,
    scope_of_a_generator,
    nursery,
    nursery_within_a_scope,
    nursery_with_tasks,
    nursery_with_a_task_that_fails,
    generator_with_a_scope,
    generator_with_a_nursery,
    generator_with_an_empty_nursery,
    raises_in_a_scope,
    raises_in_a_nursery,
)

# --- the result ------------------------------------------------------------------------------------------------------


async def uses_a_nursery(message: Message) -> Message:
    """Use a nursery correctly, which fails if the previous handler has left anything open."""
    async with trio.open_nursery() as inside:
        inside.start_soon(trio.sleep, 0.001)
        await trio.sleep(0.001)
    with trio.move_on_after(1):
        await trio.sleep(0.001)
    return message


def sometimes(leave: Leave) -> Leave:
    def handler(message: Message) -> Any:
        return leave(message) if message.payload == b"bad" else uses_a_nursery(message)

    handler.__wrapped__ = leave  # type: ignore[attr-defined]
    return handler


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "by content": {"when": "size > 0"},
    "limited by value": {"limit": {"rate": "1000/s", "burst": 10, "per": "subject"}},
    "kept": {"retry": {"attempts": 1}},
    "by key": {"key": "subject", "concurrency": 3},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
async def test_a_scope_left_open_fails_only_its_message_of_a_subject(
    autojump_clock: MockClock, leave: Leave, kind: str
) -> None:
    route = handled(sometimes(leave), subject="in.*", to=to("out.{{wildcard(1)}}"), **KINDS[kind])
    async with world(handlers=[route]) as w, overhearing(w.broker, "out.*") as heard:
        for payload in (b"1", b"bad", b"2", b"bad", b"bad", b"3"):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(heard) == 3 and sum(w.route.failed.values()) == 3)
        await trio.sleep(5)
        for payload in (b"bad", b"4"):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(heard) == 4)
        assert w.route_ledger() == (8, 0, {"lost": 4, "routed": 4})
        assert dict(w.route.failed) == {"handler_error": 4}
        assert w.route.state == RUNNING
        for failed in w.watch.of("ROUTE_MESSAGE_FAILED"):
            assert (failed.route, failed.subject, failed.error_type) == ("route", "in.1", "ScopeLeftOpenError")
            assert re.search(rf"test_scopes_left_open\.py:\d+ in {leave.__name__}$", failed.place)
            assert re.match(r"it returned within a (nursery|cancel scope); leave it before that", failed.detail)
        assert w.route.handling == 0


@pytest.mark.parametrize("more", [{}, {"key": "subject", "concurrency": 3}], ids=["in order", "by key"])
@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
async def test_a_scope_left_open_fails_only_its_message_of_a_stream(
    autojump_clock: MockClock, leave: Leave, more: dict[str, Any]
) -> None:
    calls = 0

    def once(message: Message) -> Any:
        nonlocal calls
        calls += 1
        return leave(message) if calls == 1 else uses_a_nursery(message)

    route = handled(once, to=to("out.x", jetstream=True), stream="IN", durable="router", **more)
    async with world(handlers=[route], brokers=one_broker()) as w:
        fill(w.broker, 3)
        await all_acked(w, 3)
        assert sorted(w.payloads("OUT")) == [b"0", b"1", b"2"]
        assert dict(w.route.failed) == {"handler_error": 1}


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
async def test_a_route_ends_properly_after_scopes_were_left_open(autojump_clock: MockClock, leave: Leave) -> None:
    route = core("in.*", "out.x") | {"handler": f"{__name__}:{leave.__name__}"}
    async with world([route]) as w:
        w.broker.publish("in.1", b"bad")
        await eventually(lambda: dict(w.route.failed) == {"handler_error": 1})
        await w.live.reload(w.configuration())
        assert w.live.routes == ()


async def test_a_handler_whose_nursery_does_not_end_counts_as_not_returning(autojump_clock: MockClock) -> None:
    released = trio.Event()

    async def stays() -> None:
        with trio.CancelScope(shield=True):
            await released.wait()

    async def leaves(message: Message) -> Message:
        left = await trio.open_nursery().__aenter__()
        left.start_soon(stays)
        await trio.sleep(0.01)
        return message

    async with world(handlers=[handled(leaves, subject="in.*", to=to("out.x"))]) as w:
        w.broker.publish("in.1", b"")
        await eventually(lambda: w.route.handling == 1)
        await trio.sleep(60)
        assert w.route.handling == 1
        assert w.route_ledger() == (1, 1, {})
        released.set()
        await eventually(lambda: w.route_ledger() == (1, 0, {"lost": 1}))


async def test_a_cancelled_route_cancels_the_nursery_that_a_handler_left_open(autojump_clock: MockClock) -> None:
    left = handled(sometimes(nursery_with_tasks), subject="in.*", to=to("out.x"))
    async with world(handlers=[left], shutdown_timeout=1.0) as w:
        w.broker.publish("in.1", b"bad")
        await trio.sleep(0.005)
    assert w.route.in_hand == 0


# --- scopes that can't be restored -----------------------------------------------------------------------------------


async def leaves_what_it_has_not_entered(message: Message) -> Message:
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None
    nursery.cancel_scope.__exit__(None, None, None)
    return message


async def leaves_that_later_and_hides_it(message: Message) -> Message:
    await trio.sleep(0.01)
    with contextlib.suppress(RuntimeError):
        await leaves_what_it_has_not_entered(message)
    return message


@pytest.mark.parametrize("more", [{}, {"key": "subject", "concurrency": 3}], ids=["in order", "by key"])
@pytest.mark.parametrize("leave", [leaves_what_it_has_not_entered, leaves_that_later_and_hides_it])
async def test_a_router_that_ends_because_of_lost_scopes_names_route_handler_and_message(
    autojump_clock: MockClock, leave: Leave, more: dict[str, Any]
) -> None:
    route = handled(leave, subject="in.*", to=to("out.x"), **more)
    named = (
        r"route 'route', with a message on 'in\.1': "
        rf"the handler at .*\.py:\d+ in {leave.__name__}: it left a cancel scope that it had not entered"
    )
    watch: list[Watch] = []

    async def route_it() -> None:
        async with world(handlers=[route], shutdown_timeout=1.0) as w:
            watch.append(w.watch)
            w.broker.publish("in.1", b"")
            await trio.sleep_forever()

    with pytest.raises(ScopesLostError, match=named):
        await route_it()
    failed = watch[0].of("ROUTE_MESSAGE_FAILED")[0]
    assert (failed.route, failed.subject, failed.error_type) == ("route", "in.1", "ScopesLostError")
    assert failed.place.endswith(f" in {leave.__name__}")


FROM_A_STREAM = {"stream": "IN", "durable": "router", "filter": "in.*"}


@pytest.mark.parametrize("source", [{"subject": "in.*"}, FROM_A_STREAM], ids=["core", "stream"])
@pytest.mark.parametrize("more", [{}, {"concurrency": 3}], ids=["in order", "by key"])
@pytest.mark.parametrize("leave", [leaves_what_it_has_not_entered, leaves_that_later_and_hides_it])
async def test_a_message_whose_handler_ends_its_route_is_counted(
    autojump_clock: MockClock, leave: Leave, more: dict[str, Any], source: dict[str, Any]
) -> None:
    fate = "lost" if "subject" in source else "returned"
    kept = {"retry": {}} | source | more
    worlds: list[World] = []

    async def route_it() -> None:
        async with world(handlers=[handled(leave, to=to("out.x"), **kept)], brokers=one_broker()) as w:
            worlds.append(w)
            fill(w.broker, 2)
            await trio.sleep_forever()

    with pytest.raises(ScopesLostError):
        await route_it()
    assert worlds[0].route_ledger() == (2, 0, {fate: 2})


@pytest.mark.parametrize("source", [{"subject": "in.*"}, FROM_A_STREAM], ids=["core", "stream"])
@pytest.mark.parametrize("more", [{}, {"concurrency": 3}], ids=["in order", "by key"])
async def test_messages_in_handlers_of_other_routes_are_counted_when_a_route_ends(
    autojump_clock: MockClock, more: dict[str, Any], source: dict[str, Any]
) -> None:
    async def wait(message: Message) -> None:
        await trio.sleep_forever()

    fate = "lost" if "subject" in source else "returned"
    waits = handled(wait, to=to("out.x"), **({"retry": {}} | source | more))
    ends = handled(leaves_that_later_and_hides_it, name="ends", subject="ends", to=to("out.y"), concurrency=2)
    worlds: list[World] = []

    async def route_them() -> None:
        async with world(handlers=[waits, ends], brokers=one_broker()) as w:
            worlds.append(w)
            fill(w.broker, 2, subjects="ab")
            await eventually(lambda: w.route.in_hand == 4)
            w.broker.publish("ends", b"")
            await trio.sleep_forever()

    with pytest.raises(ScopesLostError):
        await route_them()
    assert worlds[0].route_ledger() == (4, 0, {fate: 4})


@pytest.mark.parametrize("source", [{"subject": "in.*"}, FROM_A_STREAM], ids=["core", "stream"])
@pytest.mark.parametrize("order", ["bad", "dba", "abd"])
@pytest.mark.parametrize("leave", [leaves_what_it_has_not_entered, leaves_that_later_and_hides_it])
async def test_calls_for_other_keys_end_with_their_route(
    autojump_clock: MockClock, leave: Leave, order: str, source: dict[str, Any]
) -> None:
    """A task leaves the scopes of another task: the first of the route's, the last, or one in between."""

    async def handler(message: Message) -> Any:
        if message.subject != "in.b":
            await trio.sleep_forever()
        return await leave(message)

    fate = "lost" if "subject" in source else "returned"
    worlds: list[World] = []

    async def route_them() -> None:
        route = handled(handler, to=to("out.x"), key="subject", concurrency=4, **({"retry": {}} | source))
        async with world(handlers=[route], brokers=one_broker()) as w:
            worlds.append(w)
            fill(w.broker, 1, subjects=order)
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(ScopesLostError):
        await route_them()
    assert worlds[0].route_ledger() == (3, 0, {fate: 3})


@pytest.mark.parametrize("source", [{"subject": "in.*"}, FROM_A_STREAM], ids=["core", "stream"])
@pytest.mark.parametrize("ends", ["router", "route", "settings of the route"])
async def test_scopes_may_be_lost_while_a_route_ends(
    autojump_clock: MockClock, ends: str, source: dict[str, Any]
) -> None:
    async def handler(message: Message) -> Message:
        await trio.sleep(2)
        return await leaves_that_later_and_hides_it(message) if message.subject == "in.b" else message

    worlds: list[World] = []

    async def route_them() -> None:
        route = handled(handler, to=to("out.x"), key="subject", concurrency=4, **({"retry": {}} | source))
        async with world(handlers=[route], brokers=one_broker()) as w:
            worlds.append(w)
            fill(w.broker, 2, subjects="bad")
            await eventually(lambda: w.route.handling == 3)
            if ends != "router":
                changed = stream("IN", "out.y", filter="in.*") if "stream" in source else core("in.*", "out.y")
                await w.live.reload(w.configuration(*([] if ends == "route" else [changed])))
                await trio.sleep_forever()

    with trio.fail_after(8), pytest.raises(ScopesLostError):
        await route_them()
    assert worlds[0].route_ledger()[1] == 0


async def test_only_scopes_entered_by_the_handler_are_closed() -> None:
    with trio.CancelScope() as outer:
        async with trio.open_nursery() as around:
            around.start_soon(trio.sleep, 0)
            before, nurseries = scopes_of_task(), trio.lowlevel.current_task().child_nurseries
            assert not left_open(before)
            await nursery_within_a_scope(Message("in.1"))
            assert left_open(before)
            assert isinstance(await close_left_open(before), ScopeLeftOpenError)
            assert not left_open(before)
            assert trio.lowlevel.current_task().child_nurseries == nurseries
        outer.cancel()
        await trio.sleep_forever()
    assert outer.cancelled_caught
