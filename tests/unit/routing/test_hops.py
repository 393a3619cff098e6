"""Messages in a circle: a header counts the routes that they have passed, and a limit ends the circle."""

from __future__ import annotations

from typing import Any

import pytest
from trio.testing import MockClock

from router_trio import Message, Settings
from router_trio.cli.explain_message import explain_message
from router_trio.errors import LoopError
from router_trio.protocol.headers import Headers, encode
from router_trio.routing.policy import hops
from router_trio.routing.route_plans import compile_routes
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.settings import settings
from tests.support.world import World, core, fill, handled, one_broker, stream, to, world

ROUND = [
    core("in.*", to("in.{{wildcard(1)}}", "edge"), name="there", connection="main") | {"hop_limit": 5},
    core("in.*", to("in.{{wildcard(1)}}"), name="back", connection="edge") | {"hop_limit": 5},
]


APART = {"edge": {"servers": ["nats://other:4222"]}}
"""Two servers: on one server these routes would feed themselves, and be refused."""


def brokers() -> dict[str, FakeBroker]:
    return {"main": FakeBroker(), "edge": FakeBroker()}


def passed(w: World) -> list[str]:
    """Return the counts that copies carry, on both brokers, sorted."""
    return sorted(one.headers.get("Router-Hops", "") for broker in w.brokers.values() for one in broker.published)


async def test_a_message_in_a_circle_fails_as_a_loop_at_the_limit(autojump_clock: MockClock) -> None:
    async with world(ROUND, brokers=brokers(), connections=APART) as w:
        w.broker.publish("in.a", b"x")
        await eventually(lambda: w.live.routes[1].failed["loop"] == 1)
        assert passed(w) == ["1", "2", "3", "4", "5"]
        assert w.route_ledger(0) == (3, 0, {"routed": 3})
        assert w.route_ledger(1) == (3, 0, {"routed": 2, "lost": 1})
        (failed,) = w.watch.of("ROUTE_MESSAGE_FAILED")
        assert failed.detail == "the message has passed 5 routes, and hop_limit is 5: does it go round in a circle?"


async def test_one_route_with_a_limit_ends_a_circle_with_routes_without_one(autojump_clock: MockClock) -> None:
    one = [ROUND[0], {key: value for key, value in ROUND[1].items() if key != "hop_limit"}]
    async with world(one, brokers=brokers(), connections=APART) as w:
        w.broker.publish("in.a", b"x")
        await eventually(lambda: w.live.routes[0].failed["loop"] == 1)
        assert passed(w) == sorted("1122334455")


async def test_a_handler_that_drops_the_headers_does_not_reset_the_count(autojump_clock: MockClock) -> None:
    def fresh(message: Message) -> Message:
        return message.replace(headers={"Router-Hops": "0"})

    handler = handled(fresh, subject="in.*", connection="main", to=to("in.x", "edge"), hop_limit=3)
    async with world([ROUND[1]], handlers=[handler], brokers=brokers(), connections=APART) as w:
        w.broker.publish("in.a", b"x")
        await eventually(lambda: w.live.routes[1].failed["loop"] == 1)
        assert passed(w) == ["1", "2", "3", "4"]


async def test_a_looping_message_of_a_stream_becomes_a_dead_letter_with_its_count(autojump_clock: MockClock) -> None:
    there = one_broker()
    there["main"].add_stream("DEAD", ["dead.*"])
    dead: dict[str, Any] = {"retry": {"attempts": 1}, "dead_letter": {"subject": "dead.{{wildcard(1)}}"}}
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*", **dead) | {"hop_limit": 2}
    async with world([route], brokers=there) as w:
        w.broker.publish("in.a", b"0")
        w.broker.publish("in.b", b"1", headers={"router-hops": "1"})
        w.broker.publish("in.c", b"2", headers={"Router-Hops": "2"})
        await eventually(lambda: w.route.fates["dead_lettered"] == 1 and w.route.fates["routed"] == 2)
        assert [one.headers["Router-Hops"] for one in w.broker.messages("OUT")] == ["1", "2"]
        (letter,) = w.broker.messages("DEAD")
        assert (letter.headers["Router-Hops"], letter.headers["Router-Dead-Letter-Reason"]) == ("2", "loop")


async def test_without_a_limit_hops_are_not_counted(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.{{wildcard(1)}}", filter="in.*")], brokers=one_broker()) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.fates["routed"] == 3)
        assert all("Router-Hops" not in one.headers for one in w.broker.messages("OUT"))


@pytest.mark.parametrize(
    ("block", "count"),
    [
        (b"", 0),
        (b"NATS/1.0\r\nA: 1\r\n\r\n", 0),
        (b"NATS/1.0\r\nRouter-Hops: 7\r\n\r\n", 7),
        (b"NATS/1.0\r\nrouter-HOPS:7\r\nRouter-Hops: 9\r\n\r\n", 7),
        (b"NATS/1.0\r\nRouter-Hops: -7\r\n\r\n", 0),
        (b"NATS/1.0\r\nRouter-Hops: many\r\n\r\n", 0),
        (b"NATS/1.0\r\nRouter-Hops: " + b"9" * 5000 + b"\r\n\r\n", 0),
        (b"NATS/1.0\r\nX-Router-Hops: 7\r\n\r\n", 0),
    ],
)
def test_the_hops_of_a_message_are_read_from_its_header(block: bytes, count: int) -> None:
    assert hops.count(block) == count
    if count:
        with pytest.raises(LoopError):
            hops.check(count, block)
    hops.check(count + 1, block)


def plan_of(**route: Any) -> Any:
    config: Settings = settings("nats://h", routes=[core("in", "out") | route])
    return compile_routes(config)


def test_explain_counts_hops_as_the_router_does() -> None:
    plans = plan_of(hop_limit=2)
    block = encode(Headers({"Router-Hops": "1"}))
    (sent,) = explain_message(plans, "in", block).as_json()["routes"][0]["destinations"]
    assert sent["headers"] == {"Router-Hops": ["2"]}
    found = explain_message(plans, "in", encode(Headers({"Router-Hops": "2"}))).as_json()["routes"][0]
    assert found["error"]["reason"] == "loop"
    assert found["destinations"] == []
