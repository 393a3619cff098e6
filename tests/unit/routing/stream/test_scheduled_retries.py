"""`schedule` in `[routes.retry]`: messages wait in another stream for attempts that are far away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Message, Reject, Retry
from router_trio.errors import SourceError, reasons
from router_trio.events import RouteScheduleLost
from router_trio.link import LEAD_ENDS_AFTER, SchedulesCount, SchedulesSpec
from router_trio.protocol.headers import Headers
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing import FakeBroker, streams
from router_trio.testing.frames import Publish
from router_trio.testing.links import FakeLink
from router_trio.testing.streams import EPOCH
from tests.support.eventually import eventually
from tests.support.links import close_link
from tests.support.world import World, handled, stream, to, world
from tests.unit.readiness import until_unready, why

SCHEDULE = {"stream": "RETRY", "prefix": "retry", "after": "5s"}


def brokers(**config: Any) -> dict[str, FakeBroker]:
    """Return a broker with the streams IN, OUT and RETRY; RETRY keeps schedules, and has this configuration."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    settings = {"allow_message_schedules": True} | config
    broker._server.ensure_stream(StreamConfig("RETRY", ("retry.>",), **settings), 0.0)
    return {"main": broker}


def due(w: World) -> list[float]:
    """Return when the schedules of RETRY are due, on Trio's clock."""
    return sorted(one.due_ns / 1e9 - EPOCH for one in w.broker._server.streams["RETRY"].schedules.values())


def retrying(delay: str = "60s", **more: Any) -> dict[str, Any]:
    """Return `[routes.retry]` with delays that are always the same."""
    return {"retry": {"initial": delay, "factor": 1.0, "max": delay, "schedule": SCHEDULE, **more}}


class Failing:
    """A handler that fails for the first calls, and keeps the messages that it was called with."""

    def __init__(self, times: int, error: Callable[[], Exception] = ValueError) -> None:
        self.calls: list[Message] = []
        self._left = times
        self._error = error

    def __call__(self, message: Message) -> Message:
        self.calls.append(message)
        if self._left:
            self._left -= 1
            raise self._error()
        return message


def route(handler: Callable[..., Any], *destinations: Any, **more: Any) -> Any:
    """Return a route from IN through a handler."""
    ends = [
        to(one, jetstream=True) if isinstance(one, str) else one for one in destinations or ("out.{{wildcard(1)}}",)
    ]
    source = {"stream": "IN", "durable": "router", "filter": "in.*"}
    return handled(handler, to=ends, **source, **retrying() | more)


async def test_a_far_attempt_waits_in_the_other_stream_and_continues_from_there(autojump_clock: MockClock) -> None:
    handler = Failing(2)
    async with world(handlers=[route(handler)], brokers=brokers()) as w:
        sent = {"X-Kept": "1", "Nats-TTL": "1s", "nats-rollup": "sub", "Nats-Msg-Id": "order-7", "Router-Origin-X": "2"}
        w.broker.publish("in.a", b"body", sent)
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        began = trio.current_time()
        await trio.sleep(1.0)
        assert w.broker.unacked("IN", "router") == 0
        (at,) = due(w)
        assert began + 59 < at <= began + 61
        await trio.sleep(57)
        assert len(handler.calls) == 1
        await eventually(lambda: w.route.settled["scheduled"] == 2, 10)
        assert trio.current_time() >= at
        await eventually(lambda: w.route.settled["routed"] == 1, 100)
        assert w.payloads("OUT") == [b"body"]
        assert w.route_ledger() == (3, 0, {"scheduled": 2, "routed": 1})
        assert not due(w)
    first, *others = handler.calls
    assert len(others) == 2
    for one in others:
        assert (
            (one.subject, one.payload, one.headers)
            == ("in.a", b"body", Headers(sent))
            == (
                first.subject,
                first.payload,
                first.headers,
            )
        )
        assert (one.stream, one.sequence, one.timestamp) == ("IN", 1, first.timestamp)


async def test_a_near_attempt_stays_with_the_consumer(autojump_clock: MockClock) -> None:
    async with world(handlers=[route(Failing(1), **retrying("4s"))], brokers=brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1, 60)
        assert w.route_ledger() == (2, 0, {"returned": 1, "routed": 1})


async def test_attempts_before_and_after_the_wait_count_together(autojump_clock: MockClock) -> None:
    more = retrying(attempts=3) | {"dead_letter": {"subject": "out.dead"}}
    async with world(handlers=[route(Failing(9), **more)], brokers=brokers()) as w:
        w.broker.publish("in.other")
        w.broker.publish("in.a", b"body", {"Nats-Msg-Id": "order-7"})
        await eventually(lambda: w.route.settled["dead_lettered"] == 2, 300)
        letter = next(one for one in w.broker.messages("OUT") if one.payload == b"body")
        about = {name: letter.headers[f"Router-Dead-Letter-{name}"] for name in ("Attempts", "Subject", "Stream")}
        assert about == {"Attempts": "3", "Subject": "in.a", "Stream": "IN"}
        assert letter.headers["Router-Dead-Letter-Sequence"] == "2"
        assert letter.headers["Router-Dead-Letter-Message-Id"] == "order-7"
        assert w.route_ledger() == (6, 0, {"scheduled": 4, "dead_lettered": 2})


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sealed streams answer that the message is at fault: only such a failure uses up an attempt."""
    monkeypatch.setattr(streams, "SEALED", {"code": 400, "err_code": 10165, "description": "invalid per-message TTL"})


@pytest.mark.usefixtures("sealed")
async def test_a_copy_that_was_delivered_is_not_sent_again(autojump_clock: MockClock) -> None:
    """Also after the duplicate window of its stream."""
    there = brokers()
    there["main"].add_stream("OTHER", ["other"])
    there["main"].trouble.seal("OTHER")
    failing = stream("IN", "out.a", "other", filter="in.*") | retrying("300s")
    async with world([failing], brokers=there) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["scheduled"] == 1, 60)
        w.broker.delete_stream("OTHER")
        w.broker.add_stream("OTHER", ["other"])
        await eventually(lambda: w.route.settled["routed"] == 1, 400)
        assert w.payloads("OTHER") == [b"body"]
        assert [one.subject for one in w.broker.published].count("out.a") == 1


@pytest.mark.usefixtures("sealed")
async def test_the_destination_that_was_chosen_stays_the_same(autojump_clock: MockClock) -> None:
    handler = Failing(0)
    ends = [to(f"out.{name}", jetstream=True) for name in "ab"]
    there = brokers()
    there["main"].trouble.seal("OUT")
    async with world([stream("IN", *ends, filter="in.*") | retrying() | {"strategy": "weighted"}], brokers=there) as w:
        w.broker.publish("in.a", b"1")
        await eventually(lambda: w.route.settled["scheduled"] == 1, 60)
        first = next(one.subject for one in w.broker.published if one.subject.startswith("out."))
        w.broker.delete_stream("OUT")
        w.broker.add_stream("OUT", ["out.>"])
        w.broker.publish("in.a", b"2")
        await eventually(lambda: w.route.settled["routed"] == 2, 200)
        assert {one.payload: one.subject for one in w.broker.messages("OUT")}[b"1"] == first
    assert not handler.calls


async def test_later_messages_of_a_key_do_not_wait_for_one_that_is_scheduled(autojump_clock: MockClock) -> None:
    async with world(handlers=[route(Failing(1), key='headers["k"]')], brokers=brokers()) as w:
        for number in range(3):
            w.broker.publish("in.a", b"%d" % number, {"k": "x"})
        await eventually(lambda: w.route.settled["routed"] == 2, 10)
        assert w.payloads("OUT") == [b"1", b"2"]
        await eventually(lambda: w.route.settled["routed"] == 3, 100)
        assert w.payloads("OUT") == [b"1", b"2", b"0"]


@pytest.mark.parametrize("order", [{"key": "subject", "concurrency": 4}, {"concurrency": 4}, {}])
async def test_a_due_retry_does_not_overlap_another_call_of_its_key(
    order: dict[str, Any], autojump_clock: MockClock
) -> None:
    at_work: list[bytes] = []
    most: list[int] = []

    async def handle(message: Message) -> Message:
        at_work.append(message.payload)
        most.append(len(at_work))
        await trio.sleep(5)
        at_work.remove(message.payload)
        if message.payload == b"0" and len(most) == 1:
            raise ValueError
        return message

    async with world(handlers=[route(handle, **order)], brokers=brokers()) as w:
        w.broker.publish("in.a", b"0")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        await trio.sleep(58)
        for payload in (b"1", b"2", b"3"):
            w.broker.publish("in.a", payload)
        await eventually(lambda: w.route.settled["routed"] == 4, 120)
        assert len(most) == 5
        assert max(most) == 1, "one message of a key at a time"


async def test_a_restarted_router_gets_what_the_last_one_scheduled(autojump_clock: MockClock) -> None:
    there = brokers()
    async with world(handlers=[route(Failing(1))], brokers=there) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
    await trio.sleep(100)
    handler = Failing(0)
    async with world(handlers=[route(handler)], brokers=there) as w:
        await eventually(lambda: w.route.settled["routed"] == 1)
        assert w.payloads("OUT") == [b"body"]
        assert w.route_ledger() == (1, 0, {"routed": 1})
    assert [one.sequence for one in handler.calls] == [1]


@pytest.mark.parametrize("config", [{"allow_message_schedules": False}, {"max_messages": 5}])
async def test_messages_stay_with_the_consumer_if_the_other_stream_would_lose_them(
    config: dict[str, Any], autojump_clock: MockClock
) -> None:
    async with world(handlers=[route(Failing(1))], brokers=brokers(**config)) as w:
        await until_unready(w, "schedules_refused")
        assert "'RETRY'" in why(w)
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["routed"] == 1, 100)
        assert w.route_ledger() == (2, 0, {"returned": 1, "routed": 1})


async def test_schedules_that_were_deleted_by_hand_are_reported(autojump_clock: MockClock) -> None:
    async with world(handlers=[route(Failing(9), **retrying("200s"))], brokers=brokers()) as w:
        for number in range(3):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["scheduled"] == 3)
        first = next(iter(w.broker._server.streams["RETRY"].schedules))
        w.broker.trouble.delete_schedule("RETRY", first)
        await trio.sleep(130)
        [lost] = [one for one in w.watch.events if isinstance(one, RouteScheduleLost)]
        assert (lost.route, lost.stream) == ("route", "RETRY")
        assert (lost.scheduled, lost.fired, lost.there, lost.cancelled, lost.lost) == (3, 0, 2, 0, 1)
        assert lost.sentence().startswith(
            "Route route: 1 scheduled retry of stream RETRY will never be published, and 1 message is lost"
        )


@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("is_away", [True, False])
async def test_schedules_that_vanish_with_the_tail_of_their_stream_are_reported(
    is_away: bool, counted: bool, more: int, autojump_clock: MockClock
) -> None:
    """Also those that were stored since the last count, and whether or not the stream has new ones by then."""
    async with world(handlers=[route(Failing(99), **retrying("900s"))], brokers=brokers()) as w:
        for number in range(20):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["scheduled"] == 20)
        await trio.sleep(70 if counted else 1)
        if is_away:
            await w.lose()
        w.broker.trouble.forget("RETRY", 10)
        if is_away:
            await w.find()
        for number in range(more):
            w.broker.publish("in.a", b"%d" % number)
        await trio.sleep(300)
        [lost] = [one for one in w.watch.events if isinstance(one, RouteScheduleLost)]
        assert (lost.stream, lost.there, lost.lost) == ("RETRY", 10 + more, 10)
        assert w.route.schedules_lost == 10


async def test_due_retries_that_vanish_with_the_tail_are_lost_only_if_they_were_not_received(
    autojump_clock: MockClock,
) -> None:
    async with world(handlers=[route(Failing(6), **retrying("100s"))], brokers=brokers()) as w:
        for number in range(6):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["routed"] == 6, 300)
        w.broker.trouble.forget("RETRY", 3)
        await trio.sleep(300)
        assert not [one for one in w.watch.events if isinstance(one, RouteScheduleLost)]


@pytest.mark.parametrize("counted", ["before", "earlier", "meanwhile", "never"])
async def test_schedules_that_vanish_with_their_stream_are_reported(
    counted: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that were stored since the last count, or before the first one."""
    count_schedules = FakeLink.count_schedules

    async def count_later(link: FakeLink, spec: SchedulesSpec) -> SchedulesCount:
        if counted == "never" and trio.current_time() < 20:
            raise SourceError("no leader", reason=reasons.JETSTREAM_UNAVAILABLE)
        count = await count_schedules(link, spec)
        if counted == "meanwhile" and count.is_first:
            await trio.sleep(10.5)
        return count

    monkeypatch.setattr(FakeLink, "count_schedules", count_later)
    async with world(handlers=[route(Failing(9), **retrying("400s"))], brokers=brokers()) as w:
        await trio.sleep(10)
        for number in range(3):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["scheduled"] == 3)
        await trio.sleep(60 if counted == "before" else 1)
        w.broker.delete_stream("RETRY")
        w.broker._server.ensure_stream(StreamConfig("RETRY", ("retry.>",), allow_message_schedules=True), 0.0)
        await trio.sleep(200)
        [lost] = [one for one in w.watch.events if isinstance(one, RouteScheduleLost)]
        assert (lost.stream, lost.scheduled, lost.there, lost.lost) == ("RETRY", 3, 0, 3)
        assert w.route.schedules_lost == 3


async def test_retries_of_a_handler_are_scheduled_and_rejected_messages_are_not(autojump_clock: MockClock) -> None:
    async with world(handlers=[route(Failing(1, lambda: Retry(after=30.0)), **retrying("1s"))], brokers=brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        assert [round(at) for at in due(w)] == [30]
        await eventually(lambda: w.route.settled["routed"] == 1, 60)
    async with world(handlers=[route(Failing(1, Reject))], brokers=brokers()) as w:
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["given_up"] == 1)


LETTER = {"dead_letter": {"subject": "out.dead.{{wildcard(1)}}"}}


@pytest.mark.parametrize(
    ("more", "given", "fate"),
    [
        (LETTER, {"Router-Origin-Sequence": "x", "Router-Origin-Subject": "in.a"}, "dead_lettered"),
        (LETTER, {"X": "1"}, "dead_lettered"),
        (LETTER, {"Router-Origin-Subject": "in.*"}, "dead_lettered"),
        ({}, {"Router-Origin-Subject": "in.a"}, "given_up"),
        ({"dead_letter": {"subject": "out.dead"}}, {}, "dead_lettered"),
    ],
)
async def test_a_message_without_an_origin_is_given_up_at_once(
    more: dict[str, Any], given: dict[str, str], fate: str, autojump_clock: MockClock
) -> None:
    """Also if its subject is lost. Retried, it would fail for ever."""
    handler = Failing(0)
    async with world(handlers=[route(handler, **more)], brokers=brokers()) as w:
        w.broker.publish("retry.d.route", b"odd", given)
        await eventually(lambda: w.route.settled[fate] == 1, 10)
        assert w.route.given_up["no_origin"] == 1
        await trio.sleep(600)
        assert w.route_ledger() == (1, 0, {fate: 1})
        assert w.payloads("OUT") == ([b"odd"] if fate == "dead_lettered" else [])
        w.broker.publish("in.a", b"good")
        await eventually(lambda: b"good" in w.payloads("OUT"), 10)
    assert [one.payload for one in handler.calls] == [b"good"]


@pytest.mark.parametrize(
    "lines",
    [
        b"X: a\nNats-Schedule-z",
        b"X: a\nNats-Schedule",
        b"X: a\nNats-Expected-z\nNats-Schedule-y",
        b"X: a\nnats-schedule: b\r\nNats-Scheduler",
        b"Nats-Schedule-z",
        b"X: a\nNats-Msg-Id: b",
        b"X: a\n\nRouter-Origin-Subject: in.b",
    ],
)
async def test_no_line_of_a_message_costs_its_origin(lines: bytes, autojump_clock: MockClock) -> None:
    """A server cuts what begins like a header of schedules, with the line break behind it."""
    handler = Failing(9)
    more = retrying(attempts=3) | LETTER
    async with world(handlers=[route(handler, **more)], brokers=brokers()) as w:
        block = b"NATS/1.0\r\nA: 1\r\n%b\r\n\r\n" % lines
        w.broker._server.publish(Publish(b"in.a", b"", block, b"body"), trio.current_time())
        w.broker._network.settle()
        await eventually(lambda: w.route.settled["dead_lettered"] == 1, 300)
        assert w.route_ledger() == (3, 0, {"scheduled": 2, "dead_lettered": 1})
        [letter] = w.broker.messages("OUT")
    assert (letter.subject, letter.payload, letter.headers["Router-Dead-Letter-Reason"]) == (
        "out.dead.a",
        b"body",
        "handler_error",
    )
    assert letter.headers["Router-Dead-Letter-Subject"] == "in.a"
    assert len({one.headers for one in handler.calls}) == 1


ORIGIN = {
    "Subject": "in.a",
    "Stream": "IN",
    "Sequence": "1",
    "Time": "1",
    "Deliveries": "1",
    "Attempts": "1",
    "State": "{}",
}


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param({"State": '{"copies":[[-1e999,""]]}'}, id="an infinite copy"),
        pytest.param({"State": f'{{"copies":[[-{"9" * 4000},""]]}}'}, id="a huge copy"),
        pytest.param({"State": "[" * 50_000}, id="deep"),
        pytest.param({"Subject": "in.a b"}, id="a subject with a space"),
        pytest.param({"Subject": "in.a 5 5"}, id="a subject that looks like a frame"),
        pytest.param({"Subject": "in..\t>"}, id="a subject that is none"),
        pytest.param({"Sequence": "9" * 400}, id="a long sequence"),
        pytest.param({"Time": "1e9"}, id="a time that is no integer"),
        pytest.param({"Attempts": "-1"}, id="negative attempts"),
    ],
)
async def test_a_forged_origin_fails_one_message_at_most_and_stops_no_route(
    forged: dict[str, str], autojump_clock: MockClock
) -> None:
    async with world(handlers=[route(Failing(0))], brokers=brokers()) as w:
        headers = {f"Router-Origin-{name}": value for name, value in (ORIGIN | forged).items()}
        w.broker.publish("retry.d.route", b"forged", headers)
        await eventually(lambda: w.route.received == 1 and not w.route.in_hand, 10)
        w.broker.publish("in.a", b"good")
        await eventually(lambda: b"good" in w.payloads("OUT"), 10)
        assert w.route.state == "running"


async def test_a_schedule_that_is_not_confirmed_is_published_again_and_fires_once(autojump_clock: MockClock) -> None:
    handler = Failing(1)
    async with world(handlers=[route(handler)], brokers=brokers()) as w:
        w.broker.trouble.lose("puback", 1)
        w.broker.publish("in.a", b"body")
        await eventually(lambda: w.route.settled["scheduled"] == 1, 30)
        await eventually(lambda: w.route.settled["routed"] == 1, 100)
        await trio.sleep(70)
        assert w.route_ledger() == (2, 0, {"scheduled": 1, "routed": 1})
    assert len(handler.calls) == 2


@pytest.mark.usefixtures("sealed")
async def test_a_reload_keeps_what_is_in_hand_and_what_is_scheduled(autojump_clock: MockClock) -> None:
    there = brokers()
    there["main"].trouble.seal("OUT")
    before = stream("IN", "out.a", filter="in.*") | retrying("20s")
    async with world([before], brokers=there) as w:
        for number in range(5):
            w.broker.publish("in.a", b"%d" % number)
        await eventually(lambda: w.route.settled["scheduled"] == 5, 60)
        for changes in ({"hop_limit": 5}, {"retry": {"initial": "1s"}}, retrying("10s")):
            await w.live.reload(w.configuration(before | changes))
        w.broker.delete_stream("OUT")
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: len(w.payloads("OUT")) == 5, 120)
        assert sorted(w.payloads("OUT")) == [b"%d" % number for number in range(5)]


# --- with standby ---


class Process:
    """A router with `standby`: another one may have the lead. `calls` are the payloads that its handler got."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.fails: set[bytes] = set()

    def __call__(self, message: Message) -> Message:
        self.calls.append(message.payload)
        if message.payload in self.fails:
            self.fails.remove(message.payload)
            raise ValueError
        return message

    def open(self, there: dict[str, FakeBroker]) -> AbstractAsyncContextManager[World]:
        made = handled(self, to=to("out.{{wildcard(1)}}", jetstream=True), **READS, standby=True, **retrying())
        return world(handlers=[made], brokers=there)


READS = {"stream": "IN", "durable": "router", "filter": "in.*"}


async def test_due_retries_are_for_the_process_with_the_lead(autojump_clock: MockClock) -> None:
    there, first, second = brokers(), Process(), Process()
    first.fails = {b"0", b"1", b"2"}
    async with first.open(there) as w:
        for payload in (b"0", b"1", b"2", b"3"):
            w.broker.publish("in.a", payload)
        await eventually(lambda: w.route.settled["scheduled"] == 3)
        async with second.open(there) as other:
            await eventually(lambda: other.route.standby)
            await eventually(lambda: w.route.settled["routed"] == 4, 90)
            assert (sorted(first.calls), second.calls) == ([b"0", b"0", b"1", b"1", b"2", b"2", b"3"], [])
            assert other.route.received == 0
            assert not why(other)


async def test_due_retries_go_with_the_lead_when_its_process_ends(autojump_clock: MockClock) -> None:
    there, first, second, scheduled = brokers(), Process(), Process(), trio.Event()
    first.fails = {b"0", b"1", b"2"}

    async def lead() -> None:
        async with first.open(there) as w:
            for payload in (b"0", b"1", b"2"):
                w.broker.publish("in.a", payload)
            await eventually(lambda: w.route.settled["scheduled"] == 3)
            scheduled.set()
            await trio.sleep(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await scheduled.wait()
        async with second.open(there) as other:
            await eventually(lambda: other.route.settled["routed"] == 3, 90)
            assert sorted(first.calls) == sorted(second.calls) == [b"0", b"1", b"2"]


async def test_due_retries_go_with_the_lead_when_its_process_is_cut_off(autojump_clock: MockClock) -> None:
    there, first, second = brokers(), Process(), Process()
    first.fails = {b"0", b"1", b"2"}
    async with first.open(there) as w, second.open(there) as other:
        await eventually(lambda: other.route.standby)
        for payload in (b"0", b"1", b"2"):
            w.broker.publish("in.a", payload)
        await eventually(lambda: w.route.settled["scheduled"] == 3)
        close_link(w.live.connections["main"])
        there["main"].refuse_credentials()
        await eventually(lambda: not other.route.standby, 3 * LEAD_ENDS_AFTER)
        there["main"].accept_credentials()
        await eventually(lambda: w.route.standby, 30)
        await eventually(lambda: other.route.settled["routed"] == 3, 90)
        assert sorted(first.calls) == sorted(second.calls) == [b"0", b"1", b"2"]


async def test_a_reload_keeps_the_lead_and_what_is_scheduled(autojump_clock: MockClock) -> None:
    there, first, second = brokers(), Process(), Process()
    first.fails = {b"0"}
    async with first.open(there) as w, second.open(there) as other:
        w.broker.publish("in.a", b"0")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        for limit in (10, 20, 30):
            reads = {"from": READS | {"standby": True, "max_in_flight": limit}}
            end = {"to": [to("out.{{wildcard(1)}}", jetstream=True)]}
            await w.live.reload(w.configuration({"name": "route", **reads, **end, **retrying()}))
            assert other.route.standby
        await eventually(lambda: w.route.settled["routed"] == 1, 90)
        assert (first.calls, second.calls) == ([b"0", b"0"], [])


# --- into a bucket ---


INTO_BUCKET = [{"bucket": "B", "key": "{{wildcard(1)}}"}]


def with_bucket(there: dict[str, FakeBroker]) -> dict[str, FakeBroker]:
    there["main"].add_stream("KV_B", ["$KV.B.>"])
    return there


@pytest.mark.parametrize("order", [{}, {"key": "subject", "concurrency": 4}])
async def test_a_value_that_has_waited_does_not_replace_a_later_one(
    order: dict[str, Any], autojump_clock: MockClock
) -> None:
    handler = Failing(2)
    made = handled(handler, to=INTO_BUCKET, **READS, **retrying(), **order)
    async with world(handlers=[made], brokers=with_bucket(brokers())) as w:
        w.broker.publish("in.a", b"old")
        w.broker.publish("in.b", b"only")
        await eventually(lambda: w.route.settled["scheduled"] == 2)
        w.broker.publish("in.a", b"new")
        await eventually(lambda: w.route.settled["routed"] == 1, 10)
        await eventually(lambda: w.route.in_hand == 0 and w.route.received == 5, 100)
        assert [(one.subject, one.payload) for one in w.broker.messages("KV_B")] == [
            ("$KV.B.a", b"new"),
            ("$KV.B.b", b"only"),
        ]
        assert w.route.filtered == {"older": 1}
        assert (len(handler.calls), w.route.settled["routed"]) == (4, 2)


async def test_a_value_that_has_waited_is_not_sent_before_it_could_be_compared(autojump_clock: MockClock) -> None:
    made = handled(Failing(1), to=INTO_BUCKET, **READS, **retrying())
    async with world(handlers=[made], brokers=with_bucket(brokers())) as w:
        w.broker.publish("in.a", b"only")
        await eventually(lambda: w.route.settled["scheduled"] == 1)
        w.broker.deny_publish("$JS.API.STREAM.MSG.GET.IN")
        await eventually(lambda: w.route.failed["permission_denied"] >= 1, 100)
        assert not w.broker.messages("KV_B")
        w.broker.allow_publish("$JS.API.STREAM.MSG.GET.IN")
        await eventually(lambda: [one.payload for one in w.broker.messages("KV_B")] == [b"only"], 400)
