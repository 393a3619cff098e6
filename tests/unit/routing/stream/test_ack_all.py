"""One ack for all before it, where a message fails again and again: what is settled behind it has no ack for long."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from router_trio.message import Message
from tests.support.eventually import eventually
from tests.support.world import World, fill, handled, numbers, one_broker, stream, unacked, world

SOURCE: dict[str, Any] = {"stream": "IN", "durable": "router", "filter": "in.*", "ack": "all", "ack_wait": "1s"}


def poisoned(*poison: int, until: trio.Event | None = None) -> Any:
    """A handler that raises for these numbers, `until` it is mended."""

    def handler(message: Message) -> Message:
        if int(message.payload) in poison and not (until is not None and until.is_set()):
            raise ValueError("every time")
        return message

    return handler


async def test_what_is_settled_behind_it_comes_again_less_and_less_often(autojump_clock: MockClock) -> None:
    mended = trio.Event()
    handler = handled(poisoned(0, until=mended), to="out.x", retry={"initial": "5s", "max": "5s"}, **SOURCE)
    async with world(handlers=[handler], brokers=one_broker()) as w:
        fill(w.broker, 101)
        await eventually(lambda: w.route.settled["routed"] == 100)
        await trio.sleep(60.0)
        # After 1, 3, 7, 15, 31 seconds: each second, the ack wait, would be 6,000.
        assert 300 <= w.route.settled["duplicate"] <= 600
        assert unacked(w) == 101
        mended.set()
        await eventually(lambda: w.route.settled["routed"] == 101, 10.0)
        await eventually(lambda: unacked(w) == 0)
        assert len(w.broker.published) == 101


async def test_a_small_window_over_a_slow_link_still_takes_what_is_new(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].trouble.travel(lambda: 0.02)
    handler = handled(poisoned(0), to="out.x", retry={"initial": "2s"}, max_in_flight=2, **SOURCE)
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 200)
        await eventually(lambda: w.route.settled["routed"] == 199, 60.0)


def refused_at_first(**retry: Any) -> dict[str, Any]:
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", ack="all", ack_wait="100s", retry=retry)


async def test_after_a_reload_it_is_known_what_has_no_ack(autojump_clock: MockClock) -> None:
    async with world([refused_at_first(initial="1s")], brokers=one_broker()) as w:
        w.broker.trouble.edit_subjects("OUT", "out.b")
        fill(w.broker, 10, subjects="ab")
        await eventually(lambda: w.route.settled["routed"] == 10)
        await w.live.reload(w.configuration(refused_at_first(initial="2s")))
        w.broker.trouble.edit_subjects("OUT", "out.>")
        await until_all_are_routed(w, 20)
        await eventually(lambda: unacked(w) == 0, 10.0)
        assert sorted(w.payloads("OUT")) == sorted(2 * numbers(10))


async def until_all_are_routed(w: World, count: int) -> None:
    await eventually(lambda: w.route.settled["routed"] == count, 20.0)
