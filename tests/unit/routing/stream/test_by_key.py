"""Routes from a stream with a key: concurrent calls of the handler, and an order within each key but not between
keys.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import LOCAL, all_acked, handled, numbers, one_broker, two_brokers, unacked, world
from tests.unit.routing.by_key import KEY, OUT, Calls, by_key, payloads_of, publish, unchanged
from tests.unit.routing.stream.giving_up import FROM, NAME, brokers, dead


async def test_a_slow_key_holds_up_no_other(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, concurrency=2)], brokers=one_broker()) as w:
        publish(w.broker, *(f"hot:{number}" for number in range(100)), *(f"k{number}:x" for number in range(20)))
        calls.let_go(*(f"k{number}" for number in range(20)))
        await eventually(lambda: len(w.broker.messages("OUT")) == 20)
        assert calls.active == ["hot"]
        calls.let_go("hot")
        await all_acked(w, 120)
        assert payloads_of(w, "hot") == numbers(100)


async def test_messages_waiting_behind_their_key_have_separate_room(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, max_in_flight=10)], brokers=one_broker()) as w:
        publish(w.broker, *(f"hot:{number}" for number in range(9)), "cold:x")
        calls.let_go("cold")
        await eventually(lambda: payloads_of(w, "cold") == [b"x"])
        publish(w.broker, "cold:y")
        await eventually(lambda: payloads_of(w, "cold") == [b"x", b"y"])
        publish(w.broker, *(f"hot:{number}" for number in range(9, 200)))
        await trio.sleep(5)
        assert w.route.in_hand <= 20, "that room is bounded"
        calls.let_go("hot")
        await all_acked(w, 202)
        assert payloads_of(w, "hot") == numbers(200)


async def test_the_next_message_of_a_key_is_handled_once_the_stream_has_stored_the_previous_one(
    autojump_clock: MockClock,
) -> None:
    calls = Calls()
    calls.let_go("a", "b")
    async with world(handlers=[by_key(calls)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, "a:1", "a:2", "b:3")
        await eventually(lambda: w.route.failed["permission_denied"] >= 2)
        assert calls.begun.count(b"2") == 0
        w.broker.allow_publish("out.x")
        await all_acked(w, 3)
        assert payloads_of(w, "a") == [b"1", b"2"]


async def test_a_failed_message_holds_back_only_its_key_with_one_call_at_a_time(autojump_clock: MockClock) -> None:
    failed: list[bytes] = []

    async def handler(message: Message) -> Message:
        await trio.sleep(0.1)
        if message.payload == b"1" and not failed:
            failed.append(message.payload)
            raise ValueError("not now")
        return message

    async with world(handlers=[by_key(handler, concurrency=1)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "a:2", "b:3")
        await all_acked(w, 3)
        assert [one.payload for one in w.broker.messages("OUT")] == [b"3", b"1", b"2"]


async def test_a_message_that_is_given_up_holds_back_its_key_until_its_dead_letter_is_stored(
    autojump_clock: MockClock,
) -> None:
    def handler(message: Message) -> Message:
        if message.payload == b"1":
            raise ValueError("never")
        return message

    options = {**FROM, "retry": {"attempts": 2, "initial": "1s"}, "key": KEY, "concurrency": 4}
    async with world(handlers=[handled(handler, to=OUT, **options)], brokers=brokers()) as w:
        w.broker.deny_publish("dead.x")
        publish(w.broker, "a:1", "a:2", "b:3")
        await eventually(lambda: w.route.failed["dead_letter"] >= 1)
        assert (payloads_of(w, "a"), payloads_of(w, "b")) == ([], [b"3"])
        w.broker.allow_publish("dead.x")
        await eventually(lambda: payloads_of(w, "a") == [b"2"], 600)
        assert [(one.payload, one.headers[f"{NAME}Reason"]) for one in dead(w)] == [(b"1", "handler_error")]
        await eventually(lambda: unacked(w) == 0)


async def test_a_message_without_the_key_fails_and_holds_up_no_others(autojump_clock: MockClock) -> None:
    options = {**FROM, "retry": {"attempts": 1}, "key": KEY, "concurrency": 4}
    async with world(handlers=[handled(unchanged, to=OUT, **options)], brokers=brokers()) as w:
        publish(w.broker, "a:1", ":2", "a:3")
        await eventually(lambda: payloads_of(w, "a") == [b"1", b"3"])
        await eventually(lambda: len(dead(w)) == 1)
        assert dead(w)[0].headers[f"{NAME}Reason"] == "expression"
        assert w.route.failed["expression"] == 1
        await eventually(lambda: unacked(w) == 0)


async def test_long_keys_are_distinguished(autojump_clock: MockClock) -> None:
    calls = Calls()
    first, second = "k" * 1_000 + "1", "k" * 1_000 + "2"
    async with world(handlers=[by_key(calls)], brokers=one_broker()) as w:
        publish(w.broker, f"{first}:1", f"{second}:2", f"{first}:3")
        await eventually(lambda: calls.active == [first, second])
        calls.let_go(first, second)
        await all_acked(w, 3)
        assert payloads_of(w, first) == [b"1", b"3"]


async def test_no_message_waits_for_one_without_a_key(autojump_clock: MockClock) -> None:
    calls = Calls()
    calls.let_go("a")
    async with world(handlers=[by_key(calls, max_in_flight=1)], brokers=one_broker()) as w:
        publish(w.broker, ":1")
        await eventually(lambda: w.route.failed["expression"] > 1)
        publish(w.broker, "a:2", "a:3")
        await eventually(lambda: payloads_of(w, "a") == [b"2", b"3"])
        assert (w.route.state, unacked(w)) == ("running", 1), "the message without a key is still retried"


async def test_a_route_without_a_handler_keeps_the_order_of_its_keys_too(autojump_clock: MockClock) -> None:
    async with world([LOCAL | {"key": KEY}], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, "a:1", subject="in.x")
        publish(w.broker, "a:2", "b:3", subject="in.y")
        await eventually(lambda: payloads_of(w, "b") == [b"3"])
        await trio.sleep(3)
        assert payloads_of(w, "a") == [], "it waits for the key, under another subject"
        w.broker.allow_publish("out.x")
        await all_acked(w, 3)
        assert payloads_of(w, "a") == [b"1", b"2"]


async def test_sticky_messages_of_a_key_follow_each_other_at_once(autojump_clock: MockClock) -> None:
    """All messages of a key are sent to one destination, which keeps their order."""
    route = LOCAL | {"key": KEY, "strategy": "sticky", "to": [OUT, OUT | {"subject": "out.more.{{wildcard(1)}}"}]}
    async with world([route], brokers=one_broker()) as w:
        publish(w.broker, *(f"a:{number}" for number in range(50)))
        await all_acked(w, 50)
        assert payloads_of(w, "a") == numbers(50)
        w.broker.deny_publish("out.x")
        w.broker.deny_publish("out.more.x")
        publish(w.broker, *(f"a:{number}" for number in range(50, 60)))
        await eventually(lambda: w.route.failed["permission_denied"] > 0)
        w.broker.allow_publish("out.x")
        w.broker.allow_publish("out.more.x")
        await all_acked(w, 60)
        assert payloads_of(w, "a") == numbers(60)


async def test_sticky_messages_of_a_key_do_not_wait_for_each_others_confirmation(autojump_clock: MockClock) -> None:
    there = {"key": KEY, "strategy": "sticky", "to": [OUT | {"connection": "edge"}]}
    route = LOCAL | {"from": LOCAL["from"] | {"connection": "main"}} | there
    async with world([route], brokers=two_brokers()) as w:
        w.brokers["edge"].stall(2)
        publish(w.broker, *(f"a:{number}" for number in range(10)))
        await eventually(lambda: w.entry("edge")["in_flight"] == 10, 1)
        await all_acked(w, 10)
        assert w.payloads("OUT", "edge") == numbers(10)


async def test_sticky_messages_of_a_key_wait_behind_one_that_is_refused_for_now(autojump_clock: MockClock) -> None:
    """Their subjects make no difference, and messages of other keys don't wait."""
    route = LOCAL | {"key": KEY, "strategy": "sticky", "to": [OUT]}
    async with world([route], brokers=one_broker()) as w:
        w.broker.trouble.elect("OUT", 1e6)
        publish(w.broker, "a:1", subject="in.x")
        refusals = w.live.connections["main"].outbox.capacity.refusals
        await eventually(lambda: bool(refusals()))
        w.broker.trouble.elect("OUT", 0)
        publish(w.broker, "a:2", "b:3", subject="in.y")
        await eventually(lambda: payloads_of(w, "b") == [b"3"])
        assert payloads_of(w, "a") == []
        await all_acked(w, 3)
        assert payloads_of(w, "a") == [b"1", b"2"]


async def test_a_sticky_message_that_fails_by_its_own_fault_holds_up_no_others(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(max_payload=200)}
    brokers["main"].add_stream("IN", ["in.*"])
    brokers["main"].add_stream("OUT", ["out.>"])
    route = LOCAL | {"key": KEY, "strategy": "sticky", "to": [OUT, OUT | {"subject": "out.more.{{wildcard(1)}}"}]}
    route["from"] = route["from"] | {"max_in_flight": 1}
    async with world([route], brokers=brokers) as w:
        w.broker.publish("in.x", b"x" * 300, {"key": "a"})
        await eventually(lambda: w.route.failed["too_large"] > 1)
        publish(w.broker, "a:1", "b:2", "a:3")
        await eventually(lambda: payloads_of(w, "a") == [b"1", b"3"])
        assert payloads_of(w, "b") == [b"2"]
        assert (w.route.state, unacked(w)) == ("running", 1), "the large message is still retried"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_the_order_of_each_key_is_kept_across_failures_and_lost_links(
    autojump_clock: MockClock, seed: int
) -> None:
    random = Random(seed)
    calls = Calls()
    attempts: defaultdict[bytes, int] = defaultdict(int)

    async def takes(message: Message) -> None:
        attempts[message.payload] += 1
        await trio.sleep(random.random())
        if Random(f"{message.payload!r} {attempts[message.payload]}").random() < 0.2:
            raise ValueError("not now")

    calls.takes = takes
    options = {"concurrency": 8, "retry": {"initial": "1s"}}
    async with world(handlers=[by_key(calls, **options)], brokers=one_broker()) as w:
        for number in range(300):
            publish(w.broker, f"k{random.randrange(20)}:{number}")
        for _ in range(3):
            await trio.sleep(random.uniform(1, 4))
            await w.lose()
            await trio.sleep(random.random())
            await w.find()
        await eventually(lambda: len(w.broker.messages("OUT")) == 300, 3000)
        await eventually(lambda: unacked(w) == 0, 600)
        for key in {f"k{number}" for number in range(20)}:
            order = [int(payload) for payload in payloads_of(w, key)]
            assert order == sorted(order)
        assert calls.most == 8
