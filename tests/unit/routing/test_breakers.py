"""Breakers of destinations: the input waits while one is open, one message probes, and nothing is redelivered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio.events import BreakerClosed, BreakerOpened, Event
from router_trio.message import Message
from router_trio.routing.flow.destination_breaker import DestinationBreaker
from router_trio.routing.route_counts import continue_counts, total
from router_trio.settings import BreakerSettings
from router_trio.states import PAUSED, RUNNING, DestinationState, RouteState
from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, all_acked, core, fill, handled, numbers, one_broker, stream, to, world
from tests.unit.routing.stream.refusing import arrived

BREAKER: dict[str, Any] = {"failures": 3, "pause": "10s"}


def guarded(subject: str = "out.{{wildcard(1)}}", **breaker: Any) -> dict[str, Any]:
    return to(subject, jetstream=True) | {"breaker": BREAKER | breaker}


def route(**source: Any) -> dict[str, Any]:
    return stream("IN", guarded(), filter="in.*", **source)


def reasons(w: World) -> list[str]:
    return [one["reason"] for one in readiness(w.live, trio.current_time())[1]["reasons"]]


def break_it(broker: FakeBroker, how: str) -> None:
    if how == "missing":
        broker.delete_stream("OUT")
    elif how == "denied":
        broker.deny_publish("out.>")
    elif how == "full":
        broker.trouble.limit("OUT", len(broker.messages("OUT")))
    else:
        broker.trouble.lose("puback", 1_000_000)


def mend(broker: FakeBroker, how: str) -> None:
    if how == "missing":
        broker.add_stream("OUT", ["out.>"])
    elif how == "denied":
        broker.allow_publish("out.>")
    elif how == "full":
        broker.trouble.limit("OUT", None)
    else:
        broker.trouble.lose("puback", 0)


@pytest.mark.parametrize("how", ["missing", "denied", "full", "silent"])
async def test_an_outage_of_a_destination_costs_no_message_and_few_deliveries(
    autojump_clock: MockClock, how: str
) -> None:
    brokers = one_broker()
    async with world([route(max_in_flight=20)], brokers=brokers) as w:
        fill(w.broker, 10, subjects="ab")
        await all_acked(w, 20)
        break_it(w.broker, how)
        fill(w.broker, 100, first=10, subjects="ab")
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        received = len(w.broker.published)
        await trio.sleep(60)
        # One message probes every ten seconds, and a publish without an answer is resent after five.
        assert len(w.broker.published) - received <= 60 + 2 * 7
        [reason] = [one for one in reasons(w) if "breaker" in one]
        assert (
            "the circuit breaker of destination 'out.{{wildcard(1)}}' on connection main is open: 3 failures in a row"
            in reason
        )
        assert w.route.state == PAUSED
        assert w.route.in_hand <= 40
        mend(w.broker, how)
        before = w.successes("ack")
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_CLOSED"), within=16)
        assert before == 20, "nothing got through before"
        if how == "missing":
            assert arrived(w, "a") + arrived(w, "b") != []
        await eventually(lambda: w.route_ledger()[1] == 0, within=200)
        await all_acked(w, 220)
        first = 10 if how == "missing" else 0
        assert arrived(w, "a") == arrived(w, "b") == numbers(110 - first, first=first)
        await eventually(lambda: not reasons(w))
        assert w.route.state == RUNNING
        [opened] = w.watch.of("ROUTE_BREAKER_OPENED")
        [closed] = w.watch.of("ROUTE_BREAKER_CLOSED")
        assert isinstance(opened, BreakerOpened)
        assert isinstance(closed, BreakerClosed)
        assert (opened.failed_count, opened.connection, opened.pause_seconds) == (3, "main", 10.0)
        assert 60 <= closed.open_seconds <= 80
        # Messages that failed before the breaker opened are redelivered; all others were delivered once.
        settled = w.route_ledger()[2]
        assert settled.get("returned", 0) <= 2
        assert settled["routed"] == 220


async def test_failures_interrupted_by_successes_do_not_open_a_breaker(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([route()], brokers=brokers) as w:
        w.broker.deny_publish("out.a")
        for number in range(200):
            fill(w.broker, 1, first=number, subjects="ab")
            await trio.sleep(0.1)
        await eventually(lambda: len(arrived(w, "b")) == 200)
        assert w.failures("publish_with_ack")["permission_denied"] >= 4
        w.broker.allow_publish("out.a")
        await all_acked(w, 400)
        assert not w.watch.of("ROUTE_BREAKER_OPENED")


async def test_messages_that_fail_by_their_own_fault_do_not_open_a_breaker(autojump_clock: MockClock) -> None:
    def picky(message: Message) -> Message:
        if message.payload.isdigit():
            raise ValueError
        return message

    broker = one_broker()["main"]
    route = handled(picky, stream="IN", durable="router", filter="in.*", to=guarded(), max_deliver=1)
    async with world(handlers=[route], brokers={"main": broker}) as w:
        fill(w.broker, 20)
        broker.publish("in.x", b"fine")
        await eventually(lambda: arrived(w, "x") == [b"fine"])
        assert not w.watch.of("ROUTE_BREAKER_OPENED")


async def test_dead_letters_that_are_not_stored_do_not_keep_a_breaker_open(autojump_clock: MockClock) -> None:
    broker = FakeBroker(max_payload=200)
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    broker.trouble.travel(lambda: 0.02)
    given_up = {"retry": {"initial": "50ms", "max": "1s", "attempts": 1}, "dead_letter": {"subject": "dead.x"}}
    breaker = guarded(failures=1, pause="1s")
    settings = stream("IN", breaker, "also.x", filter="in.*", max_in_flight=20) | given_up
    async with world([settings], brokers={"main": broker}) as w:
        broker.add_stream("ALSO", ["also.x"])
        for _ in range(100):
            broker.publish("in.x", b"x" * 300)
        # In each round trip one of them is redelivered: as many as are requested to probe.
        await eventually(lambda: w.route.failed["dead_letter"] >= 300)
        broker.delete_stream("OUT")
        broker.deny_publish("also.x")
        broker.publish("in.x", b"opens it, and is given up")
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await trio.sleep(5)  # what was requested before has been delivered
        broker.add_stream("OUT", ["out.>"])
        broker.allow_publish("also.x")
        broker.publish("in.y", b"closes it")  # those of in.x wait behind the message that was given up
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_CLOSED"), 10)


async def test_a_connection_that_is_down_does_not_open_a_breaker(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["main"].add_stream("IN", ["in.*"])
    brokers["edge"].add_stream("OUT", ["out.>"])
    there = to("out.{{wildcard(1)}}", "edge", jetstream=True) | {"breaker": BREAKER}
    async with world([stream("IN", there, connection="main", filter="in.*")], brokers=brokers) as w:
        fill(w.broker, 50)
        await w.lose("edge")
        fill(w.broker, 50, first=50)
        await trio.sleep(30)
        await w.find("edge")
        await all_acked(w, 100)
        assert not w.watch.of("ROUTE_BREAKER_OPENED")


async def test_order_is_kept_across_an_outage_with_a_slow_handler(autojump_clock: MockClock) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(0.01)
        return message

    broker = one_broker()["main"]
    async with world(
        handlers=[handled(slow, stream="IN", durable="router", filter="in.*", to=guarded())],
        brokers={"main": broker},
    ) as w:
        fill(w.broker, 50, subjects="abc")
        await trio.sleep(0.3)
        broker.trouble.limit("OUT", len(broker.messages("OUT")))
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await trio.sleep(25)
        broker.trouble.limit("OUT", None)
        await all_acked(w, 150)
        for subject in "abc":
            assert arrived(w, subject) == numbers(50)


async def soon(message: Message) -> Message:
    await trio.sleep(0.001)
    return message


async def test_a_message_that_used_up_the_limit_still_probes_after_its_handler(autojump_clock: MockClock) -> None:
    settings = route() | {"limit": {"rate": "1/s"}, "handler": f"{__name__}:soon"}
    async with world([settings], brokers=one_broker()) as w:
        break_it(w.broker, "denied")
        fill(w.broker, 10)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"), within=200)
        await trio.sleep(30)
        mend(w.broker, "denied")
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_CLOSED"), within=15)
        await all_acked(w, 10)
        assert arrived(w, "x") == numbers(10)


async def test_fallback_uses_the_next_destination_at_once_and_returns_to_the_first(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    broker.add_stream("SPARE", ["spare.>"])
    first, second = guarded("out.{{wildcard(1)}}", failures=1), to("spare.{{wildcard(1)}}", jetstream=True)
    settings = stream("IN", first, second, filter="in.*") | {"strategy": "fallback"}
    async with world([settings], brokers={"main": broker}) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        broker.delete_stream("OUT")
        began = trio.current_time()
        fill(w.broker, 50, first=10)
        await all_acked(w, 60)
        assert trio.current_time() - began < 1.0, "at once"
        assert [message.payload for message in broker.messages("SPARE")] == numbers(50, first=10)
        assert w.route_ledger()[2] == {"routed": 60}, "nothing was returned"
        assert not [one for one in reasons(w) if "breaker" in one], "one destination is enough"
        broker.add_stream("OUT", ["out.>"])
        await trio.sleep(11)
        fill(w.broker, 5, first=60)
        await all_acked(w, 65)
        assert len(w.watch.of("ROUTE_BREAKER_CLOSED")) == 1
        fill(w.broker, 5, first=65)
        await all_acked(w, 70)
        assert set(numbers(5, first=65)) <= set(arrived(w, "x"))


async def test_two_destinations_with_one_subject_have_separate_breakers(autojump_clock: MockClock) -> None:
    """This is the usual fallback: the same subject on another connection."""
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["main"].add_stream("IN", ["in.*"])
    for broker in brokers.values():
        broker.add_stream("OUT", ["out.>"])
    both = [to("out.{{wildcard(1)}}", name, jetstream=True) | {"breaker": {"failures": 1}} for name in ("edge", "main")]
    settings = stream("IN", *both, connection="main", filter="in.*") | {"strategy": "fallback"}
    async with world([settings], brokers=brokers) as w:
        brokers["edge"].trouble.seal("OUT")
        for number in range(30):
            fill(w.broker, 1, first=number)
            await trio.sleep(0.5)
        await all_acked(w, 30)
        edge, main = w.route.breakers
        assert (edge.state, main.state) == ("open", "closed")
        assert w.route.openings == {("edge", edge.template): 1}
        assert len(arrived(w, "x")) == 30
        assert w.route.held_up(trio.current_time()) == []


@pytest.mark.parametrize("strategy", ["all", "weighted"])
async def test_with_other_strategies_the_input_waits_and_only_all_is_held_up(
    autojump_clock: MockClock, strategy: str
) -> None:
    broker = one_broker()["main"]
    broker.add_stream("OTHER", ["other.>"])
    both = [guarded(), guarded("other.{{wildcard(1)}}")]
    settings = stream("IN", *both, filter="in.*") | {"strategy": strategy}
    async with world([settings], brokers={"main": broker}) as w:
        broker.trouble.seal("OTHER")
        fill(w.broker, 40)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await trio.sleep(5)
        acked = w.successes("ack")
        fill(w.broker, 40, first=40)
        await trio.sleep(4)
        assert w.successes("ack") == acked
        assert bool(w.route.held_up(trio.current_time())) is (strategy == "all")
        # A stream can't be unsealed, so it is recreated.
        broker.delete_stream("OTHER")
        broker.add_stream("OTHER", ["other.>"])
        await all_acked(w, 80)
        copies = len(arrived(w, "x")) + len(broker.messages("OTHER"))
        assert copies == (160 if strategy == "all" else 80), "each message once"


async def test_messages_of_a_subject_wait_in_the_intake_queue(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    async with world([core("in.*", guarded())], brokers={"main": broker}) as w:
        broker.trouble.seal("OUT")
        for number in numbers(3):
            broker.publish("in.x", number)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        for number in numbers(50, first=3):
            broker.publish("in.x", number)
        await trio.sleep(5)
        assert w.route_ledger() == (53, 50, {"lost": 3})
        assert w.route.held_up(trio.current_time())
        broker.delete_stream("OUT")
        broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.route_ledger() == (53, 0, {"lost": 3, "routed": 50}), within=30)
        assert [message.payload for message in broker.messages("OUT")] == numbers(50, first=3)
        assert w.watch.of("ROUTE_BREAKER_CLOSED")


async def test_a_held_message_that_its_destination_accepts_closes_the_breaker(autojump_clock: MockClock) -> None:
    """No message comes after it that could be the probe."""
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    held = core("in.*", guarded(), retry={"attempts": 0, "initial": "1s"})
    async with world([held], brokers={"main": broker}) as w:
        broker.delete_stream("OUT")
        for number in numbers(3):
            broker.publish("in.x", number)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_CLOSED"), within=16)
        await eventually(lambda: [message.payload for message in broker.messages("OUT")] == numbers(3))
        assert w.route.breakers[0].state == "closed"


async def test_a_shutdown_returns_messages_that_wait_for_a_breaker_at_once(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    async with world([route(max_in_flight=20)], brokers={"main": broker}) as w:
        broker.trouble.seal("OUT")
        fill(w.broker, 50)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await trio.sleep(3)
        assert w.route.in_hand > 10
        ended = trio.current_time()
    assert trio.current_time() - ended < 1.0
    assert w.route.settled["lost"] == 0


async def test_a_new_link_leaves_a_breaker_open(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    async with world([route()], brokers={"main": broker}) as w:
        broker.trouble.seal("OUT")
        fill(w.broker, 5)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await w.lose()
        await w.find()
        await trio.sleep(1)
        [breaker] = w.route.breakers
        assert breaker.state == "open"
        broker.delete_stream("OUT")
        broker.add_stream("OUT", ["out.>"])
        await all_acked(w, 5)
        assert breaker.state == "closed"


async def test_an_open_breaker_without_a_message_to_probe_holds_up_nothing_after_its_pause(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    async with world([core("in.*", guarded())], brokers={"main": broker}) as w:
        broker.trouble.limit("OUT", 0)
        for number in numbers(3):
            broker.publish("in.x", number)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        assert w.route.held_up(trio.current_time())
        await eventually(lambda: w.route.in_hand == 0, within=9)
        broker.trouble.limit("OUT", None)
        await trio.sleep(11)
        assert w.route.held_up(trio.current_time()) == []
        assert w.route.breakers[0].state == "open"
        broker.publish("in.x", b"tries")
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_CLOSED"))


async def test_deliveries_of_the_previous_route_do_not_interrupt_a_series_of_failures(
    autojump_clock: MockClock,
) -> None:
    """Its counts may be added between two failures: these are no messages that the destination took."""
    outbox = SimpleNamespace(refusals=SimpleNamespace(notify_of_retries=lambda key, tell: None))
    connection: Any = SimpleNamespace(name="main", outbox=outbox)
    state, before = (RouteState("route", "main", ["out"]) for _ in range(2))
    before.received = before.delivered["out"] = 5
    continue_counts(state, before)
    events: list[Event] = []
    settings = BreakerSettings(failures=2)
    to = DestinationState(state, "main", "out", "out", waits_for_puback=True, shown={})
    breaker = DestinationBreaker(
        settings,
        state,
        connection,
        to,
        events.append,
        lambda: None,
        several=False,
        falls_back=False,
        kept=False,
        never=frozenset(),
    )
    breaker.copy_refused("timeout")
    before.elapsed.record(1.0, 5)
    before.is_over = True
    assert total(state).delivered["out"] == 5
    assert events == []
    breaker.copy_refused("timeout")
    assert [one.code for one in events] == ["ROUTE_BREAKER_OPENED"]
    assert breaker.state == "open"
