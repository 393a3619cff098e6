"""A route whose filter matches no subject of its stream is reported, with the subjects of the stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio.events import FilterOutside
from router_trio.telemetry.http.status import readiness
from tests.support.eventually import eventually
from tests.support.settings import stream_route
from tests.support.world import fill, numbers, one_broker, world


@pytest.mark.parametrize(
    ("filter", "outside"),
    [("orders.*", True), ("in.a.b", True), ("in.a", False), ("*.a", False), (None, False)],
)
async def test_a_filter_outside_of_its_stream_is_reported(
    filter: str | None, outside: bool, autojump_clock: MockClock
) -> None:
    route = stream_route("IN", "out.x", **({} if filter is None else {"filter": filter}))
    async with world([route], brokers=one_broker()) as w:
        await w.watch.until("ROUTE_READY")
        found = w.watch.of("ROUTE_FILTER_OUTSIDE_STREAM")
        assert len(found) == outside
        for one in found:
            assert isinstance(one, FilterOutside)
            assert (one.stream, one.filter, one.subjects) == ("IN", filter, "in.*")
            assert "which are in.*; correct the filter or the stream" in one.sentence()
        w.broker.down()
        await trio.sleep(1)
        w.broker.up()
        await trio.sleep(5)
        assert len(w.watch.of("ROUTE_FILTER_OUTSIDE_STREAM")) == outside, "once, not with each link"
        code, body = readiness(w.live, trio.current_time())
        assert code == (503 if outside else 200)
        if outside:
            (reason,) = body["reasons"]
            assert f"the filter {filter} matches none of the subjects of the stream 'IN'" in reason["reason"]
            w.broker.trouble.edit_subjects("IN", "in.*", "orders.*", "in.a.b")
            await eventually(lambda: readiness(w.live, trio.current_time())[0] == 200, 60)


async def test_messages_left_in_a_stream_are_routed_though_it_no_longer_takes_their_subjects(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    fill(brokers["main"], 5)
    brokers["main"].trouble.edit_subjects("IN", "other.*")
    async with world([stream_route("IN", "out.x", filter="in.*")], brokers=brokers) as w:
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        assert readiness(w.live, trio.current_time())[0] == 503
