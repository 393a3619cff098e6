"""Messages in a circle: a header counts the routes that they have passed, and a limit ends the circle."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Settings
from router_trio.cli.explain_message import explain_message
from router_trio.errors import LoopError
from router_trio.protocol import framing
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
    one = [ROUND[0], ROUND[1] | {"hop_limit": 0}]
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


async def test_a_limit_of_0_counts_nothing_and_ends_nothing(autojump_clock: MockClock) -> None:
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*") | {"hop_limit": 0}
    async with world([route], brokers=one_broker()) as w:
        fill(w.broker, 3)
        w.broker.publish("in.a", b"x", headers={"Router-Hops": "99"})
        await eventually(lambda: w.route.fates["routed"] == 4)
        assert [one.headers.get("Router-Hops") for one in w.broker.messages("OUT")] == [None, None, None, "99"]


async def test_a_copy_carries_the_count_of_its_message_without_configuration(autojump_clock: MockClock) -> None:
    route = stream("IN", "out.{{wildcard(1)}}", filter="in.*")
    async with world([route], brokers=one_broker()) as w:
        w.broker.publish("in.a", b"x", headers={"A": "1"})
        w.broker.publish("in.b", b"x", headers={"Router-Hops": "1"})
        w.broker.publish("in.c", b"x", headers={"Router-Hops": "4", "Router-Passed": "aaaaaaaa"})
        w.broker.publish("in.d", b"x", headers={"router-hops": "16"})
        await eventually(lambda: w.route.fates["routed"] == 3 and w.route.failed["loop"] == 1)
        copies = w.broker.messages("OUT")
        assert [one.headers.get("Router-Hops") for one in copies] == [None, "2", "5"]
        own = framing.text(compile_routes(w.configuration(route))[0].passed_as)
        assert [one.headers.get("Router-Passed") for one in copies] == [None, None, f"aaaaaaaa {own}"]


async def test_of_many_messages_of_a_stream_some_begin_to_be_counted(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.{{wildcard(1)}}", filter="in.*")], brokers=one_broker()) as w:
        fill(w.broker, 2 * hops.EVERY)
        await eventually(lambda: w.route.fates["routed"] == 2 * hops.EVERY)
        counted = [one for one in w.broker.messages("OUT") if one.headers.get("Router-Hops") == "1"]
        assert 1 <= len(counted) <= 4, "of messages that are sent together one at most"


UNLIMITED = [{key: value for key, value in one.items() if key != "hop_limit"} for one in ROUND]


async def test_a_circle_ends_without_configuration_and_is_reported(autojump_clock: MockClock) -> None:
    async with world(UNLIMITED, brokers=brokers(), connections=APART) as w:
        w.broker.publish("in.a", b"x")
        await eventually(lambda: w.live.routes[0].failed["loop"] == 1)
        assert passed(w)[-hops.DEFAULT_LIMIT :] == sorted(str(number) for number in range(1, hops.DEFAULT_LIMIT + 1))
        first = len(passed(w))
        assert first < 50
        reported = {one.route: one.passed_as for one in w.watch.of("ROUTE_IN_CIRCLE")}
        assert reported.keys() == {"back", "there"}
        ways = [one.headers.get("Router-Passed", "") for broker in w.brokers.values() for one in broker.published]
        assert {*" ".join(ways).split()} == {*reported.values()}, "they report the names that are in the header"
        for one in w.live.routes:
            (reason,) = one.reasons(trio.current_time())
            assert f"Router-Passed names the routes on the way, this one as {reported[one.name]}, " in reason
        for _ in range(50):
            w.broker.publish("in.b", b"x")
        await eventually(lambda: w.live.routes[0].failed["loop"] == 51)
        assert len(passed(w)) - first == 50 * hops.DEFAULT_LIMIT, "now every message is counted"
        assert len(w.watch.of("ROUTE_IN_CIRCLE")) == 2, "it is reported once a minute"
        await trio.sleep(61)
        assert [one.reasons(trio.current_time()) for one in w.live.routes] == [[], []]


async def test_of_many_core_messages_each_ends_its_circle(autojump_clock: MockClock) -> None:
    async with world(UNLIMITED, brokers=brokers(), connections=APART) as w:
        for number in range(300):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.live.routes[0].failed["loop"] + w.live.routes[1].failed["loop"] == 300)
        assert len(passed(w)) < 300 * 3 * hops.DEFAULT_LIMIT


async def test_a_circle_that_doubles_messages_ends(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hops, "DEFAULT_LIMIT", 8)
    double = UNLIMITED[0] | {"to": [to("in.{{wildcard(1)}}", "edge"), to("in.second", "edge")]}
    async with world([double, UNLIMITED[1]], brokers=brokers(), connections=APART) as w:
        w.broker.publish("in.a", b"x")
        await trio.sleep(5)  # the clock stands still while a message is on its way
        assert w.live.routes[0].failed["loop"] >= 2**4
        assert sum(one.in_hand for one in w.live.routes) == 0


async def test_a_declared_circle_is_no_warning(autojump_clock: MockClock) -> None:
    async with world([one | {"hop_limit": 20} for one in ROUND], brokers=brokers(), connections=APART) as w:
        for _ in range(5):
            w.broker.publish("in.a", b"x")
        await eventually(lambda: w.live.routes[0].failed["loop"] == 5)
        assert not w.watch.of("ROUTE_IN_CIRCLE")
        assert [one.reasons(trio.current_time()) for one in w.live.routes] == [[], []]


async def test_an_answer_has_the_count_of_its_request(autojump_clock: MockClock) -> None:
    def answer(message: Message) -> Message:
        return Message(subject="x", payload=b"answer", headers=Headers({"A": "1"}))

    handler = handled(answer, subject="in.*", to=(), respond=True)
    async with world(handlers=[handler]) as w:
        w.broker.publish("in.a", b"x", reply="_INBOX.a", headers={"Router-Hops": "3"})
        w.broker.publish("in.a", b"x", reply="_INBOX.b", headers={"Router-Hops": "16"})
        w.broker.publish("in.a", b"x", reply="_INBOX.c")
        await eventually(lambda: w.route.failed["loop"] == 1 and len(w.broker.published) == 2)
        assert [one.headers.get("Router-Hops") for one in w.broker.published] == ["4", None]
        assert [one.headers["A"] for one in w.broker.published] == ["1", "1"]


def test_every_message_of_a_pattern_begins_to_be_counted_some_time() -> None:
    one, chosen = hops.Hops(16, b"name"), set[int]()
    for _ in range(hops.EVERY * 40):
        chosen.update(one.chosen(5))
    assert chosen == set(range(5))
    assert [*one.chosen(hops.EVERY * 2)]
    assert not [*one.chosen(1)]


def test_the_names_of_routes_are_bounded_and_begin_at_the_third() -> None:
    one, block = hops.Hops(1000, hops.name_of(["r"])), b"NATS/1.0\r\nA: 1\r\n\r\n"
    for number in range(1, 40):
        lines = one.lines(block) or hops.FIRST
        block = hops.with_lines(hops.without(block), lines)
        assert hops.count(block) == number
        assert (b"Router-Passed" in block) == (number > hops.UNNAMED)
        assert len(block) < 250
    forged = b"NATS/1.0\r\nRouter-Hops: 5\r\nRouter-Passed: " + b"x" * 9000 + b" \xff\n evil\r\n\r\n"
    assert one.lines(forged) == b"Router-Hops: 6\r\nRouter-Passed: " + one.name + b"\r\n"


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
