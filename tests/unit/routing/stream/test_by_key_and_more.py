"""Routes from a stream with a key, combined with limits, breakers and threads, and at the end of the router."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio import Message
from router_trio.errors import ConfigurationError
from tests.support.eventually import eventually
from tests.support.world import LOCAL, all_acked, numbers, one_broker, world
from tests.unit.routing.by_key import KEY, OUT, Calls, by_key, payloads_of, publish


async def test_messages_in_the_handler_and_waiting_ones_are_returned_at_the_end(autojump_clock: MockClock) -> None:
    calls, again = Calls(), Calls()
    brokers = one_broker()
    async with world(handlers=[by_key(calls)], brokers=brokers, shutdown_timeout=1.0) as w:
        publish(w.broker, "a:1", "a:2", "b:3", "c:4", "c:5")
        await eventually(lambda: len(calls.active) == 3)
        ledger = w.live.routes[0]
    assert ledger.settled["returned"] == 5
    again.let_go("a", "b", "c")
    async with world(handlers=[by_key(again)], brokers=brokers) as w:
        await all_acked(w, 5)
        assert payloads_of(w, "a") == [b"1", b"2"]
        assert payloads_of(w, "c") == [b"4", b"5"]


async def test_a_message_that_waited_for_its_limit_and_then_for_its_turn_holds_up_no_others(
    autojump_clock: MockClock,
) -> None:
    """While a breaker lets one message at a time probe, it is this message that is redelivered."""
    guarded = [
        {"subject": f"out.{name}", "jetstream": True, "breaker": {"failures": 2, "pause": "500ms"}} for name in "xy"
    ]
    limit = {"rate": "50/s", "burst": 1, "per": "subject"}
    sticky = {"strategy": "sticky", "key": KEY, "to": guarded, "limit": limit, "retry": {"initial": "1s"}}
    brokers = one_broker()
    async with world([LOCAL | sticky], brokers=brokers) as w:
        w.broker.trouble.travel(lambda: 0.02)
        w.broker.deny_publish("out.>")
        publish(w.broker, *(f"a:{number}" for number in range(5)))
        await eventually(lambda: w.route.breakers[0].state == "open" or w.route.breakers[1].state == "open")
        w.broker.allow_publish("out.>")
        await all_acked(w, 5)
        assert w.payloads("OUT") == [f"{number}".encode() for number in range(5)]


async def test_a_breaker_takes_back_the_messages_that_it_holds_up(autojump_clock: MockClock) -> None:
    to = OUT | {"breaker": {"failures": 2, "pause": "5s"}}
    async with world([LOCAL | {"key": KEY, "to": [to]}], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, *(f"k{number}:{number}" for number in range(10)), *(f"k{number}:x" for number in range(10)))
        await eventually(lambda: any(one.state == "open" for one in w.route.breakers))
        w.broker.allow_publish("out.x")
        await all_acked(w, 20)
        for number in range(10):
            assert payloads_of(w, f"k{number}") == [b"%d" % number, b"x"]


async def test_answers_returned_while_a_breaker_is_open_wait_and_one_probes(autojump_clock: MockClock) -> None:
    calls = Calls()
    to = OUT | {"breaker": {"failures": 2, "pause": "5s"}}
    async with world(handlers=[by_key(calls, to=to, concurrency=8)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        publish(w.broker, *(f"k{number}:{number}" for number in range(8)))
        await eventually(lambda: len(calls.active) == 8)
        calls.let_go("k0", "k1")
        await eventually(lambda: any(one.state == "open" for one in w.route.breakers))
        tried = w.failures("publish_with_ack")
        calls.let_go(*(f"k{number}" for number in range(8)))
        await trio.sleep(2)
        assert w.failures("publish_with_ack") == tried == {"permission_denied": 2}, "nothing more is sent to the stream"
        w.broker.allow_publish("out.x")
        await all_acked(w, 8)
        assert sorted(one.payload for one in w.broker.messages("OUT")) == numbers(8)


async def test_a_handler_that_never_blocks_needs_no_task(autojump_clock: MockClock) -> None:
    async def handler(message: Message) -> Message:
        return message

    async with world(handlers=[by_key(handler, concurrency=50)], brokers=one_broker()) as w:
        publish(w.broker, "a:1")
        await all_acked(w, 1)
        before = trio.lowlevel.current_statistics().tasks_living
        publish(w.broker, *(f"k{number}:{number}" for number in range(200)))
        await all_acked(w, 201)
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_there_are_no_more_tasks_than_concurrent_calls(autojump_clock: MockClock) -> None:
    calls = Calls()
    async with world(handlers=[by_key(calls, concurrency=5)], brokers=one_broker()) as w:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        publish(w.broker, *(f"k{number}:{number}" for number in range(50)))
        calls.let_go(*(f"k{number}" for number in range(50)))
        await all_acked(w, 50)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 5


async def test_a_scope_of_the_handler_stays_in_its_task(autojump_clock: MockClock) -> None:
    """A call that uses task-bound features of Trio must not continue in another task."""

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
        assert 3 <= trio.current_time() - began < 4, "three rounds of four calls"


async def test_hanging_calls_are_reported_unless_others_return(autojump_clock: MockClock) -> None:
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
        assert reason == "none of 2 calls of its handler has returned for 9 s; other messages may be waiting for it"
        calls.let_go("a", "b")
        await all_acked(w, 3)
        assert w.route.handling == 0


async def test_a_blocking_handler_is_called_in_a_thread() -> None:
    """On the real clock, like the barrier."""
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


async def test_a_thread_needs_a_handler() -> None:
    with pytest.raises(ConfigurationError, match=r"routes\[0\].thread: .*the route has none"):
        async with world([LOCAL | {"thread": True}], brokers=one_broker()):
            pass
