"""Reloads on fake brokers of routes with a key, before the change, after it, or both."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.message import Message
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, fill, handled, numbers, one_broker, stream, to, world
from tests.unit.router.traffic import by_name, never, received

BY_KEY = {"key": "subject", "concurrency": 4}


async def slowly(message: Message) -> Message:
    await trio.sleep(0.05)
    return message


SLOWLY = {"handler": f"{slowly.__module__}:slowly"}


async def refuse_the_first(message: Message) -> Message:
    if message.payload == b"0":
        raise ValueError("no")
    return message


@pytest.mark.parametrize(("before", "behind"), [(BY_KEY, BY_KEY), (BY_KEY, {}), ({}, BY_KEY)])
async def test_messages_waiting_behind_their_key_are_taken_over_by_the_new_route(
    before: dict[str, Any], behind: dict[str, Any], autojump_clock: MockClock
) -> None:
    old, new = core("in.*", "old.$1") | SLOWLY | before, core("in.*", "new.$1") | SLOWLY | behind
    async with world([old]) as w:
        for number in numbers(20):
            for subject in ("in.a", "in.b"):
                w.broker.publish(subject, number)
                await trio.sleep(0.001)
        await trio.sleep(0.3)
        await w.live.reload(w.configuration(new))
        await eventually(lambda: w.route_ledger() == (40, 0, {"routed": 40}))
        for key in ("a", "b"):
            first, second = received(w, f"old.{key}"), received(w, f"new.{key}")
            assert first + second == numbers(20), "in order, each once"
            assert first
            assert second


async def test_a_key_is_never_in_two_handlers_at_once_across_a_change(autojump_clock: MockClock) -> None:
    active = 0

    async def one_at_a_time(message: Message) -> Message:
        nonlocal active
        active += 1
        assert active == 1
        await trio.sleep(1)
        active -= 1
        return message

    async with world(handlers=[handled(one_at_a_time, subject="in.*", to="out.$1", concurrency=8)]) as w:
        for number in numbers(6):
            w.broker.publish("in.a", number)
        await wait_all_tasks_blocked()
        await trio.sleep(0.5)
        await w.live.reload(w.configuration(core("in.*", "out.$1", retry={"attempts": 2}) | {"concurrency": 2}))
        await eventually(lambda: w.route_ledger() == (6, 0, {"routed": 6}))
        assert received(w, "out.a") == numbers(6)


async def test_at_a_shutdown_during_a_reload_no_more_handlers_are_active_than_the_concurrency(
    autojump_clock: MockClock,
) -> None:
    active: list[bytes] = []
    most = 0

    async def counted(message: Message) -> Message:
        nonlocal most
        active.append(message.payload)
        most = max(most, len(active))
        await trio.sleep(1)
        active.remove(message.payload)
        return message

    by_key = {"key": "subject", "concurrency": 2}
    made = handled(counted, subject="in.*", to="out.$1", **by_key)
    async with world(handlers=[made]) as w, trio.open_nursery() as nursery:
        for number in numbers(6):
            w.broker.publish(f"in.{number.decode()}", number)
        await eventually(lambda: len(active) == 2)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1") | by_key))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert most == 2
    assert w.route_ledger() == (6, 0, {"routed": 6})


async def test_at_a_shutdown_during_a_reload_a_key_waits_until_the_publish_of_the_old_route_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    by_key = {"retry": {"attempts": 2}, "key": "subject"}
    old = core("in.*", to("old.$1", "edge"), connection="main") | by_key
    new = core("in.*", to("new.$1"), connection="main") | by_key
    sent_meanwhile: list[bytes] = []

    async def look_later(w: World) -> None:
        await trio.sleep(1)
        sent_meanwhile.extend(received(w, "new.a"))

    async with trio.open_nursery() as outside:
        async with world([old], brokers=brokers) as w, trio.open_nursery() as nursery:
            w.brokers["edge"].stall(3)
            w.broker.publish("in.a", b"0")
            await eventually(lambda: by_name(w)["route"].in_hand == 1)
            nursery.start_soon(w.live.reload, w.configuration(new))
            await wait_all_tasks_blocked()
            w.broker.publish("in.a", b"1")
            await trio.sleep(0.5)
            outside.start_soon(look_later, w)
            nursery.cancel_scope.cancel()
        assert w.route_ledger() == (2, 0, {"routed": 2})
    assert sent_meanwhile == []
    assert (received(w, "old.a", connection="edge"), received(w, "new.a")) == ([b"0"], [b"1"])


async def test_messages_waiting_for_another_attempt_are_tried_by_the_new_route_after_its_shorter_delay(
    autojump_clock: MockClock,
) -> None:
    old = (
        core("in.*", "old.$1", retry={"initial": "1h", "max": "1h", "attempts": 9})
        | {"handler": f"{never.__module__}:never"}
        | BY_KEY
    )
    async with world([old]) as w:
        for number in numbers(3):
            w.broker.publish("in.a", number)
        await eventually(lambda: by_name(w)["route"].failed["handler_error"] == 1)
        began = trio.current_time()
        retry = {"initial": "5s", "max": "5s", "attempts": 9}
        await w.live.reload(w.configuration(core("in.*", "new.$1", retry=retry) | SLOWLY | BY_KEY))
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 3}))
        assert trio.current_time() - began < 7
        assert received(w, "new.a") == numbers(3)


@pytest.mark.parametrize("per", [None, "subject"])
async def test_messages_waiting_for_the_limit_are_handled_by_the_new_route_at_once(
    per: str | None, autojump_clock: MockClock
) -> None:
    limit = {"rate": "1/h", "burst": 1} | ({} if per is None else {"per": per})
    old = core("in.*", "old.$1") | SLOWLY | BY_KEY | {"limit": limit}
    async with world([old]) as w:
        for number in numbers(4):
            w.broker.publish("in.a", number)
        await eventually(lambda: received(w, "old.a") == numbers(1))
        await trio.sleep(1)
        began = trio.current_time()
        await w.live.reload(w.configuration(core("in.*", "new.$1") | SLOWLY | BY_KEY))
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))
        assert trio.current_time() - began < 1
        assert received(w, "new.a") == numbers(3, first=1)


@pytest.mark.parametrize(
    ("before", "behind"), [(BY_KEY, {}), ({}, BY_KEY), (BY_KEY, {"key": "payload", "concurrency": 2})]
)
async def test_a_route_from_a_stream_changes_its_key(
    before: dict[str, Any], behind: dict[str, Any], autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>"])
    old = stream("IN", "out.$1", filter="in.*") | SLOWLY | before
    new = stream("IN", "new.$1", filter="in.*") | SLOWLY | behind
    async with world([old], brokers=brokers) as w:
        fill(w.broker, 30)
        await eventually(lambda: len(w.payloads("OUT")) > 5)
        await w.live.reload(w.configuration(new))
        await eventually(lambda: len(w.payloads("OUT") + w.payloads("NEW")) == 30, 60)
        assert sorted(w.payloads("OUT") + w.payloads("NEW")) == sorted(numbers(30))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert by_name(w)["route"].in_hand == 0


@pytest.mark.parametrize(
    "behind",
    [{"concurrency": 2}, {}, {"key": "subject"}, {"key": "size(subject)"}],
    ids=["by key", "not", "a key", "one key"],
)
async def test_messages_cancelled_in_handlers_are_redelivered_before_new_ones_of_their_key(
    behind: dict[str, Any], autojump_clock: MockClock
) -> None:
    calls: list[bytes] = []

    async def stuck_at_first(message: Message) -> Message:
        calls.append(message.payload)
        if len(calls) <= 2:
            await trio.sleep_forever()
        return message

    source = {"stream": "IN", "durable": "router", "filter": "in.*"}
    made = handled(stuck_at_first, to="out.{{wildcard(1)}}", concurrency=2, **source)
    async with world(handlers=[made], brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 3, subjects="ab")
        await eventually(lambda: calls == [b"0", b"0"])
        w.broker.trouble.lose("nak", times=6)
        new = stream("IN", "out.{{wildcard(1)}}", filter="in.*", max_in_flight=10) | behind
        await w.live.reload(w.configuration(new))
        fill(w.broker, 3, first=3, subjects="ab")
        await eventually(lambda: len(w.payloads("OUT")) == 12, 200.0)
        stored = w.broker.messages("OUT")
        for subject in ("out.a", "out.b"):
            assert [one.payload for one in stored if one.subject == subject] == numbers(6)
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.route_ledger() == (14, 0, {"returned": 2, "routed": 12})


async def test_attempts_from_a_stream_count_under_another_key_while_others_are_in_hand(
    autojump_clock: MockClock,
) -> None:
    retry = {"initial": "3s", "factor": 1, "attempts": 3}
    old = stream("IN", "out.$1", filter="in.*", retry=retry) | {"handler": f"{__name__}:refuse_the_first"}
    async with world([old], brokers=one_broker(), shutdown_timeout=1.0) as w:
        w.broker.trouble.lose("puback", 1)
        fill(w.broker, 2, subjects="a")
        await eventually(lambda: w.route.failed["handler_error"] == 1 and w.payloads("OUT") == [b"1"])
        await w.live.reload(w.configuration(old | BY_KEY))
        await eventually(lambda: by_name(w)["route"].given_up["handler_error"] == 1, 60)
        assert by_name(w)["route"].failed["handler_error"] == 3
        await eventually(lambda: w.broker.unacked("IN", "router") == 0, 60)
