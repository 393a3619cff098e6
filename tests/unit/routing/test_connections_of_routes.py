"""Waiting for connections of a route: no change of a connection is missed meanwhile."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from router_trio.routing.pipeline import first_change
from tests.support.world import two_brokers, world


async def test_a_connection_that_comes_up_in_the_turn_after_the_wait_begins_is_noticed(
    autojump_clock: MockClock,
) -> None:
    async with world(brokers=two_brokers()) as w:
        both = [w.live.connections[name] for name in ("main", "edge")]

        async def come_up() -> None:
            both[1]._notify_changed()

        for _ in range(20):  # tasks of one turn run in any order
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_up)
                with trio.fail_after(1.0):
                    await first_change(both)


async def test_a_finished_wait_leaves_no_listener(autojump_clock: MockClock) -> None:
    async with world(brokers=two_brokers()) as w:
        both = [w.live.connections[name] for name in ("main", "edge")]
        listeners = [len(one._change_listeners) for one in both]
        with trio.move_on_after(1.0):
            await first_change(both)
        assert [len(one._change_listeners) for one in both] == listeners
