"""The judge recognizes what a router reports on `/readyz`."""

from __future__ import annotations

from trio.testing import MockClock

from tests.simulation import readyz
from tests.support.eventually import eventually
from tests.support.world import fill, one_broker, stream, to, world


async def test_an_open_breaker_is_recognized_by_its_own_words(autojump_clock: MockClock) -> None:
    guarded = to("out.{{wildcard(1)}}", jetstream=True) | {"breaker": {"failures": 1, "pause": "60s"}}
    async with world([stream("IN", guarded, filter="in.*")], brokers=one_broker()) as w:
        w.broker.delete_stream("OUT")
        fill(w.broker, 1)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        assert readyz.unready(w.live, (), None, but_breakers=True) is not None, "the stream is missing, too"
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: readyz.unready(w.live, (), None, but_breakers=True) is None, 30)
        assert readyz.unready(w.live, (), "route", but_breakers=False) is not None
        assert readyz.is_held_up(w.live, "route")
