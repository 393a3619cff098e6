"""Routes from a stream key by key: calls of the handler at a time, order for each key, and nothing between keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio import Message
from router_trio.errors import ConfigurationError, Retry
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import LOCAL, World, all_acked, fill, handled, numbers, one_broker, unacked, world
from tests.unit.routing.stream.giving_up import FROM, NAME, brokers, dead

OUT: dict[str, Any] = {"subject": "out.{{wildcard(1)}}", "jetstream": True}
IN: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*"}
KEY = "headers.key"


class Calls:
    """A handler that is told when to return: `at_work` are the keys of its calls, `most` how many were at a time."""

    def __init__(self) -> None:
        self.at_work: list[str] = []
        self.most = 0
        self.begun: list[bytes] = []
        self._gates: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self.takes: Callable[[Message], Awaitable[None]] | None = None

    async def __call__(self, message: Message) -> Message:
        key = message.headers.get("key") or message.subject
        assert key not in self.at_work, "two calls of one key"
        self.at_work.append(key)
        self.begun.append(message.payload)
        self.most = max(self.most, len(self.at_work))
        try:
            if self.takes is None:
                await self._gates[key].wait()
            else:
                await self.takes(message)
        finally:
            self.at_work.remove(key)
        return message

    __name__ = "calls"

    def let_go(self, *keys: str) -> None:
        """Let all calls of these keys return, from now on."""
        for key in keys:
            self._gates[key].set()


def publish(broker: FakeBroker, *messages: str, subject: str = "in.x") -> None:
    """Publish messages as `key:payload`, the header `key` left out if it is empty."""
    for message in messages:
        key, _, payload = message.partition(":")
        broker.publish(subject, payload.encode(), headers={"key": key} if key else {})


def unchanged(message: Message) -> Message:
    return message


async def takes_a_second(message: Message) -> None:
    await trio.sleep(1)


def payloads_of(w: World, key: str) -> list[bytes]:
    return [one.payload for one in w.broker.messages("OUT") if one.headers.get("key") == key]


def by_key(handler: Callable[..., Any], **more: Any) -> Any:
    return handled(handler, to=OUT, **IN, **{"key": KEY, "concurrency": 4, **more})


async def test_so_many_calls_at_a_time_and_one_of_each_key(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, concurrency=3)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4", "d:5")
        await eventually(lambda: len(calls.at_work) == 3)
        await trio.sleep(5)
        assert calls.at_work == ["a", "b", "c"]
        calls.let_go("b")
        await eventually(lambda: calls.at_work == ["a", "c", "d"])
        calls.let_go("a", "c", "d")
        await all_acked(w, 5)
        assert calls.most == 3
        assert payloads_of(w, "a") == [b"1", b"2"]


async def test_a_key_that_is_slow_holds_up_no_other(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, concurrency=2)], brokers=one_broker()) as w:
        publish(w.broker, *(f"hot:{number}" for number in range(100)), *(f"k{number}:x" for number in range(20)))
        calls.let_go(*(f"k{number}" for number in range(20)))
        await eventually(lambda: len(w.broker.messages("OUT")) == 20)
        assert calls.at_work == ["hot"]
        calls.let_go("hot")
        await all_acked(w, 120)
        assert payloads_of(w, "hot") == numbers(100)


async def test_what_waits_behind_its_key_has_room_of_its_own(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, max_in_flight=10)], brokers=one_broker()) as w:
        publish(w.broker, *(f"hot:{number}" for number in range(9)), "cold:x")
        calls.let_go("cold")
        await eventually(lambda: payloads_of(w, "cold") == [b"x"])
        publish(w.broker, "cold:y")
        await eventually(lambda: payloads_of(w, "cold") == [b"x", b"y"])
        publish(w.broker, *(f"hot:{number}" for number in range(9, 200)))
        await trio.sleep(5)
        assert w.route.in_hand <= 20, "and that has an end"
        calls.let_go("hot")
        await all_acked(w, 202)
        assert payloads_of(w, "hot") == numbers(200)


async def test_without_a_key_it_is_the_subject(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, key=None)], brokers=one_broker()) as w:
        fill(w.broker, 3, subjects="ab")
        await eventually(lambda: calls.at_work == ["in.a", "in.b"])
        calls.let_go("in.a", "in.b")
        await all_acked(w, 6)


async def test_the_next_of_a_key_begins_when_the_stream_has_the_one_before(autojump_clock: MockClock) -> None:
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


async def test_a_message_that_failed_holds_back_its_key_alone(autojump_clock: MockClock) -> None:
    failed: list[bytes] = []

    def handler(message: Message) -> Message:
        if message.payload == b"1" and len(failed) < 3:
            failed.append(message.payload)
            raise Retry(after=5)
        return message

    async with world(handlers=[by_key(handler)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "a:4")
        await eventually(lambda: payloads_of(w, "b") == [b"3"], 1)
        await eventually(lambda: len(failed) == 3, 60)
        assert payloads_of(w, "a") == []
        await all_acked(w, 4)
        assert payloads_of(w, "a") == [b"1", b"2", b"4"]


async def test_with_a_key_and_one_call_at_a_time_it_is_the_same(autojump_clock: MockClock) -> None:
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


async def test_what_is_given_up_holds_back_its_key_until_its_dead_letter_is_stored(autojump_clock: MockClock) -> None:
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


async def test_a_message_without_the_key_fails_and_holds_up_nobody(autojump_clock: MockClock) -> None:
    options = {**FROM, "retry": {"attempts": 1}, "key": KEY, "concurrency": 4}
    async with world(handlers=[handled(unchanged, to=OUT, **options)], brokers=brokers()) as w:
        publish(w.broker, "a:1", ":2", "a:3")
        await eventually(lambda: payloads_of(w, "a") == [b"1", b"3"])
        await eventually(lambda: len(dead(w)) == 1)
        assert dead(w)[0].headers[f"{NAME}Reason"] == "expression"
        assert w.route.failed["expression"] == 1
        await eventually(lambda: unacked(w) == 0)


async def test_what_the_route_does_not_take_needs_no_key(autojump_clock: MockClock) -> None:
    route = LOCAL | {"key": KEY, "when": '"key" in headers'}
    async with world([route], brokers=one_broker()) as w:
        publish(w.broker, "a:1", ":2")
        await all_acked(w, 2)
        assert w.route_ledger() == (2, 0, {"routed": 1, "filtered": 1})


async def test_a_route_without_handler_goes_by_its_key_too(autojump_clock: MockClock) -> None:
    async with world([LOCAL | {"key": KEY}], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, "a:1", subject="in.x")
        publish(w.broker, "a:2", "b:3", subject="in.y")
        await eventually(lambda: payloads_of(w, "b") == [b"3"])
        await trio.sleep(3)
        assert payloads_of(w, "a") == [], "under another subject, and of the same key"
        w.broker.allow_publish("out.x")
        await all_acked(w, 3)
        assert payloads_of(w, "a") == [b"1", b"2"]


async def test_sticky_messages_of_a_key_follow_each_other_at_once(autojump_clock: MockClock) -> None:
    """All of a key goes to one destination, where it stays in order."""
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


@pytest.mark.parametrize("seed", range(5))
async def test_the_order_of_each_key_survives_failures_and_links_that_die(autojump_clock: MockClock, seed: int) -> None:
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


async def test_the_end_gives_back_what_is_in_the_handler_and_what_waits(autojump_clock: MockClock) -> None:
    calls, again = Calls(), Calls()
    brokers = one_broker()
    async with world(handlers=[by_key(calls)], brokers=brokers, shutdown_timeout=1.0) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4", "c:5")
        await eventually(lambda: len(calls.at_work) == 3)
        ledger = w.live.routes[0]
    assert ledger.settled["returned"] == 5
    again.let_go("a", "b", "c")
    async with world(handlers=[by_key(again)], brokers=brokers) as w:
        await all_acked(w, 5)
        assert payloads_of(w, "a") == [b"1", b"2"]
        assert payloads_of(w, "c") == [b"4", b"5"]


async def test_the_end_waits_for_what_can_still_be_handled(autojump_clock: MockClock) -> None:
    calls = Calls()
    calls.takes = takes_a_second
    async with world(handlers=[by_key(calls, concurrency=2)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4")
        await eventually(lambda: w.route.in_hand == 4)
    assert w.route.settled["routed"] == 4


async def test_a_limit_counts_messages_of_all_keys(autojump_clock: MockClock) -> None:
    calls = Calls()
    calls.let_go("a", "b")
    route = LOCAL | {"key": KEY, "limit": {"rate": "1/s", "burst": 1}}
    async with world([route], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "b:2", "a:3", "b:4")
        began = trio.current_time()
        await all_acked(w, 4)
        assert 3 <= trio.current_time() - began < 5


async def test_a_limit_for_each_value_holds_back_the_key(autojump_clock: MockClock) -> None:
    """What the limit of its value holds back is passed by no message of its key, whatever value that has."""
    limit = {"rate": "1/s", "burst": 1, "per": "string(size)"}
    async with world([LOCAL | {"key": KEY, "limit": limit}], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "a:2", "a:33", "b:44", "b:555")
        await all_acked(w, 5)
        assert payloads_of(w, "a") == [b"1", b"2", b"33"]
        assert payloads_of(w, "b") == [b"44", b"555"]
        assert w.route.limited == 1


async def test_a_breaker_takes_back_what_it_holds_up(autojump_clock: MockClock) -> None:
    to = OUT | {"breaker": {"failures": 2, "pause": "5s"}}
    async with world([LOCAL | {"key": KEY, "to": [to]}], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, *(f"k{number}:{number}" for number in range(10)), *(f"k{number}:x" for number in range(10)))
        await eventually(lambda: any(one.state == "open" for one in w.route.breakers))
        w.broker.allow_publish("out.x")
        await all_acked(w, 20)
        for number in range(10):
            assert payloads_of(w, f"k{number}") == [b"%d" % number, b"x"]


async def test_a_handler_that_never_blocks_costs_no_task(autojump_clock: MockClock) -> None:
    async def handler(message: Message) -> Message:
        return message

    async with world(handlers=[by_key(handler, concurrency=50)], brokers=one_broker()) as w:
        publish(w.broker, "a:1")
        await all_acked(w, 1)
        before = trio.lowlevel.current_statistics().tasks_living
        publish(w.broker, *(f"k{number}:{number}" for number in range(200)))
        await all_acked(w, 201)
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_there_are_no_more_tasks_than_calls(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, concurrency=5)], brokers=one_broker()) as w:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        publish(w.broker, *(f"k{number}:{number}" for number in range(50)))
        calls.let_go(*(f"k{number}" for number in range(50)))
        await all_acked(w, 50)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 5


async def test_a_scope_of_the_handler_stays_in_its_task(autojump_clock: MockClock) -> None:
    """What Trio ties to a task must not be continued in another one."""

    async def handler(message: Message) -> Message:
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0.5)
                await trio.sleep(3)
        return message

    async with world(handlers=[by_key(handler)], brokers=one_broker()) as w:
        publish(w.broker, *(f"k{number}:{number}" for number in range(10)))
        began = trio.current_time()
        await all_acked(w, 10)
        assert 3 <= trio.current_time() - began < 4, "three rounds of four"


async def test_calls_that_hang_are_told_unless_others_return(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "b:2", "c:3")
        await eventually(lambda: w.route.handling == 3)
        await trio.sleep(7)
        calls.let_go("c")
        await trio.sleep(7)
        assert w.route.reasons(trio.current_time()) == []
        await trio.sleep(2)
        (reason,) = w.route.reasons(trio.current_time())
        assert reason == "none of 2 calls of its handler has returned for 9 s, and messages may wait behind it"
        calls.let_go("a", "b")
        await all_acked(w, 3)
        assert w.route.handling == 0


async def test_a_handler_that_blocks_its_thread_is_called_in_one_of_its_own() -> None:
    """On the real clock: a thread is nothing that the autojump clock knows of."""
    from threading import Barrier, current_thread, main_thread

    together = Barrier(3, timeout=10)

    def handler(message: Message) -> Message:
        assert current_thread() is not main_thread()
        together.wait()
        return message.replace(payload=message.payload * 2)

    async with world(handlers=[by_key(handler, concurrency=3, thread=True)], brokers=one_broker()) as w:
        publish(w.broker, "a:1", "b:2", "c:3", "a:4", "b:5", "c:6")
        await eventually(lambda: len(w.broker.messages("OUT")) == 6)
        assert payloads_of(w, "a") == [b"11", b"44"]


async def test_an_async_handler_is_not_called_in_a_thread() -> None:
    with pytest.raises(ConfigurationError, match="the handler is async"):
        async with world(handlers=[by_key(Calls(), thread=True)], brokers=one_broker()):
            pass


@pytest.mark.parametrize(("key", "value"), [("concurrency", 2), ("thread", True)])
async def test_settings_of_a_handler_want_one(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"routes\\[0\\].{key}: .*the route has none"):
        async with world([LOCAL | {key: value}], brokers=one_broker()):
            pass
