"""The cause that a server reports is quoted beside trouble that lookups show, and never believed alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection.advisories import MOST_SUBSCRIBED
from router_trio.protocol.advisories import OF_STREAMS, Advisory, subject_of
from router_trio.testing import FakeBroker
from router_trio.testing.server import Server
from tests.support.eventually import eventually
from tests.support.world import World, fill, one_broker, stream, world

ROUTE = stream("IN", "out.x")


def advise(broker: FakeBroker, kind: str, stream: str, durable: str = "", **fields: Any) -> None:
    """Publish an advisory, as a server does, and any client with the permission can."""
    body = {"stream": stream, **({"consumer": durable} if durable else {}), **fields}
    broker.publish(subject_of(kind, stream, durable), json.dumps(body).encode())


OFFLINE: dict[str, Any] = {"replicas": [{"name": "n2", "offline": True}, {"name": "n3", "offline": True}]}


def reasons(w: World) -> str:
    return "; ".join(w.route.reasons(trio.current_time()))


async def test_a_lost_quorum_is_named_beside_what_lookups_show(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.settled["routed"] == 3)
        advise(w.broker, "quorum_lost", "IN", **OFFLINE)
        w.broker.trouble.cut_off("IN")
        await eventually(lambda: "has lost its quorum: 2 replicas are offline or behind (two, three)" in reasons(w), 30)
        assert "the server reports that stream" in reasons(w)
        (event,) = w.watch.of("NATS_QUORUM_LOST")
        assert (event.stream, event.durable) == ("IN", None)
        assert "two, three" in event.detail
        w.broker.trouble.cut_off("IN", False)
        fill(w.broker, 3, first=3)
        await eventually(lambda: w.route.settled["routed"] == 6, 120)
        await eventually(lambda: reasons(w) == "", 20)
        monkeypatch.setattr(Server, "advise", lambda *_, **__: None)
        w.broker.trouble.cut_off("IN")
        await eventually(lambda: reasons(w) != "", 30)
        assert "quorum" not in reasons(w), "the server has answered since then that all is well"


@pytest.mark.parametrize("durable", ["", "router"])
async def test_a_forged_advisory_changes_nothing(durable: str, autojump_clock: MockClock) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.settled["routed"] == 3)
        before = w.watch.codes
        for _ in range(100):
            for kind in ("quorum_lost", "deleted", "leader_elected"):
                advise(w.broker, kind, "IN", durable, leader="evil", **OFFLINE)
            if durable:
                advise(w.broker, "pause", "IN", durable, paused=True, pause_until="2099-01-01T00:00:00Z")
                advise(w.broker, "max_deliveries", "IN", durable, stream_seq=1, deliveries=5)
            await trio.sleep(0.1)
        assert reasons(w) == ""
        assert w.watch.codes == before
        fill(w.broker, 3, first=3)
        await eventually(lambda: w.route.settled["routed"] == 6)
        assert w.route.received_in_all == 6


async def test_advisories_cause_one_lookup_a_second(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.settled["routed"] == 1)
        checked: list[float] = []
        server = w.broker._server
        check = server.check_consumer

        def counted(*arguments: Any, **keywords: Any) -> Any:
            checked.append(trio.current_time())
            return check(*arguments, **keywords)

        monkeypatch.setattr(server, "check_consumer", counted)
        for _ in range(200):
            advise(w.broker, "leader_elected", "IN", "router", leader="n1")
            await trio.sleep(0.05)
        assert 5 <= len(checked) <= 12, "in ten seconds"


async def test_a_deleted_durable_is_named(autojump_clock: MockClock) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        await eventually(lambda: w.route.state == "running")
        advise(w.broker, "deleted", "IN", "router")
        w.broker.delete_consumer("IN", "router")
        event = await w.watch.until("NATS_SUBSCRIBE_ERROR")
        assert event.reason == "consumer_deleted"
        assert "the server reported that durable 'router' of stream 'IN' was deleted" in event.detail


async def test_refused_advisories_are_logged_once_and_nothing_else_is_worse(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].deny_subscribe("$JS.EVENT.>")
    async with world([ROUTE], brokers=brokers) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.settled["routed"] == 3)
        for _ in range(3):
            await w.lose()
            await w.find()
            await trio.sleep(10)
        (event,) = w.watch.of("NATS_ADVISORIES_REFUSED")
        assert event.reason == "permission_denied"
        assert event.subject.startswith("$JS.EVENT.ADVISORY.")
        fill(w.broker, 3, first=3)
        await eventually(lambda: w.route.settled["routed"] == 6)
        assert reasons(w) == ""


async def test_the_stream_of_a_destination_is_asked_about(autojump_clock: MockClock) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        fill(w.broker, 1)
        await eventually(lambda: w.route.settled["routed"] == 1)
        await trio.sleep(6)
        advise(w.broker, "deleted", "OUT")
        w.broker.delete_stream("OUT")
        fill(w.broker, 1, first=1)
        await eventually(lambda: "stream 'OUT' was deleted" in reasons(w), 20, lambda: reasons(w))


async def test_a_route_that_ends_is_not_listened_for(autojump_clock: MockClock) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        await eventually(lambda: w.route.state == "running")
        advisories = w.live.connections["main"].advisories
        await trio.sleep(1)
        assert ("IN", "router") in advisories._watched
        await w.live.reload(w.configuration())
        await trio.sleep(1)
        assert not any(name[0] == "IN" for name in advisories._watched)
        assert not any("ADVISORY.CONSUMER" in one.pattern for one in w.broker._server._interests)


async def test_a_bounded_number_of_streams_and_durables_is_subscribed_to(autojump_clock: MockClock) -> None:
    async with world([ROUTE], brokers=one_broker()) as w:
        await eventually(lambda: w.route.state == "running")
        advisories = w.live.connections["main"].advisories

        def subscribed() -> int:
            return sum("$JS.EVENT.ADVISORY" in one.pattern for one in w.broker._server._interests)

        def ignore(advisory: Advisory) -> None:
            pass

        for number in range(MOST_SUBSCRIBED):
            advisories.watch(f"S{number}", "", ignore)
        await trio.sleep(1)
        assert subscribed() == MOST_SUBSCRIBED * len(OF_STREAMS)
        last = f"S{MOST_SUBSCRIBED - 1}"
        assert not any(one.pattern.endswith(f".{last}") for one in w.broker._server._interests)
        for number in range(5):
            advisories.unwatch(f"S{number}", "", ignore)
        await trio.sleep(1)
        assert any(one.pattern.endswith(f".{last}") for one in w.broker._server._interests), "there is room now"
