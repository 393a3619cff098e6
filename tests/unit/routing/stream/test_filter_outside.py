"""A route whose filter matches nothing that its stream takes says so, with what the stream does take."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from router_trio.events import FilterOutside
from router_trio.telemetry.logs.sentences import sentence
from tests.support.settings import stream_route
from tests.support.world import one_broker, world


@pytest.mark.parametrize(
    ("filter", "outside"),
    [("orders.*", True), ("in.a.b", True), ("in.a", False), ("*.a", False), (None, False)],
)
async def test_a_filter_outside_of_its_stream_is_told(
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
            assert "which are in.*; correct the filter, or the stream" in sentence(one)
        w.broker.down()
        await trio.sleep(1)
        w.broker.up()
        await trio.sleep(5)
        assert len(w.watch.of("ROUTE_FILTER_OUTSIDE_STREAM")) == outside, "once, not with each link"
