"""Routes from a core subscription with a key: concurrent calls of the handler, and the order of each key."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.routing.core import keeper
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, numbers, overhearing, to, world
from tests.unit.routing.by_key import KEY, Calls, publish, unchanged

SUBJECT = "in.*"
OUT = to("out.{{wildcard(1)}}")


def by_key(handler: Any, **more: Any) -> Any:
    return handled(handler, subject=SUBJECT, to=OUT, **{"key": KEY, "concurrency": 4, **more})


def sent(w: World, key: str) -> list[bytes]:
    """Return the payloads that were sent for a key, in order."""
    return [one.payload for one in w.broker.published if one.headers.get("key") == key]


async def all_out(w: World, count: int, within: float = 60) -> None:
    await eventually(lambda: len(w.broker.published) == count, within)


@pytest.mark.parametrize("strategy", ["all", "sticky"])
async def test_a_route_without_a_handler_holds_back_the_key_of_a_message_that_is_retried(
    autojump_clock: MockClock, strategy: str
) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.*"])
    route = core(SUBJECT, to("out.{{wildcard(1)}}", jetstream=True), retry={"attempts": 9})
    route |= {"key": KEY, "strategy": strategy}
    async with world([route], brokers={"main": broker}) as w:
        broker.deny_publish("out.x")
        publish(broker, "a:1")
        publish(broker, "a:2", "b:3", subject="in.y")
        await eventually(lambda: w.payloads("OUT") == [b"3"])
        await trio.sleep(1)
        broker.allow_publish("out.x")
        await eventually(lambda: w.payloads("OUT") == [b"3", b"1", b"2"], 60)


async def test_a_message_that_is_too_large_holds_up_no_other_of_its_key_on_a_sticky_route(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker(max_payload=300)
    route = core(SUBJECT, "out.a.{{wildcard(1)}}", "out.b.{{wildcard(1)}}", retry={}, dead_letter={"subject": "dead"})
    broker.add_stream("DEAD", ["dead"])
    route |= {"key": KEY, "strategy": "sticky"}
    async with world([route], brokers={"main": broker}) as w:
        broker.publish("in.x", b"x" * 300, {"key": "a"})
        publish(broker, "a:1", "a:2", "b:3")
        await eventually(lambda: len(sent(w, "a")) == 2)
        assert (sent(w, "a"), sent(w, "b")) == ([b"1", b"2"], [b"3"])
        await eventually(lambda: w.route.failed["too_large"] > 3, 60)
        publish(broker, "a:4")
        await eventually(lambda: sent(w, "a") == [b"1", b"2", b"4"], 1)
        assert w.route.in_hand == 1


async def test_a_message_that_is_given_up_holds_back_its_key_until_its_dead_letter_is_settled(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    broker.add_stream("DEAD", ["dead"])

    def handler(message: Message) -> Message:
        if message.payload == b"1":
            raise ValueError("never")
        return message

    letters = {"retry": {"attempts": 3, "initial": "1s"}, "dead_letter": {"subject": "dead"}}
    async with world(handlers=[by_key(handler, **letters)], brokers={"main": broker}) as w:
        publish(broker, "a:1", "a:2", "b:3")
        await eventually(lambda: w.payloads("DEAD") == [b"1"], 60)
        await eventually(lambda: sent(w, "a")[-1:] == [b"2"])
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 2, "dead_lettered": 1}))


async def test_without_retry_a_failed_message_is_lost_and_the_next_one_is_handled(autojump_clock: MockClock) -> None:
    def handler(message: Message) -> Message:
        if message.payload == b"1":
            raise ValueError("never")
        return message

    async with world(handlers=[by_key(handler)]) as w:
        publish(w.broker, "a:1", "a:2", "b:3")
        await all_out(w, 2)
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 2, "lost": 1}))
        assert not w.route.given_up, "no retry is configured"


async def test_a_message_without_the_key_fails_and_a_filtered_one_needs_none(
    autojump_clock: MockClock,
) -> None:
    route = core(SUBJECT, OUT, retry={"attempts": 1}) | {"key": KEY, "when": 'payload != b"not"'}
    async with world([route]) as w:
        publish(w.broker, "a:1", ":2", ":not", "a:3")
        await all_out(w, 2)
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 2, "filtered": 1, "lost": 1}))
        assert w.route.failed["expression"] == 1


async def test_several_requests_are_answered_concurrently(autojump_clock: MockClock) -> None:
    calls = Calls()
    answering = handled(calls, subject=SUBJECT, to=[], respond=True, reply_to=["answer.*"], key=KEY, concurrency=2)
    async with world(handlers=[answering]) as w, overhearing(w.broker, "answer.*") as answers:
        for key in "abab":
            w.broker.publish("in.x", b"q", headers={"key": key}, reply=f"answer.{key}")
        await eventually(lambda: calls.active == ["a", "b"])
        calls.let_go("a", "b")
        await eventually(lambda: len(answers) == 4)


async def test_a_key_with_many_messages_leaves_room_for_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOST_OF_A_KEY", 10)
    calls = Calls()
    async with world(handlers=[by_key(calls)]) as w:
        publish(w.broker, *(f"hot:{number}" for number in range(20)), "cold:x")
        calls.let_go("cold")
        await eventually(lambda: sent(w, "cold") == [b"x"])
        assert w.route.failed["slow_consumer"] == 10
        calls.let_go("hot")
        await all_out(w, 11)
        assert sent(w, "hot") == numbers(10)
        await eventually(lambda: w.route_ledger() == (21, 0, {"routed": 11, "lost": 10}))


async def test_messages_in_the_handler_and_waiting_ones_are_counted_at_the_end(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls)], shutdown_timeout=1.0) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4", "c:5")
        await eventually(lambda: len(calls.active) == 3)
        route = w.route
    assert route.settled["lost"] == route.failed["shutdown"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_order_and_ledger_hold_with_failures(autojump_clock: MockClock, seed: int) -> None:
    random, calls = Random(seed), Calls()
    attempts: defaultdict[bytes, int] = defaultdict(int)

    async def takes(message: Message) -> None:
        attempts[message.payload] += 1
        await trio.sleep(random.random())
        if Random(f"{message.payload!r} {attempts[message.payload]}").random() < 0.2:
            raise ValueError("not now")

    calls.takes = takes
    async with world(handlers=[by_key(calls, concurrency=8, retry={"attempts": 30, "initial": "1s"})]) as w:
        for number in range(300):
            publish(w.broker, f"k{random.randrange(20)}:{number}")
        await all_out(w, 300, 600)
        for number in range(20):
            order = [int(payload) for payload in sent(w, f"k{number}")]
            assert order == sorted(order)
        assert calls.most == 8
        await eventually(lambda: w.route_ledger() == (300, 0, {"routed": 300}))


async def test_settled_keys_are_forgotten(autojump_clock: MockClock) -> None:
    """Any number of keys may occur, because the key of a settled message is forgotten."""
    async with world(handlers=[by_key(unchanged)]) as w:
        for number in range(2_000):
            publish(w.broker, f"k{number}:{number}")
        await all_out(w, 2_000)
        await eventually(lambda: w.route.in_hand == 0)
        source: Any = [*w.live.connections["main"]._sources][-1]
        assert source.keeper.hand.schedule.keys == 0


async def test_a_subject_that_begins_with_nul_is_a_key_like_any_other(autojump_clock: MockClock) -> None:
    """Any client may publish to it: a server checks no byte of a subject."""
    async with world(handlers=[handled(unchanged, subject="*.x", to=to("out.a.b"), concurrency=3)]) as w:
        w.broker._server.receive(Publish(b"\0.x", b"", b"", b"1"), 0.0, lambda _: False)
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert w.subjects()[-1] == "out.a.b"
