"""Limits of routes: at most burst + rate x t in any time t, nothing is lost, nothing is redelivered."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from router_trio.message import Message
from router_trio.testing import FakeBroker
from router_trio.testing.streams import Stored, Stream
from router_trio.testing.watch import Watch
from tests.support.eventually import eventually
from tests.support.world import (
    all_acked,
    fill,
    handled,
    numbers,
    one_broker,
    stream,
    unacked,
    world,
)
from tests.unit.routing.by_key import IN, KEY, OUT, payloads_of, publish, unchanged
from tests.unit.routing.policy.test_limit import assert_bounded
from tests.unit.routing.stream.refusing import arrived


class Times(Watch):
    """The times at which copies reached the broker, by subject."""

    def __init__(self, broker: FakeBroker) -> None:
        self.of: dict[str, list[float]] = {}
        broker.trouble.watch(self)

    def received(self, publish: Any, now: float) -> None:
        subject = publish.subject.decode()
        if subject.startswith("out."):
            self.of.setdefault(subject, []).append(trio.current_time())

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        pass

    def refused(self, publish: Any, why: str, now: float) -> None:
        pass

    def ack_taken(self, stream: str, durable: str, sequence: int, now: float) -> None:
        pass

    @property
    def all(self) -> list[float]:
        return sorted(at for times in self.of.values() for at in times)


def limited(rate: str, burst: int | None = None, per: str | None = None, **source: Any) -> dict[str, Any]:
    limit = {"rate": rate} | ({} if burst is None else {"burst": burst}) | ({} if per is None else {"per": per})
    return stream("IN", "out.{{wildcard(1)}}", filter="in.*", **source) | {"limit": limit}


async def test_a_stream_is_paced_and_few_messages_wait_in_hand(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    async with world([limited("50/s", burst=20)], brokers={"main": broker}) as w:
        fill(broker, 400)
        most = 0
        began = trio.current_time()
        while w.successes("ack") < 400:
            await trio.sleep(0.05)
            most = max(most, w.route.in_hand)
            assert unacked(w) == w.route.in_hand
        assert trio.current_time() - began == pytest.approx((400 - 20) / 50, abs=0.3)
        assert most <= 20 + 50
        assert_bounded(times.all, 50, 1, 20)
        assert arrived(w, "x") == numbers(400)
        assert w.route_ledger() == (400, 0, {"routed": 400}), "nothing was redelivered"
        assert w.route.limited >= 370
        [limit] = {event.rate for event in w.watch.of("ROUTE_LIMITED")}
        assert limit == "50/s"
        # While idle, the bucket fills again.
        await trio.sleep(5)
        waited = w.route.limited
        fill(broker, 20, first=400)
        await all_acked(w, 420)
        assert w.route.limited == waited


async def test_a_rate_per_hour_requests_a_message_only_when_it_may_be_sent_soon(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    async with world([limited("10/h", ack_wait="2s")], brokers={"main": broker}) as w:
        fill(broker, 5)
        for _ in range(1500):
            await trio.sleep(1)
            keeper: Any = w.route.holder
            oldest = max((trio.current_time() - one.received_at for one in keeper.hand.open.values()), default=0.0)
            assert oldest <= 2.0
        assert_bounded(times.all, 10, 3600, 1)
        assert len(times.all) == 5
        assert w.route_ledger() == (5, 0, {"routed": 5})


async def test_the_limit_holds_across_lost_links(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    async with world([limited("20/s", burst=10)], brokers={"main": broker}) as w:
        fill(broker, 200)
        for _ in range(4):
            await trio.sleep(1.3)
            await w.lose()
            await trio.sleep(0.05)
            await w.find()
        await all_acked(w, 200)
        assert len(times.all) >= 200
        assert arrived(w, "x") == numbers(200)
        # Messages in flight when a link was lost are resent: at most a burst each time.
        assert_bounded(times.all, 20, 1, 10 + 4 * 10)


async def test_filtered_messages_do_not_count_against_the_limit(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    settings = limited("10/s", burst=5) | {"when": 'string(payload).endsWith("0")'}
    async with world([settings], brokers={"main": broker}) as w:
        fill(broker, 1000)
        began = trio.current_time()
        await all_acked(w, 1000)
        assert trio.current_time() - began == pytest.approx((100 - 5) / 10, abs=1.5)
        assert_bounded(times.all, 10, 1, 5)
        assert w.route_ledger()[2] == {"routed": 100, "filtered": 900}


async def test_a_handler_is_called_at_the_rate_of_the_limit(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    async with world(
        [
            stream("IN", "out.{{wildcard(1)}}", filter="in.*")
            | {"limit": {"rate": "20/s", "burst": 3}, "handler": f"{__name__}:passes"}
        ],
        brokers={"main": broker},
    ) as w:
        calls.clear()
        fill(broker, 60)
        await all_acked(w, 60)
        assert_bounded(calls, 20, 1, 3)
        assert arrived(w, "x") == numbers(60)


@pytest.mark.parametrize("by_key", [False, True])
async def test_a_burst_that_uses_up_the_limit_exactly_is_not_reported_as_limited(
    autojump_clock: MockClock, by_key: bool
) -> None:
    settings = limited("1/h", burst=20) | ({"key": "subject"} if by_key else {})
    broker = one_broker()["main"]
    async with world([settings], brokers={"main": broker}) as w:
        fill(broker, 20)
        await all_acked(w, 20)
        await trio.sleep(1)
        assert w.watch.of("ROUTE_LIMITED") == []


async def test_a_message_sent_at_once_is_not_counted_as_limited(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    settings = limited("20/s", burst=60) | {"handler": f"{__name__}:passes"}
    async with world([settings], brokers={"main": broker}) as w:
        fill(broker, 60)
        await all_acked(w, 60)
        assert w.route.limited == 0
        assert not w.watch.of("ROUTE_LIMITED")


calls: list[float] = []


async def passes(message: Message) -> Message:
    calls.append(trio.current_time())
    await trio.sleep(0.001)
    return message


@pytest.mark.parametrize("source", [IN, {"subject": "in.*"}], ids=["stream", "subject"])
async def test_a_message_without_a_key_uses_up_nothing_of_the_limit(
    autojump_clock: MockClock, source: dict[str, Any]
) -> None:
    limit = {"rate": "1/h", "burst": 1}
    route = handled(unchanged, to=OUT, key=KEY, limit=limit, retry={"attempts": 1}, **source)
    async with world(handlers=[route], brokers=one_broker()) as w:
        publish(w.broker, ":1", ":2", "a:3")
        await eventually(lambda: payloads_of(w, "a") == [b"3"], 5)
        assert sum(w.route.failed.values()) == 2


@pytest.mark.parametrize("source", [IN, {"subject": "in.*"}], ids=["stream", "subject"])
async def test_filtered_messages_without_a_key_add_nothing_to_the_limit(
    autojump_clock: MockClock, source: dict[str, Any]
) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    settings = {"key": KEY, "when": '"key" in headers', "limit": {"rate": "1/s", "burst": 2}, "retry": {"attempts": 1}}
    async with world(handlers=[handled(unchanged, to=OUT, **settings, **source)], brokers={"main": broker}) as w:
        for _ in range(20):
            publish(broker, "a:1", *[":0"] * 10)
            await trio.sleep(0.1)
        await eventually(lambda: w.route.settled["routed"] + w.route.settled["filtered"] == 220, within=60)
        assert_bounded(times.all, 1, 1, 2)


async def test_messages_behind_a_long_call_of_their_key_do_not_keep_others_from_being_requested(
    autojump_clock: MockClock,
) -> None:
    async def takes_long(message: Message) -> Message:
        if message.headers["key"] == "slow":
            await trio.sleep(300)
        return message

    limit = {"rate": "10/s", "burst": 10}
    route = handled(takes_long, to=OUT, key=KEY, concurrency=10, max_in_flight=100, limit=limit, **IN)
    async with world(handlers=[route], brokers=one_broker()) as w:
        publish(w.broker, *["slow:1"] * 40)
        await trio.sleep(10)
        publish(w.broker, *[f"{number}:1" for number in range(20)])
        await eventually(lambda: w.route.settled["routed"] == 20, within=30)


@pytest.mark.parametrize("per", [None, "tokens[1]"])
async def test_messages_that_fail_by_their_own_fault_leave_half_of_the_limit_to_others(
    per: str | None, autojump_clock: MockClock
) -> None:
    broker = FakeBroker(max_payload=200)
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    settings = limited("30/s", burst=5, per=per, max_in_flight=200) | {"retry": {"initial": "100ms", "max": "1s"}}
    async with world([settings], brokers={"main": broker}) as w:
        for _ in range(100):
            broker.publish("in.x", b"x" * 300)
        # More attempts would be due than the limit admits.
        await eventually(lambda: w.route.failed["too_large"] >= 300, 60)
        fill(broker, 60)
        began = trio.current_time()
        await eventually(lambda: len(arrived(w, "x")) == 60, 60)
        assert trio.current_time() - began < 60 / 15 + 1
        failed = w.route.failed["too_large"]
        await trio.sleep(20)
        assert w.route.failed["too_large"] - failed == pytest.approx(15 * 20, abs=15), "they get the other half"


@pytest.mark.parametrize("per", [None, "tokens[1]"])
async def test_dead_letters_that_are_not_stored_leave_half_of_the_limit_to_others(
    per: str | None, autojump_clock: MockClock
) -> None:
    broker = one_broker()["main"]
    broker.deny_publish("dead.>")
    broker.trouble.travel(lambda: 0.02)
    given_up = {"retry": {"initial": "50ms", "max": "1s", "attempts": 1}, "dead_letter": {"subject": "dead.x"}}
    settings = limited("20/s", burst=1, per=per, max_in_flight=200) | given_up
    settings["to"][0]["headers"] = {"set": {"X-Number": "string(int(string(payload)))"}}
    async with world([settings], brokers={"main": broker}) as w:
        for _ in range(60):
            broker.publish("in.x", b"no number")
        await eventually(lambda: w.route.failed["dead_letter"] >= 150, 60)
        fill(broker, 20)
        await eventually(lambda: len(arrived(w, "x")) == 20, 20 / 10 + 3)


# --- a limit for each value ---


async def test_each_value_has_its_own_limit_and_others_pass(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    times = Times(broker)
    settings = limited("10/s", burst=5, per="tokens[1]", max_in_flight=100)
    async with world([settings], brokers={"main": broker}) as w:
        fill(broker, 60, subjects="a")
        fill(broker, 5, subjects="b")
        began = trio.current_time()
        await eventually(lambda: len(arrived(w, "b")) == 5)
        assert trio.current_time() - began < 0.1, "overtakes the waiting messages"
        assert w.route.waiting_for_limit == 55
        await all_acked(w, 65)
        assert trio.current_time() - began == pytest.approx((60 - 5) / 10, abs=0.3)
        assert arrived(w, "a") == numbers(60)
        for subject in ("out.a", "out.b"):
            assert_bounded(times.of[subject], 10, 1, 5)
        assert w.route_ledger() == (65, 0, {"routed": 65})
        assert w.route.limited == 55
        assert w.watch.of("ROUTE_LIMITED")


async def test_messages_waiting_for_their_value_fill_the_room_in_hand_and_then_the_route_waits(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    settings = limited("10/s", burst=1, per="tokens[1]", max_in_flight=10, ack_wait="2s")
    async with world([settings], brokers={"main": broker}) as w:
        fill(broker, 100, subjects="a")
        fill(broker, 1, subjects="b")
        while len(arrived(w, "a")) < 100:
            await trio.sleep(0.05)
            assert w.route.in_hand <= 20
        await all_acked(w, 101)
        assert arrived(w, "a") == numbers(100)
        assert w.route_ledger() == (101, 0, {"routed": 101}), "nothing was returned or redelivered"


async def test_a_message_without_the_value_fails_and_holds_up_no_others(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    settings = limited("10/s", per="body.tenant") | {"retry": {"attempts": 1}}
    async with world([settings], brokers={"main": broker}) as w:
        broker.publish("in.x", b"no JSON")
        broker.publish("in.x", b'{"tenant": 7}')
        await eventually(lambda: arrived(w, "x") == [b'{"tenant": 7}'])
        assert w.route.failed["expression"] == 1
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 1, "given_up": 1}))


async def test_a_filtered_message_needs_no_value(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    settings = limited("1/s", per="body.tenant") | {"when": 'subject == "in.x"'}
    async with world([settings], brokers={"main": broker}) as w:
        broker.publish("in.y", b"no JSON")
        broker.publish("in.x", b'{"tenant": 7}')
        await all_acked(w, 2)
        assert w.route_ledger() == (2, 0, {"routed": 1, "filtered": 1})


async def test_the_order_of_a_value_is_kept_when_its_destination_refuses(
    autojump_clock: MockClock,
) -> None:
    broker = one_broker()["main"]
    async with world([limited("20/s", burst=4, per="tokens[1]")], brokers={"main": broker}) as w:
        broker.deny_publish("out.a")
        fill(broker, 30, subjects="ab")
        await trio.sleep(3)
        broker.allow_publish("out.a")
        await all_acked(w, 60)
        assert arrived(w, "a") == arrived(w, "b") == numbers(30)


async def test_a_shutdown_returns_waiting_messages(autojump_clock: MockClock) -> None:
    broker = one_broker()["main"]
    for per in (None, "tokens[1]"):
        async with world([limited("1/h", burst=2, per=per)], brokers={"main": broker}) as w:
            fill(broker, 10)
            await eventually(lambda: w.successes("ack") == 2)
            ended = trio.current_time()
        assert trio.current_time() - ended < 1.0
        assert w.route.settled["lost"] == 0


async def test_messages_behind_a_limited_one_are_returned_with_it_at_the_end(
    autojump_clock: MockClock,
) -> None:
    async with world(
        [limited("6/m", burst=1, per="subject", retry={"initial": "50ms"})],
        brokers=one_broker(),
    ) as w:
        w.broker.deny_publish("out.a")
        fill(w.broker, 1, subjects="a")
        await eventually(lambda: w.route.failed["permission_denied"] == 1)
        w.broker.allow_publish("out.a")
        await trio.sleep(1)
        fill(w.broker, 2, first=1, subjects="a")
        await trio.sleep(1)
        assert w.route.in_hand == 3
        ended = trio.current_time()
    assert trio.current_time() - ended < 1
    assert w.route.fates["returned"] == 4
